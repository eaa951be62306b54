"""What a rule and an attack must give, checked with shapes alone, before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lasa_jax.aggregators import Aggregator, Context
from lasa_jax.attacks import Attack
from lasa_jax.errors import InputError
from lasa_jax.models import Variables

_ROWS = 4


def check_aggregator(rule: Any, variables: Variables, where: str) -> None:
    """Asks a rule for the aggregate of a few updates.

    Args:
      rule: what should be an `Aggregator`.
      variables: arrays or shapes of the global model.
      where: what has the rule, for messages: `config.aggregator.name = 'my_rules:gate'`.

    Raises:
      InputError: if it is no rule, needs what no round knows, or its update, state or weights are not shaped as they
        must be.
    """
    if not isinstance(rule, Aggregator):
        called = "; call it" if callable(rule) else ""
        raise InputError(f"{where}: is {_kind(rule)}, allowed is a lasa_jax.aggregators.Aggregator{called}")
    _check_needs(rule.needs, where)

    def ask(params: Variables, updates: Any, present: jax.Array, key: jax.Array) -> Any:
        state = rule.init(params)
        known = rule.knowing(_context(params, rule.needs))
        return state, rule.aggregate(updates, state, key=key, num_malicious=jnp.int32(1), present=present, **known)

    state, result = _asked(ask, variables, where, jax.ShapeDtypeStruct((_ROWS,), bool))
    if not isinstance(result, tuple) or len(result) != 3:
        raise InputError(f"{where}: aggregate gives {_kind(result)}, allowed is (update, state, diagnostics)")
    update, after, info = result
    _must_be_like(update, variables, f"{where}: the update", "shaped like one client's")
    _must_be_like(after, state, f"{where}: the state after a round", "shaped like that of init")
    weights = jax.tree.map(lambda _: jax.ShapeDtypeStruct((_ROWS,), jnp.float32), variables)
    if not hasattr(info, "weight"):
        raise InputError(f"{where}: the diagnostics are {_kind(info)}, allowed is a NamedTuple with a field weight")
    _must_be_like(info.weight, weights, f"{where}: weight", "(n,) in each layer of the update", dtypes=False)


def check_attack(attack: Any, variables: Variables, examples: Any, where: str, num_classes: int = 2) -> None:
    """Asks an attack to poison and to trigger a few examples, and to craft a few updates.

    Args:
      attack: what should be an `Attack`.
      variables: arrays or shapes of the global model.
      examples: shapes of the inputs and labels of a batch as stored.
      where: what has the attack, for messages.
      num_classes: of the dataset.

    Raises:
      InputError: if it is no attack, needs what no round knows, or what it sends is not shaped as what honest clients send.
    """
    if not isinstance(attack, Attack):
        called = "; call it" if callable(attack) else ""
        raise InputError(f"{where}: is {_kind(attack)}, allowed is a lasa_jax.attacks.Attack{called}")
    _check_needs(attack.needs, where)

    def ask(params: Variables, updates: Any, present: jax.Array, key: jax.Array, batch: Any) -> Any:
        def mean(rows: Any) -> Any:
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), rows)

        context, state = _context(params, attack.needs), attack.init(params)
        begun = attack.begin(state, context)
        poisoned = attack.poison(*batch, num_classes=num_classes, key=key, client=jnp.int32(0))
        held = attack.constrain(params, params, begun)
        known = attack.knowing(context)
        crafted = attack.craft(updates, begun, present, key=key, present=present, aggregate=mean, **known)
        triggered = None if attack.trigger is None else attack.trigger(*batch)
        return state, poisoned, triggered, held, crafted

    present = jax.ShapeDtypeStruct((_ROWS,), bool)
    state, poisoned, triggered, held, crafted = _asked(ask, variables, where, present, examples)
    _must_be_like(poisoned, tuple(examples), f"{where}: poisoned examples", "shaped like the inputs and labels")
    if triggered is not None:
        counted = jax.ShapeDtypeStruct(examples[1].shape, jnp.dtype(bool))
        allowed = "shaped like the inputs and labels, and a bool for each label"
        _must_be_like(triggered, (*examples, counted), f"{where}: triggered examples", allowed)
    _must_be_like(held, variables, f"{where}: a constrained model", "shaped like the model")
    if not isinstance(crafted, tuple) or len(crafted) != 2:
        raise InputError(f"{where}: craft gives {_kind(crafted)}, allowed is (updates, state)")
    _must_be_like(crafted[0], _stacked(variables), f"{where}: the updates", "shaped like those that it is given")
    _must_be_like(crafted[1], state, f"{where}: the state after a round", "shaped like that of init")


def _asked(ask: Callable[..., Any], variables: Variables, where: str, present: Any, *more: Any) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        return jax.eval_shape(ask, variables, _stacked(variables), present, key, *more)
    except jax.errors.ConcretizationTypeError:  # told by who knows the file
        raise
    except InputError as error:
        raise InputError(f"{where}: {error}") from error.__cause__
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        raise InputError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _check_needs(needs: Any, where: str) -> None:
    if not isinstance(needs, frozenset) or not needs <= set(Context._fields):
        raise InputError(f"{where}: needs = {needs!r}, allowed is a frozenset of {', '.join(Context._fields)}")


def _context(params: Variables, needs: frozenset[str]) -> Context:
    """What a round tells whoever needs these fields, and nothing else."""
    rows = jnp.arange(_ROWS, dtype=jnp.int32)
    last, first = params, jnp.int32(1)
    everything = Context(params, sizes=rows + 1, ids=rows, server_update=params, last_update=last, round_index=first)
    return Context(**{name: getattr(everything, name) for name in needs})


def _stacked(variables: Variables) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((_ROWS, *x.shape), x.dtype), variables)


def _must_be_like(found: Any, wanted: Any, what: str, allowed: str, *, dtypes: bool = True) -> None:
    """Raises InputError for the first leaf that is not as it must be."""
    structure: Any = jax.tree.structure(wanted)
    if structure != jax.tree.structure(found):
        raise InputError(f"{what}: is {_kind(found)}, allowed is a tree {allowed}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, leaf), like in pairs:
        if leaf.shape != like.shape or (dtypes and leaf.dtype != like.dtype):
            place = f"{what}{jax.tree_util.keystr(path)}"
            raise InputError(f"{place}: {leaf.dtype}{leaf.shape}, allowed is {like.dtype}{like.shape}, {allowed}")


def _kind(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"{value.dtype}{value.shape}"
    return f"a tuple of {len(value)}" if type(value) is tuple else type(value).__name__
