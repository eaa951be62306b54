"""Models of a user's own, as pairs of functions, Flax Linen or Flax NNX modules; and whether a model takes a dataset."""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict

from lasa_jax.errors import InputError
from lasa_jax.models.base import Model, Variables

# What a model of somebody else's may raise when it is built or called.
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, FlaxError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
_KEY = jax.eval_shape(lambda: jax.random.key(0))


def adapt(made: Any, *, where: str, example: jax.ShapeDtypeStruct, num_classes: int) -> Model:
    """A `Model` of what a user brings.

    Args:
      made: a `Model`; a pair `(init, apply)`; a Linen module; or a function or class that gives one of these, or an NNX
        module. It is called with those of `num_classes`, `input_shape` and `rngs` that its signature has.
      where: what messages begin with: the setting that names it, and the dataset.
      example: shape and type of an example as the model gets it.
      num_classes: of the dataset.

    Raises:
      InputError: one line that says what is wrong.
    """
    from flax import nnx  # takes a fifth of a second

    with _as_one_line(where, made):
        if callable(made) and not isinstance(made, nn.Module | nnx.Module):
            takes = _parameters(made)
            offered = {"num_classes": num_classes, "input_shape": tuple(example.shape)}
            for name, parameter in takes.items():
                if name not in (*offered, "rngs") and parameter.default is inspect.Parameter.empty:
                    raise InputError(f"{where}: takes {name!r}, given are num_classes, input_shape and rngs")
            given = {name: value for name, value in offered.items() if name in takes}
            if "rngs" in takes:
                return _from_nnx(lambda rngs: made(**given, rngs=rngs), where)
            built = made(**given)
        else:
            built = made
        if isinstance(built, Model):
            return built
        if isinstance(built, tuple) and len(built) == 2 and all(callable(part) for part in built):
            return _from_pair(*built, where)
        if isinstance(built, nn.Module):
            model = from_linen(built, example)
            _check_mask(model, built.__call__, where)
            return model
        if isinstance(built, nnx.Module):
            raise InputError(
                f"{where}: gives an NNX module, allowed is a function of rngs that does: the seed is in them"
            )
    found = type(built).__name__
    raise InputError(f"{where}: gives a {found}, allowed are a pair (init, apply), a Linen module and an NNX module")


def check(
    model: Model,
    *,
    where: str,
    example: jax.ShapeDtypeStruct,
    label_shape: tuple[int, ...],
    num_classes: int,
    made: Any = None,
) -> None:
    """Asks a model, without computing anything, whether it takes the examples of a dataset.

    Args:
      model: the model.
      where: what messages begin with.
      example: shape and type of an example as the model gets it.
      label_shape: `()`, or `(time,)` where every position of a sequence has a label.
      num_classes: of the dataset.
      made: what the model was made of; an error that is raised in its file is shown with the line.

    Raises:
      InputError: one line with what the model said, or what it gives that training cannot use.
    """
    batch = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
    real = jax.ShapeDtypeStruct((2,), bool)
    with _as_one_line(where, made):
        variables = jax.eval_shape(model.init, _KEY)
        if not isinstance(variables, Mapping) or not jax.tree.leaves(variables.get("params")):
            raise InputError(f"{where}: init gives no dict with 'params' in which there are arrays")
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            if leaf.dtype != jnp.float32:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise InputError(f"{where}: its variable {name} is {leaf.dtype}, allowed is float32")
        evaluated, _ = jax.eval_shape(model.apply, variables, batch)
        train = functools.partial(model.apply, train=True)
        trained, updated = jax.eval_shape(
            lambda variables, batch, key, mask: train(variables, batch, key=key, mask=mask),
            variables,
            batch,
            _KEY,
            real,
        )
        wanted = (2, *label_shape, num_classes)
        for logits in (evaluated, trained):
            if logits.shape != wanted or not jnp.issubdtype(logits.dtype, jnp.floating):
                each = "a label of each position" if label_shape else "one label"
                raise InputError(
                    f"{where}: gives {logits.dtype} {logits.shape} for two of them, allowed are logits {wanted}: {each}, "
                    f"{num_classes} classes"
                )
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (variables, updated)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{where}: apply(train=True) gives variables of other names, shapes or types than init")


def from_linen(module: nn.Module, example: jax.ShapeDtypeStruct) -> Model:
    """A Linen module, whose `__call__` gets `train` and `mask` where it takes them."""
    takes = _parameters(module.__call__)

    def init(key: jax.Array) -> Variables:
        inputs = jnp.zeros((1, *example.shape), example.dtype)
        return dict(module.init(key, inputs, **_given(takes, inputs, train=False)))

    def apply(
        variables: Variables,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Variables]:
        given = _given(takes, inputs, train=train, mask=mask)
        if not train:
            return cast(jax.Array, module.apply(variables, inputs, **given)), variables
        if key is None:
            raise ValueError("apply(train=True) needs a key for dropout")
        logits, updated = cast(
            tuple[jax.Array, Variables],
            module.apply(variables, inputs, **given, rngs={"dropout": key}, mutable=["batch_stats"]),
        )
        return logits, {**variables, **updated}

    return Model(init, apply)


