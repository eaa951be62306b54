"""A lower bound of a compiled program's seconds: for each kernel the longest of its bytes, its products and its launch."""

from collections.abc import Callable
from typing import NamedTuple

from checks.accelerator import charges, hlo
from checks.accelerator.targets import Target


class Kernel(NamedTuple):
    """An instruction that launches something.

    Attributes:
      op: of the text, with what a custom call calls.
      shape: of its result.
      path: where in the traced program it comes from.
      times: how often it runs.
      once: the same with every loop of unknown length counted once.
      charge: of one run.
      seconds: of one run.
    """

    op: str
    shape: str
    path: str
    times: int
    once: int
    charge: charges.Charge
    seconds: float


class Loop(NamedTuple):
    """A loop or a condition.

    Attributes:
      where: file and function in the source.
      times: how often it is entered.
      trips: of each time; 0 for a condition.
      known: who says how many: "compiler", "given", or "counted once".
      checks: times that the host must see a value before it goes on, in all.
    """

    where: str
    times: int
    trips: int
    known: str
    checks: int


class Bound(NamedTuple):
    """All of a program. Of the branches of a condition it has the longest.

    Attributes:
      kernels: in order.
      loops: in order.
      check: seconds of a check by the host.
    """

    kernels: tuple[Kernel, ...]
    loops: tuple[Loop, ...]
    check: float

    @property
    def seconds(self) -> float:
        """The bound, without the time that collectives take on the way."""
        work = sum(one.times * one.seconds for one in self.kernels)
        return work + self.check * sum(loop.checks for loop in self.loops)

    @property
    def launches(self) -> int:
        """Kernels, loops of unknown length counted once."""
        return sum(one.once * one.charge.launches for one in self.kernels)

    @property
    def bytes(self) -> float:
        """Bytes between the device and its memory."""
        return sum(one.times * (one.charge.read + one.charge.written) for one in self.kernels)

    @property
    def products(self) -> dict[str, float]:
        """Operations of products by what multiplies them."""
        total: dict[str, float] = {}
        for one in self.kernels:
            for kind, operations in one.charge.products.items():
                total[kind] = total.get(kind, 0) + one.times * operations
        return total

    @property
    def collectives(self) -> dict[str, int]:
        """How many of each kind."""
        total: dict[str, int] = {}
        for one in self.kernels:
            kind = one.op.removesuffix("-start")
            if kind in charges.COLLECTIVES:
                total[kind] = total.get(kind, 0) + one.times
        return total

    @property
    def unknown(self) -> list[str]:
        """Calls that cannot be counted."""
        return sorted({one.charge.unknown for one in self.kernels if one.charge.unknown})

    def times(self, count: int, once: int) -> "Bound":
        """The same so many times, of which `once` count where loops of unknown length count once."""
        return self._replace(
            kernels=tuple(one._replace(times=one.times * count, once=one.once * once) for one in self.kernels),
            loops=tuple(one._replace(times=one.times * count, checks=one.checks * count) for one in self.loops),
        )

    def plus(self, other: "Bound") -> "Bound":
        """Both, one after the other."""
        return self._replace(kernels=self.kernels + other.kernels, loops=self.loops + other.loops)


def of(
    module: hlo.Module,
    target: Target,
    trips: Callable[[str], int | None] = lambda where: None,
    *,
    products_in: str | None = None,
) -> Bound:
    """The bound of a program.

    Args:
      module: the optimised program.
      target: whose figures are charged.
      trips: how often a loop runs of which the compiler does not know it, by file and function; None: it is counted once.
      products_in: charges all products at this precision in place of their own.
    """

    def kernel(inside: hlo.Computation, one: hlo.Instruction, charge: charges.Charge) -> Kernel:
        moved = (charge.read + charge.written) / target.bandwidth
        worked = sum(count / target.products[products_in or kind] for kind, count in charge.products.items())
        seconds = max(moved, worked, charge.launches * target.launch)
        name = f"{one.op} {one.target}".strip()
        return Kernel(name, one.shape, one.path, 1, 1, charge, seconds)

    def whole(name: str) -> Bound:
        inside = module.computations[name]
        total = Bound((), (), target.check)
        for one in inside.values():
            if one.op == "while":
                total = total.plus(loop(one))
            elif one.op == "conditional":
                longest = max((whole(branch) for branch in one.branches()), key=lambda found: found.seconds)
                total = total.plus(longest._replace(loops=(*longest.loops, Loop(module.source(one), 1, 0, "", 1))))
            elif one.op in ("call", "async-start"):
                total = total.plus(whole(one.called("to_apply") or one.called("calls") or ""))
            elif (charge := charges.of(module, inside, one, target.platform)) is not None:
                total = total.plus(Bound((kernel(inside, one, charge),), (), target.check))
        return total

    def loop(one: hlo.Instruction) -> Bound:
        body, condition = whole(one.called("body") or ""), whole(one.called("condition") or "")
        where = module.source(one)
        known, given = _length(module, one), trips(where)
        count = known if known is not None else given if given is not None else 1
        total = body.times(count, 1 if known is None else known)
        checks = 0
        if known is None:  # a GPU's host waits for the condition, whose kernels run once more than the loop
            total, checks = total.plus(condition.times(count + 1, 1)), count + 1
        says = "compiler" if known is not None else "given" if given is not None else "counted once"
        return total._replace(loops=(*total.loops, Loop(where, 1, count, says, checks)))

    return whole(module.entry)


def _length(module: hlo.Module, loop: hlo.Instruction) -> int | None:
    """Trips of a loop: as the compiler notes them, or what its condition compares a counter with."""
    inside = module.computations[loop.called("condition") or ""]
    root = next(one for one in inside.values() if one.is_root)
    if loop.trips is not None or root.op != "compare" or "direction=LT" not in root.rest:
        return loop.trips
    limit = inside[root.operands[1]]
    return int(limit.value) if limit.op == "constant" and limit.shape.startswith("s32[]") else None
