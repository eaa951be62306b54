"""`check_rule` and `check_attack` find planted faults in functions of NumPy and of PyTorch, and pass what is right."""

import importlib.util
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks
from lasa_jax.errors import InputError
from lasa_jax.testing import CHECKS, check_attack, check_rule, conformance
from lasa_jax.testing import comparisons as checks

HAS_TORCH = importlib.util.find_spec("torch") is not None
LIBRARIES = ["numpy", pytest.param("torch", marks=pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed"))]
F = 2
STRANGERS = (checks.NAN, checks.INFINITY)


def library(name: str) -> types.SimpleNamespace:
    """What the functions below need beyond operators: the same names for both."""
    if name == "numpy":
        names = ("where", "isfinite", "nan_to_num", "eye")
        return types.SimpleNamespace(sort=np.sort, **{each: getattr(np, each) for each in names})
    import torch

    names = ("where", "isfinite", "nan_to_num", "eye")
    functions = {each: getattr(torch, each) for each in names}
    return types.SimpleNamespace(sort=lambda x, axis: torch.sort(x, dim=axis).values, **functions)


def krum(xp, rows, neighbours=None, power=2.0, ties=True):
    n = len(rows)
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1) ** (power / 2)
    apart = xp.where(xp.isfinite(apart) & (xp.eye(n) == 0), apart, np.inf)
    score = xp.sort(apart, axis=1)[:, : n - F - 2 if neighbours is None else neighbours(n)].sum(1)
    total = xp.where(xp.isfinite(apart), apart, 0.0).sum(1)
    return rows[xp.where(score <= score.min(), total, np.inf).argmin() if ties else score.argmin()]


def trimmed(xp, rows, low=F, high=F):
    return xp.sort(rows, axis=0)[low : len(rows) - high].mean(0)


def trimmed_present(xp, rows, present, heeded=True):
    n = int(present.sum()) if heeded else len(rows)
    return xp.sort(xp.where(present[:, None] | (not heeded), rows, np.inf), axis=0)[F : n - F].mean(0)


def median(xp, rows):
    ordered, n = xp.sort(rows, axis=0), len(rows)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def clipped_to(xp, rows, largest=False):
    norms = (rows**2).sum(1) ** 0.5
    limit = xp.sort(norms, axis=0)[-1 if largest else (len(rows) - 1) // 2]
    factor = limit / norms
    return (rows * xp.where(factor < 1, factor, 1.0)[:, None]).mean(0)  # x / 0 is infinite


def clipped(xp, rows, guarded=True):
    norms = (rows**2).sum(1) ** 0.5
    lengths = xp.where(norms < 2, norms, 2.0)
    good = (xp.isfinite(norms) & (norms > 0))[:, None]
    unit = rows / norms[:, None]
    moved = unit * lengths[:, None]
    return (xp.where(good, moved, 0.0) if guarded else xp.where(xp.isfinite(rows), moved, 0.0)).mean(0)


def lasa(xp, rows, survive=2):
    rows = rows[xp.isfinite(rows).all(1)]
    norms = (rows**2).sum(1) ** 0.5
    factor = xp.sort(norms, axis=0)[(len(rows) - 1) // 2] / norms
    rows = rows * xp.where(factor < 1, factor, 1.0)[:, None]
    rows = rows * (abs(rows) > xp.sort(abs(rows), axis=1)[:, -1 - survive][:, None])  # k = 3, strictly above the third
    plus, minus = (rows > 0).sum(1) * 1.0, (rows < 0).sum(1) * 1.0
    purity = (plus - minus) / xp.where(plus + minus > 0, plus + minus, 1.0)
    kept = purity == purity
    for x in ((rows**2).sum(1) ** 0.5, purity):
        kept = kept & (abs(x - median(xp, x)) / ((x - x.mean()) ** 2).mean() ** 0.5 < 1)
    return (rows[kept] if kept.any() else rows).mean(0)


def lie(benign, fewer=1):
    return benign.mean(0) - 0.5 * (((benign - benign.mean(0)) ** 2).sum(0) / (len(benign) - fewer)) ** 0.5


class Planted(NamedTuple):
    """A fault, the function with and without it, and where it must be found."""

    like: Any
    right: Callable
    wrong: Callable
    found_by: str
    parameters: dict = {}  # noqa: RUF012


CLIPPED_MEAN = aggregators.chain(aggregators.clip_to_median_norm(), aggregators.fedavg())
FAULTS = {
    "one neighbour too few": Planted(
        "krum", krum, lambda xp, rows: krum(xp, rows, neighbours=lambda n: n - F - 3), checks.ROWS
    ),
    "clipping to the largest norm": Planted(
        CLIPPED_MEAN, clipped_to, lambda xp, rows: clipped_to(xp, rows, largest=True), checks.ROWS
    ),
    "mean for median": Planted("median", median, lambda xp, rows: rows.mean(0), checks.ROWS),
    "a mask ignored": Planted(
        "trimmed_mean",
        lambda xp, rows, present: trimmed_present(xp, rows, present),
        lambda xp, rows, present: trimmed_present(xp, rows, present, heeded=False),
        checks.ABSENT,
    ),
    "mean over the wrong axis": Planted(
        "fedavg", lambda xp, rows: rows.mean(0), lambda xp, rows: rows.mean(1), checks.SHAPE
    ),
    "trimming at one end only": Planted(
        "trimmed_mean", trimmed, lambda xp, rows: trimmed(xp, rows, low=0), checks.ROWS
    ),
    "distances not squared": Planted("krum", krum, lambda xp, rows: krum(xp, rows, power=1.0), checks.ROWS),
    "ties by index": Planted("krum", krum, lambda xp, rows: krum(xp, rows, ties=False), checks.TIES),
    "a zero row divided by its norm": Planted(
        "norm_clipped_mean",
        clipped,
        lambda xp, rows: clipped(xp, rows, guarded=False),
        checks.ZEROS,
        {"clip_norm": 2.0},
    ),
    "one magnitude too many": Planted("lasa", lasa, lambda xp, rows: lasa(xp, rows, survive=3), checks.ROWS),
    "NaN counted": Planted("median", median, lambda xp, rows: median(xp, xp.nan_to_num(rows)), checks.NAN),
    "f off by one": Planted("trimmed_mean", trimmed, lambda xp, rows: trimmed(xp, rows, F - 1, F - 1), checks.ROWS),
}


def bound(function: Callable, xp: types.SimpleNamespace, masked: bool) -> Callable:
    """The function with its library, in the form that a user has: with a mask or without."""
    return (lambda rows, mask: function(xp, rows, mask)) if masked else (lambda rows: function(xp, rows))


def test_a_mean_is_no_median(capsys):
    """What is printed names the check, how many inputs, how far off, and an input that can be read."""
    report = check_rule(lambda rows: rows.mean(0), like="median", num_malicious=F)
    assert {finding.check for finding in report.failures} >= {checks.ROWS, checks.FAR, checks.NAN}
    first = next(finding for finding in report.failures if finding.check == checks.ROWS)
    assert first.inputs["rows"].size <= 18
    np.testing.assert_allclose(first.found, first.inputs["rows"].mean(0), atol=1e-5)
    np.testing.assert_allclose(first.wanted, np.median(first.inputs["rows"], axis=0), atol=1e-5)
    printed = capsys.readouterr().out
    assert "median, num_malicious = 2, given arrays of numpy: " in printed
    assert f"DIFFERS  {checks.ROWS}: on {first.failed} of " in printed


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_the_function_without_it_passes(fault, name):
    planted, xp = FAULTS[fault], library(name)
    masked = fault == "a mask ignored"
    told = {"like": planted.like, "num_malicious": F, "arrays": name, "quiet": True, **planted.parameters}
    right = check_rule(bound(planted.right, xp, masked), **told)
    assert not right.failures, str(right)
    wrong = check_rule(bound(planted.wrong, xp, masked), **told)
    assert planted.found_by in {finding.check for finding in wrong.failures}, str(wrong)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_biased_deviation_is_found(name):
    told = {"like": "lie", "num_malicious": F, "arrays": name, "quiet": True}
    assert not check_attack(lie, **told).failures
    wrong = check_attack(lambda benign: lie(benign, fewer=0), **told)
    assert checks.ROWS in {finding.check for finding in wrong.failures}


def test_another_f_is_named():
    xp = library("numpy")
    report = check_rule(lambda rows: trimmed(xp, rows, F + 1, F + 1), like="trimmed_mean", num_malicious=F, quiet=True)
    assert "num_malicious = 3 in place of 2" in report.hint
    near = check_rule(lambda rows: trimmed(xp, rows, F, F - 1), like="trimmed_mean", num_malicious=F, quiet=True)
    assert near.failures
    assert not near.hint


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
def test_the_library_is_found_out():
    import torch

    for function, wanted in (
        (lambda rows: rows.mean(dim=0), "torch"),
        (lambda rows: jnp.mean(rows, axis=0), "numpy"),  # takes them too
        (lambda rows: rows.at[0].add(0.0).mean(0), "jax"),
        (lambda rows: torch.stack(list(rows)).mean(0), "torch"),
    ):
        report = check_rule(function, like="fedavg", quiet=True)
        assert (report.library, report.failures) == (wanted, ()), str(report)


def test_what_a_function_raises_is_shown():
    def raising(rows):
        raise ValueError(f"{len(rows)} rows\nare too many")

    report = check_rule(raising, like="fedavg", quiet=True)
    assert report.failures[0].found == "ValueError: 8 rows are too many"


def test_a_function_that_changes_its_input_or_draws_is_found():
    def changing(rows):
        rows -= 1
        return rows.mean(0) + 1

    rng = np.random.default_rng(0)
    for function, check in (
        (changing, checks.INPUT),
        (lambda rows: rows.mean(0) + rng.normal(size=2), checks.TWICE),
    ):
        assert check in {finding.check for finding in check_rule(function, like="fedavg", quiet=True).failures}


def test_checks_can_be_left_out():
    report = check_rule(lambda rows: np.median(rows, axis=0), like="median", without=[checks.NAN], quiet=True)
    assert not report.failures
    assert report.not_asked[checks.NAN] == "as told"


def test_rows_have_entries_of_which_a_share_can_be_taken():
    assert checks.ROWS in {x.check for x in check_rule(lambda rows: 0 * rows[0], like="lasa", quiet=True).failures}
    for other in (attacks.lasa_attack(sparsity_level=0.6), attacks.lasa_attack(large_share=0.0)):
        report = check_attack(other, like="lasa_attack", quiet=True)
        assert checks.ROWS in {finding.check for finding in report.failures}
    assert "and 80 more]" in str(report)


def test_a_mask_or_the_malicious_rows_changed_is_found():
    def rule(rows, mask):
        mean = rows[mask].mean(0)
        mask[0] = False
        return mean

    def attack(benign, own):
        own *= -1
        return own.copy()

    for report in (check_rule(rule, like="fedavg", quiet=True), check_attack(attack, like="sign_flip", quiet=True)):
        assert [finding.check for finding in report.failures] == [checks.INPUT], str(report)


def test_the_first_parameter_is_the_rows_whatever_its_name():
    def rule(mask):
        return mask.mean(0)

    def masked(present, mask):
        return present[mask].mean(0)

    assert checks.ABSENT in check_rule(rule, like="fedavg", without=STRANGERS, quiet=True).not_asked
    assert checks.ABSENT in check_rule(masked, like="fedavg", without=STRANGERS, quiet=True).held


def test_equal_parameters_of_another_type_are_not_the_same():
    def built(value):
        told = {"clip_norm": value}
        return conformance._built(aggregators.create, "norm_clipped_mean", aggregators.Aggregator, told)

    assert built(1) is built(1)
    assert len({built(value) for value in (1, 1.0, True)}) == 3


def test_kept_programs_are_bounded():
    for kept in (conformance._cached, conformance._rule_of_rows, conformance._attack_of_rows):
        assert kept.cache_parameters()["maxsize"] is not None


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda f: check_rule(f, like="fltrust"), "like = fltrust: it needs server_update"),
        (lambda f: check_rule(f, like="krun"), "did you mean 'krum'"),
        (lambda f: check_rule(f, like="krum", num_malicious=1.5), "num_malicious = 1.5"),
        (lambda f: check_rule(f, like="krum", without=["ties"]), "without = 'ties': allowed are"),
        (lambda f: check_rule(f, like="krum", arrays="cupy"), "allowed are numpy, torch, jax"),
        (lambda f: check_rule(3, like="krum"), "fn = 3: allowed is a function"),
        (lambda f: check_attack(lambda benign: f(benign), like="sign_flip"), "functions with a parameter own"),
        (lambda f: check_attack(f, like="mpaf"), "it needs params"),
        (lambda f: check_attack(f, like="lie", num_malicious=0), "num_malicious = 0"),
        (
            lambda f: check_rule(f, like=aggregators.krum(), trim=1),
            "trim: like is an Aggregator with parameters of its own",
        ),
        (lambda f: check_attack(f, like=attacks.lie(), z=1.0), "z: like is an Attack with parameters of its own"),
        (lambda f: check_rule(f, like="lasa", sparsity_level=0.9), "its result is 0 on all drawn inputs, rows of 5"),
        (lambda f: check_rule(f, like="signguard"), "it draws, .*; told coordinate_fraction = 1"),
        (
            lambda f: check_attack(lambda benign, own: own, like="noise"),
            "like = noise: it draws, .*; allowed is what draws nothing",
        ),
        (lambda f: check_attack(lambda benign, own: own, like="label_flip"), "it sends what is honest"),
        (lambda f: check_rule(aggregators.fltrust(), like="krum"), "fn = a method of yours: it needs server_update"),
        (lambda f: check_attack(attacks.mpaf(), like="lie"), "fn = a method of yours: it needs params"),
        (lambda f: check_attack(f, like="lie", against=aggregators.fltrust()), "against = .*: it needs server_update"),
        (lambda f: check_attack(f, like="lie", against="krum"), "against = 'krum': allowed is an Aggregator"),
    ],
)
def test_refuses(call, line):
    with pytest.raises(InputError, match=line):
        call(lambda rows: rows.mean(0))


