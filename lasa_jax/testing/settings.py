"""Laws about the settings that a program has given to JAX, and about types. They are traced only, nothing is compiled.

A rule or an attack that promises them can be used in any program: where floating-point numbers have 64 bits, where JAX
promotes neither types nor ranks by itself, and with any PRNG.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.testing import attacks
from lasa_jax.testing.stacks import PyTree, assert_like, first_row, honest, initial, known

_FLOATS = ("float32", "bfloat16", "float16")


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """JAX promotes no types and no ranks by itself."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Integers and floating-point numbers have 64 bits where nothing else is said."""
    with jax.enable_x64(True):
        yield


@contextlib.contextmanager
def wide_and_strict() -> Iterator[None]:
    """`wide` and `strict`."""
    with wide(), strict():
        yield


# Name, context, types of the updates, and how a key is made.
SETTINGS: tuple[tuple[str, Callable[[], contextlib.AbstractContextManager], tuple[str, ...], Callable], ...] = (
    ("strict promotion", strict, _FLOATS, jax.random.key),
    ("64 bits", wide, ("float32", "float64"), jax.random.key),
    ("64 bits and strict promotion", wide_and_strict, ("float32", "float64"), jax.random.key),
    ("the PRNG 'rbg'", functools.partial(jax.default_prng_impl, "rbg"), ("float32",), jax.random.key),
    ("a key of integers", contextlib.nullcontext, ("float32",), jax.random.PRNGKey),
    ("products in bfloat16", functools.partial(jax.default_matmul_precision, "bfloat16"), ("float32",), jax.random.key),
)


def _asked(ask: Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]) -> None:
    """Asks for (result, what it must be like) of updates and a key, under each of the settings."""
    for name, setting, types, make_key in SETTINGS:
        with setting():
            for kind in types:
                updates = {layer: jnp.asarray(x, kind) for layer, x in honest().items()}
                what = f"{kind} under {name}"
                try:
                    result, like = jax.eval_shape(ask, updates, make_key(0))
                except (TypeError, ValueError) as error:
                    raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
                assert_like(result, like, what)


def rule_keeps_types(rule: Aggregator) -> None:
    """F and the state have the types of the updates, float16 to float64, under each of `SETTINGS`."""

    def ask(updates: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        before = rule.init(first_row(updates))
        update, after, _ = rule.aggregate(updates, before, key=key, num_malicious=3, **known(rule, updates))
        return (update, after), (first_row(updates), before)

    _asked(ask)


def attack_keeps_types(attack: Attack) -> None:
    """What is sent and the state have the types of the updates, float16 to float64, under each of `SETTINGS`."""

    def ask(updates: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        before = attack.init(initial(updates))
        sent, after = attacks.eager(attack, updates, before, key, jnp.asarray(attacks.SOME))
        return (sent, after), (updates, before)

    _asked(ask)
