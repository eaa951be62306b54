"""Attacks over rounds, on sensitive coordinates and against LASA: agreement with reference implementations.

FL-Byzantine-Library (rop, lasa_attack, hybrid_sparse) and PoisonedFL's repository (poisonedfl, mpaf) were run on synthetic
updates. Beside the checkout lie all their recordings; tests/golden/peers has two of the three cases.
`python -m tests.golden.test_peers_over_rounds` makes that copy anew.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import attacks
from lasa_jax.aggregators import Context
from lasa_jax.attacks import history, sparse
from tests.golden.recordings import COPY, FULL, assert_near

KEY = jax.random.key(0)
COPIED = COPY / "peers" / "over_rounds.npz"
METHODS = ("hybrid_sparse", "lasa_attack", "mpaf", "poisonedfl", "rop")
SMALL = ("n7_f1_d37", "n12_f3_d200")  # of the cases, those in the copy
CAPS = {"none": "None", "iqr": "iqr", "z_score": "z_score"}
INPUTS = ("rounds", "own", "global", "base", "sign", "layers")


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    """The recordings at hand, by `method/case/array`; `inputs` is the method of what went in."""
    if not (FULL / "peers").is_dir():
        return dict(np.load(COPIED))
    found = {}
    for method in ("inputs", *METHODS):
        with np.load(FULL / "peers" / f"{method}.npz") as file:
            found |= {f"{method}/{key}": file[key] for key in file.files}
    return found


def cases() -> list[str]:
    return sorted({key.split("/")[1] for key in arrays() if key.startswith("inputs/") and key.endswith("/rounds")})


class Case:
    """One case: its inputs, and how flat vectors become layers."""

    def __init__(self, name: str):
        self.name = name
        rounds, own = self.of("inputs", "rounds"), self.of("inputs", "own")
        self.f, self.n = len(own), rounds.shape[1]
        self.rounds = np.concatenate([np.concatenate([own, rounds[0][self.f :]])[None], rounds[1:]])
        self.malicious = np.arange(self.n) < self.f

    def of(self, method: str, array: str) -> np.ndarray:
        return arrays()[f"{method}/{self.name}/{array}"]

    def has(self, method: str, array: str) -> bool:
        return f"{method}/{self.name}/{array}" in arrays()

    def layers(self, flat: np.ndarray) -> list[jax.Array]:
        ends = self.of("inputs", "layers")
        return [jnp.asarray(flat[..., a:b]) for a, b in itertools.pairwise(ends)]

    def marked(self, at: np.ndarray) -> list[jax.Array]:
        return self.layers(np.isin(np.arange(self.rounds.shape[-1]), at))

    def step(self, attack: attacks.Attack):
        """One round, jitted: `(flat updates, state, context) -> (the first malicious row, flat, state)`."""
        craft = jax.jit(
            lambda updates, state, context: attack.craft(updates, state, self.malicious, key=KEY, context=context)
        )

        def step(rows, state, context):
            sent, state = craft(self.layers(rows), state, context)
            sent = np.concatenate(sent, axis=1)
            np.testing.assert_array_equal(sent[self.f :], rows[self.f :])
            np.testing.assert_array_equal(sent[: self.f], np.broadcast_to(sent[0], sent[: self.f].shape))
            return sent[0], state

        return step


def test_the_copy_is_here():
    """Without the recordings beside the checkout the tests read it."""
    with np.load(COPIED) as file:
        assert {key.split("/")[0] for key in file.files} == {"inputs", *METHODS}
        assert {key.split("/")[1] for key in file.files} == set(SMALL)
    assert COPIED.stat().st_size < 200_000


SETS = {
    "default": {},
    "angle180": {"relocation": 0.5, "angle": 180.0},
    "angle90_pi0": {"relocation": 0.0, "angle": 90.0, "history": 0.5},
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("case", cases())
def test_rop(case, name):
    case = Case(case)
    attack = attacks.rop(z=1.0, **SETS[name])
    step, state, last = case.step(attack), (), np.zeros_like(case.rounds[0][0])
    for index, rows in enumerate(case.rounds):
        row, state = step(rows, state, Context(last_update=case.layers(last)))
        assert_near(row, case.of("rop", f"{name}/row")[index], atol=1e-6)
        last = case.of("rop", f"{name}/reference")[index]


@pytest.mark.parametrize("case", cases())
def test_the_step_of_rop_that_is_not_given(case):
    case = Case(case)
    z = attacks.statistical.z_of_a_majority(jnp.asarray(case.malicious), jnp.ones(case.n, bool))
    assert_near(z, case.of("rop", "z_quantile"), atol=1e-6)


@pytest.mark.parametrize("case", cases())
def test_mpaf(case):
    case = Case(case)
    attack = attacks.mpaf(factor=10.0, base=case.layers(case.of("inputs", "base")))
    params = case.layers(case.of("inputs", "global"))
    row, _ = case.step(attack)(case.rounds[0], attack.init(params), Context(params=params))
    assert_near(row, case.of("mpaf", "row_factor10"), atol=1e-5)


@pytest.mark.parametrize("name", ["followed", "resisted"])
@pytest.mark.parametrize("case", cases())
def test_poisonedfl(case, name):
    """The recorded rounds count from 0, ours from 1. Each begins with the recorded row of the round before.

    Where the server follows, the row is made of a difference of nearly equal vectors, which multiplies what rounding left in
    the row before.
    """
    case = Case(case)
    attack = attacks.poisonedfl(sign=case.layers(case.of("inputs", "sign")))
    changes = case.of("poisonedfl", f"{name}/global_update")
    model, last = case.of("inputs", "global"), np.zeros_like(changes[0])
    step, state = case.step(attack), attack.init(case.layers(model))
    for index, number in enumerate(case.of("poisonedfl", f"{name}/e")):
        context = Context(params=case.layers(model), last_update=case.layers(last), round_index=jnp.int32(number + 1))
        if index:
            row, state = step(case.rounds[index], state, context)
            wanted = case.of("poisonedfl", f"{name}/row")[index]
            assert_near(row, wanted, atol=5e-6 * max(1, np.abs(wanted).max()))  # differences of large numbers
            state = state._replace(row=case.layers(wanted))
        else:
            sent, state = attack.craft(
                case.layers(case.rounds[0]), state, jnp.asarray(case.malicious), key=KEY, context=context
            )
            np.testing.assert_array_equal(np.concatenate(sent, axis=1), case.rounds[0])
        assert_near(state.factor, case.of("poisonedfl", f"{name}/factor")[index], rtol=1e-6)
        last = changes[index]
        model = model + last


@pytest.mark.parametrize("case", cases())
def test_the_99_percent_point(case):
    case = Case(case)
    assert history.upper_point(case.rounds.shape[-1]) == case.of("poisonedfl", "k99")


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("case", cases())
def test_hybrid_sparse(case, searched, cap):
    case = Case(case)
    mask = case.of("hybrid_sparse", "mask")
    attack = attacks.hybrid_sparse(mask=case.layers(mask), cap=cap, searched=searched)
    row, _ = case.step(attack)(case.rounds[0], attack.init(case.layers(mask)), None)
    wanted = case.of("hybrid_sparse", f"{'opt_' * searched}row_{CAPS[cap]}")
    assert_near(row, wanted, atol=2e-5 if searched else 1e-6)  # the recorded search stops at 1e-5


LASA_SETS = {"dataclass": {}, "cli": {"small_share": 0.7}, "k1_10": {"small_share": 0.7, "large_share": 0.1}}


def lasa_z(case: Case) -> float:
    return float(jax.scipy.special.ndtri(1 - case.f / (2 * case.n)))


@pytest.mark.parametrize("name", LASA_SETS)
@pytest.mark.parametrize("case", cases())
def test_the_row_of_lasa_attack_for_the_recorded_coordinates(case, name):
    case = Case(case)
    whole = np.arange(case.rounds.shape[-1])
    small = case.of("lasa_attack", f"{name}/small_at") if case.has("lasa_attack", f"{name}/small_at") else whole
    chosen = case.marked(small), case.marked(case.of("lasa_attack", f"{name}/large_at"))
    assert_near(lasa_z(case), case.of("lasa_attack", "z"), atol=1e-6)
    row = sparse.turned_row(case.layers(case.rounds[0]), jnp.asarray(~case.malicious), *chosen, lasa_z(case), 1.5)
    assert_near(np.concatenate(row), case.of("lasa_attack", f"{name}/row"), atol=1e-6)


@pytest.mark.parametrize("name", LASA_SETS)
@pytest.mark.parametrize("case", cases())
def test_the_coordinates_of_lasa_attack(case, name):
    """As many as recorded, of the same counts; between equal counts the recorded choice has no order."""
    case, flat = Case(case), np.concatenate
    recorded = case.of("lasa_attack", "count")
    counts = sparse.times_small(case.layers(case.rounds[0]), jnp.asarray(~case.malicious), 0.3)
    np.testing.assert_array_equal(flat(counts), recorded)
    for share, at in (
        (LASA_SETS[name].get("small_share", 1.0), "small_at"),
        (0.1 if name == "k1_10" else 0.01, "large_at"),
    ):
        marked = flat(sparse.first_smallest(counts, int(share * len(recorded))))
        if case.has("lasa_attack", f"{name}/{at}"):
            wanted = case.of("lasa_attack", f"{name}/{at}")
            np.testing.assert_array_equal(np.sort(recorded[marked]), np.sort(recorded[wanted]))
        first = np.argsort(recorded, kind="stable")[: int(share * len(recorded))]
        np.testing.assert_array_equal(np.flatnonzero(marked), np.sort(first))


@pytest.mark.parametrize("name", LASA_SETS)
def test_lasa_attack(name):
    """The whole of it is the row for its coordinates."""
    case = Case(cases()[0])
    rows, known = case.layers(case.rounds[0]), jnp.asarray(~case.malicious)
    counts, size = sparse.times_small(rows, known, 0.3), case.rounds.shape[-1]
    chosen = [
        sparse.first_smallest(counts, int(LASA_SETS[name].get(which, default) * size))
        for which, default in (("small_share", 1.0), ("large_share", 0.01))
    ]
    wanted = sparse.turned_row(rows, known, *chosen, lasa_z(case), 1.5)
    row, _ = case.step(attacks.lasa_attack(**LASA_SETS[name]))(case.rounds[0], (), None)
    assert_near(row, np.concatenate(wanted), atol=1e-6)


if __name__ == "__main__":
    kept = {
        key: x
        for key, x in arrays().items()
        if key.split("/")[1] in SMALL and (not key.startswith("inputs/") or key.split("/")[2] in INPUTS)
    }
    np.savez_compressed(COPIED, **kept)
