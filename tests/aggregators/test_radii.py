"""What the magnitude radius does under Noise: see Table 3 in docs/results/digits_tables.md."""

import jax
import numpy as np
import pytest

from lasa_jax import aggregators


def errors(magnitude_radius: float, f: int, n: int = 20) -> tuple[float, float]:
    """Distance to the benign mean, over its norm: of LASA's filter without a clip, and of LASA."""
    rng = np.random.default_rng(0)
    rows = (1 + rng.standard_normal((n, 40, 50))).astype(np.float32) / 30
    benign = rows[f:].mean(axis=0)
    rows[:f] += 0.5 * rng.standard_normal(rows[:f].shape).astype(np.float32)  # the norm is 10 times as large
    given = {"key": jax.random.key(0), "num_malicious": f}
    radii = {"magnitude_radius": magnitude_radius, "direction_radius": 4.0}
    rules = (aggregators.layer_filter(**radii), aggregators.lasa(sparsity_level=0.0, **radii))
    results = [rule.aggregate({"w": rows}, (), **given)[0]["w"] for rule in rules]
    return tuple(float(np.linalg.norm(np.asarray(x) - benign) / np.linalg.norm(benign)) for x in results)


@pytest.mark.parametrize("f", [2, 5])
def test_the_clip_protects_where_the_radius_does_not(f):
    """A share p of far rows has an MZ-score of at most 1 / sqrt(p (1 - p)): 2.31 at 25 %, so that a radius of 4 keeps all.

    Without the clip the mean is then far off; with it noise has the norm of an honest row at most.
    """
    share = f / 20
    assert 2 < 1 / np.sqrt(share * (1 - share)) < 4
    small, clipped_small = errors(2.0, f)
    large, clipped_large = errors(4.0, f)
    assert small < 0.35 < 1 < large
    assert max(clipped_small, clipped_large) < 0.4
