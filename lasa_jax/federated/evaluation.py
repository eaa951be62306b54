"""The global model on the test examples, in as few batches as memory allows."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.data import Dataset, Examples
from lasa_jax.federated.types import Numbers, Program, State
from lasa_jax.models import Variables

_IN_CACHE = 250  # examples at a time on a CPU
_ACTIVATIONS = 2**32  # bytes on an accelerator: a quarter of the smallest memory that is planned for


class Measures(NamedTuple):
    """Of the global model. loss: mean over labels. accuracy: the share of them that it predicts; NaN where the loss is."""

    loss: jax.Array
    accuracy: jax.Array


class Evaluation(NamedTuple):
    """The global model on all test labels.

    Attributes:
      reported: over the labels that count, see `Dataset.counted`.
      with_padding: over every position of a dataset that has padding, else None.
      without_padding: over every position that is no padding, else None.
      success: of an attack with a trigger, the share of the labels that it counts for which the model predicts its target
        where the trigger is shown; NaN where the loss is, or nothing counts. Else None.
    """

    reported: Measures
    with_padding: Measures | None = None
    without_padding: Measures | None = None
    success: jax.Array | None = None


def evaluate(
    program: Program,
    state: State,
    test: Examples,
    batch_size: int | None = None,
    *,
    runs: int = 1,
    attack: Numbers | None = None,
) -> Evaluation:
    """The global model on all test labels, each device its own share of the batches.

    Args:
      program: what is compiled in.
      state: of the run.
      test: all test examples.
      batch_size: examples at a time; None: see `examples_at_once`.
      runs: how many a device evaluates together.
      attack: `Point.attack` of the run, whose success is measured where it has a trigger; None measures none.
    """
    num_examples = test.labels.shape[0]
    if batch_size is None:
        batch_size = examples_at_once(program, state.variables, test, runs)
    num_batches = -(-num_examples // batch_size)
    num_batches += -num_batches % ops.num_shards()
    padding = num_batches * batch_size - num_examples

    def batches(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return ops.everywhere(x.reshape(num_batches, batch_size, *x.shape[1:]))

    dataset = program.local_training.dataset

    # The datasets whose labels are counted: the one that reports, and where there is padding both.
    kinds = (
        [dataset]
        if dataset.padding_label is None
        else [dataclasses.replace(dataset, counts_padding=counts) for counts in (True, False)]
    )

    def predicted(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def one(
        inputs: jax.Array, labels: jax.Array, real: jax.Array, variables: Variables
    ) -> list[tuple[jax.Array, jax.Array]]:
        logits = _logits(program, variables, inputs)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        right = predicted(logits) == labels

        def sums(counted: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.sum(jnp.where(counted, losses, 0.0)), jnp.sum(right & counted, dtype=jnp.int32)

        return [sums(kind.counted(labels, real)) for kind in kinds]

    def triggered(
        inputs: jax.Array, labels: jax.Array, real: jax.Array, variables: Variables, numbers: Numbers
    ) -> tuple[jax.Array, jax.Array]:
        """How many labels of a batch became the target, and how many count."""
        shown = program.make_attack(numbers).trigger
        assert shown is not None
        inputs, wanted, counted = shown(inputs, labels)
        counted = counted & dataset.counted(labels, real)
        hit = predicted(_logits(program, variables, inputs)) == wanted
        return jnp.sum(hit & counted, dtype=jnp.int32), jnp.sum(counted, dtype=jnp.int32)

    whole = (batches(test.inputs), batches(test.labels), batches(jnp.ones(num_examples, bool)))
    hits = None
    with jax.default_matmul_precision(program.local_training.matmul_precision):
        found = ops.map_rows(one, *whole, shared=(state.variables,), at_once=1)
        if attack is not None and program.make_attack(attack).trigger is not None:
            hits = ops.map_rows(triggered, *whole, shared=(state.variables, attack), at_once=1)

    def measures(kind: Dataset, losses: jax.Array, right: jax.Array) -> Measures:
        counted = kind.counted(test.labels, jnp.ones(num_examples, bool))
        count = jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32)
        loss = jnp.sum(losses) / count
        # A model of NaN predicts class 0 everywhere: that is no accuracy.
        share = jnp.sum(right, dtype=jnp.int32).astype(jnp.float32) / count
        return Measures(loss, jnp.where(jnp.isnan(loss), jnp.nan, share))

    measured = [measures(kind, *sums) for kind, sums in zip(kinds, found, strict=True)]
    success = None if hits is None else _success(measured[0].loss, *hits)
    if dataset.padding_label is None:
        return Evaluation(measured[0], success=success)
    counted, ignored = measured
    return Evaluation(counted if dataset.counts_padding else ignored, counted, ignored, success)


def _success(loss: jax.Array, hits: jax.Array, counted: jax.Array) -> jax.Array:
    """The success rate from the counts of all batches; NaN where the loss is."""
    share, whole = (jnp.sum(x, dtype=jnp.int32).astype(jnp.float32) for x in (hits, counted))
    return jnp.where(jnp.isnan(loss) | (whole == 0), jnp.nan, share / jnp.maximum(whole, 1))


def examples_at_once(program: Program, variables: Variables, test: Examples, runs: int = 1) -> int:
    """Test examples of one batch: on a CPU 250, which stay in cache; else the fewest equal batches that memory allows.

    There, what the widest operation of the model reads and writes for all runs of a device is at most 4 GiB. It is counted
    for 250 examples, weights included, so that it is rather too much.

    Args:
      program: what is compiled in.
      variables: of one run.
      test: all test examples.
      runs: how many a device evaluates together.
    """
    if ops.one_at_a_time():
        return _IN_CACHE
    inputs = jax.ShapeDtypeStruct((_IN_CACHE, *test.inputs.shape[1:]), test.inputs.dtype)
    of_runs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), variables)
    of_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)

    def logits(variables: Variables, inputs: jax.Array) -> jax.Array:
        return _logits(program, variables, inputs)

    # A kernel for each run has another form of a convolution than one for all.
    together = logits if runs == 1 else jax.vmap(logits, in_axes=(0, None))
    traced = jax.make_jaxpr(together)(of_one if runs == 1 else of_runs, inputs)
    most = max(1, _IN_CACHE * _ACTIVATIONS // _widest(traced.jaxpr))
    on_a_device = -(-test.labels.shape[0] // ops.num_shards())
    return -(-on_a_device // -(-on_a_device // most))


def _logits(program: Program, variables: Variables, inputs: jax.Array) -> jax.Array:
    training = program.local_training
    return training.model.apply(variables, training.dataset.normalise(inputs))[0]


def _widest(jaxpr: Any) -> int:
    """Bytes of operands and results of the operation that has most, those inside of loops and calls included."""

    def bytes_of(equation: Any) -> int:
        inner = [x for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(x)]
        if inner:
            return max(_widest(getattr(x, "jaxpr", x)) for x in inner)
        arrays = [x.aval for x in (*equation.invars, *equation.outvars)]
        return sum(x.size * x.dtype.itemsize for x in arrays)

    return max(map(bytes_of, jaxpr.eqns), default=1)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