def test_the_names_of_the_checks_are_one_table():
    named = {x for name, x in vars(checks).items() if name.isupper() and isinstance(x, str)}
    assert named == set(CHECKS)


@pytest.mark.parametrize(
    "name", ["krum", "bulyan", "geometric_median", "cge", "lasa", "norm_clipped_mean", "trimmed_mean"]
)
def test_our_rules_pass(name):
    report = check_rule(aggregators.create(name), like=name, num_malicious=F, quiet=True)
    assert not report.failures, str(report)
    assert len(report.held) >= 12


@pytest.mark.parametrize("name", ["lie", "min_max", "tailored_trmean", "sign_flip", "byzmean", "lasa_attack"])
def test_our_attacks_pass(name):
    report = check_attack(attacks.create(name), like=name, num_malicious=F, quiet=True)
    assert not report.failures, str(report)
    assert report.held[checks.ROWS] > 20


@pytest.fixture(scope="module")
def byzfl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        return pytest.importorskip("byzfl")


class TestByzFL:
    """ByzFL's rules that follow the same definition; what it does with NaN is another one."""

    @pytest.mark.parametrize("arrays", ["numpy", "torch"])
    @pytest.mark.parametrize(
        ("theirs", "like", "without", "parameters"),
        [
            (lambda b: b.Average(), "fedavg", STRANGERS, {}),
            (lambda b: b.Median(), "median", STRANGERS, {}),
            (lambda b: b.TrMean(f=F), "trimmed_mean", STRANGERS, {}),
            (
                lambda b: b.GeometricMedian(nu=0.1, T=300),
                "geometric_median",
                STRANGERS,
                {"smoothing": 0.1, "max_iterations": 300},
            ),
            (
                lambda b: lambda rows: b.CenteredClipping(L=3, tau=2.0)(rows),  # an old one remembers
                "centered_clipping",
                STRANGERS,
                {"clip_radius": 2.0, "num_iterations": 3},
            ),
            (lambda b: b.Meamed(f=F), "meamed", (*STRANGERS, checks.TIES), {}),
            (lambda b: b.MDA(f=F), "mda", (*STRANGERS, checks.TIES), {}),
        ],
        ids=["mean", "median", "trimmed mean", "geometric median", "centered clipping", "meamed", "mda"],
    )
    def test_rule(self, byzfl, theirs, like, without, parameters, arrays):
        report = check_rule(theirs(byzfl), like, F, arrays=arrays, without=without, quiet=True, **parameters)
        assert not report.failures, str(report)

    def test_krum_has_one_neighbour_more(self, byzfl):
        report = check_rule(byzfl.Krum(f=F), "krum", F, arrays="numpy", without=(*STRANGERS, checks.TIES), quiet=True)
        assert "num_malicious = 1 in place of 2" in report.hint

    @pytest.mark.parametrize("arrays", ["numpy", "torch"])
    @pytest.mark.parametrize(
        ("theirs", "like", "parameters"),
        [
            (lambda b: b.InnerProductManipulation(tau=2.0), "ipm", {"epsilon": 2.0}),
            (lambda b: b.SignFlipping(), "ipm", {"epsilon": 1.0}),
            (lambda b: b.ALittleIsEnough(tau=-1.5), "lie", {"z": 1.5}),
        ],
        ids=["inner product", "sign flipping", "a little is enough"],
    )
    def test_attack(self, byzfl, theirs, like, parameters, arrays):
        report = check_attack(theirs(byzfl), like, F, arrays=arrays, quiet=True, **parameters)
        assert not report.failures, str(report)
