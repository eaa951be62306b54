"""Agreement with the recorded behaviour of public implementations of rules that know something beside the updates."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.aggregators.gap_statistic import num_clusters, sums_of_squares, two_groups
from tests.golden.recordings import COPY, FULL, assert_near

KEY = jax.random.key(0)


@functools.cache
def arrays(method: str) -> dict[str, np.ndarray]:
    """What was recorded of one method, or the inputs of all: the full file if it lies beside the checkout, else the copy."""
    full = FULL / "peers" / f"{method}.npz"
    if full.is_file():
        with np.load(full) as z:
            return dict(z)
    with np.load(COPY / "peers" / "informed.npz") as z:
        return {key.partition("/")[2]: z[key] for key in z.files if key.startswith(f"{method}/")}


def base(case: str) -> str:
    """`n12_f3_d200` of `n12_f3_d200_zero`."""
    return "_".join(case.split("_")[:3])


def recorded(method: str, suffix: str) -> list:
    """The cases that have this array, as parameters: with the copy fewer than with the full files."""
    found = [key.rpartition("/")[0] for key in arrays(method) if key.endswith(f"/{suffix}")]
    return [case for case in found if f"{base(case)}/rounds" in arrays("inputs")]


def rounds_of(case: str) -> np.ndarray:
    """The updates of five rounds, `(5, n, d)`, with the change that an edge case makes in all of them."""
    rounds = given(case, "rounds").copy()
    if case.endswith("_zero"):
        rounds[:, 5] = 0
    if case.endswith("_same"):
        rounds = np.repeat(rounds[:, 5:6], rounds.shape[1], axis=1)
    return rounds


def given(case: str, name: str) -> np.ndarray:
    return arrays("inputs")[f"{base(case)}/{name}"]


def as_tree(case: str, flat: np.ndarray) -> list[jax.Array]:
    """Flat vectors as the four layers of the recording."""
    return [jnp.asarray(part) for part in np.split(flat, given(case, "layers")[1:-1], axis=-1)]


def flat(tree: list) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in tree])


def aggregated(case: str, rule: aggregators.Aggregator, updates: np.ndarray | None = None, **context):
    """The update of the first round, flat, and the diagnostics."""
    rows = as_tree(case, rounds_of(case)[0] if updates is None else updates)
    state = rule.init(jax.tree.map(lambda x: x[0], rows))
    known = {"context": aggregators.Context(**context)} if context else {}
    update, _, info = rule.aggregate(rows, state, key=KEY, num_malicious=0, **known)
    return flat(update), info


class TestFLTrust:
    @pytest.mark.parametrize("case", recorded("fltrust", "weight"))
    def test_aggregate_and_weights(self, case):
        update, info = aggregated(case, aggregators.fltrust(), server_update=as_tree(case, given(case, "root")))
        z = arrays("fltrust")
        # A row of zeros makes one of the two NaN; the other gives it no weight.
        wanted = z[f"{case}/{'flpoison_agg' if case.endswith('_zero') else 'agg'}"]
        assert_near(update, wanted, atol=1e-6)
        assert_near(info.weight[0], z[f"{case}/weight"], atol=1e-6)

    @pytest.mark.parametrize("case", [c for c in recorded("fltrust", "agg") if c.endswith("_allneg")])
    def test_nobody_is_trusted(self, case):
        rows = rounds_of(case)[0]
        update, info = aggregated(case, aggregators.fltrust(), server_update=as_tree(case, -rows.mean(0)))
        np.testing.assert_array_equal(update, arrays("fltrust")[f"{case}/agg"])  # zeros
        assert not np.any(info.weight[0])


class TestAlignIns:
    @pytest.mark.parametrize("weighting", ["equal", "size"])
    @pytest.mark.parametrize("case", recorded("alignins", "agg"))
    def test_aggregate_and_who_is_kept(self, case, weighting):
        z, rule = arrays("alignins"), aggregators.alignins(weighting=weighting)
        known = {"params": as_tree(case, given(case, "global")), "sizes": jnp.asarray(given(case, "counts"), jnp.int32)}
        update, info = aggregated(case, rule, **known)
        assert_near(update, z[f"{case}/{'agg' if weighting == 'equal' else 'agg_counts'}"], atol=1e-6)
        if f"{case}/keep" in z:
            np.testing.assert_array_equal(np.asarray(info.weight[0]) > 0, z[f"{case}/keep"])
        if f"{case}/tda" in z and not case.endswith(("_zero", "_same")):
            assert_near(info.alignment, z[f"{case}/tda"], atol=1e-6)
            assert_near(info.sign_alignment, z[f"{case}/mpsa"], atol=1e-6)
            assert_near(info.alignment_score, z[f"{case}/mz_tda"], atol=1e-4)
            assert_near(info.sign_score, z[f"{case}/mz_mpsa"], atol=1e-4)


class TestSizes:
    """Means and geometric medians by the number of examples."""

    @pytest.mark.parametrize("case", recorded("weighted_mean", "agg_counts"))
    def test_mean(self, case):
        sizes = jnp.asarray(given(case, "counts"), jnp.int32)
        update, _ = aggregated(case, aggregators.fedavg(weighting="size"), sizes=sizes)
        assert_near(update, arrays("weighted_mean")[f"{case}/agg_counts"], atol=1e-6)

    @pytest.mark.parametrize("case", recorded("weighted_geometric_median", "agg_counts_f64"))
    def test_geometric_median(self, case):
        sizes, z = jnp.asarray(given(case, "counts"), jnp.int32), arrays("weighted_geometric_median")
        update, _ = aggregated(case, aggregators.geometric_median(weighting="size"), sizes=sizes)
        assert_near(update, z[f"{case}/agg_counts_f64"], atol=2e-6)
        update, _ = aggregated(case, aggregators.geometric_median())
        assert_near(update, z[f"{case}/agg_equal_f64"], atol=2e-6)


class TestFoolsGold:
    @pytest.mark.parametrize("case", recorded("foolsgold", "weight"))
    def test_five_rounds(self, case):
        z = arrays("foolsgold")
        rounds = z[f"{case}/rounds"] if f"{case}/rounds" in z else rounds_of(case)
        n = rounds.shape[1]
        rule = aggregators.foolsgold(num_clients=n + 3)
        ids = jnp.asarray(np.random.default_rng(0).permutation(n + 3)[:n], jnp.int32)
        step = jax.jit(functools.partial(rule.aggregate, key=KEY, num_malicious=0))
        state = rule.init(as_tree(case, rounds[0, 0]))
        for t, updates in enumerate(rounds):
            order = np.random.default_rng(t).permutation(n)  # rows are in another order each round, ids with them
            rows, context = as_tree(case, updates[order]), aggregators.Context(ids=ids[order])
            update, state, info = step(rows, state, context=context)
            assert_near(np.asarray(info.weight[0]), z[f"{case}/weight"][t][order], atol=2e-5)
            assert_near(flat(update), z[f"{case}/agg"][t], atol=2e-5)

    def test_where_all_are_the_same_nobody_counts(self):
        case = "n12_f3_d200_same"
        rule = aggregators.foolsgold(num_clients=12)
        update, info = aggregated(case, rule, ids=jnp.arange(12, dtype=jnp.int32))
        assert np.isnan(arrays("foolsgold").get(f"{case}/agg", np.nan)).all()
        assert not np.any(info.weight[0])
        assert not update.any()


class TestFLDetector:
    @pytest.mark.parametrize("case", recorded("fldetector", "score"))
    def test_scores(self, case):
        z, rounds = arrays("fldetector"), rounds_of(case).astype(np.float64)
        n = rounds.shape[1]
        rule = aggregators.fldetector(num_clients=n, start_round=1000)
        step = jax.jit(functools.partial(rule.aggregate, key=KEY, num_malicious=0))
        model = given(case, "global").astype(np.float64)
        state = rule.init(as_tree(case, model.astype(np.float32)))
        for t, updates in enumerate(rounds):
            params = as_tree(case, model.astype(np.float32))
            context = aggregators.Context(ids=jnp.arange(n, dtype=jnp.int32), params=params)
            update, state, info = step(as_tree(case, updates.astype(np.float32)), state, context=context)
            assert_near(flat(update), updates.mean(0), atol=1e-6)
            model = model + updates.mean(0)
            if t >= 2:
                assert_near(np.asarray(state.scores)[:, t - 2], z[f"{case}/score"][t - 2], atol=1e-5)
        assert_near(info.suspicion, z[f"{case}/score_sum"] / 3, atol=1e-5)
        _, upper = two_groups(info.suspicion, jnp.ones(n, bool), KEY)
        np.testing.assert_array_equal(upper, z[f"{case}/kmeans_malicious"])

    @pytest.mark.parametrize("case", recorded("fldetector", "gap_draws"))
    def test_gap_statistic(self, case):
        """With the recorded draws: ten sets for each number of clusters."""
        z = arrays("fldetector")
        scores = z[f"{case}/score_sum"]
        scaled = np.sort((scores - scores.min()) / (scores.max() - scores.min())).astype(np.float32)
        draws = np.sort(z[f"{case}/gap_draws"], axis=1).astype(np.float32)
        count = jnp.int32(len(scores))
        within = sums_of_squares(jnp.asarray(scaled), count)
        of_draws = jax.vmap(lambda x: sums_of_squares(x, count))(jnp.asarray(draws)).reshape(7, 10, 7)
        references = jnp.stack([of_draws[k, :, k] for k in range(7)], axis=1)
        gap = np.log(np.mean(references, axis=0)) - np.log(within)
        assert_near(gap, z[f"{case}/gap"], atol=1e-3)
        assert (num_clusters(within, references) > 1) == z[f"{case}/gap_detected"]


def test_the_copy_is_small():
    assert (Path(COPY) / "peers" / "informed.npz").stat().st_size < 400_000
