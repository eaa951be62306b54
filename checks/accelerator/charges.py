"""What one instruction of an optimised program costs: bytes, products, launches. What cannot be counted is said."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from checks.accelerator import hlo

# No kernel: names of buffers, and the ends of what was started before.
FREE = {"add-dependency", "after-all", "bitcast", "constant", "domain", "get-tuple-element", "opt-barrier", "parameter"}
FREE |= {"partition-id", "replica-id", "tuple"}
_NO_WORK = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "Sharding"}
_NO_WORK |= {"SPMDFullToShardShape", "SPMDShardToFullShape"}
COLLECTIVES = {"all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute"}
COLLECTIVES |= {"ragged-all-to-all", "reduce-scatter"}
_SORTED_AT_ONCE = 2048  # values that one kernel sorts in its shared memory


class Charge(NamedTuple):
    """The cost of one instruction, run once.

    Attributes:
      written: bytes.
      read: bytes.
      products: operations by what multiplies them, see `targets.Target.products`.
      launches: kernels one after another.
      unknown: what cannot be counted, or an empty string.
    """

    written: float
    read: float
    products: dict[str, float]
    launches: int = 1
    unknown: str = ""


def of(module: hlo.Module, inside: hlo.Computation, one: hlo.Instruction, platform: str) -> Charge | None:
    """The charge of an instruction that calls nothing but a fused computation; None if it launches nothing."""
    if one.op in FREE or one.op.endswith("-done"):
        return None
    if one.op == "custom-call":
        return _custom_call(inside, one, platform)
    operands = [_moved(inside[name].shape) for name in one.operands if name in inside]
    called = module.computations.get(one.called("calls") or "")
    if one.op == "fusion" and called is not None:
        read = sum(min(full, _read(module, called, index)) for index, full in enumerate(operands))
        return Charge(_written(module, called, one.shape), read, _products(module, called, platform))
    if one.op in ("dot", "convolution"):
        return Charge(_moved(one.shape), sum(operands), _product(inside, one, platform))
    if one.op in ("dynamic-slice", "gather", "slice"):
        return Charge(_moved(one.shape), _moved(one.shape), {})
    if one.op == "dynamic-update-slice":
        return Charge(operands[1], operands[1], {})
    if one.op == "copy-start":  # its shape has the copy, the source and a token
        return Charge(_moved(one.shape) - operands[0], operands[0], {})
    if one.op == "slice-start":  # of a TPU: its shape has the source, the slice and a token
        part = _moved(one.shape) - operands[0]
        return Charge(part, hlo.bytes_of(one.shape) - hlo.bytes_of(inside[one.operands[0]].shape), {})
    if one.op == "sort" and platform == "gpu":
        return _sort(inside, one)
    return Charge(_moved(one.shape), sum(operands), {})


def _moved(shape: str) -> int:
    """Bytes of a shape in the device's main memory; a TPU's fast memory is marked in the layout."""
    return hlo.bytes_of(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\([1-9]\)[^}]*\}", "", shape))


def _uses(inside: hlo.Computation, name: str) -> list[tuple[hlo.Instruction, int]]:
    """Who uses a value and as which operand, looked for behind other names of it."""
    found: list[tuple[hlo.Instruction, int]] = []
    for one in inside.values():
        for place, operand in enumerate(one.operands):
            if operand == name:
                found += _uses(inside, one.name) if one.op in ("bitcast", "reshape") else [(one, place)]
    return found


def _read(module: hlo.Module, inside: hlo.Computation, index: int) -> float:
    """Bytes of a parameter that a fused computation reads: a part of it where all that it does is to slice."""
    name = next((x.name for x in inside.values() if x.op == "parameter" and x.value == str(index)), None)
    if name is None:
        return math.inf
    total = 0.0
    for one, place in _uses(inside, name):
        if one.op in ("dynamic-slice", "gather", "slice") and place == 0:
            total += hlo.bytes_of(one.shape)
        elif one.op == "fusion" and (one.called("calls") or "") in module.computations:
            total += _read(module, module.computations[one.called("calls") or ""], place)
        elif not (one.op == "dynamic-update-slice" and place == 0):
            return math.inf
    return total


def _written(module: hlo.Module, inside: hlo.Computation, shape: str) -> float:
    """Bytes that a fused computation writes: of what it updates in place, the part."""
    root = next(one for one in inside.values() if one.is_root)
    results = [inside[name] for name in root.operands] if root.op == "tuple" else [root]
    total = 0.0
    for one in results:
        while one.op in ("bitcast", "reshape"):
            one = inside[one.operands[0]]
        if one.op == "dynamic-update-slice":
            total += hlo.bytes_of(inside[one.operands[1]].shape)
        elif root.op == "tuple":
            total += _moved(one.shape)
        else:
            total += _moved(shape)
    return total


def _products(module: hlo.Module, inside: hlo.Computation, platform: str) -> dict[str, float]:
    """Products of a fused computation and of those that it calls."""
    total: dict[str, float] = {}
    for one in inside.values():
        if one.op in ("dot", "convolution"):
            found = _product(inside, one, platform)
        else:
            called = module.computations.get(one.called("calls") or one.called("to_apply") or "")
            found = _products(module, called, platform) if called else {}
        for kind, operations in found.items():
            total[kind] = total.get(kind, 0) + operations
    return total


def _product(inside: hlo.Computation, one: hlo.Instruction, platform: str) -> dict[str, float]:
    left, right = (inside[name].shape for name in one.operands[:2])
    if one.op == "dot":
        contracted = math.prod(hlo.arrays(left)[0][1][axis] for axis in one.numbers("lhs_contracting_dims"))
        operations = 2.0 * hlo.size(one.shape) * contracted
    else:
        operations = _convolution(hlo.size(one.shape), right, one.rest)
    return {_multiplies(left, one.rest, platform): operations}


def _convolution(outputs: int, kernel: str, rest: str) -> float:
    """2 x outputs x the values of the kernel that one output takes; zeros between stretched inputs are none."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", rest)
    dims = hlo.arrays(kernel)[0][1]
    features = dims[labels[1].index("o")] if labels else 1
    stretched = re.search(r"lhs_dilate=([\dx]+)", rest)
    zeros = math.prod(int(x) for x in stretched[1].split("x")) if stretched else 1
    return 2 * outputs * math.prod(dims) / features / zeros


