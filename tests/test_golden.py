"""Agreement with the recorded behaviour of the official code, number by number."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks, ops
from tests.golden import Recording, recordings

RECORDINGS = recordings()
KEY = jax.random.key(0)


def cases(suffix: str) -> list:
    return [pytest.param(r, v, id=f"{r.name}-{v}") for r in RECORDINGS for v in r.variants(suffix) if "/" not in v]


@functools.cache
def lasa_over_settings(recording: Recording):
    """LASA jitted once a file, over traced settings."""

    @jax.jit
    def run(updates, num_kept, magnitude_radius, direction_radius):
        rule = aggregators.lasa(magnitude_radius=magnitude_radius, direction_radius=direction_radius, num_kept=num_kept)
        return rule.aggregate(updates, (), key=KEY, num_malicious=0)

    return run


# Inputs on which the published code breaks and a port must not follow it: non-finite results, or the filter switched off
# for everybody by one client. `test_lasa_where_published_breaks` has them.
BROKEN = {"inf_one", "zero_one", "zero_layer_one", "nan_and_zero_layer"}


@pytest.mark.parametrize(("recording", "variant"), [c for c in cases("lasa/params") if c.values[1] not in BROKEN])
def test_lasa(recording: Recording, variant: str):
    updates = recording.tree(recording.updates(variant))
    run = lasa_over_settings(recording)
    z = {key: recording[f"{variant}/lasa/{key}"] for key in ("params", "used", "keep", "agg", "agg_at", "norm", "pur")}
    # Layer index as recorded; the integer batch counter has a place there but is no layer.
    names = {i: name for i, (name, _, dtype, *_) in enumerate(recording.layers) if dtype.startswith("float")}
    sparsities = recording[f"{variant}/lasa/sparsity"].tolist()
    template = jax.tree.map(lambda x: x[0], updates)
    checked = 0
    for index, (sparsity, magnitude, direction) in enumerate(z["params"]):
        sparsity = round(float(sparsity), 6)  # int(m * (1 - 0.3)) is computed from the double 0.3
        num_kept = aggregators.num_kept_entries(template, sparsity)
        update, _, info = run(updates, num_kept, magnitude, direction)
        level = int(np.argmin(np.abs(np.array(sparsities) - sparsity)))
        guarded = False
        for layer, name in names.items():
            if np.isnan(z["pur"][level, layer]).any():
                # A masked layer without a non-zero: the published filter is off here, ours is not.
                guarded = True
                continue
            kept = np.asarray(info.weight[name])[z["used"]] > 0
            if variant != "all_identical":  # its scores are 0/0 or 0/tiny by rounding: compare the aggregate only
                wanted = z["keep"][index, layer]
                np.testing.assert_array_equal(kept, wanted if wanted.any() else np.ones_like(wanted), err_msg=name)
            np.testing.assert_allclose(np.asarray(info.norm[name])[z["used"]], z["norm"][level, layer], rtol=2e-6)
            purity = 0.5 + (np.asarray(info.purity[name])[z["used"]] - 0.5) * (1 - sparsity)
            np.testing.assert_allclose(purity, z["pur"][level, layer], atol=1e-6)
        dropped = np.setdiff1d(np.arange(recording.n), z["used"])
        assert not np.asarray(info.weight[names[0]])[dropped].any()
        if index in z["agg_at"] and recording[f"{variant}/lasa/status"][index] != 2:
            wanted = z["agg"][list(z["agg_at"]).index(index)]
            mask = recording.real()
            if guarded:
                for layer in names:
                    if np.isnan(z["pur"][level, layer]).any():
                        mask[slice(*recording.layers[layer][3:])] = False
            np.testing.assert_allclose(recording.flat(update)[mask], wanted[mask], atol=1e-6)
            checked += 1
    assert checked
    assert run._cache_size() == 1  # 48 settings, one compilation


@pytest.mark.parametrize(("recording", "variant"), cases("lasa/params"))
def test_top_k(recording: Recording, variant: str):
    """The k-th largest magnitude of every clipped update, and how many entries survive."""
    if variant in ("inf_one", "zero_one"):
        pytest.skip("the published code turns the clipped row into NaN here")
    used, clip = recording[f"{variant}/lasa/used"], recording[f"{variant}/lasa/clip_norm"]
    norms = recording[f"{variant}/lasa/update_norm"]
    x = recording.updates(variant)[used]
    # The published norms are of the rows that are left after the drop, in the same order.
    scale = np.minimum(1, clip / norms[: len(x)])
    masked = np.concatenate([np.arange(a, b) for _, shape, _, a, b in recording.layers if len(shape) in (2, 4)])
    rows = jnp.asarray((x * scale[:, None])[:, masked])
    for level, sparsity in enumerate(recording[f"{variant}/lasa/sparsity"].tolist()):
        if sparsity == 0:
            continue
        k = int(masked.size * (1 - round(sparsity, 6)))
        thresholds = jax.vmap(lambda row, k=k: ops.magnitude_threshold(row, k))(rows)
        np.testing.assert_allclose(thresholds, recording[f"{variant}/lasa/threshold"][level], rtol=1e-6)
        kept = np.sum(np.abs(rows) > np.asarray(thresholds)[:, None], axis=1)
        # Rounding of the scale can merge or split two neighbouring values.
        assert np.abs(kept - recording[f"{variant}/lasa/kept"][level]).max() <= 1


def test_lasa_where_published_breaks():
    """One bad client changes what it must and no more: the other clients are filtered as without it."""
    recording = next(r for r in RECORDINGS if r.name.startswith("a1"))
    lasa = lasa_over_settings.__wrapped__(recording)
    template = {name: np.empty(shape) for name, shape, *_ in recording.layers}
    settings = (aggregators.num_kept_entries(template, 0.3), 2.0, 1.0)
    for variant, client in (("inf_one", 5), ("zero_one", 6), ("zero_layer_one", 3), ("nan_and_zero_layer", 7)):
        updates = recording.tree(recording.updates(variant))
        update, _, info = lasa(updates, *settings)
        assert np.isfinite(recording.flat(update)).all(), variant
        for name, weight in info.weight.items():
            dropped = np.flatnonzero(np.asarray(weight) == 0)
            assert len(dropped), f"{variant}: the filter is off in {name}"
            if variant in ("inf_one", "nan_and_zero_layer"):
                assert client in dropped
    # What the published code gives when it is told how many clients are left after the drop.
    for variant, off in (("nan_one", []), ("nan_and_zero_layer", ["conv1.weight"])):
        updates = recording.tree(recording.updates(variant))
        update, _, _ = lasa(updates, settings[0], 1.0, 1.0)
        mask = recording.real()
        for name, _, _, start, stop in recording.layers:
            mask[start:stop] &= name not in off
        np.testing.assert_allclose(
            recording.flat(update)[mask], recording[f"{variant}/lasa/alt_agg_n_left"][mask], atol=1e-6
        )


@pytest.mark.parametrize(("recording", "variant"), cases("fedavg/agg"))
def test_fedavg(recording: Recording, variant: str):
    rule = aggregators.fedavg()
    update, _, _ = rule.aggregate(recording.tree(recording.updates(variant)), (), key=KEY, num_malicious=0)
    mask = recording.real()
    np.testing.assert_allclose(recording.flat(update)[mask], recording[f"{variant}/fedavg/agg"][mask], atol=1e-6)


def crafted(recording: Recording, attack: attacks.Attack) -> np.ndarray:
    """The malicious rows `(f, d)` that an attack sends, after checking that the others are untouched."""
    honest = recording.tree(recording["honest"])
    malicious = jnp.arange(recording.n) < recording.f
    updates, _ = jax.jit(lambda u: attack.craft(u, (), malicious, key=KEY))(honest)
    flat = np.stack([recording.flat(jax.tree.map(lambda x, i=i: x[i], updates)) for i in range(recording.n)])
    np.testing.assert_array_equal(flat[recording.f :], recording["honest"][recording.f :])
    return flat[: recording.f]


def close(actual: np.ndarray, wanted: np.ndarray, mask: np.ndarray):
    np.testing.assert_allclose(actual[..., mask], wanted[..., mask], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
def test_lie(recording: Recording):
    if "lie/rows" not in recording:
        pytest.skip("no recording of this attack")
    mask = recording.real()
    rows = crafted(recording, attacks.lie(knowledge="colluders"))
    if recording.f == 1:
        # The published std of one row is NaN; here it is 0.
        close(rows, recording["honest"][:1], mask)
    else:
        close(rows, recording["lie/rows"][recording["lie/rows_of"]], mask)
    for knowledge in ("all", "benign"):
        if f"lie/attack/row_{knowledge}_stats" in recording:
            wanted = np.broadcast_to(recording[f"lie/attack/row_{knowledge}_stats"], rows.shape)
            close(crafted(recording, attacks.lie(knowledge=knowledge)), wanted, mask)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
def test_byzmean(recording: Recording):
    mask = recording.real()
    found = 0
    if "byzmean_ref/rows" in recording:
        rows = crafted(recording, attacks.byzmean(variant="published", knowledge="all"))
        close(rows, recording["byzmean_ref/rows"][recording["byzmean_ref/rows_of"]], mask)
        found += 1
    if "byzmean_paper/rows" in recording:
        of = recording["byzmean_paper/rows_of"]
        close(crafted(recording, attacks.byzmean(knowledge="all")), recording["byzmean_paper/rows"][of], mask)
        for knowledge, name in (("benign", "benign"), ("colluders", "malicious")):
            key = f"byzmean_paper/attack/rows_{name}_stats"
            if key in recording:
                close(crafted(recording, attacks.byzmean(knowledge=knowledge)), recording[key][of], mask)
        found += 1
    if not found:
        pytest.skip("no recording of this attack")


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
def test_sign_flip(recording: Recording):
    if "signflip/rows" not in recording:
        pytest.skip("no recording of this attack")
    rows = crafted(recording, attacks.sign_flip())
    close(rows, recording["signflip/rows"][recording["signflip/rows_of"]], recording.real())


@pytest.mark.parametrize(("name", "attack"), [("gauss", attacks.random), ("noise", attacks.noise)])
def test_gaussian_attacks(name: str, attack):
    """Draws differ between libraries; the moments of the recorded and the crafted rows must not."""
    recording = next(r for r in RECORDINGS if r.name.startswith("a1"))
    honest = recording["honest"][: recording.f]
    drawn = crafted(recording, attack()) - (honest if name == "noise" else 0)
    size = drawn.size
    assert abs(drawn.mean()) < 5 * 0.5 / math.sqrt(size)
    assert abs(drawn.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * size)
    if f"{name}/rows" in recording:
        recorded = recording[f"{name}/rows"] - (honest if name == "noise" else 0)
        assert abs(recorded.std() - drawn.std()) < 10 * 0.5 / math.sqrt(2 * size)
