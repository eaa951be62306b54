"""Agreement with recorded outputs of public implementations of rules that look at distances, angles and norms.

The recordings are those of ByzFL, Byzpy, AlignIns, FLPoison, RLR and SignGuard. The full set is beside the checkout; without
it the two small cases, which are in tests/golden/peers, are compared.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.aggregators import Context, Rows
from lasa_jax.aggregators.signguard_sim import SimilarityState
from tests.golden.make_geometry import METHODS
from tests.golden.recordings import assert_near

COPY = Path(__file__).parent / "peers" / "geometry.npz"
FULL = Path(__file__).parents[3] / "shared" / "golden" / "peers"
KEY = jax.random.key(0)


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    """Arrays by `method/case/name`; the inputs are those of the method "inputs"."""
    if not FULL.is_dir():
        return dict(np.load(COPY))
    files = {method: np.load(FULL / f"{method}.npz") for method in ("inputs", *METHODS)}
    return {f"{method}/{key}": file[key] for method, file in files.items() for key in file.files}


def cases(method: str, name: str) -> list[str]:
    """The cases that have this array of a method; edge cases end in `_zero` or `_same`."""
    found = [key.split("/")[1] for key in recorded() if key.startswith(f"{method}/") and key.endswith(f"/{name}")]
    assert found, f"{method} has no {name}"
    return found


def given(case: str, name: str) -> np.ndarray:
    """An input of a case; an edge case has those of its base."""
    return recorded()[f"inputs/{case.removesuffix('_zero').removesuffix('_same')}/{name}"]


def sent(case: str) -> np.ndarray:
    """The updates of a case, `(n, d)`."""
    updates = given(case, "rounds")[0].copy()
    if case.endswith("_zero"):
        updates[5] = 0
    return np.repeat(updates[5:6], len(updates), 0) if case.endswith("_same") else updates


def layers(case: str, flat: np.ndarray) -> list[jax.Array]:
    """`(..., d)` as its four layers."""
    return [jnp.asarray(x) for x in np.split(flat, given(case, "layers")[1:-1], axis=-1)]


def flat(tree: list[jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(x) for x in tree], axis=-1)


def aggregate(rule: aggregators.Aggregator, case: str, context: Context | None = None):
    """The result of a rule that is told the right number of malicious clients, flat, and its diagnostics."""
    rows = layers(case, sent(case))
    state = rule.init([x[0] for x in rows])

    @jax.jit
    def run(rows, f, context):
        return rule.aggregate(rows, state, key=KEY, num_malicious=f, **rule.knowing(context))

    update, _, info = run(rows, len(given(case, "own")), context)
    return flat(update), info


def assert_recorded(
    rule: aggregators.Aggregator, method: str, case: str, agg: str = "agg", keep: str = "keep", **known
):
    """The aggregate to 1e-6, and who is kept exactly, where that is recorded and does not depend on the order of equals."""
    update, info = aggregate(rule, case, **known)
    assert_near(update, recorded()[f"{method}/{case}/{agg}"], atol=1e-6)
    kept = recorded().get(f"{method}/{case}/{keep}")
    if kept is not None and not case.endswith("_same"):
        np.testing.assert_array_equal(np.asarray(info.weight[0]) > 0, kept)
    return info


@pytest.mark.parametrize("case", cases("meamed", "agg"))
def test_meamed(case):
    assert_recorded(aggregators.meamed(), "meamed", case)


@pytest.mark.parametrize("case", cases("cge", "agg"))
def test_cge(case):
    assert_recorded(aggregators.cge(), "cge", case)


@pytest.mark.parametrize("case", cases("mda", "agg"))
def test_mda(case):
    info = assert_recorded(aggregators.mda(), "mda", case)
    diameter = np.max(np.asarray(info.score)[np.asarray(info.weight[0]) > 0])
    assert_near(diameter, recorded()[f"mda/{case}/diameter"], atol=1e-5)


@pytest.mark.parametrize("case", cases("smea", "agg"))
def test_smea(case):
    assert_recorded(aggregators.smea(), "smea", case)


@pytest.mark.parametrize("case", cases("caf", "exact_agg"))
def test_caf(case):
    """The method as defined, with exact eigenvectors; the public implementations take a few power steps."""
    assert_recorded(aggregators.caf(), "caf", case, agg="exact_agg")


@pytest.mark.parametrize("threshold", [2, 4, 8])
@pytest.mark.parametrize(
    ("base", "name"),
    [("mean", "mean"), ("weighted_mean", "mean_counts"), ("median", "median"), ("sign", "sign")],
)
@pytest.mark.parametrize("case", cases("rlr", "lr_theta8"))
def test_robust_learning_rate(case, base, name, threshold):
    rule = aggregators.robust_learning_rate(threshold=float(threshold), base=base)
    context = Context(sizes=jnp.asarray(given(case, "counts"), jnp.int32))
    update, _ = aggregate(rule, case, context)
    assert_near(update, recorded()[f"rlr/{case}/agg_{name}_theta{threshold}"], atol=1e-6)


@pytest.mark.parametrize("case", [c for c in cases("multi_metric", "agg") if not c.endswith("_zero")])
def test_multi_metric(case):
    """Beside a zero row the public implementation has NaN in all scores; its choice is arbitrary there."""
    info = assert_recorded(aggregators.multi_metric(), "multi_metric", case)
    assert_near(info.score, recorded()[f"multi_metric/{case}/score"], rtol=1e-3)


@pytest.mark.parametrize("case", cases("arc", "scale"))
def test_arc(case):
    step = aggregators.arc()
    updates, f = sent(case), len(given(case, "own"))
    rows = jax.jit(lambda rows: step(Rows.of(rows), key=KEY, num_malicious=f).written)(layers(case, updates))
    assert_near(flat(rows), updates * recorded()[f"arc/{case}/scale"][:, None], atol=1e-6)
    if f"arc/{case}/clipped" in recorded():
        assert_near(flat(rows), recorded()[f"arc/{case}/clipped"], atol=1e-6)


@pytest.mark.parametrize("clustered", ["models", "updates"])
@pytest.mark.parametrize("case", cases("flame", "clip"))
def test_flame(case, clustered):
    rule = aggregators.flame(clustered, noise_factor=0.0)
    context = Context(params=layers(case, given(case, "global")))
    info = assert_recorded(rule, "flame", case, f"agg_{clustered}", f"keep_{clustered}", context=context)
    assert_near(info.height, recorded()[f"flame/{case}/height_{clustered}"], atol=1e-6)
    assert_near(np.median(info.norm), recorded()[f"flame/{case}/clip"], rtol=1e-6)


@pytest.mark.parametrize("name", ["idx0", "idxlast"])
@pytest.mark.parametrize("case", cases("monna", "agg_idx0"))
def test_monna(case, name):
    """Around a client of the round; around the same update where it is the server's own."""
    updates = sent(case)
    place = 0 if name == "idx0" else len(updates) - 1
    assert_recorded(aggregators.monna(trusted=place), "monna", case, f"agg_{name}", f"keep_{name}")
    context = Context(server_update=layers(case, updates[place]))
    assert_recorded(aggregators.monna(), "monna", case, f"agg_{name}", f"keep_{name}", context=context)


@pytest.mark.parametrize("case", cases("signguard_sim", "agg"))
def test_signguard_sim(case):
    """Two rounds by pairs and three with the last result, each from the recorded result of the round before."""
    of = {name: recorded()[f"signguard_sim/{case}/{name}"] for name in ("start", "features", "keep", "agg")}
    rounds, last = given(case, "rounds"), np.zeros_like(of["agg"][0])

    @jax.jit
    def run(rows, state, start):
        rule = aggregators.signguard_sim(variant="official", rounds_by_pairs=2, window_start=start)
        return rule.aggregate(rows, state, key=KEY, num_malicious=0)

    for index, (updates, start) in enumerate(zip(rounds, of["start"], strict=True)):
        state = SimilarityState(layers(case, last), jnp.int32(index))
        update, after, info = run(layers(case, updates), state, int(start))
        assert_near(info.features, of["features"][index], atol=1e-6)
        np.testing.assert_array_equal(np.asarray(info.weight[0]) > 0, of["keep"][index])
        assert_near(flat(update), of["agg"][index], atol=1e-6)
        assert after.rounds == index + 1
        last = of["agg"][index]
