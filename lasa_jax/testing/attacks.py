"""The laws of attacks. Those of any attack are named in `ATTACK_LAWS`; `sends_finite_rows`, `sends_other_rows`,
`draws_for_each_client` and `traces_once` hold for those that promise them.

In the formulas A is the attack, x_i the honest update of client i of n, and M the set of malicious clients.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import aggregators
from lasa_jax.attacks import Attack
from lasa_jax.errors import InputError
from lasa_jax.testing.rules import NOT_CONCRETE
from lasa_jax.testing.stacks import (
    NUM_CLIENTS,
    Mask,
    PyTree,
    Updates,
    assert_close,
    assert_like,
    assert_same,
    filled,
    honest,
    initial,
    known,
    marked,
    sharded_clients,
)

# Who is malicious of 16: from nobody to everybody.
MALICIOUS: dict[str, Sequence[int]] = {
    "none": [],
    "one": [6],
    "some": [1, 4, 5, 11],
    "most": range(3, 16),
    "all": range(16),
}
SOME = marked(MALICIOUS["some"])


def server_rule(updates: PyTree, present: Mask | None = None) -> PyTree:
    """The rule that adaptive attacks are given: the trimmed mean, f = 4."""
    rule = aggregators.trimmed_mean(4)
    return rule.aggregate(updates, (), key=jax.random.key(0), num_malicious=0, present=present)[0]


def eager(
    attack: Attack,
    updates: PyTree,
    state: PyTree,
    key: jax.Array,
    malicious: Mask,
    present: Mask | None = None,
    ids: Mask | None = None,
) -> tuple[PyTree, PyTree]:
    """One round of an attack, not compiled: what is sent, and the attack's state."""
    rule = functools.partial(server_rule, present=present)
    context = known(attack, updates, ids)
    if context and jax.tree.leaves(updates):  # what is no stack is for craft to refuse
        state = attack.begin(state, context["context"])
    return attack.craft(updates, state, malicious, key=key, present=present, aggregate=rule, **context)


@functools.cache
def _compiled(attack: Attack) -> tuple[Callable[..., tuple[PyTree, PyTree]], list[None]]:
    """One round of the attack, jitted, and a list that has one entry for each time that it was traced."""
    traces: list[None] = []

    def step(*arguments: PyTree) -> tuple[PyTree, PyTree]:
        traces.append(None)
        return eager(attack, *arguments)

    return jax.jit(step), traces


def craft(
    attack: Attack,
    malicious: Mask,
    updates: PyTree | None = None,
    present: Mask | None = None,
    ids: Mask | None = None,
) -> PyTree:
    """What all clients send in the first round of an attack, of `honest()` updates if None.

    It is compiled once for each attack and number of clients. `malicious` and `present` are numbers of the program.
    """
    updates = honest() if updates is None else updates
    present = np.ones(len(malicious), bool) if present is None else present
    ids = np.arange(len(malicious)) if ids is None else ids
    state = attack.init(initial(updates))
    try:
        return _compiled(attack)[0](updates, state, jax.random.key(0), malicious, present, ids)[0]
    except NOT_CONCRETE as error:
        raise AssertionError(f"craft cannot be compiled, it asks for the value of a traced array: {error}") from error


def refuses_what_is_no_stack(attack: Attack) -> None:
    """InputError for a stack without entries, with integers, or with leaves that differ in n, and for a mask that is none.

    An attack made by `same_row` or `changed_row` has this for nothing; others call `attacks.checked`.
    """
    floats, four = np.ones((4, 3), np.float32), np.arange(4) < 1
    state = attack.init({"w": floats[0]})
    for what, updates, malicious, present in (
        ("no leaves", {}, four, None),
        ("no clients", {"w": floats[:0]}, four[:0], None),
        ("a leaf of integers", {"w": floats.astype(np.int32)}, four, None),
        ("leaves of 4 and 5 clients", {"b": floats, "w": np.ones((5, 3), np.float32)}, four, None),
        ("a mask of the malicious of 3 for 4 clients", {"w": floats}, four[:3], None),
        ("one value for all clients as mask of the malicious", {"w": floats}, np.asarray(True), None),
        ("a mask of the malicious of integers", {"w": floats}, four.astype(np.int32), None),
        ("a mask of those present of 3 for 4 clients", {"w": floats}, four, four[:3]),
    ):
        try:
            jax.eval_shape(functools.partial(eager, attack), updates, state, jax.random.key(0), malicious, present)
        except InputError:
            continue
        except (TypeError, ValueError, IndexError, LookupError) as error:
            raise AssertionError(f"a stack with {what}: {type(error).__name__}, allowed is InputError") from error
        raise AssertionError(f"a stack with {what} was taken, allowed is InputError")


def only_malicious_rows_change(attack: Attack) -> None:
    """A(x)_i = x_i, bit by bit, for i not in M, and A(x) is like x in structure, shapes and dtypes, for any M."""
    for name, rows in MALICIOUS.items():
        which = marked(rows)
        crafted = craft(attack, which)
        assert_like(crafted, honest(), "what is sent")
        benign, sent = (jax.tree.map(lambda x, which=which: x[~which], tree) for tree in (honest(), crafted))
        assert_same(sent, benign, f"benign rows, {name} of {NUM_CLIENTS} malicious")


