"""The bound of equation (14) where its assumptions hold and where they do not suffice, and the numbers of docs/theory.md."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.inspection import bound
from lasa_jax.inspection.rounds import Round
from tests.inspection.made_rounds import F, N, sgd_round


@pytest.mark.parametrize("crafted", ["honest", "flipped", "noise", "shifted"])
def test_the_bound_holds_where_its_assumptions_do(crafted):
    """Also with the measured variance of the updates in place of Lemma 4's 2 nu + zeta, which is smaller."""
    for seed in range(3):
        saved, nu, zeta = sgd_round(seed, crafted)
        for level in (0.0, 0.4, 0.9, 1.0):
            radii = {"magnitude_radius": 2.0, "direction_radius": 2.0}
            found = bound.measure(saved, noise=nu, divergence=zeta, sparsity_level=level, **radii)
            assert found.enough_kept
            assert found.benign_variance <= found.lemma_4
            measured = bound.measure(saved, noise=0, divergence=found.benign_variance, sparsity_level=level, **radii)
            assert 0 < found.squared_error == measured.squared_error <= measured.bound <= found.bound
            assert found.squared_error <= measured.layered_bound <= found.layered_bound
            assert found.tightness == found.squared_error / found.bound


def test_the_bound_by_its_definition():
    """c_k, b_k, C, C_lambda and kappa once more, client by client."""
    saved, nu, zeta = sgd_round(0, "flipped")
    level = 0.7
    found = bound.measure(saved, noise=nu, divergence=zeta, sparsity_level=level, magnitude_radius=2.0)
    x = np.concatenate([saved.updates[name].reshape(N, -1) for name in ("v", "w")], 1).astype(np.float64)
    mean = x[F:].mean(0)
    shares, losses = [], []
    for row in x:
        kept = np.abs(row) > np.sort(np.abs(row))[-int(80 * 0.3 + 1e-9)]
        shares.append(((row - mean)[kept] ** 2).sum() / ((row - mean) ** 2).sum())
        losses.append((mean[~kept] ** 2).sum() / (mean**2).sum())
    square, malicious_square = (x[F:] ** 2).sum(1).max(), (x[:F] ** 2).sum(1).max()
    kappa = max(shares) * (1 + F / (N - 2 * F)) * (4 * nu + 2 * zeta + 4 * malicious_square + 4 * square)
    assert found.c_k == pytest.approx(max(shares), rel=1e-6)
    assert found.b_k == pytest.approx(max(losses), rel=1e-6)
    assert found.bound == pytest.approx(kappa + max(losses) * square, rel=1e-6)
    sparse = aggregators.chain(aggregators.keep_top_k(level), aggregators.layer_filter(2.0, 1.0))
    update, _, info = sparse.aggregate(saved.updates, (), key=jax.random.key(0), num_malicious=0)
    flat = np.concatenate([np.asarray(update[name]).ravel() for name in ("v", "w")])
    assert found.squared_error == pytest.approx(((flat - mean) ** 2).sum(), rel=1e-5)
    assert found.smallest_kept == min(int((np.asarray(w) != 0).sum()) for w in info.weight.values())


def test_the_bound_is_exact_where_everything_is_zeroed():
    """Clients that agree, all entries zeroed: the error is ‖mean‖² = C² and so is the bound."""
    saved = Round({"w": np.tile(np.arange(1.0, 7).reshape(2, 3), (6, 1, 1))}, np.zeros(6, bool))
    found = bound.measure(saved, noise=0.5, divergence=0.1, sparsity_level=1.0)
    assert found.squared_error == found.bound == found.update_bound == 91
    assert (found.tightness, found.c_k, found.b_k, found.conditions_hold) == (1, 0, 1, False)
    whole = bound.measure(saved, noise=0.5, divergence=0.1, sparsity_level=0.0)
    assert whole.squared_error == pytest.approx(0, abs=1e-11)  # nobody is off the mean, but for its rounding
    assert (whole.c_k, whole.b_k) == (0, 0)


def test_conditions_hold_between_the_two_epsilons():
    saved, nu, zeta = sgd_round(1, "flipped")
    seen = set()
    for level in (0.0, 0.3, 0.6, 0.9):
        found = bound.measure(saved, noise=nu, divergence=zeta, sparsity_level=level)
        for epsilon in (0.01, 0.1, 1.0, 10.0):
            first = found.c_k <= 1 / (1 + epsilon)
            spread = (4 * nu + 2 * zeta + 4 * found.malicious_bound) / found.update_bound + 4
            second = found.b_k / found.c_k <= epsilon * spread
            assert (first and second) == (found.epsilon_low <= epsilon <= found.epsilon_high)
            assert not (first and second) or found.conditions_hold
        seen.add(found.conditions_hold)
    assert seen == {True, False}  # nothing zeroed: c_k = 1, and no positive epsilon is left