def _from_pair(own_init: Callable[..., Any], own_apply: Callable[..., Any], where: str) -> Model:
    """Plain functions, whose `apply` gets `train`, `key` and `mask` where it takes them.

    Variables without a "params" of their own become `{"params": variables}`.
    """
    takes = _parameters(own_apply)
    made = jax.eval_shape(own_init, _KEY)
    bare = not (isinstance(made, Mapping) and "params" in made)

    def init(key: jax.Array) -> Variables:
        variables = own_init(key)
        return {"params": variables} if bare else dict(variables)

    def apply(
        variables: Variables,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Variables]:
        given = _given(takes, inputs, train=train, key=key, mask=mask)
        result = own_apply(variables["params"] if bare else variables, inputs, **given)
        if not isinstance(result, tuple):
            return result, variables
        logits, updated = result
        return logits, {"params": updated} if bare else {**variables, **updated}

    model = Model(init, apply)
    _check_mask(model, own_apply, where)
    return model


def _from_nnx(build: Callable[[Any], Any], where: str) -> Model:
    """An NNX module that `build(rngs)` makes: parameters and batch statistics as plain dicts, dropout from `key`."""
    from flax import nnx

    def split(module: nnx.Module) -> tuple[Any, ...]:
        return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)

    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(module, nnx.Module):
        raise InputError(f"{where}: takes rngs and gives a {type(module).__name__}, allowed is an NNX module")
    module.eval()
    evaluating = nnx.graphdef(module)
    module.train()
    training, params, statistics, randomness, others = split(module)
    for _, variable in nnx.to_flat_state(others):
        kind = type(variable).__name__
        raise InputError(f"{where}: has variables of type {kind}, allowed are nnx.Param and nnx.BatchStat")
    takes = _parameters(module.__call__)  # type: ignore[operator]

    def init(key: jax.Array) -> Variables:
        _, params, statistics, *_ = split(build(nnx.Rngs(key)))
        return _as_variables(params, statistics)

    def seeded(key: jax.Array | None) -> Any:
        """The random state: a key of its own for each layer that draws."""
        leaves, structure = jax.tree.flatten(randomness)
        first = jax.random.key(0) if key is None else key  # nothing is drawn in evaluation

        def one(index: int, leaf: Any) -> jax.Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.split(jax.random.fold_in(first, index), leaf.shape)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.tree.unflatten(structure, [one(index, leaf) for index, leaf in enumerate(leaves)])

    def apply(
        variables: Variables,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Variables]:
        module = nnx.merge(
            training if train else evaluating,
            _as_state(params, variables["params"]),
            _as_state(statistics, variables.get("batch_stats", {})),
            seeded(key),
        )
        logits = module(inputs, **_given(takes, inputs, train=train, mask=mask))
        if not train:
            return logits, variables
        updated = _as_variables(params, nnx.state(module, nnx.BatchStat))
        return logits, {**updated, "params": variables["params"]}

    model = Model(init, apply)
    _check_mask(model, module.__call__, where)  # type: ignore[operator]
    return model


def _as_variables(params: Any, statistics: Any) -> Variables:
    """NNX's states as dicts of arrays; places in lists are strings, as other names are."""
    trees = {}
    for name, state in (("params", params), ("batch_stats", statistics)):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        trees[name] = unflatten_dict({_place(path): leaf for path, leaf in leaves})
    return trees if trees["batch_stats"] else {"params": trees["params"]}


def _as_state(template: Any, tree: Mapping[str, Any]) -> Any:
    """The state whose variables have the arrays of a dict."""
    arrays = flatten_dict(tree)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_place(path)], template)


def _place(path: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path if hasattr(entry, "key"))


def _given(
    takes: Mapping[str, Any], inputs: jax.Array, *, mask: jax.Array | None = None, **flags: Any
) -> dict[str, Any]:
    """Those of the flags that a function takes; every example is real where there is no mask."""
    if "mask" in takes:
        flags["mask"] = jnp.ones(inputs.shape[:1], bool) if mask is None else mask
    return {name: value for name, value in flags.items() if name in takes}


def _check_mask(model: Model, function: Callable[..., Any], where: str) -> None:
    """Raises InputError for running statistics in which the padding of a short batch would count."""
    if "mask" not in _parameters(function) and set(jax.eval_shape(model.init, _KEY)) - {"params"}:
        raise InputError(
            f"{where}: padding would count in its running statistics; let it take mask, bool (batch,), and give it to "
            f"BatchNorm"
        )


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a function, or the constructor of a class, takes by name."""
    if isinstance(function, type):  # NNX hides the signature of its classes
        _self, *found = inspect.signature(function.__init__).parameters.values()  # type: ignore[misc]
    else:
        found = list(inspect.signature(function).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name: parameter for parameter in found if parameter.kind in named}


@contextlib.contextmanager
def _as_one_line(where: str, made: Any) -> Iterator[None]:
    """Turns what a model raises into one line, with the place in the file of what was brought where it has one."""
    try:
        yield
    except InputError:
        raise
    except _FAILURES as error:
        file = _source_file(made)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
        place = f"{file.name}, line {lines[-1]}: " if file is not None and lines else ""
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{where}: {place}{type(error).__name__}: {said}") from None


def _source_file(made: Any) -> Path | None:
    """The file that a function, a class, the class of an object or the second function of a pair is written in."""
    made = made[1] if isinstance(made, tuple) and len(made) == 2 else made
    written = inspect.unwrap(made) if inspect.isroutine(made) or inspect.isclass(made) else type(made)
    try:
        return Path(inspect.getsourcefile(written) or "")
    except TypeError:  # built in
        return None