def _multiplies(operand: str, rest: str, platform: str) -> str:
    """What multiplies: the operands' type, and for float32 the precision that the program asks for."""
    kind = hlo.arrays(operand)[0][0]
    if kind == "f64":
        return "float64"
    if kind in ("bf16", "f16"):
        return "bfloat16"
    asked = re.search(r"\balgorithm=(\w+)", rest)
    if asked:
        return "tf32" if "tf32" in asked[1] or "_x3" in asked[1] else "bfloat16" if "bf16" in asked[1] else "float32"
    precisions = re.findall(r'operand_precision"?[=:][\[{]([\w",]*)', rest)
    if kind == "f32" and not any("HIGHEST" in one.upper() for one in precisions):
        high = any("HIGH" in one.upper() for one in precisions)
        return "tf32" if platform == "gpu" or high else "bfloat16"
    return "float32"


def _sort(inside: hlo.Computation, one: hlo.Instruction) -> Charge:
    """A bitonic network: what one kernel cannot hold is read and written by every step that reaches farther."""
    along = hlo.arrays(one.shape)[0][1][one.numbers("dimensions")[0]]
    farther = max(0, math.ceil(math.log2(max(2, along))) - int(math.log2(_SORTED_AT_ONCE)))
    kernels = 1 + sum(step + 1 for step in range(1, farther + 1))
    moved = kernels * hlo.bytes_of(one.shape)
    return Charge(moved, moved, {}, kernels)


def _custom_call(inside: hlo.Computation, one: hlo.Instruction, platform: str) -> Charge | None:
    """Of libraries: cuDNN, cuBLAS, cuSOLVER and CUB by their shapes."""
    target = one.target
    if target in _NO_WORK:
        return None
    shapes = [inside[name].shape for name in one.operands if name in inside]
    # The last result of a library's call is its workspace, of bytes.
    written = sum(hlo.bytes_of(f"{kind}[{','.join(map(str, dims))}]") for kind, dims in _results(one.shape))
    read = sum(_moved(shape) for shape in shapes)
    for pattern, charge in _LIBRARIES.items():
        if re.match(pattern, target):
            products, launches, passes = charge(one, shapes, platform)
            return Charge(passes * written, passes * read, products, launches)
    return Charge(written, read, {}, 1, target or "a call without a name")


def _results(shape: str) -> list[tuple[str, list[int]]]:
    found = hlo.arrays(shape)
    return found[:-1] if len(found) > 1 and found[-1][0] in ("s8", "u8") else found


Counted = tuple[dict[str, float], int, int]  # products, launches, passes over what is read and written


def _cublas(one: hlo.Instruction, shapes: list[str], platform: str) -> Counted:
    axes = re.search(r'"lhs_contracting_dimensions":\[([\d",]*)\]', one.rest)
    dims = hlo.arrays(shapes[0])[0][1]
    contracted = math.prod(dims[int(axis)] for axis in re.findall(r"\d+", axes[1])) if axes else 1
    return {_multiplies(shapes[0], one.rest, platform): 2 * hlo.size(one.shape) * contracted}, 1, 1


def _cudnn(one: hlo.Instruction, shapes: list[str], platform: str) -> Counted:
    """Forward, or the gradient of the input or of the kernel: always every output of the forward one times the kernel."""
    if "BackwardFilter" in one.target:
        outputs, kernel = hlo.size(shapes[1]), one.shape
    elif "BackwardInput" in one.target:
        outputs, kernel = hlo.size(shapes[0]), shapes[1]
    else:
        outputs, kernel = hlo.size(one.shape), shapes[1]
    rest = re.sub(r"lhs_dilate=[\dx]+", "", one.rest)
    return {_multiplies(shapes[0], one.rest, platform): _convolution(outputs, kernel, rest)}, 1, 1


def _cusolver(one: hlo.Instruction, shapes: list[str], platform: str) -> Counted:
    """A factorisation of n x n matrices: 9 n^3 operations for eigenvectors, 4 n^3 for others, n steps that wait."""
    dims = hlo.arrays(shapes[0])[0][1]
    n, batch = dims[-1], math.prod(dims[:-2])
    wide = "float64" if hlo.arrays(shapes[0])[0][0] == "f64" else "float32"
    return {wide: (9 if "syev" in one.target else 4) * batch * n**3}, batch * n, 1


def _radix_sort(one: hlo.Instruction, shapes: list[str], platform: str) -> Counted:
    """Digits of eight bits, each a reading and a writing."""
    passes = hlo.bytes_of(f"{hlo.arrays(shapes[0])[0][0]}[]")
    return {}, 2 * passes, passes


def _once(one: hlo.Instruction, shapes: list[str], platform: str) -> Counted:
    return {}, 1, 1


_LIBRARIES: dict[str, Callable[[hlo.Instruction, list[str], str], Counted]] = {
    r"__cublas\$": _cublas,
    r"__cudnn\$conv": _cudnn,
    r"cusolver_|cu_?solver|__cusolver\$": _cusolver,
    r"__cub\$DeviceRadixSort": _radix_sort,
    r"__gpu\$TopK|TopK": _once,
}