def is_a_function_of_its_key(attack: Attack) -> None:
    """A is a function of its arguments: traced twice it is one program, and what it draws comes from its key."""
    state = attack.init(initial(honest()))
    # A new function each time, or JAX gives back the first trace.
    first, second = (
        jax.make_jaxpr(functools.partial(eager, attack))(honest(), state, jax.random.key(0), SOME) for _ in range(2)
    )
    programs = [re.sub(r"0x[0-9a-f]+", "", str(program)) for program in (first, second)]  # addresses of functions
    if programs[0] != programs[1]:
        lines = zip(*(program.splitlines() for program in programs), strict=False)
        a, b = next(((a.strip(), b.strip()) for a, b in lines if a != b), ("a program", "a longer one"))
        raise AssertionError(f"traced twice, craft is two programs: {a!r} and {b!r}")
    assert_same(second.consts, first.consts, "traced twice, craft has other numbers in its program")


def vmap_equals_a_loop(attack: Attack) -> None:
    """vmap(A)(x, y) = (A(x), A(y)): runs in one program, each with malicious clients of its own, do not see each other."""
    masks = np.stack([marked(MALICIOUS[name]) for name in ("none", "one", "some")])
    runs = [honest(seed) for seed in range(3)]

    def one(updates: PyTree, malicious: jax.Array) -> PyTree:
        return eager(attack, updates, attack.init(initial(updates)), jax.random.key(0), malicious)[0]

    together = jax.jit(jax.vmap(one))(jax.tree.map(lambda *x: np.stack(x), *runs), masks)
    for index, updates in enumerate(runs):
        alone = craft(attack, masks[index], updates)
        of_run = jax.tree.map(lambda x, i=index: x[i], together)
        assert_close(of_run, alone, atol=1e-5, what=f"run {index} of three in one program, against it alone")


def devices_do_not_matter(attack: Attack) -> None:
    """A of clients sharded over the devices is that of one device.

    Raises:
      unittest.SkipTest: where there is one device only.
    """
    wanted = craft(attack, SOME)
    with sharded_clients():
        actual = craft(attack, SOME)
    assert_close(actual, wanted, atol=1e-5, what="on several devices, against one")


def absent_rows_are_neither_read_nor_written(attack: Attack) -> None:
    """A(x, present)_i = x_i for absent i, also in M; A(x, present)_i for present i does not depend on the absent rows."""
    present = ~marked([0, 4, 15])
    wanted = None
    for content in (0.0, np.nan, 3e38):
        updates = filled(honest(), ~present, content)
        crafted = craft(attack, SOME, updates, present)
        absent, sent = (jax.tree.map(lambda x: x[~present], tree) for tree in (updates, crafted))
        assert_same(sent, absent, f"absent rows holding {content}")
        counted = jax.tree.map(lambda x: x[present], crafted)
        wanted = counted if wanted is None else wanted
        assert_close(counted, wanted, what=f"present rows with absent ones holding {content}, against 0")


def padding_changes_nothing(attack: Attack, absent: Sequence[int] = (13, 14, 15)) -> None:
    """A(x, present)[present] = A(x[present]): n is the number of clients that are present.

    Args:
      attack: the attack.
      absent: the rows that are not present, as padding is the last. An attack that does not draw for each client by its
        place promises it for any rows.
    """
    present = ~marked(absent)
    padded = craft(attack, SOME, filled(honest(), ~present, np.nan), present)
    ids = np.flatnonzero(present)
    alone = craft(attack, SOME[present], jax.tree.map(lambda x: x[present], honest()), ids=ids)
    counted = jax.tree.map(lambda x: x[present], padded)
    assert_close(counted, alone, atol=1e-5, what=f"clients {list(absent)} absent, against no such clients")


def state_keeps_its_shape(attack: Attack) -> None:
    """The state after a round is like the state before it, so that rounds, keys and masks are numbers of one program."""
    step, traces = _compiled(attack)
    before = state = attack.init(initial(honest()))
    counted = 0
    for index, name in enumerate(("some", "one", "most")):
        arguments = (jax.random.key(index), marked(MALICIOUS[name]), np.ones(NUM_CLIENTS, bool))
        _, state = step(honest(index), state, *arguments)
        assert_like(state, before, f"the state after round {index}")
        counted = counted or len(traces)
    if len(traces) > counted:
        raise AssertionError(f"round 0 to 2: traced {1 + len(traces) - counted} times, allowed is once")