def test_against_sparsity_and_its_picture():
    saved, nu, zeta = sgd_round(2, "shifted")
    frame = bound.against_sparsity(saved, [0.0, 0.5, 1.0], noise=nu, divergence=zeta, magnitude_radius=2.0)
    assert frame.sparsity_level.tolist() == [0.0, 0.5, 1.0]
    alone = bound.measure(saved, noise=nu, divergence=zeta, magnitude_radius=2.0, sparsity_level=0.5)
    assert frame.iloc[1].bound == alone.bound
    figure = bound.draw_against_sparsity(frame)
    figure.draw_without_rendering()
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert stars[0].get_xdata()[0] == frame.sparsity_level[frame.bound.idxmin()]
    assert stars[1].get_xdata()[0] == frame.sparsity_level[frame.squared_error.idxmin()]


def test_small_radii_are_said_to_be_outside_of_the_proof():
    saved, nu, zeta = sgd_round(0, "honest")
    small = {"magnitude_radius": 0.2, "direction_radius": 0.2}
    frame = bound.against_sparsity(saved, [0.3], noise=nu, divergence=zeta, **small)
    assert frame.smallest_kept[0] < N / 2 - F
    assert not frame.enough_kept[0]
    assert "the proof does not cover" in bound.as_table(frame).notes[2]


