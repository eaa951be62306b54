"""How often loops of unknown length run: counted while a program is taken step by step on this machine's processor."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from lasa_jax import ops
from lasa_jax.testing import built_in, known

Trips = dict[str, list[int]]  # by file and function, in the order of the program
Found = dict[int, tuple[str, int]]  # by the identity of an equation

_PACKAGE = "lasa_jax/"
CLIENTS = 100


def measure(name: str) -> Trips:
    """Trips of the loops of a rule in the forms of a GPU, for 100 normal updates of 197,040 entries, 20 of them shifted."""
    rule = built_in(name)
    shapes = {"conv": (5, 5, 8, 24), "dense": (800, 240), "bias": (240,)}
    malicious = jnp.arange(CLIENTS) < CLIENTS // 5
    updates = {
        layer: jax.random.normal(key, (CLIENTS, *shape)) - 0.5 * malicious.reshape(-1, *[1] * len(shape))
        for (layer, shape), key in zip(shapes.items(), jax.random.split(jax.random.key(0), len(shapes)), strict=True)
    }
    state = rule.init(jax.tree.map(lambda x: x[0], updates))

    context = known(rule, updates)

    def aggregate(updates: Any, state: Any, f: jax.Array) -> Any:
        return rule.aggregate(updates, state, key=jax.random.key(1), num_malicious=f, **context)[0]

    with ops.compiling_for("gpu"):
        return counted(aggregate, updates, state, jnp.int32(CLIENTS // 5))


def counted(fn: Callable[..., Any], *arguments: Any) -> Trips:
    """Runs a function and counts the trips of each of its `while` loops; of one that is entered again, the most."""
    closed = jax.make_jaxpr(fn)(*arguments)
    found: Found = {}
    _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
    trips: Trips = {}
    for where, count in found.values():
        trips.setdefault(where, []).append(count)
    return trips


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], found: Found) -> list[Any]:
    """Takes the equations one after another, so that a loop can be watched."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    for one in jaxpr.eqns:
        given = [x.val if isinstance(x, Literal) else values[x] for x in one.invars]
        inner = one.params.get("jaxpr")
        if one.primitive.name == "while":
            results = _loop(one, given, found)
        elif one.primitive.name in ("jit", "closed_call"):
            results = _run(inner.jaxpr, inner.consts, given, found)
        elif one.primitive.name == "cond":
            branch = one.params["branches"][int(given[0])]
            results = _run(branch.jaxpr, branch.consts, given[1:], found)
        else:
            free = [x for x in one.invars if not isinstance(x, Literal)]
            alone = jaxpr.replace(constvars=[], invars=free, outvars=one.outvars, eqns=[one])
            results = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*[values[x] for x in free])
        values.update(zip(one.outvars, results, strict=True))
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]


def _loop(one: Any, given: Sequence[Any], found: Found) -> list[Any]:
    """One `while`, its body as often as its condition says."""
    condition, body = one.params["cond_jaxpr"], one.params["body_jaxpr"]
    first, second = one.params["cond_nconsts"], one.params["body_nconsts"]
    for_condition, for_body, carry = given[:first], given[first : first + second], list(given[first + second :])
    goes_on = jax.jit(jaxpr_as_fun(condition))
    count = 0
    while (active := goes_on(*for_condition, *carry)[0]).any():
        moved = _run(body.jaxpr, body.consts, [*for_body, *carry], found)
        # In a batch of loops those that have ended stay as they are.
        carry = [_where(active, new, old) for new, old in zip(moved, carry, strict=True)] if active.ndim else moved
        count += 1
    frames = one.source_info.traceback.frames
    where = next((f"{Path(x.file_name).name} {x.function_name}" for x in frames if _PACKAGE in x.file_name), "")
    found[id(one)] = (where, max(count, found.get(id(one), ("", 0))[1]))
    return carry


def _where(active: jax.Array, new: Any, old: Any) -> Any:
    return jnp.where(active.reshape(active.shape + (1,) * (new.ndim - active.ndim)), new, old)


def given(trips: Mapping[str, Sequence[int]]) -> Callable[[str], int | None]:
    """The trips of the loops of one program, asked for in its order by file and function; the last one stands for more."""
    asked: dict[str, int] = {}

    def of(where: str) -> int | None:
        known = trips.get(where)
        if not known:
            return None
        asked[where] = asked.get(where, -1) + 1
        return known[min(asked[where], len(known) - 1)]

    return of
