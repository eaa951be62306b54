"""What defines the attacks that search for their row, those that aim at one rule, and ByzMean on another attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks
from lasa_jax.testing import NUM_CLIENTS as N
from lasa_jax.testing import attacks as laws
from lasa_jax.testing import flat_rows, honest
from lasa_jax.testing.attacks import MALICIOUS, SOME, craft
from lasa_jax.testing.stacks import marked

KEY = jax.random.key(0)
F = int(SOME.sum())
DIRECTIONS = ("std", "unit_vec", "sign")


def sent_and_benign(attack: attacks.Attack) -> tuple[np.ndarray, np.ndarray]:
    """The row that all malicious clients send, and the benign rows, flat."""
    rows = flat_rows(craft(attack, SOME))
    assert (rows[SOME] == rows[SOME][0]).all()
    return rows[SOME][0], rows[~SOME]


def on_the_line(row: np.ndarray, benign: np.ndarray, step: float) -> np.ndarray:
    """The row with its step from the mean times `step`."""
    return benign.mean(0) + step * (row - benign.mean(0))


def along(direction: str, benign: np.ndarray) -> np.ndarray:
    mean = benign.mean(0)
    return {"std": benign.std(0, ddof=1), "unit_vec": mean / np.linalg.norm(mean), "sign": np.sign(mean)}[direction]


def step_of(row: np.ndarray, benign: np.ndarray, direction: str) -> float:
    """The step of a row, which must lie on the line of that direction."""
    p = along(direction, benign)
    step = float((benign.mean(0) - row) @ p / (p @ p))
    np.testing.assert_allclose(row, benign.mean(0) - step * p, atol=2e-5)
    return step


def together(crafted: np.ndarray, benign: np.ndarray) -> np.ndarray:
    return np.concatenate([np.repeat(crafted[None], F, axis=0), benign])


def krum_picks(crafted: np.ndarray, benign: np.ndarray) -> bool:
    x = together(crafted, benign)
    distances = np.sort(np.linalg.norm(x[:, None] - x[None, :], axis=-1) ** 2, axis=1)[:, 1 : len(x) - F - 1]
    return bool(distances.sum(1).argmin() < F)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_min_max_is_tight_along_every_direction(direction):
    row, benign = sent_and_benign(attacks.min_max(direction=direction))
    bound = np.linalg.norm(benign[:, None] - benign[None, :], axis=-1).max()
    step = step_of(row, benign, direction)
    assert 0 < step < 20
    assert np.linalg.norm(benign - row, axis=1).max() <= bound * (1 + 1e-5)
    assert np.linalg.norm(benign - on_the_line(row, benign, 1.001), axis=1).max() > bound


@pytest.mark.parametrize(("make", "choose"), [(attacks.min_sum, np.max), (attacks.min_sum_stealthy, np.min)])
@pytest.mark.parametrize("direction", DIRECTIONS[1:])
def test_min_sum_is_tight_along_every_direction(make, choose, direction):
    row, benign = sent_and_benign(make(direction=direction))
    bound = choose((np.linalg.norm(benign[:, None] - benign[None, :], axis=-1) ** 2).sum(1))
    step_of(row, benign, direction)
    assert (np.linalg.norm(benign - row, axis=1) ** 2).sum() <= bound * (1 + 1e-5)
    assert (np.linalg.norm(benign - on_the_line(row, benign, 1.001), axis=1) ** 2).sum() > bound


def test_a_mean_of_zero_has_no_direction():
    x = np.ones((N, 4), np.float32)
    x[~SOME] = np.resize([1, -1], (int((~SOME).sum()), 1))
    for direction in ("unit_vec", "sign"):
        sent = attacks.min_max(direction=direction).craft({"w": x}, (), SOME, key=KEY)[0]["w"]
        np.testing.assert_array_equal(sent[SOME], 0)


@pytest.mark.parametrize("knowledge", ["benign", "all"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_fang_against_krum_halves_until_it_is_picked(variant, knowledge):
    """Where honest clients agree more than they differ it never is: here they differ more."""
    x = 0.3 * np.random.default_rng(0).standard_normal((N, 60)).astype(np.float32) + 0.03
    sent = attacks.fang_krum(variant, knowledge).craft({"w": x}, (), SOME, key=KEY)[0]["w"]
    row, benign = np.asarray(sent[SOME][0]), x[~SOME]
    known = benign if knowledge == "benign" else x
    distances = np.sort(np.linalg.norm(known[:, None] - known[None, :], axis=-1) ** 2, axis=1)[
        :, 1 : len(known) - F - 1
    ]
    sign = np.sign(known[distances.sum(1).argmin()])
    step = -row[0] / sign[0]
    np.testing.assert_allclose(row, -step * sign, rtol=1e-6)
    assert krum_picks(row, benign)
    if variant == "official":
        assert np.log2(step) == np.round(np.log2(step))
    assert 1e-3 < step < 1
    assert not krum_picks(2 * row, benign)


def test_fang_against_krum_gives_up_where_no_step_is_picked():
    """The benign are all the same but for one: Krum picks one of them, whatever is sent."""
    x = np.ones((N, 3), np.float32)
    x[5] = 2
    malicious = np.arange(N) < 2
    row = attacks.fang_krum("official").craft({"w": x}, (), malicious, key=KEY)[0]["w"][0]
    np.testing.assert_allclose(row, -(2.0**-17), rtol=1e-6)  # the first step that is at most 1e-5


def test_fang_against_krum_by_colluders_is_picked_among_their_own():
    row = flat_rows(craft(attacks.fang_krum(knowledge="colluders"), SOME))[SOME][0]
    own = flat_rows(honest())[SOME]
    sign = np.sign(own.mean(0))
    step = -row[0] / sign[0]
    assert step > 0
    np.testing.assert_allclose(row, -step * sign, rtol=1e-5)


def test_fang_beyond_the_extremes_is_on_the_wrong_side_of_all():
    crafted = craft(attacks.fang_trmean(), SOME)
    rows = flat_rows(crafted)
    benign, sent = rows[~SOME], rows[SOME]
    rises = benign.sum(0) > 0
    assert (sent <= benign.min(0) + 1e-6)[:, rises].all()
    assert (sent >= benign.max(0) - 1e-6)[:, ~rises].all()
    far = craft(attacks.fang_trmean(b=100.0), SOME)
    assert np.abs(flat_rows(far)[SOME]).max() > 10 * np.abs(sent).max()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tailored_median_takes_the_smallest_step_to_the_maximum(direction):
    row, benign = sent_and_benign(attacks.tailored_median(direction=direction))

    def deviation(step: float) -> float:
        x = together(benign.mean(0) - step * along(direction, benign), benign)
        return float(np.linalg.norm(np.median(x, axis=0) - benign.mean(0)))

    step = step_of(row, benign, direction)
    if direction == "unit_vec":  # an entry of the mean is almost 0
        np.testing.assert_allclose(step, 20, rtol=1e-5)
        return
    np.testing.assert_allclose(deviation(step), deviation(100), rtol=1e-6)
    assert deviation(0.99 * step) < deviation(100) * (1 - 1e-7)


def test_the_median_of_a_majority_of_copies_is_the_copy():
    which = marked(MALICIOUS["most"])
    rows = flat_rows(craft(attacks.tailored_median(), which))
    benign = rows[~which]
    np.testing.assert_allclose(rows[which][0], benign.mean(0) - 20 * benign.std(0, ddof=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (attacks.tailored_multi_krum, aggregators.multi_krum(F)),
        (lambda direction: attacks.tailored_multi_krum("official", direction=direction), "official"),
        (attacks.tailored_bulyan, aggregators.bulyan(F)),
    ],
    ids=["multi_krum", "multi_krum, official", "bulyan"],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_farthest_row_that_is_picked_whole(make, rule, direction):
    """The rule itself picks all copies, and not those a little farther out. Bulyan can assume 3 of 16."""
    row, benign = sent_and_benign(make(direction=direction))
    rule = aggregators.multi_krum(F, variant="official") if rule == "official" else rule

    def picked(crafted: np.ndarray) -> bool:
        x = together(crafted, benign).astype(np.float32)
        _, _, info = rule.aggregate({"w": x}, (), key=KEY, num_malicious=F)
        return bool((np.asarray(info.weight["w"])[:F] > 0).all())

    assert 0 < step_of(row, benign, direction) < 20
    assert picked(on_the_line(row, benign, 0.999))
    assert not picked(on_the_line(row, benign, 1.001))


@pytest.mark.parametrize(("name", "evaluations"), [("optimal_alie", 12), ("optimal_ipm", 12), ("optimal_alie", 1)])
def test_the_search_for_the_factor_step_by_step(name, evaluations):
    row, benign = sent_and_benign(attacks.create(name, num_evaluations=evaluations))
    mean, std = benign.mean(0), benign.std(0, ddof=1)

    def crafted(t: float) -> np.ndarray:
        return mean + t * std if name == "optimal_alie" else -t * mean

    def gain(t: float) -> float:
        x = np.sort(together(crafted(t), benign), axis=0)
        return float(np.linalg.norm(x[4 : len(x) - 4].mean(0) - mean))

    best, increment, grows = 0.0, 10.0, True
    for _ in range(evaluations - 1):
        good = gain(best + increment) > gain(best) * (1 + 1e-7)
        best += increment * good
        grows = grows and good
        increment *= 2 if grows else 0.8
    np.testing.assert_allclose(row, crafted(best), rtol=1e-4, atol=1e-4 * np.abs(row).max())


def test_the_search_for_the_factor_needs_the_rule():
    for name in ("optimal_alie", "optimal_ipm"):
        with pytest.raises(ValueError, match=f"attack '{name}' needs the rule"):
            attacks.create(name).craft(honest(), (), SOME, key=KEY)


def test_a_result_that_is_not_finite_gains_nothing():
    def rule(updates):
        row = updates["w"][SOME][0]
        return {"w": jnp.where(jnp.max(row) > 5, jnp.nan, row)}

    x = {"w": honest()["kernel"]}
    sent = attacks.optimal_alie().craft(x, (), SOME, key=KEY, aggregate=rule)[0]["w"][SOME][0]
    assert np.max(sent) <= 5


def test_the_increment_never_grows_again_after_a_failure():
    """A rule that takes what is sent up to t = 25: 10 passes, 30 and 26 do not, 22.8 does, and at the 13th trial 24.947."""

    def rule(updates):
        row = updates["w"][SOME][0]
        return {"w": jnp.where(row >= -25, row, 1)}

    attack = attacks.optimal_ipm(num_evaluations=13)
    sent = attack.craft({"w": np.ones((N, 3), np.float32)}, (), SOME, key=KEY, aggregate=rule)[0]["w"][SOME]
    np.testing.assert_allclose(sent, -(10 + 12.8 + 2.147483648), rtol=1e-6)


def test_inf_sends_nothing_else():
    for x in craft(attacks.inf(), SOME).values():
        assert np.isposinf(x[SOME]).all()


def test_random_around_a_mean():
    updates = {"w": np.zeros((N, 200, 100), np.float32)}
    drawn = craft(attacks.random(std=0.5, mean=3.0), SOME, updates)["w"][SOME]
    assert abs(drawn.mean() - 3) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01
    plain = craft(attacks.random(std=0.5), SOME, updates)["w"][SOME]
    np.testing.assert_allclose(drawn - 3, plain, atol=1e-6)


class TestByzMeanOnAnotherAttack:
    @pytest.mark.parametrize("f", [1, 2, 5, 8])
    @pytest.mark.parametrize("base", ["min_max", "sign_flip", "random", "fang_trmean"])
    def test_the_mean_is_that_of_the_first_group(self, base, f):
        which = np.arange(N) >= N - f
        sent = flat_rows(craft(attacks.byzmean(base=base), which))
        alone = flat_rows(craft(attacks.create(base), which))
        first = N - f + f // 2
        np.testing.assert_array_equal(sent[:first], alone[:first])
        wanted = alone[N - f : first if f > 1 else N].mean(0)
        np.testing.assert_allclose(sent.mean(0), wanted, atol=2e-5)
        assert (sent[first:] == sent[-1]).all()

    @pytest.mark.parametrize(("m1", "first"), [(0, 0), (1, 1), (3, 3), (7, 3)])
    def test_the_size_of_the_first_group(self, m1, first):
        which = np.arange(N) < 4
        for base in (None, "lie"):
            sent = flat_rows(craft(attacks.byzmean(base=base, m1=m1), which))
            beta = flat_rows(craft(attacks.lie(), which))[0]
            np.testing.assert_allclose(sent[:first], np.broadcast_to(beta, (first, len(beta))), atol=1e-6)
            assert not np.allclose(sent[first], beta, atol=1e-3)
            np.testing.assert_allclose(sent.mean(0), beta, atol=1e-5)

    @pytest.mark.parametrize("variant", ["paper", "official"])
    def test_on_lie_it_is_what_it_is_by_itself(self, variant):
        by_itself = craft(attacks.byzmean(z=0.7, variant=variant, knowledge="all"), SOME)
        on_lie = craft(attacks.byzmean(variant=variant, base=attacks.lie(z=0.7, knowledge="all")), SOME)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), on_lie, by_itself)

    def test_the_base_poisons_remembers_and_needs(self):
        poisoned = attacks.byzmean(base="label_flip").poison(0, np.arange(3), num_classes=3, key=KEY, client=0)[1]
        assert poisoned.tolist() == [2, 1, 0]
        remembering = attacks.byzmean(base="mimic")
        state = remembering.init({"w": jnp.zeros(3)})
        for _ in range(2):
            _, state = remembering.craft({"w": jnp.ones((N, 3))}, state, SOME, key=KEY)
        assert int(state.rounds) == 2
        context = aggregators.Context(ids=jnp.arange(N, dtype=jnp.int32))
        knowing = attacks.byzmean(base=attacks.mimic(0), m1=2)
        assert knowing.needs == {"ids"}
        sent = knowing.craft(honest(), (), SOME, key=KEY, context=context)[0]
        first = np.flatnonzero(SOME)[:2]
        np.testing.assert_array_equal(sent["bias"][first], honest()["bias"][[0, 0]])
        laws.only_malicious_rows_change(attacks.byzmean(base="adaptive"))

    def test_what_is_no_base(self):
        with pytest.raises(ValueError, match="base = 'byzmean': allowed are adaptive, alie"):
            attacks.byzmean(base="byzmean")
        with pytest.raises(ValueError, match=r"m1 = 1.5: allowed is 0 <= m1, a whole number"):
            attacks.byzmean(m1=1.5)


class TestOneClassToAnother:
    def test_it_is_flipped_and_no_other(self):
        labels = np.array([0, 1, 2, 3, 1, 4])
        flipped = attacks.label_flip(1, 4).poison(labels, labels, num_classes=5, key=KEY, client=0)
        np.testing.assert_array_equal(flipped[0], labels)
        assert flipped[1].tolist() == [0, 4, 2, 3, 4, 4]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"source": 1}, "source = 1: allowed is both source and target, or neither"),
            ({"target": 1}, "target = 1: allowed is both target and source, or neither"),
            ({"source": 1, "target": 1}, "target = 1: allowed is another class than source = 1"),
            ({"source": -1, "target": 1}, "source = -1: allowed is 0 <= source, a whole number"),
        ],
    )
    def test_what_it_refuses(self, given, message):
        with pytest.raises(ValueError, match=message):
            attacks.label_flip(**given)

    def test_a_class_that_is_not_there(self):
        labels = np.arange(3)
        with pytest.raises(ValueError, match="target = 3: allowed is target <= 2"):
            attacks.label_flip(0, 3).poison(labels, labels, num_classes=3, key=KEY, client=0)
