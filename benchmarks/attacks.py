"""Times the crafting of every attack on a stack of MNIST-CNN updates: `python -m benchmarks.attacks [--clients=100]`.

A quarter of the clients is malicious and knows the benign updates. Prints a Markdown table as `benchmarks.rules` does.
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.roofline import compare, updates
from benchmarks.rules import start
from lasa_jax import aggregators, attacks
from lasa_jax.federated import make_mesh
from lasa_jax.testing import known

# Recorded from the official code, n = 100, d = 1,663,370: seconds / seconds of an average of the stack.
OFFICIAL = {"lie": 6, "byzmean": 23, "min_max": 62, "min_sum": 62, "tailored_trmean": 297}


def lowered(attack: attacks.Attack, stack: Any, malicious: jax.Array) -> jax.stages.Lowered:
    """One crafting as a function of `(stack, state, malicious)`, which need no more than shapes, before it is compiled.

    The stack is given away, as in a round; `adaptive` is given LASA.
    """
    rule, key = aggregators.lasa(), jax.random.key(0)

    def aggregate(updates: Any) -> Any:
        return rule.aggregate(updates, (), key=key, num_malicious=malicious.shape[0] // 4)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def craft(stack: Any, state: Any, malicious: jax.Array) -> Any:
        return attack.craft(stack, state, malicious, key=key, aggregate=aggregate, **known(attack, stack))[0]

    return craft.lower(stack, jax.eval_shape(lambda stack: start(attack, stack), stack), malicious)


def seconds_of(attack: attacks.Attack, stack: Any, malicious: jax.Array) -> float:
    """Seconds of one crafting, compiled."""
    craft, state, seconds = lowered(attack, stack, malicious).compile(), start(attack, stack), []
    for _ in range(4):  # the first is slower
        given = jax.block_until_ready(jax.tree.map(jnp.copy, stack))
        began = time.perf_counter()
        jax.block_until_ready(craft(given, state, malicious))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    n = parser.parse_args().clients
    malicious = jnp.arange(n) % 4 == 0
    with jax.set_mesh(make_mesh()):
        stack = updates(n)
        compare(
            "attack", attacks.names(), lambda name: seconds_of(attacks.create(name), stack, malicious), OFFICIAL, stack
        )


if __name__ == "__main__":
    main()
