"""Programs fit their devices: clients at a time by an injected limit, refusals, and figures of cards."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest

from lasa_jax import build, ops
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import DoesNotFit, cards, make_mesh, memory
from lasa_jax.federated.simulation import compiler_options

SMALL = {"rounds": 2, "num_clients": 24, "clients_per_round": 12, "client.epochs": 1, "aggregator.name": "fedavg"}


def prepared(**settings):
    return build.prepare(configs.resolve(configs.updated(configs.paper("digits"), {**SMALL, **settings})))


@dataclasses.dataclass
class Device:
    """What `cards` asks of a device."""

    device_kind: str
    platform: str = "gpu"
    stats: dict | None = None

    def memory_stats(self):
        if self.stats is None:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: MemoryStats is only supported for addressable devices")
        return self.stats


class TestEstimate:
    def chosen(self, program, limit, platform="gpu", **more):
        with ops.compiling_for(platform):
            found = memory.footprint(program)
            return memory.estimated_at_once(program, found, limit, examples=0, partition=0, **more), found

    def test_as_many_clients_as_a_quarter_of_the_memory_holds(self):
        program = prepared().program
        everybody, found = self.chosen(program, 10**12)
        assert everybody == 12
        assert self.chosen(program, 4 * 5 * found.client)[0] == 4  # a divisor of twelve
        assert self.chosen(program, 4 * 5 * found.client, runs=2)[0] == 2
        assert self.chosen(program, 1)[0] == 1

    def test_the_stack_leaves_less_for_clients(self):
        program = prepared(model="mlp").program
        limit = 10**7
        with ops.compiling_for("gpu"):
            found = memory.footprint(program)
            free, full = (
                memory.estimated_at_once(program, found, limit, examples=examples, partition=0)
                for examples in (0, limit)
            )
        assert free > full == 1

    def test_what_a_user_sets_and_a_cpu_stay(self):
        assert self.chosen(prepared(client_chunk=7).program, 1)[0] == 7
        assert self.chosen(prepared().program, 10**12, "cpu")[0] == 1

    def test_ragged_clients_train_in_groups_of_like_size(self):
        ragged = prepared(**{"partition.name": "dirichlet"}).program
        assert self.chosen(ragged, 10**12)[0] == 2

    def test_every_client_counts(self):
        with ops.compiling_for("gpu"):
            found = memory.footprint(prepared().program)
        assert found.client > 4 * found.model
        few, many = (found.of(rows=12, examples=5, partition=3, at_once=n) for n in (1, 12))
        assert few < many == 5 + 3 + 15 * found.model + 12 * found.client


@pytest.mark.parametrize(
    ("settings", "models"),
    [
        ({}, 0),
        ({"aggregator.name": "fldetector", "aggregator.fldetector.window": 3}, 9),  # its pairs and three models
        ({"aggregator.name": "fltrust"}, 1),  # which the server trains
        ({"attack.name": "neurotoxin", "attack_ratio": 0.25}, 1),  # the last update
    ],
)
def test_what_a_run_carries_counts(settings, models):
    run = prepared(**settings)
    state = jax.eval_shape(run.program.init, run.point)
    carried, model = memory.carried(state, run.point), memory.footprint(run.program).model
    assert models * model <= carried < (models + 0.1) * model
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), (state, run.point))
    assert memory.carried(*several, 5) == carried
    less, more = (memory.Footprint(model, 3 * model, 0, beside) for beside in (0, carried))
    at = {"rows": 3, "examples": 1, "partition": 1, "at_once": 1}
    assert more.of(**at, runs=5) - less.of(**at, runs=5) == 5 * 2 * carried


@pytest.mark.parametrize(
    ("rows", "most", "group"), [(25, 10, 5), (30, 29, 15), (100, 99, 50), (23, 9, 8), (7, 9, 7), (5, 1, 1)]
)
def test_groups_of_like_size(rows, most, group):
    assert memory.evenly(rows, most) == group


class TestCompiled:
    def compile_to_fit(self, limit, compile_with=None, **settings):
        tried = []

        def with_chunk(chunk):
            tried.append(chunk)
            return (compile_with or self.compiled)(chunk)

        program = prepared(**settings).program
        first = program.client_chunk or 12
        return memory.compile_to_fit(with_chunk, first, limit, program, runs=1, device="a card"), tried

    def compiled(self, chunk):
        """A program that keeps a megabyte for each row of a group."""
        row = lambda x: jnp.sort(jnp.full(2**18, x))  # noqa: E731
        work = jax.jit(lambda x: ops.map_rows(lambda one: row(one).sum(), x, at_once=chunk))
        return work.lower(jnp.ones(12)).compile()

    def test_what_fits_is_compiled_once(self):
        assert self.compile_to_fit(10**9)[1] == [12]

    def test_a_smaller_chunk_until_the_compiled_program_fits(self):
        needs = {chunk: memory.needed(self.compiled(chunk)) for chunk in (12, 3)}
        assert needs[12] > 3 * needs[3]
        executable, tried = self.compile_to_fit(needs[3])
        assert memory.needed(executable) <= needs[3]
        assert tried == sorted(tried, reverse=True)
        assert tried[0] == 12
        assert len(tried) <= 4

    def test_one_line_has_the_numbers(self):
        with pytest.raises(DoesNotFit) as error:
            self.compile_to_fit(1)
        assert str(error.value).startswith("config.client_chunk = None: one client at a time need")
        assert "a program may take 0.00 GB of a card; allowed is what fits: a smaller model" in str(error.value)
        assert isinstance(error.value, InputError)

    def test_what_the_user_has_set_is_not_changed(self):
        with pytest.raises(DoesNotFit, match=r"config\.client_chunk = 6: 6 clients .* fits: fewer, None for what fits"):
            self.compile_to_fit(1, client_chunk=6)

    @pytest.mark.parametrize(
        "said",
        [
            "Ran out of memory. Used 19.50G of 15.75G hbm.",
            "Ran out of memory, the total memory required for HLO temporaries (19.50G) exceeds available HBM (15.75G).",
        ],
    )
    def test_a_compiler_that_refuses_by_itself(self, said):
        def refuse(chunk):
            if chunk == 1:
                raise jax.errors.JaxRuntimeError("INTERNAL: something else")
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

        with pytest.raises(DoesNotFit, match=r"8 clients at a time need 20\.94 GB"):
            self.compile_to_fit(16 * 10**9, refuse, client_chunk=8)
        with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
            self.compile_to_fit(16 * 10**9, refuse)

    def test_donated_bytes_count_once(self):
        x = jnp.ones(2**16)
        plain, donated = (jax.jit(lambda x: x + 1, donate_argnums=d).lower(x).compile() for d in ((), 0))
        assert memory.needed(plain) - memory.needed(donated) == x.nbytes


@pytest.mark.thorough
def test_a_simulation_compiles_what_fits_and_refuses_the_rest(monkeypatch):
    """On a CPU with an accelerator's order of clients: twelve at a time, fewer where the limit says so."""
    placed = build.place([prepared(model="mlp")], make_mesh(jax.devices()[:1]))
    simulation, *arguments = placed
    with pytest.raises(DoesNotFit, match="one client at a time need"):
        dataclasses.replace(simulation, memory_limit=1000).compile(*arguments)
    for module in (ops, ops.rows, ops.columns):
        monkeypatch.setattr(module, "one_at_a_time", lambda: False)
    needs = memory.needed(simulation.compile(*arguments)[0])
    less = dataclasses.replace(simulation, memory_limit=int(0.7 * needs)).compile(*arguments)[0]
    assert memory.needed(less) <= 0.7 * needs
    asked = dataclasses.replace(simulation, program=dataclasses.replace(simulation.program, client_chunk=12))
    with pytest.raises(DoesNotFit, match=r"config\.client_chunk = 12"):
        dataclasses.replace(asked, memory_limit=int(0.7 * needs)).compile(*arguments)


