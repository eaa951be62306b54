"""The text of an optimised program, read: computations, instructions, shapes."""

import math
import re
from typing import NamedTuple

_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_WIDTHS |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in its computation.
      op: `fusion`, `dot`, `custom-call`, ...
      shape: of its result, as written; a tuple in brackets.
      operands: names in the same computation.
      rest: what stands behind the operands.
      is_root: whether it is the result of its computation.
      value: of a constant, or which parameter it is; empty for all others.
    """

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool
    value: str = ""

    def called(self, word: str) -> str | None:
        """The computation that an attribute names, as `calls`, `to_apply`, `body` or `condition`."""
        match = re.search(rf"\b{word}=%?([\w.\-]+)", self.rest)
        return match[1] if match else None

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{(.*?)\}", self.rest)
        if listed:
            return [name.strip(" %") for name in listed[1].split(",")]
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)

    @property
    def target(self) -> str:
        """What a custom call calls, else an empty string."""
        match = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def path(self) -> str:
        """Where in the traced program it comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def trips(self) -> int | None:
        """How often a loop runs, if the compiler knows."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(match[1]) if match else None

    def numbers(self, attribute: str) -> list[int]:
        """The numbers of an attribute like `lhs_contracting_dims={1}`."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.rest)
        return [int(x) for x in match[1].split(",") if x] if match else []


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A whole program.

    Attributes:
      computations: by name, each its instructions by name, in order.
      entry: the name of the first.
      frames: where in the source an instruction comes from, "order.py _narrow", by its `stack_frame_id`.
    """

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, str]

    def source(self, one: Instruction) -> str:
        """File and function of an instruction, or an empty string."""
        match = re.search(r"stack_frame_id=(\d+)", one.rest)
        return self.frames.get(int(match[1]), "") if match else ""


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Type and dimensions of each array of a shape."""
    return [(kind, [int(x) for x in dims.split(",") if x]) for kind, dims in _ARRAY.findall(shape)]


def size(shape: str) -> int:
    """Values of the first array of a shape."""
    found = arrays(shape)
    return math.prod(found[0][1]) if found else 0


def bytes_of(shape: str) -> int:
    """Bytes of a shape, all arrays of a tuple; tokens and the like have none."""
    return sum(_WIDTHS.get(kind, 0) * math.prod(dims) for kind, dims in arrays(shape))


def parse(text: str) -> Module:
    """Reads the text that `Compiled.as_text` gives."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and " = " not in line.split("(", 1)[0]:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        if match is None or current is None:
            continue
        root, name, shape, op, behind = match.groups()
        inside, rest = _split(behind)
        value = inside if op in ("parameter", "constant") else ""
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
        current[name] = Instruction(name, op, shape, operands, rest, bool(root), value)
    return Module(computations, entry, _frames(text))


def _frames(text: str) -> dict[int, str]:
    """The tables of files, functions, places and frames at the head of the text."""
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif match := re.match(r"(\d+) (.*)$", line):
            table[int(match[1])] = match[2].strip('"')
        elif _HEADER.match(line):
            break

    def number(word: str, row: str) -> int:
        match = re.search(rf"\b{word}=(\d+)", row)
        return int(match[1]) if match else 0

    found = {}
    for frame, row in tables.get("StackFrames", {}).items():
        place = tables["FileLocations"].get(number("file_location_id", row), "")
        file = tables["FileNames"].get(number("file_name_id", place), "").rsplit("/", 1)[-1]
        found[frame] = f"{file} {tables['FunctionNames'].get(number('function_name_id', place), '')}"
    return found


def _split(text: str) -> tuple[str, str]:
    """What stands before the bracket that closes, and what stands behind it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""