def three_kinds_of_clients() -> Round:
    """48 honest clients, three layers: each kind of client keeps another layer, where LASA drops it, and all are alike."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((48, 3, 20, 20)) < 0.03, -0.999, 0.999)
    for client in range(48):
        x[client, client % 3] = 1.0
    x[:, :, 0, 0], x[:, :, 0, 1] = 1.0, -1.0  # so that every layer of everybody has both signs
    return Round({f"layer{k}": x[:, k].astype(np.float32) for k in range(3)}, np.zeros(48, bool))


def test_equation_14_does_not_follow_from_its_assumptions():
    """One exact step of SGD, eta = 1 / (2 tau) = 1/2, on gradients of 2 Delta_i: nu = 0, zeta = 4 V; the error is above.

    Each layer is the mean of clients that zeroed nearly all of it, while b_k says that nobody zeroes more than two thirds.
    The numbers are those of docs/theory.md.
    """
    saved = three_kinds_of_clients()
    text = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    told = [
        float(x)
        for x in re.search(r"the error is ([0-9.]+) times the bound; .*? 4's, ([0-9.]+)", text, re.DOTALL).groups()
    ]
    level = float(re.search(r"sparsity level ([0-9.]+) \(k = 405\)", text)[1])
    assert aggregators.num_kept_entries({"w": np.zeros((3, 400))}, level) == 405
    spread = bound.measure(saved, noise=0, divergence=0).benign_variance
    for divergence, number in zip((4 * spread, spread), told, strict=True):  # as Lemma 4 allows; as the updates vary
        found = bound.measure(
            saved, noise=0, divergence=divergence, sparsity_level=level, magnitude_radius=2.0, direction_radius=1.0
        )
        assert found.enough_kept
        assert found.conditions_hold
        assert found.b_k == pytest.approx(2 / 3, rel=0.01)
        assert found.squared_error > 1.1 * found.bound
        assert round(found.tightness, 2) == number
        assert found.b_by_layer == pytest.approx(1, rel=0.01)
        assert found.squared_error <= found.layered_bound
    frame = bound.against_sparsity(saved, [level], noise=0, divergence=spread, magnitude_radius=2.0)
    assert "larger than the bound at sparsity level 0.66" in bound.as_table(frame).notes[-1]


def test_what_the_proof_gives_layer_by_layer():
    """b added up over layers, and a malicious client counts only where a layer keeps it."""
    saved, nu, zeta = sgd_round(0, "flipped")
    far = {name: x.copy() for name, x in saved.updates.items()}
    for x in far.values():
        x[:F] *= 100
    level = 0.7
    numbers = {"noise": nu, "divergence": zeta, "sparsity_level": level, "magnitude_radius": 2.0}
    found = bound.measure(saved._replace(updates=far), **numbers)
    mean = {name: x[F:].astype(np.float64).mean(0).ravel() for name, x in far.items()}
    flat = np.concatenate([far[name].reshape(N, -1) for name in ("v", "w")], 1)
    kept = np.stack([np.abs(row) > np.sort(np.abs(row))[-int(80 * 0.3 + 1e-9)] for row in flat])
    lost = [(mean["v"] ** 2 * ~kept[:, :30]).sum(1).max(), (mean["w"] ** 2 * ~kept[:, 30:]).sum(1).max()]
    total = sum((x**2).sum() for x in mean.values())
    assert found.b_by_layer == pytest.approx(sum(lost) / total, rel=1e-6)
    assert found.b_by_layer > found.b_k
    spread = 4 * nu + 2 * zeta + 4 * found.update_bound  # all three are dropped everywhere
    expected = found.c_k * (1 + F / (N - 2 * F)) * spread + found.b_by_layer * found.update_bound
    assert found.layered_bound == pytest.approx(expected, rel=1e-6)
    assert found.layered_bound < 0.01 * found.bound


def test_notes_say_where_lemma_4_fails():
    saved, nu, zeta = sgd_round(0, "honest")
    holds = bound.as_table(bound.against_sparsity(saved, [0.3, 0.6], noise=nu, divergence=zeta))
    fails = bound.as_table(bound.against_sparsity(saved, [0.3, 0.6], noise=0, divergence=0))
    assert not any("not so here" in note for note in holds.notes)
    assert any("not so here" in note for note in fails.notes)
    assert re.fullmatch(r"The error is smallest at sparsity level 0\.[36], the bound at 0\.[36]\.", holds.notes[0])


def test_what_the_theory_does_not_cover_is_refused():
    saved, _, _ = sgd_round(0, "honest")
    for wrong, message in (
        (saved._replace(malicious=np.arange(N) < N // 2), "6 of 12 clients"),
        (Round({"w": np.full((4, 2, 2), np.nan)}, np.zeros(4, bool)), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            bound.measure(wrong, noise=0, divergence=0)
    with pytest.raises(InputError, match="noise = -1"):
        bound.measure(saved, noise=-1, divergence=0)


@pytest.mark.slow
def test_the_code_and_the_numbers_of_the_docs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    frame = names["frame"].set_index("sparsity_level")
    assert frame.enough_kept.all()
    rows = re.findall(r"^\| ([0-9.]+) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for level, cells in rows:
        numbers = [float(cell) for cell in cells.split(" | ")[:-1]]
        row = frame.loc[float(level)]
        columns = ("squared_error", "bound", "tightness", "layered_bound", "c_k", "b_k", "b_by_layer")
        for column, number in zip(columns, numbers, strict=True):
            assert row[column] == pytest.approx(
                number, rel=0.1 if column in ("squared_error", "tightness") else 0.02, abs=6e-4
            )
        assert cells.split(" | ")[-1] == ("hold" if row["conditions_hold"] else "no epsilon")
    nu, zeta = re.search(r"nu = ([0-9]+\.[0-9]+), zeta = ([0-9]+\.[0-9]+)", text).groups()
    first = frame.iloc[0]
    assert (first.noise, first.divergence) == (pytest.approx(float(nu), abs=0.06), pytest.approx(float(zeta), abs=0.06))
    varies, lemma = re.search(r"in the round above ([0-9.]+) and ([0-9]+\.[0-9]+)", text).groups()
    assert first.benign_variance == pytest.approx(float(varies), abs=0.006)
    assert first.lemma_4 == pytest.approx(float(lemma), abs=0.06)
    assert first.update_bound == pytest.approx(
        float(re.search(r"of a whole update, is ([0-9]+\.[0-9]+)", text)[1]), abs=0.006
    )
    told = re.search(r"prints on the round above ([^(]*)\(.*?\), (.*)\.\s*$", text, re.DOTALL)
    coefficients = re.findall(r"0\.[0-9]+", told[1] + told[2])
    assert [f"{float(line.split()[1]):.2f}" for line in capsys.readouterr().out.splitlines()] == coefficients
    fields = {
        "left side": "gradient",
        "right side, as printed": "bound",
        "right side with kappa / eta²": "scaled",
        "right side that the steps give": "derived",
        "factor in (27), over eta": "coefficient",
        "mu": "smoothness",
        "nu": "noise",
        "zeta": "divergence",
        "kappa": "kappa",
        "largest eta that is allowed": "allowed_rate",
    }
    for heading, field in fields.items():
        cells = re.search(rf"^\| {re.escape(heading)} \| (\S+) \| (\S+) \|$", text, re.MULTILINE).groups()
        for cell, found in zip(cells, names["theorems"].values(), strict=True):
            number = np.inf if cell == "none" else float(cell.replace(",", ""))
            assert getattr(found, field) == pytest.approx(number, rel=0.05), heading
    told = [float(x) for x in re.search(r"first term is ([0-9.]+) and ([0-9.]+),", text).groups()]
    assert [one.descent for one in names["theorems"].values()] == pytest.approx(told, rel=0.01)
    assert all(one.rate_allowed for one in names["theorems"].values())