class TestCards:
    @pytest.mark.parametrize(
        ("kind", "gigabytes"),
        [
            ("NVIDIA H100 80GB HBM3", 80),
            ("NVIDIA A100-SXM4-40GB", 40),
            ("NVIDIA A100-SXM4-80GB", 80),
            ("NVIDIA L40S", 48),
            ("NVIDIA A10G", 24),
            ("TPU v5 lite", 16.9),
            ("TPU v5p", 102),
            ("Another 9000", 16),
        ],
    )
    def test_figures_by_kind(self, kind, gigabytes):
        card = cards.of(Device(kind))
        assert card.memory == pytest.approx(gigabytes * 1e9, rel=0.01)
        assert card.products.keys() == set(configs.SETTINGS["client.precision"].allowed)
        assert (
            card.products["bfloat16"] >= card.products["tf32"] >= card.products["float32"] >= card.products["float64"]
        )

    def test_a_device_that_says_what_it_has(self):
        assert cards.memory(Device("NVIDIA H100 80GB HBM3", stats={"bytes_limit": 10**10})) == 0.95 * 10**10

    def test_a_device_that_is_only_described(self):
        assert cards.memory(Device("NVIDIA H100 80GB HBM3")) == 57 * 10**9
        assert cards.memory(Device("TPU v5 lite", "tpu")) == int(0.95 * 15.75 * 2**30)

    def test_cpu_devices_share_the_machine(self):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert cards.memory(jax.devices()[0]) == pytest.approx(0.95 * whole / 8, rel=1e-6)


def test_deterministic_kernels_are_asked_for_on_a_gpu_only():
    for platform in ("cpu", "tpu"):
        with ops.compiling_for(platform):
            assert compiler_options(True) is compiler_options(False) is None
    with ops.compiling_for("gpu"):
        assert compiler_options(False) is None
        options = compiler_options(True)
    assert options == {"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=options)  # raises for a name that XLA does not have
