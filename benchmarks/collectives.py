"""Bytes that devices exchange in a round, by rule and by attack: `python -m benchmarks.collectives [--output=FILE]`.

Compiles every rule, and every attack, for stacks of two sizes on eight host devices, adds up what the collectives of
the optimised HLO deliver to a device, and writes it as a multiple of 4 d (one float32 model) and the rest. What stands in a
loop counts as often as that runs; where the program does not say how often, once, and it is marked.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lasa_jax import aggregators, attacks, ops
from lasa_jax.federated import make_mesh
from lasa_jax.testing import built_in, known

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8}
_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?\S+ = (.+?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def count(hlo: str) -> dict[str, tuple[int, bool]]:
    """For each kind of collective in the text of a compiled program: bytes of its results on a device, and whether some
    stand in a loop of which the text does not say how often it runs; those are counted once. All branches count."""
    lines: list[tuple[str, str]] = []  # (computation, line)
    for line in hlo.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        lines.append((header[1] if header else lines[-1][0] if lines else "", line))
    # By computation: who runs it, how often, and whether that is known.
    callers: dict[str, list[tuple[str, int, bool]]] = {}
    for computation, line in lines:
        called = re.findall(r"(?:body|condition|to_apply|calls|\w+_computation)=%?([\w.\-]+)", line)
        for branches in re.findall(r"branch_computations=\{(.*?)\}", line):
            called += [name.strip(" %") for name in branches.split(",")]
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        for name in called:
            times = int(trips[1]) if trips else 1
            callers.setdefault(name, []).append((computation, times, trips is not None or " while(" not in line))

    def runs(computation: str) -> tuple[int, bool]:
        """How often a computation is run, and whether that is known."""
        if computation not in callers:
            return 1, True
        each = [(times * runs(caller)[0], known and runs(caller)[1]) for caller, times, known in callers[computation]]
        return sum(times for times, _ in each), all(known for _, known in each)

    found: dict[str, tuple[int, bool]] = {}
    for computation, line in lines:
        if match := _COLLECTIVE.match(line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            size = sum(_BYTES[kind] * int(np.prod([int(x) for x in dims.split(",") if x])) for kind, dims in shapes)
            times, known = runs(computation)
            before, open_ended = found.get(match[2], (0, False))
            found[match[2]] = (before + times * size, open_ended or not known)
    return found


def groups(hlo: str) -> list[tuple[str, list[list[int]]]]:
    """Each collective in the text of a compiled program: its kind, and the groups of devices that exchange something.

    A device is its place in the mesh, row by row. For a permutation the groups are pairs.

    Raises:
      ValueError: for a line whose groups are written in a form that is not known here.
    """
    found = []
    for line in hlo.splitlines():
        if match := _COLLECTIVE.match(line):
            pairs = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line)
            tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
            named = re.search(r"replica_groups=mesh\[([^\]]+)\] \{([^}]*)\}", line)
            if pairs:
                members = [[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", pairs[1])]
            elif tiled:
                shape, dims, order = ([int(x) for x in part.split(",")] if part else None for part in tiled.groups())
                members = np.arange(np.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
            elif named and "device_ids" not in named[0]:
                axes = {name.strip(" '"): int(size) for name, size in (x.split("=") for x in named[1].split(","))}
                within = [name.strip(" '") for name in named[2].split(",")]
                order = [i for i, name in enumerate(axes) if name not in within]
                order += [list(axes).index(name) for name in within]
                size = int(np.prod([axes[name] for name in within]))
                ids = np.arange(np.prod(list(axes.values()))).reshape(list(axes.values()))
                members = ids.transpose(order).reshape(-1, size).tolist()
            else:
                raise ValueError(f"the groups of a collective are in a form that is not known: {line.strip()[:300]}")
            found.append((match[2], members))
    return found


def stack(n: int, d: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A stack of n updates of two layers, d entries in all."""
    return {
        "kernel": jax.ShapeDtypeStruct((n, d - 64), jnp.float32),
        "bias": jax.ShapeDtypeStruct((n, 64), jnp.float32),
    }


def compiled(fn: Callable[..., Any], *arguments: Any, stacked: int = 1) -> str:
    """The optimised HLO of a function on a mesh of all devices; its first `stacked` arguments are sharded over clients."""
    mesh = make_mesh()
    rows, everywhere = NamedSharding(mesh, PartitionSpec(ops.CLIENTS)), NamedSharding(mesh, PartitionSpec())

    def place(argument: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), argument)

    placed = [place(x, rows if i < stacked else everywhere) for i, x in enumerate(arguments)]
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*placed).compile().as_text() or ""


def of_rule(name: str, n: int, d: int) -> dict[str, tuple[int, bool]]:
    """Collectives of one aggregation."""
    rule = built_in(name)
    updates = stack(n, d)
    state = jax.eval_shape(rule.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates))
    key = jax.eval_shape(lambda: jax.random.key(0))
    present = jax.ShapeDtypeStruct((n,), jnp.bool_)

    def aggregate(updates: Any, state: Any, key: Any, present: Any) -> Any:
        context = known(rule, updates)
        return rule.aggregate(updates, state, key=key, num_malicious=n // 5, present=present, **context)[0]

    return count(compiled(aggregate, updates, state, key, present))


def of_attack(name: str, n: int, d: int) -> dict[str, tuple[int, bool]]:
    """Collectives of crafting, the crafted stack staying where it is. `adaptive` is given plain averaging."""
    attack, rule = attacks.create(name), aggregators.fedavg()
    updates = stack(n, d)
    state = jax.eval_shape(attack.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates))
    key = jax.eval_shape(lambda: jax.random.key(0))
    mask = jax.ShapeDtypeStruct((n,), jnp.bool_)

    def craft(updates: Any, state: Any, malicious: Any, key: Any, present: Any) -> Any:
        def aggregate(updates: Any) -> Any:
            return rule.aggregate(updates, (), key=key, num_malicious=n // 5, present=present)[0]

        crafted = attack.craft(
            updates, state, malicious, key=key, present=present, aggregate=aggregate, **known(attack, updates)
        )[0]
        return jax.lax.with_sharding_constraint(crafted, PartitionSpec(ops.CLIENTS))

    return count(compiled(craft, updates, state, mask, key, mask))


def row(name: str, of: Callable[[str, int, int], dict[str, tuple[int, bool]]], n: int, d: int) -> str:
    """A line of the table: the slope in d of all bytes, what is left, and which collectives."""
    small, large = of(name, n, d), of(name, n, 2 * d)
    total = [sum(size for size, _ in found.values()) for found in (small, large)]
    slope = (total[1] - total[0]) / (4 * d)
    kinds = ", ".join(f"{kind}{' (in an open loop)' if looped else ''}" for kind, (_, looped) in sorted(small.items()))
    return f"| {name} | {slope:.2f} | {total[0] - slope * 4 * d:,.0f} | {kinds or '-'} |"


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--entries", type=int, default=1 << 16)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines = []
    for kind, names, of in (("rule", aggregators.names(), of_rule), ("attack", attacks.names(), of_attack)):
        lines += [f"| {kind} | bytes / 4 d | other bytes | collectives |", "| --- | --- | --- | --- |"]
        for name in names:
            lines.append(row(name, of, given.clients, given.entries))
            print(lines[-1], flush=True)
        lines.append("")
    if given.output is not None:
        given.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
