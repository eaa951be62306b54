"""Times a training step of each model of the paper: `python -m benchmarks.steps [MODEL ...]`.

Five steps of one client one after another, gradient and update at the paper's batch size, as a round makes them; prints the
median of seven such runs, in milliseconds for a step. Pin it to a core with `taskset -c 0` to compare commits.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from lasa_jax import models

# Shape of an example, classes, batch size.
SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "cnn": ((28, 28, 1), 10, 10),
    "resnet18": ((32, 32, 3), 10, 64),
    "lstm": ((80,), 90, 4),
}
STEPS = 5


def trained(name: str) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """Five steps of SGD as a function that gives the last parameters, and its arguments: parameters, state and batches."""
    shape, classes, batch = SHAPES[name]
    model = models.create(name, num_classes=classes, input_shape=shape)
    state = dict(model.init(jax.random.key(0)))
    params, is_text = state.pop("params"), len(shape) == 1
    keys = jax.random.split(jax.random.key(1), STEPS)
    labels = jax.random.randint(keys[0], (STEPS, batch, *(shape if is_text else ())), 0, classes)
    inputs = labels.astype(jnp.float32) if is_text else jax.random.normal(keys[1], (STEPS, batch, *shape))

    def loss(params: Any, state: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        seen = jnp.ones(batch, bool)
        logits, _ = model.apply({**state, "params": params}, inputs, train=True, key=key, mask=seen)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))

    def run(params: Any, state: Any, *batches: jax.Array) -> Any:
        def step(params: Any, of_step: tuple[jax.Array, ...]) -> tuple[Any, None]:
            slope = jax.grad(loss)(params, state, *of_step)
            return jax.tree.map(lambda x, g: x - 0.01 * g, params, slope), None

        return jax.lax.scan(step, params, batches)[0]

    return jax.jit(run), (params, state, inputs, labels, keys)


def milliseconds(name: str) -> float:
    """Milliseconds of one step, compiled."""
    run, arguments = trained(name)
    jax.block_until_ready(run(*arguments))
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        taken.append(1e3 * (time.perf_counter() - began) / STEPS)
    return statistics.median(taken)


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    for name in parser.parse_args().models:
        if name not in SHAPES:
            parser.error(f"MODEL={name}: allowed are {', '.join(SHAPES)}")
        print(f"{name}: {milliseconds(name):.2f} ms a step", flush=True)


if __name__ == "__main__":
    main()