def examples_stay_examples(attack: Attack) -> None:
    """0 <= poisoned label < C for labels of C classes; images and labels keep their shape and dtype.

    So they do with the trigger of an attack that has one, which counts no example that has the wanted label already.
    """
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1)), jnp.uint8)
    labels = jnp.arange(10, dtype=jnp.int32)

    @jax.jit
    def poison(images: jax.Array, labels: jax.Array, key: jax.Array, client: jax.Array) -> Any:
        return attack.poison(images, labels, num_classes=10, key=key, client=client)

    poisoned_images, poisoned = poison(images, labels, jax.random.key(0), jnp.int32(3))
    assert_like(poisoned_images, images, "poisoned images")
    assert_like(poisoned, labels, "poisoned labels")
    if np.min(poisoned) < 0 or np.max(poisoned) > 9:
        raise AssertionError(f"poisoned labels of 10 classes: {np.ravel(poisoned).tolist()}, allowed are 0 to 9")
    if attack.trigger is None:
        return
    shown, wanted, counted = jax.jit(attack.trigger)(images, labels)
    assert_like(shown, images, "triggered images")
    assert_like(wanted, labels, "wanted labels")
    assert_like(counted, labels != wanted, "which examples count")
    if np.any(counted & (labels == wanted)):
        raise AssertionError("an example whose label is the wanted one counts as a success of the trigger")


def keeps_dtypes(attack: Attack) -> None:
    """What is sent and the state have the dtypes of the updates, bfloat16 too."""
    updates = {"w": jnp.asarray(honest()["kernel"], jnp.bfloat16)}
    state = attack.init(initial(updates))
    crafted, after = jax.eval_shape(functools.partial(eager, attack), updates, state, jax.random.key(0), SOME)
    assert_like(crafted, updates, "what is sent, of bfloat16")
    assert_like(after, state, "the state, of bfloat16")


ATTACK_LAWS: tuple[Callable[[Attack], None], ...] = (
    refuses_what_is_no_stack,
    only_malicious_rows_change,
    is_a_function_of_its_key,
    vmap_equals_a_loop,
    devices_do_not_matter,
    absent_rows_are_neither_read_nor_written,
    padding_changes_nothing,
    state_keeps_its_shape,
    examples_stay_examples,
    keeps_dtypes,
)


def sends_finite_rows(attack: Attack) -> None:
    """A(x) is finite where x is, for any M, and where absent rows are not."""
    for rows in MALICIOUS.values():
        chex.assert_tree_all_finite(craft(attack, marked(rows)))
    present = ~marked([0, 4, 15])
    crafted = craft(attack, SOME, filled(honest(), ~present, np.nan), present)
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x[present], crafted))


def sends_other_rows(attack: Attack, least: int = 1) -> None:
    """A(x)_i differs from x_i in every layer for i in M, where M has at least `least` clients.

    Args:
      attack: the attack.
      least: 2 where a malicious client alone sends what is honest, as the mean of the malicious ones.
    """
    for name, rows in MALICIOUS.items():
        which = marked(rows)
        crafted = craft(attack, which)
        for layer, x in honest().items():
            if len(rows) >= least and len(rows) > 0 and np.allclose(np.asarray(crafted[layer])[which], x[which]):
                raise AssertionError(f"{name} of {NUM_CLIENTS} malicious: they send the honest {layer!r}")


def draws_for_each_client(attack: Attack) -> None:
    """A draws for each client in M for itself, and anew for another key."""
    state = attack.init(initial(honest()))
    present = np.ones(NUM_CLIENTS, bool)
    first, second = (_compiled(attack)[0](honest(), state, jax.random.key(seed), SOME, present)[0] for seed in range(2))
    for layer in first:
        rows = np.concatenate([np.asarray(tree[layer])[SOME] - honest()[layer][SOME] for tree in (first, second)])
        if len(np.unique(rows.reshape(len(rows), -1), axis=0)) < len(rows):
            raise AssertionError(f"{SOME.sum()} clients, 2 keys: some of the {len(rows)} draws of {layer!r} are equal")


def traces_once(make: Callable[..., Attack], numbers: Mapping[str, Sequence[float]]) -> None:
    """A with traced hyper-parameters is A with the same concrete ones, and is traced once for all of them.

    Args:
      make: of the hyper-parameters to the attack.
      numbers: of each hyper-parameter that may be traced the values, as many for each.
    """
    traces: list[None] = []

    def sent(updates: Updates, numbers: Mapping[str, float]) -> PyTree:
        attack = make(**numbers)
        return eager(attack, updates, attack.init(initial(updates)), jax.random.key(0), SOME)[0]

    @jax.jit
    def traced(updates: Updates, numbers: Mapping[str, float]) -> PyTree:
        traces.append(None)
        return sent(updates, numbers)

    for values in zip(*numbers.values(), strict=True):
        named = dict(zip(numbers, values, strict=True))
        try:
            actual = traced(honest(), named)
        except NOT_CONCRETE as error:
            raise AssertionError(f"{named}: a number cannot be traced: {error}") from error
        wanted = jax.jit(functools.partial(sent, numbers=named))(honest())
        assert_close(actual, wanted, atol=1e-5, what=f"traced {named}, against concrete")
    if len(traces) != 1:
        raise AssertionError(f"traced {len(traces)} times for the values of {', '.join(numbers)}, allowed is once")
