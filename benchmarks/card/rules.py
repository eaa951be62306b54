"""Every rule and attack on a stack of updates, against one reading of it; and what it costs to launch anything at all."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import attacks as crafting
from benchmarks import rules as aggregating
from benchmarks.card import tables
from benchmarks.card.items import Item, Prepared, compiled, once, seconds
from benchmarks.roofline import updates
from lasa_jax import aggregators, attacks, methods
from lasa_jax.federated import make_mesh
from lasa_jax.testing import built_in

READING = "rule fedavg"  # reads the stack once and writes one update


def stack(small: bool) -> Any:
    """100 updates of the MNIST CNN, 1,663,370 entries each, on the first device; 8 of the digits' CNN where `small`."""
    n, model = (8, "small_cnn") if small else (100, "cnn")
    return updates(n, model, mesh=make_mesh(jax.devices()[:1]))


def items(small: bool) -> list[Item]:
    """The reading first, then all rules, rules behind a pre-aggregator, and attacks."""
    get = once(lambda: stack(small))
    rules = {f"rule {name}": built_in(name) for name in aggregators.names()}
    for name in methods.TABLES["preaggregator"]:
        before = methods.create("preaggregator", name, {})
        rules[f"{name}, then fedavg"] = aggregators.chain(before, aggregators.fedavg())
    made = [Item("a launch", _launch)]
    made += [Item(name, lambda rule=rule: _of_rule(rule, get())) for name, rule in rules.items()]
    made += [
        Item(f"attack {name}", lambda name=name: _of_attack(attacks.create(name), get())) for name in attacks.names()
    ]
    return made


def _launch() -> Prepared:
    number = jnp.float32(0)
    executable, facts = compiled(lambda: jax.jit(lambda x: x + 1).lower(number))
    return Prepared(facts, lambda: seconds(lambda: executable(number), most_calls=1))


def _of_rule(rule: aggregators.Aggregator, stack: Any) -> Prepared:
    n = len(jax.tree.leaves(stack)[0])
    executable, facts = compiled(lambda: aggregating.lowered(rule, stack, n // 5))
    state = aggregating.start(rule, stack)
    return Prepared({**facts, "stack_bytes": _bytes(stack)}, lambda: seconds(lambda: executable(stack, state)))


def _of_attack(attack: attacks.Attack, stack: Any) -> Prepared:
    malicious = jnp.arange(len(jax.tree.leaves(stack)[0])) % 4 == 0
    executable, facts = compiled(lambda: crafting.lowered(attack, stack, malicious))
    state = crafting.start(attack, stack)

    def measure() -> dict[str, Any]:
        return seconds(
            lambda given: executable(given, state, malicious),
            fresh=lambda: (jax.tree.map(jnp.copy, stack),),  # it is given away
            most_calls=4,
        )

    return Prepared({**facts, "stack_bytes": _bytes(stack)}, measure)


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def table(found: tables.Items) -> list[str]:
    """Times, as readings of the stack too, and the bytes of the stack over them; what a rule needs beside the stack."""
    reading = found.get(READING, {}).get("seconds")

    def over(field: str, facts: dict[str, Any], by: float | None) -> float | None:
        """A field over something, None where one of them is not known or there is no stack."""
        return facts[field] / by if "stack_bytes" in facts and facts[field] is not None and by else None

    columns = {
        "ms, median (quartiles)": tables.milliseconds,
        "readings of the stack": lambda facts: tables.number(over("seconds", facts, reading), digits=1),
        "stack / time, GB/s": lambda facts: tables.number(over("stack_bytes", facts, facts["seconds"]), 1e-9, 0),
        "temporaries / stack": lambda facts: tables.number(over("temporary_bytes", facts, facts.get("stack_bytes"))),
        "compile, s": tables.compile_seconds,
    }
    return tables.by_item(found, columns)
