"""Pre-aggregators: what they do to each client, alone and in a chain, and that nothing is written for it."""

import jax
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.aggregators import Rows
from lasa_jax.federated import make_mesh
from lasa_jax.testing import NUM_CLIENTS as N
from lasa_jax.testing import SHAPES, as_layers, assert_close, flat_rows, honest
from tests.aggregators import definitions
from tests.aggregators.test_battery import KEY

PREAGGREGATORS = {
    "reject_nonfinite": aggregators.reject_nonfinite(),
    "clip_to_median_norm": aggregators.clip_to_median_norm(),
    "clip_to_norm": aggregators.clip_to_norm(4.0),
    "keep_top_k": aggregators.keep_top_k(0.5),
    "nearest_neighbour_mixing": aggregators.nearest_neighbour_mixing(5),
    "bucketing": aggregators.bucketing(3),
    "arc": aggregators.arc(),
}


def through(step, updates: dict, present=None, f: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The rows as the next step reads them, flat, and which are left."""

    @jax.jit
    def run(updates, present):
        first_key = jax.random.fold_in(KEY, 0)  # what `chain` gives its first pre-aggregator
        rows = step(Rows.of(updates, present), key=first_key, num_malicious=f)
        return rows.written, rows.present

    written, left = run(updates, np.ones(len(updates["bias"]), bool) if present is None else present)
    return flat_rows(written), np.asarray(left)


def chained(*steps, updates=None, present=None, f: int = 5):
    rule = aggregators.chain(*steps)
    run = jax.jit(lambda u, p: rule.aggregate(u, (), key=KEY, num_malicious=f, present=p)[::2])
    return run(honest() if updates is None else updates, np.ones(N, bool) if present is None else present)


def test_clip_to_median_norm():
    x = flat_rows(honest())
    norms = np.linalg.norm(x, axis=1)
    median = np.sort(norms)[N // 2 - 1]
    rows, _ = through(PREAGGREGATORS["clip_to_median_norm"], honest())
    np.testing.assert_allclose(rows, x * np.minimum(1, median / norms)[:, None], atol=1e-6)


def test_clip_to_norm():
    x = flat_rows(honest())
    rows, _ = through(PREAGGREGATORS["clip_to_norm"], honest())
    np.testing.assert_allclose(rows, x * np.minimum(1, 4 / np.linalg.norm(x, axis=1))[:, None], atol=1e-6)
    updates = honest()
    updates["bias"][3, 0] = np.inf
    rows, left = through(PREAGGREGATORS["clip_to_norm"], updates)
    assert not rows[3].any()
    assert left.all()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_clip_to_a_quantile_of_the_norms(quantile):
    """As NumPy has it, over the clients that are present and finite."""
    updates, present = honest(), np.arange(N) != 4
    updates["bias"][3, 0] = np.inf
    x, counted = flat_rows(updates), (np.arange(N) != 3) & present
    norms = np.linalg.norm(x[counted], axis=1)
    limit = np.quantile(norms, quantile)
    rows, left = through(aggregators.clip_to_norm(quantile=quantile), updates, present)
    np.testing.assert_allclose(rows[counted], x[counted] * np.minimum(1, limit / norms)[:, None], atol=2e-6)
    assert not rows[3].any()
    np.testing.assert_array_equal(left, present)


def test_noise_is_added_to_what_was_clipped():
    """Of the right size, independent between clients, the same for the same key; without it nothing changes."""
    clipped, _ = through(PREAGGREGATORS["clip_to_norm"], honest())
    step = aggregators.clip_to_norm(4.0, noise=0.25)
    rows, _ = through(step, honest())
    drawn = rows - clipped
    assert drawn.std() == pytest.approx(0.25, rel=0.05)
    assert abs(np.corrcoef(drawn)[np.triu_indices(N, 1)]).max() < 0.5
    np.testing.assert_array_equal(through(step, honest())[0], rows)
    none, _ = through(aggregators.clip_to_norm(4.0, noise=0.0), honest())
    np.testing.assert_allclose(none, clipped, atol=1e-7)
    # The mean reads the noisy rows, once.
    update, _ = chained(step, aggregators.fedavg())
    assert_close(update, as_layers(rows.mean(0)), atol=2e-6)


def test_keep_top_k_leaves_vectors_alone():
    rows, _ = through(PREAGGREGATORS["keep_top_k"], honest())
    layers = as_layers(rows.T)
    x = as_layers(flat_rows(honest()).T)
    np.testing.assert_array_equal(layers["bias"], x["bias"])
    matrices = np.concatenate([x["kernel"], x["conv"]])
    threshold = np.sort(np.abs(matrices), axis=0)[-int(102 * 0.5)]
    wanted = np.where(np.abs(matrices) > threshold, matrices, 0)
    np.testing.assert_array_equal(np.concatenate([layers["kernel"], layers["conv"]]), wanted)


@pytest.mark.parametrize("f", [0, 3, 7, 100])
def test_nearest_neighbour_mixing(f):
    x = flat_rows(honest())
    count = N - min(f, (N - 1) // 2)
    distance = np.linalg.norm(x[:, None] - x[None, :], axis=-1)
    wanted = np.stack([x[np.argsort(row, kind="stable")[:count]].mean(0) for row in distance])
    rows, left = through(aggregators.nearest_neighbour_mixing(), honest(), f=f)
    np.testing.assert_allclose(rows, wanted, atol=1e-6)
    assert left.all()


@pytest.mark.parametrize("content", [np.nan, np.inf, 1e38])
def test_mixing_takes_nothing_of_a_bad_row(content):
    updates = honest()
    for x in updates.values():
        x[2] = content
    rows, left = through(aggregators.nearest_neighbour_mixing(3), updates)
    np.testing.assert_array_equal(left, np.arange(N) != 2)
    assert np.abs(rows[left]).max() < 10


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 100])
def test_bucketing(size):
    """Every client is in one bucket, and all buckets but the last are full."""
    updates = {"id": np.eye(N, dtype=np.float32)}
    step = aggregators.bucketing(size)
    rows = jax.jit(lambda u: (r := step(Rows.of(u), key=KEY, num_malicious=0)).written["id"] * r.present[:, None])
    members = np.asarray(rows(updates)) > 0
    sizes = members.sum(1)
    assert (members.sum(0) == 1).all()
    full = N // size
    assert sorted(sizes[sizes > 0].tolist(), reverse=True) == [size] * full + [N % size] * bool(N % size)


def test_bucketing_skips_absent_clients():
    present = np.arange(N) < 7
    updates = honest()
    for x in updates.values():
        x[~present] = np.nan
    rows, left = through(PREAGGREGATORS["bucketing"], updates, present)
    assert left.sum() == 3
    assert np.isfinite(rows[left]).all()


@pytest.mark.parametrize("name", PREAGGREGATORS)
def test_a_link_may_come_anywhere(name):
    """Behind a mixing pre-aggregator the rows that are read are the mixed ones, whatever the next one does with them."""
    for before in ("clip_to_norm", "nearest_neighbour_mixing", "bucketing"):
        first, present = through(PREAGGREGATORS[before], honest())
        mixed = {key: x.reshape(N, *SHAPES[key]).astype(np.float32) for key, x in _layers(first).items()}
        both = jax.jit(lambda u, b=before: _two(PREAGGREGATORS[b], PREAGGREGATORS[name], u))(honest())
        alone = jax.jit(lambda u, p: _one(PREAGGREGATORS[name], u, p))(mixed, present)
        left = np.asarray(alone[1])
        np.testing.assert_array_equal(both[1], left)
        np.testing.assert_allclose(flat_rows(both[0])[left], flat_rows(alone[0])[left], atol=2e-6)


def _layers(rows: np.ndarray) -> dict:
    return {name: x.T for name, x in as_layers(rows.T).items()}


def _two(first, second, updates):
    rows = first(Rows.of(updates), key=jax.random.fold_in(KEY, 0), num_malicious=5)
    rows = second(rows, key=KEY, num_malicious=5)
    return rows.written, rows.present


def _one(step, updates, present):
    rows = step(Rows.of(updates, present), key=KEY, num_malicious=5)
    return rows.written, rows.present


@pytest.mark.parametrize("rule", ["fedavg", "norm_clipped_mean", "krum", "geometric_median", "median", "lasa"])
@pytest.mark.parametrize("mixing", ["nearest_neighbour_mixing", "bucketing"])
def test_rules_on_mixed_rows(rule, mixing):
    """A rule that ends in a weighted sum folds the mixing into it; the result is that of the rows written out."""
    rows, present = through(PREAGGREGATORS[mixing], honest())
    written = {name: x.reshape(N, *SHAPES[name]).astype(np.float32) for name, x in _layers(rows).items()}
    # A chain itself, which must not count the mixing twice; it clips nobody, so that its weights are those of the sum.
    special = {"norm_clipped_mean": lambda: aggregators.norm_clipped_mean(1e6)}
    make = special.get(rule, aggregators.RULES[rule])
    update, info = chained(PREAGGREGATORS[mixing], make())
    wanted, _ = chained(make(), updates=written, present=present)
    assert_close(update, wanted, atol=5e-6)
    if rule in ("fedavg", "norm_clipped_mean", "geometric_median"):  # the weight of each client of the stack
        weighted = np.tensordot(np.asarray(info.weight["bias"]), honest()["bias"], 1)
        np.testing.assert_allclose(update["bias"], weighted, atol=1e-5)


@pytest.mark.parametrize("name", PREAGGREGATORS)
def test_eight_devices_give_the_result_of_one(name):
    wanted, _ = chained(PREAGGREGATORS[name], aggregators.trimmed_mean(2))
    with jax.set_mesh(make_mesh()):
        actual, _ = chained(PREAGGREGATORS[name], aggregators.trimmed_mean(2))
    assert_close(actual, wanted, atol=2e-6)


def test_mixing_before_a_weighted_sum_writes_no_stack():
    stack = {"a": jax.ShapeDtypeStruct((50, 300, 300), np.float32)}
    rule = aggregators.chain(aggregators.nearest_neighbour_mixing(5), aggregators.multi_krum(5))
    compiled = jax.jit(lambda u: rule.aggregate(u, (), key=KEY, num_malicious=0)[0]).lower(stack).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * 4 * 50 * 300 * 300


def test_distances_of_mixed_rows_without_writing_them():
    rows, _ = through(PREAGGREGATORS["nearest_neighbour_mixing"], honest())
    step = PREAGGREGATORS["nearest_neighbour_mixing"]
    actual = jax.jit(lambda u: step(Rows.of(u), key=KEY, num_malicious=0).squared_distances)(honest())
    np.testing.assert_allclose(actual, ((rows[:, None] - rows[None, :]) ** 2).sum(-1), rtol=1e-4, atol=1e-4)


# The ablations of the paper (supplement, section D) are chains of LASA's own pre-aggregators, one line each.
INF = float("inf")
ABLATIONS = {
    "LASA": lambda: (aggregators.keep_top_k(0.3), aggregators.layer_filter(1.3, 1.2)),
    "without sparsification": lambda: (aggregators.layer_filter(1.3, 1.2),),
    "magnitude only": lambda: (aggregators.keep_top_k(0.3), aggregators.layer_filter(1.3, INF)),
    "direction only": lambda: (aggregators.keep_top_k(0.3), aggregators.layer_filter(INF, 1.2)),
}
SETTINGS = {
    "LASA": {},
    "without sparsification": {"sparsity": 0.0},
    "magnitude only": {"direction": INF},
    "direction only": {"magnitude": INF},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_chains(name):
    before = (aggregators.reject_nonfinite(), aggregators.clip_to_median_norm())
    update, _ = chained(*before, *ABLATIONS[name]())
    assert_close(update, definitions.lasa(honest(), **SETTINGS[name]), atol=2e-6)


@pytest.mark.parametrize("granularity", ["layer", "model", "coordinate"])
def test_granularity_of_the_filter(granularity):
    """Model-wise, one score decides for all layers; coordinate-wise, one for each entry."""
    update, info = chained(aggregators.layer_filter(1.3, 1.2, granularity=granularity))
    x = flat_rows(honest())
    if granularity == "layer":
        assert_close(update, chained(aggregators.layer_filter(1.3, 1.2))[0], atol=0)
        return
    groups = x[:, None, :] if granularity == "model" else x[:, :, None]
    kept = np.ones(groups.shape[:2], bool)
    for values, radius in (
        (np.linalg.norm(groups, axis=2), 1.3),
        (0.5 * (1 + np.sign(groups).mean(2)), 1.2),
    ):
        with np.errstate(invalid="ignore"):  # 0 / 0 where all agree in sign: nobody is below the radius
            kept &= np.abs(values - np.median(values, axis=0)) / values.std(axis=0) < radius
    kept = np.where(kept.any(axis=0), kept, True)
    kept = np.broadcast_to(kept, x.shape)
    assert_close(update, as_layers((x * kept).sum(0) / kept.sum(0)), atol=2e-6)
    if granularity == "model":
        for weight in info.weight.values():
            np.testing.assert_array_equal(np.asarray(weight) > 0, kept[:, 0])
    else:
        np.testing.assert_allclose(info.weight["bias"], 1 / N)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregators.clip_to_norm(0.0), "clip_norm = 0.0: allowed is 0 < clip_norm"),
        (lambda: aggregators.clip_to_norm(quantile=1.5), "quantile = 1.5: allowed is 0 <= quantile <= 1"),
        (lambda: aggregators.clip_to_norm(noise=-1.0), "noise = -1.0: allowed is 0 <= noise"),
        (lambda: aggregators.bucketing(0), "bucket_size = 0: allowed is 1 <= bucket_size"),
        (lambda: aggregators.nearest_neighbour_mixing(-1), "assumed_malicious = -1"),
        (lambda: aggregators.keep_top_k(2.0), "sparsity_level = 2.0"),
        (
            lambda: aggregators.layer_filter(granularity="row"),
            "granularity = 'row': allowed are layer, model, coordinate",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_links_may_be_traced():
    traces = []

    @jax.jit
    def run(clip, size, f):
        traces.append(1)
        rule = aggregators.chain(
            aggregators.clip_to_norm(clip),
            aggregators.bucketing(size),
            aggregators.nearest_neighbour_mixing(f),
            aggregators.fedavg(),
        )
        return rule.aggregate(honest(), (), key=KEY, num_malicious=0)[0]

    x = flat_rows(honest())
    norms = np.linalg.norm(x, axis=1)
    for clip in (1.0, 4.5, 1e6):  # the mean of full buckets, each mixed with all others, is the mean of all
        clipped = (x * np.minimum(1, clip / norms)[:, None]).mean(0)
        for size in (1, 2, 4):
            assert_close(run(clip, size, 0), as_layers(clipped), atol=2e-6)
    assert not np.allclose(run(1e6, 2, 1)["bias"], run(1e6, 2, 0)["bias"])
    assert len(traces) == 1
