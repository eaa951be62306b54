"""The global model on the clients' own examples: who is served worst."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.data import Examples, FederatedDataset
from lasa_jax.federated.evaluation import examples_at_once
from lasa_jax.federated.types import Point, Program, State
from lasa_jax.models import Variables


def worst_tenth(
    program: Program,
    state: State,
    point: Point,
    data: FederatedDataset,
    batch_size: int | None = None,
    *,
    runs: int = 1,
) -> jax.Array:
    """Accuracy of the global model on the own training examples of the tenth of the benign clients that it serves worst.

        a_i = share of the labels of client i that are predicted,    result: mean of the ceil(m / 10) smallest a_i

    of the m benign clients of the population that have a label which counts. Fairness over clients is measured like this by
    Li, Sanjabi, Beirami and Smith (ICLR 2020).

    Args:
      program: what is compiled in.
      state: of the run.
      point: numbers of the run: who is malicious.
      data: examples, and this run's partition of them.
      batch_size: examples at a time; None: see `evaluation.examples_at_once`.
      runs: how many a device evaluates together.

    Returns:
      float32 `()`; NaN if there is no such client.
    """
    if batch_size is None:
        batch_size = examples_at_once(program, state.variables, data.train, runs)
    right, labels = _by_example(program, state.variables, data.train, batch_size)
    indices, sizes = data.partition
    own = jnp.arange(indices.shape[1], dtype=jnp.int32) < sizes[:, None]

    def total(of_examples: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(own, of_examples[indices], 0), axis=1, dtype=jnp.int32)

    right, labels = ops.everywhere((total(right), total(labels)))
    benign = ~point.malicious & (labels > 0)
    share = right.astype(jnp.float32) / jnp.maximum(labels, 1).astype(jnp.float32)
    ordered = jnp.sort(jnp.where(benign, share, jnp.inf), stable=False)
    count = (jnp.sum(benign, dtype=jnp.int32) + 9) // 10
    among = jnp.arange(len(ordered), dtype=jnp.int32) < count
    mean = jnp.sum(jnp.where(among, ordered, 0.0)) / jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.where(count > 0, mean, jnp.nan)


def _by_example(
    program: Program, variables: Variables, examples: Examples, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Labels of each example that are predicted, and those that count: int32 `(num_examples,)` both.

    Each device takes its own share of the batches. Examples are gathered by their places, batch by batch: a padded copy of
    all of them would be as large as the training set.
    """
    training = program.local_training
    count = examples.labels.shape[0]
    num_batches = -(-count // batch_size)
    num_batches += -num_batches % ops.num_shards()
    places = jnp.minimum(jnp.arange(num_batches * batch_size, dtype=jnp.int32), count - 1)

    def one(places: jax.Array, variables: Variables, examples: Examples) -> tuple[jax.Array, jax.Array]:
        labels = examples.labels[places]
        logits = training.model.apply(variables, training.dataset.normalise(examples.inputs[places]))[0]
        counted = training.dataset.counted(labels, jnp.ones(len(places), bool))
        predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels
        # A model of NaN predicts class 0 everywhere: that is not right.
        right = predicted & counted & jnp.all(jnp.isfinite(logits), axis=-1)
        return _of_each(right), _of_each(counted)

    with jax.default_matmul_precision(training.matmul_precision):
        of_batches = ops.map_rows(
            one, ops.everywhere(places.reshape(num_batches, batch_size)), shared=(variables, examples), at_once=1
        )
    right, counted = (x.reshape(-1)[:count] for x in ops.everywhere(of_batches))
    return right, counted


def _of_each(labels: jax.Array) -> jax.Array:
    """How many labels of each example are set: `(batch, ...)` to int32 `(batch,)`."""
    return jnp.sum(labels.reshape(len(labels), -1), axis=1, dtype=jnp.int32)
