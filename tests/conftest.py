"""Eight host devices for every test, a cache directory of its own so that no test reads what another run left, and tiers.

Quick tests are what `python -m pytest` runs by itself: golden files, one battery of each method in float32, trained runs,
configs, data, basics of the command lines. A table names what is thorough. What takes minutes is marked slow where it
stands, and further cases and settings by another table: they are run by hand, `python -m pytest -m slow`.

Most of a test's time is XLA's compiler. On a CPU the quick tests, and `-m "thorough and not optimised"`, compile without
LLVM's optimisations, in a third of the time. What is about the compiled program itself, or compares numbers with recorded
ones, is marked optimised by a table: `python -m pytest -m optimised` compiles it as users do, and so does `-m thorough`.
`XLA_FLAGS=--xla_backend_optimization_level=3` does it for any of them.
"""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

ROOT = Path(__file__).parents[1]
QUICK = "not thorough and not slow"  # what pyproject.toml selects by itself
FAST = (QUICK, "thorough and not optimised")  # selections that compile without optimisations
COMPILED_FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    *(("--xla_cpu_use_fusion_emitters=false",) if jax.__version_info__ < (0, 12) else ()),  # gone in 0.12
)
KNOWN = (0, 8) <= jax.__version_info__[:2] <= (0, 12)  # whose XLA has these flags: one that has not would stop at once

# Beginnings of the ids of thorough tests, as regular expressions.
THOROUGH = (
    r"tests/aggregators/test_geometry.py::TestSignGuardSim",
    r"tests/aggregators/test_informed.py::(TestGapStatistic|TestSizes|TestFLDetector::test_who_was)",
    r"tests/aggregators/test_(radii|byzfl)",
    r"tests/attacks/test_backdoors.py::test_(a_backdoor_gets|clients_of_|success_is_the_share)",
    r"tests/attacks/test_battery.py::test_.*, ",  # with another setting
    r"tests/federated/test_(by_client|fairness)",
    r"tests/golden/test_peers_over_rounds.py::test_.*lasa_attack.*(k1_10|dataclass)",
    r"tests/grid/test_refusals",
    r"tests/launch/test_sweeps.py::test_every_sweep.*(fashion_mnist|cifar|femnist)",
    r"tests/aggregators/test_battery.py::test_(law\[(devices|vmap|jit|keeps_dtypes|reads_through|writes_no)|one_trace|only_the_last)",
    r"tests/aggregators/test_battery.py::TestLASA::test_(number_kept|sparsity_levels)",
    r"tests/aggregators/test_peers.py::test_one_client_far_out",
    r"tests/aggregators/test_derivatives",
    r"tests/aggregators/test_parameters_only.py::.*(_with_a_state_trains|without_statistics|says_of_layers|that_adapts)",
    r"tests/aggregators/test_preaggregators.py::test_(a_link_may_come|ablations|distances_of|eight_devices|granularity)",
    r"tests/aggregators/test_preaggregators.py::test_(mixing_before|numbers_of|rules_on_mixed)",
    r"tests/aggregators/test_rules",  # what is particular to a rule; its definition is in the battery
    r"tests/attacks/test_battery.py::test_(law\[(devices|vmap|keeps_dtypes)|one_trace)",
    r"tests/attacks/test_properties.py::test_adaptive",
    r"tests/attacks/test_searches.py::.*(unit_vec|along_every|tailored_median_takes.*sign)",
    r"tests/benchmarks/test_card.py::test_(a_round_needs|golden)",
    r"tests/benchmarks/test_peers.py::test_pip_is_asked",
    r"tests/checks/test_(causes|definitions.py::test_ours|faults|forms.py::test_(models|no_form)|fuzz)",
    r"tests/data/test_by_client.py::TestRealFiles",
    r"tests/federated/test_(ragged|simulation)",
    r"tests/federated/test_client.py::test_(an_accelerator|clients_of_different|every_model|orders_differ|the_form|tf32|.*precision)",
    r"tests/federated/test_evaluation.py::test_(a_cpu_keeps|runs_of_a_batch)",
    r"tests/golden/.*\[(a[234]_|a5_n8_f[23]|[12]-)",  # what is left has every method
    r"tests/grid/test_(command.py::test_(killed|threads)|cost.py::test_a_batch|grid.py::test_the_papers|runs)",
    r"tests/inspection/test_(coefficient|command|recorded|replay|variances)",
    r"tests/launch/test_(cluster|outside|sweeps.py::test_every_sweep.*\[(?!table3))",
    r"tests/golden/test_golden.py::test_crafted_rows\[a[56]_",
    r"tests/inspection/test_outcomes",
    r"tests/models/test_lstm",
    r"tests/models/test_models.py::(TestLSTM|test_(batch_norm|dropout|initialisation))",
    r"tests/models/test_own.py::.*(vmap_over|trains_as|built_in_models|tokens_and_labels|a_module_a_model)",
    r"tests/ops/test_columns.py::test_(every_sample|sample_without)",
    r"tests/ops/test_convolution.py::test_(conv2d_equals_lax\[5|gradients|many_kernels)",
    r"tests/ops/test_convolution_forms.py::test_(forward_and|images_batched)",
    r"tests/ops/test_fold.py::test_(norms_at|the_(derivative|search)|few_examples)",
    r"tests/ops/test_statistics.py::.*11_million",
    r"tests/ops/test_target.py::test_(attacks|rules)_lower",
    r"tests/leaderboard/test_(killed|leaderboard.py::test_(editions|the_tuned))",
    r"tests/report/test_command.py::test_(a_true_run|report_knows)",
    r"tests/report/test_figures.py::test_nothing_overlaps",
    r"tests/test_(build|distributed|forms_of_a_gpu|notebooks)",
    r"tests/test_doors.py::test_the_command_in_an_empty",
    r"tests/test_docs.py::(TestSkeletons|test_the_(guides|sweep))",
    r"tests/test_errors.py::test_outside_of_a_terminal",
    r"tests/test_experiment.py::test_(a_checkpoint|a_deterministic|damaged|divergence|goes_on|metrics_cover)",
    r"tests/test_experiment.py::test_(natural|seeds|three_kills|without_attack)",
    r"tests/test_extending.py::test_(?!a_setting|a_sweep_refuses|points_of|the_directory)",
    r"tests/test_main.py::test_(stopped|tensorboard)",
    r"tests/test_methods.py::TestRuns",
    r"tests/test_(site|tiers)",
    r"tests/testing/(?!test_conformance.py::test_a_mean)",
)


