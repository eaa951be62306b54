"""Breaks rules and attacks on purpose, one at a time, and shows which test notices: `python -m checks.mutants`.

Each mutant is one replacement in a copy of the project. A mutant that no test kills is a hole in the tests; exit code 1.
Tests whose names say what the file is about come first, quick ones before thorough ones; then all that are not slow.
`--files=attacks/fang.py,attacks/history.py` runs those of some files.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lasa_jax import aggregators, attacks

ROOT = Path(__file__).parents[1]
# File under lasa_jax, what is there, what is put in its place, what kind of mistake that is.
MUTANTS = [
    ("aggregators/coordinate_wise.py", "dtype=jnp.int32) - 2 * f)", "dtype=jnp.int32) - 2 * f + 1)", "off by one"),
    ("aggregators/krum.py", "rows.count - f - 2 - fewer)", "rows.count - f - 1 - fewer)", "one neighbour more"),
    ("aggregators/krum.py", "center - ordered > after - center", "center - ordered < after - center", "wrong side"),
    ("aggregators/krum.py", "jnp.isfinite(score) & (place <", "(place <", "missing guard"),
    ("testing/findings.py", "check, beyond <= 0, inputs", "check, beyond > 0, inputs", "differs for holds"),
    ("aggregators/geometric_median.py", "a / jnp.maximum(distances", "a * jnp.maximum(distances", "inverse weights"),
    (
        "aggregators/dnc.py",
        "(ops.rank_of(score) < kept_count)",
        "(ops.rank_of(score) >= rows.count - kept_count)",
        "wrong end",
    ),
    ("aggregators/signguard.py", "in_band & in_cluster, in_band)", "in_band | in_cluster, in_band)", "or for and"),
    (
        "aggregators/sparsefed.py",
        "jnp.abs(x).astype(jnp.float32) < threshold",
        "jnp.abs(x).astype(jnp.float32) <= threshold",
        "off by one in k",
    ),
    ("aggregators/sparsefed.py", "u.dtype) * u + x", "u.dtype) * u - x", "wrong sign"),
    ("aggregators/preaggregators.py", "jnp.float32) > threshold", "jnp.float32) >= threshold", "off by one in k"),
    (
        "aggregators/preaggregators.py",
        "(distances) < rows.count - f",
        "(distances) <= rows.count - f",
        "one neighbour more",
    ),
    ("aggregators/lasa.py", "jnp.maximum(positive + negative, 1)", "(positive + negative)", "missing guard"),
    ("aggregators/clipping.py", "kept * v.astype(kept.dtype)", "v.astype(kept.dtype)", "not centered"),
    ("aggregators/meamed.py", "median, count - f), count - f)", "median, count - f), count - f + 1)", "one value more"),
    ("aggregators/cge.py", "(score) < rows.count - f", "(score) <= rows.count - f", "one client more"),
    ("aggregators/subsets.py", "index < beginning", "index <= beginning", "wrong subset"),
    ("aggregators/subsets.py", "top_eigenpair(_centred(chosen, gram))", "top_eigenpair(gram)", "of everybody"),
    ("aggregators/caf.py", "spread < smallest, share", "spread > smallest, share", "widest for tightest"),
    ("aggregators/caf.py", "left = c * (1 - tau)", "left = c * tau", "weight from the wrong ones"),
    ("aggregators/robust_learning_rate.py", ">= threshold.astype", "< threshold.astype", "wrong side"),
    ("aggregators/multi_metric.py", "(k[i, i] - sum(x**2 for x in row)", "(k[i, i]", "measures taken for independent"),
    ("aggregators/flame.py", "dtype=jnp.int32) // 2", "dtype=jnp.int32) // 3", "no majority"),
    ("aggregators/flame.py", "lambda w: w * factors", "lambda w: w", "not clipped"),
    ("aggregators/monna.py", "(score) < rows.count - f", "(score) <= rows.count - f", "one client more"),
    ("aggregators/signguard_sim.py", "state.rounds < jnp", "state.rounds <= jnp", "one round more by pairs"),
    (
        "aggregators/signguard_sim.py",
        "jnp.where(jnp.eye(len(norm), dtype=bool), 0.0, 1 - apart)",
        "1 - apart",
        "with itself",
    ),
    ("aggregators/preaggregators.py", "2 * f * (n - f) //", "f * (n - f) //", "half as many clipped"),
    ("aggregators/fltrust.py", "jnp.maximum(cosines, 0.0)", "jnp.abs(cosines)", "missing clip"),
    ("aggregators/alignins.py", "jnp.all(scores < radii", "jnp.any(scores < radii", "or for and"),
    ("aggregators/foolsgold.py", "likeness[:, None] < likeness", "likeness[:, None] > likeness", "wrong pardon"),
    ("aggregators/fldetector.py", "state.last_round[ids] == now - 1", "state.last_round[ids] < now", "who was absent"),
    ("aggregators/lbfgs.py", "jnp.tril(along, -1)", "jnp.tril(along)", "off by one"),
    ("aggregators/gap_statistic.py", "_before(best) + costs", "best[None] + costs", "off by one"),
    ("aggregators/sizes.py", "else ops.product(rows.sources, sizes)", "else sizes", "sizes of others"),
    ("aggregators/preaggregators.py", "low + share * (high - low)", "low", "no interpolation"),
    ("ops/by_client.py", "which & (at >= 0)", "(at >= 0)", "missing guard"),
    ("attacks/distance.py", "LARGEST_STEP = 20.0", "LARGEST_STEP = 2.0", "search cut short"),
    ("attacks/statistical.py", "-jnp.asarray(epsilon, kind)", "jnp.asarray(epsilon, kind)", "wrong sign"),
    ("attacks/base.py", '"benign": ~malicious', '"benign": malicious', "wrong knowledge"),
    ("attacks/adaptive.py", "gain > layers[0]", "gain < layers[0]", "worst for best"),
    ("attacks/naive.py", "num_classes - 1 - labels", "num_classes - labels", "off by one"),
    (
        "attacks/mimic.py",
        "jnp.where(known, jnp.abs(along(direction)), -jnp.inf)",
        "-jnp.abs(along(direction))",
        "the least extreme",
    ),
    ("attacks/mimic.py", "jnp.abs(along(direction))", "along(direction)", "a direction with a sign"),
    ("attacks/mimic.py", "(1.0 + rounds)", "(2.0 + rounds)", "wrong running mean"),
    ("attacks/mimic.py", "malicious & jnp.any(copied)", "malicious", "zeros without the client"),
    (
        "attacks/fang.py",
        "neighbours = jnp.maximum(jnp.sum(known, dtype=jnp.int32) - 2, 1)",
        "neighbours = 1",
        "too few neighbours",
    ),
    ("attacks/fang.py", "(near > 0) == (sign > 0)", "(near > 0) != (sign > 0)", "inside the extremes"),
    ("attacks/fang.py", "m - copies - 2, 0, m - 1)", "m - copies - 1, 0, m - 1)", "one neighbour more"),
    ("attacks/tailored.py", "of_rank(first - copies)", "of_rank(first - copies + 1)", "off by one"),
    ("attacks/tailored.py", "jnp.where(away > 0, low, high)", "low", "wrong end where the row goes up"),
    (
        "attacks/tailored.py",
        "return iterated_selection(distances, present, n - 2 * f, f, 0)",
        "return iterated_selection(distances, present, n - 2 * f, f, 1)",
        "one neighbour fewer",
    ),
    (
        "attacks/tailored.py",
        "chosen[: len(known)] | ~is_copy",
        "chosen[: len(known)] & is_copy",
        "asks for more than the copies",
    ),
    (
        "attacks/optimal.py",
        "jnp.where(good & expands, _LARGER",
        "jnp.where(good, _LARGER",
        "grows again after a failure",
    ),
    (
        "attacks/distance.py",
        "lambda m: m.astype(kind) / length",
        "lambda m: m.astype(kind) * length",
        "not of unit length",
    ),
    (
        "attacks/byzmean.py",
        "jnp.cumsum(malicious, dtype=jnp.int32) <= first",
        "jnp.cumsum(malicious, dtype=jnp.int32) < first",
        "off by one",
    ),
    (
        "attacks/naive.py",
        "jnp.where(labels == old, new, labels)",
        "jnp.where(labels == new, old, labels)",
        "the other way round",
    ),
    ("attacks/naive.py", "jnp.asarray(mean, z.dtype) +", "jnp.asarray(0, z.dtype) +", "no mean"),
    ("attacks/history.py", "sine * p + cosine * u", "cosine * p + sine * u", "along for aside"),
    ("attacks/history.py", "beyond <= 0.01", "beyond < 0.001", "another percentile"),
    ("attacks/history.py", "jnp.where(weaker, lower, state.factor)", "state.factor", "never weaker"),
    ("attacks/history.py", "b.astype(kind) - w.astype(kind)", "w.astype(kind) - b.astype(kind)", "wrong way"),
    ("attacks/sparse.py", "<= limit).astype", "< limit).astype", "one entry fewer"),
    ("attacks/sparse.py", "-ordinary * way", "ordinary * way", "wrong sign"),
    ("attacks/sparse.py", "jnp.abs(w.astype(kind) * g.astype(kind))", "jnp.abs(g.astype(kind))", "not the saliency"),
    ("attacks/backdoors.py", "* (1 + gap), left", "* gap, left", "bars that touch"),
    ("attacks/backdoors.py", "height - margin - size : height - margin,", "height - size : height,", "no margin"),
    ("attacks/backdoors.py", "< jnp.asarray(share, jnp.float32)", "< jnp.float32(2)", "every example"),
    ("attacks/backdoors.py", "labels != wanted  #", "labels == labels  #", "images of the target count"),
    ("attacks/constrained.py", "jnp.float32) < threshold", "jnp.float32) <= threshold", "off by one in k"),
    (
        "federated/round.py",
        "jnp.where(malicious, f, clients_per_round - f)",
        "jnp.where(malicious, f, clients_per_round)",
        "as many as are drawn",
    ),
    ("attacks/constrained.py", "limit / jnp.maximum(norm, limit)", "limit / norm / norm", "a smaller ball"),
]
TESTS = (
    "tests/aggregators/test_battery.py",
    "tests/attacks/test_battery.py",
    "tests/attacks/test_properties.py",
    "tests/attacks/test_mimic.py",
    "tests/attacks/test_peers.py",
    "tests/attacks/test_searches.py",
    "tests/attacks/test_backdoors.py",
    "tests/golden/test_golden.py",
    "tests/golden/test_peers_geometry.py",
    "tests/golden/test_peers_searches.py",
    "tests/attacks/test_over_rounds.py",
    "tests/golden/test_peers_over_rounds.py",
    "tests/golden/test_peers_informed.py",
    "tests/aggregators/test_preaggregators.py",
    "tests/aggregators/test_rules.py",
    "tests/testing/test_conformance.py",
    "tests/aggregators/test_informed.py",
    "tests/federated/test_by_client.py",
)


# What tests call the rules and attacks that a file is about, where that is not what the file or its methods are called.
ABOUT = {
    "aggregators/gap_statistic.py": ("gapstatistic", "fldetector"),
    "aggregators/lbfgs.py": ("fldetector",),
    "aggregators/sizes.py": ("sizes", "size"),
    "attacks/base.py": ("knowledge", "only_malicious"),
    "attacks/distance.py": ("distance", "min_max", "min_sum", "direction", "tailored_median"),
    "attacks/naive.py": ("naive", "oneclass", "around_a_mean"),
    "attacks/optimal.py": ("optimal", "increment"),
    "attacks/statistical.py": ("statistical", "inner_product"),
    "attacks/tailored.py": ("tailored", "bulyan", "picked_whole"),
    "federated/round.py": ("take_part", "takes_part"),
    "ops/by_client.py": ("by_client", "foolsgold", "fldetector"),
    "testing/findings.py": ("a_mean", "planted"),
}


def words_of(path: str) -> list[str]:
    """What the names of tests have in them that are about a file under lasa_jax."""
    module = f"lasa_jax.{path.removesuffix('.py').replace('/', '.')}"
    tables = (aggregators.RULES, aggregators.PREAGGREGATORS, attacks.ATTACKS)
    own = [name for table in tables for name, make in table.items() if make.__module__ == module]
    return sorted({*own, *ABOUT.get(path, (Path(path).stem,))})


def killer(path: str, old: str, new: str) -> str | None:
    """The first test that fails on this mutant, None if none does."""
    words = words_of(path)
    order = sorted(dict.fromkeys(TESTS), key=lambda name: ("attacks" in name) != path.startswith("attacks/"))
    near = [name for name in order if any(word in (ROOT / name).read_text() for word in words)]
    either = " or ".join(words)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", "*_cache", "__pycache__"))
        file = copy / "lasa_jax" / path
        text = file.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{path}: {old!r} is there {text.count(old)} times, must be once")
        file.write_text(text.replace(old, new))
        return (
            first_failure(copy, near, "-k", either, "-m", "not thorough and not slow")
            or first_failure(copy, near, "-k", either, "-m", "thorough")
            or first_failure(copy, order, "-m", "not slow")
        )


def first_failure(copy: Path, tests: Sequence[str], *selection: str) -> str | None:
    """The first of those tests that fails in a copy of the project, None if none does or none is selected."""
    if not tests:  # pytest would take all
        return None
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *selection, *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}  # not another copy that this process was told of
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(result.stdout + result.stderr)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", result.stdout, re.MULTILINE)
    return failed[1] if failed else None


def main() -> int:
    """Prints the table; 1 if a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = sorted({path for path, *_ in MUTANTS})
    parser.add_argument("--files", type=lambda text: text.split(","), default=files, help="FILE,FILE under lasa_jax")
    given = parser.parse_args()
    if unknown := set(given.files) - set(files):
        parser.error(f"--files: {', '.join(sorted(unknown))} without mutants: allowed are {', '.join(files)}")
    survived = False
    print("| file | mistake | killed by |\n| --- | --- | --- |")
    for path, old, new, mistake in MUTANTS:
        if path in given.files:
            killed_by = killer(path, old, new)
            survived |= killed_by is None
            cells = (path, f"{mistake}: `{old}` → `{new}`", killed_by or "**survived**")
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |", flush=True)
    return int(survived)


if __name__ == "__main__":
    sys.exit(main())