# Beginnings of the ids of tests that are run by hand: further cases and settings of what the other tiers test once.
SLOW = (
    r"tests/aggregators/test_battery.py::test_law\[jit_equals_eager",
    r"tests/aggregators/test_parameters_only.py::TestRules::test_without_statistics",
    r"tests/aggregators/test_informed.py::TestSizes::test_law",
    r"tests/attacks/test_searches.py::(?!test_tailored_median).*(\[sign\b|\[optimal_ipm|first_group\[(?!.*-5\])|\[all-)",
    r"tests/attacks/test_backdoors.py::test_a_backdoor_gets",
    r"tests/attacks/test_properties.py::test_adaptive_works_with_every_rule",
    r"tests/attacks/test_peers.py::test_with_nobody_malicious",
    r"tests/inspection/test_replay.py::test_a_round_of_a_run_from",
    r"tests/inspection/test_theorem.py::test_both_sides_for_a_run",
    r"tests/checks/test_fuzz.py::test_what_is_no_stack",  # a law of the batteries too
    r"tests/golden/test_golden.py::(.*\[a[34]_|test_crafted_rows\[a6_)",
    r"tests/grid/test_(command.py::test_(threads_change|killed_and_started_again\[8\])|runs.py::test_one_bad_directory)",
    r"tests/launch/test_cluster.py::test_a_lost_node",
    r"tests/test_forms_of_a_gpu.py::test_golden_files\[(?!lasa)",
    r"tests/testing/test_conformance.py::test_our_rules_pass.*(bulyan|geometric)",
    r"tests/testing/test_settings.py::test_every_preaggregator_with.*\[float",
    r"tests/attacks/test_battery.py::test_law\[(devices|vmap|keeps_dtypes).*, ",
    r"tests/golden/test_peers_.*(n7_|n25_)",  # the other case has every method
    r"tests/launch/test_sweeps.py::test_every_sweep.*-(fashion_mnist|cifar|mnist)",
)

# Beginnings of the ids of tests that are compiled as users compile: of programs, and of numbers that were recorded.
OPTIMISED = (
    r"tests/golden",
    r"tests/ops",
    r"tests/checks/test_(causes|forms|faults)",
    r"tests/inspection/test_variances.py::test_variances_of_models",  # minutes of products if compiled fast
    r"tests/(aggregators|attacks)/test_(battery.py::test_law\[(reads|writes)|peers)",
    r"tests/aggregators/test_preaggregators.py::test_mixing_before",
    r"tests/federated/test_(simulation|client.py::test_.*precision)",
    r"tests/test_forms_of_a_gpu.py::test_golden",
)


def only_a_cpu() -> bool:
    """Whether JAX can use nothing else. It must not be asked itself: it would read XLA_FLAGS."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not (plugins or importlib.util.find_spec("libtpu"))


def pytest_configure(config: pytest.Config) -> None:
    """Lets tests that are about no compiled program compile fast, unless the caller has said how to compile."""
    given = os.environ["XLA_FLAGS"]
    if config.option.markexpr in FAST and KNOWN and only_a_cpu() and "optimization_level" not in given:
        os.environ["XLA_FLAGS"] = f"{given} {' '.join(COMPILED_FAST)}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what the tables name, before pytest selects by mark; slow tests stay slow only."""
    thorough, slow, optimised = (re.compile("|".join(table)) for table in (THOROUGH, SLOW, OPTIMISED))
    for item in items:
        if slow.match(item.nodeid):
            item.add_marker("slow")
        if item.get_closest_marker("slow") is not None:
            continue
        if thorough.match(item.nodeid):
            item.add_marker("thorough")
        if optimised.match(item.nodeid):
            item.add_marker("optimised")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))  # several tests build the same program
    yield
    patch.undo()
