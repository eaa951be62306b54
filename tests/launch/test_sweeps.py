"""Every sweep of ours with every dataset and partition, prepared or not: it plans, or it refuses in one line."""

import functools
from pathlib import Path

import numpy as np
import pytest

from lasa_jax import aggregators, attacks, build, data, grid
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.grid import cost, work
from lasa_jax.launch import sweep

FOLDER = Path(__file__).parents[2] / "configs" / "sweeps"
SWEEPS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
PARTITIONS = ("", "iid", "alpha=0.5", "shards=2", "gamma=0.5", "quantity=1.0")
PLANS = "points: "
NATURAL = "has clients of its own"
TEXT = "triggers are made of pixels, shakespeare is text; allowed are cifar10"
# By dataset, what is said: prepared, without and with a partition; then the same where it is not prepared.
TABLE = {
    "digits": (PLANS, PLANS, PLANS, PLANS),
    "mnist": (PLANS, PLANS, "python -m lasa_jax.data.prepare mnist", "python -m lasa_jax.data.prepare mnist"),
    "fashion_mnist": (PLANS, PLANS, "lasa_jax.data.prepare fashion_mnist", "lasa_jax.data.prepare fashion_mnist"),
    "cifar10": (PLANS, PLANS, "lasa_jax.data.prepare cifar10", "lasa_jax.data.prepare cifar10"),
    "cifar100": (PLANS, PLANS, "lasa_jax.data.prepare cifar100", "lasa_jax.data.prepare cifar100"),
    "femnist": (PLANS, NATURAL, "in a sweep with SWEEP:femnist,source=PATH", NATURAL),
    "shakespeare": (PLANS, NATURAL, "in a sweep with SWEEP:shakespeare,source=PATH", NATURAL),
}


def made_up(name: str, **_: object) -> data.Dataset:
    """A set with as many examples, classes and clients as the true one, none of which takes memory."""
    sizes = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
    count = sizes.get(name, 6_000)
    shape, classes, label = {
        "mnist": ((28, 28, 1), 10, ()),
        "fashion_mnist": ((28, 28, 1), 10, ()),
        "femnist": ((28, 28, 1), 62, ()),
        "cifar10": ((32, 32, 3), 10, ()),
        "cifar100": ((32, 32, 3), 100, ()),
        "shakespeare": ((80,), 90, (80,)),
    }[name]
    labels = np.arange(count, dtype=np.int32) % classes
    labels = np.broadcast_to(labels.reshape(-1, *(1 for _ in label)), (count, *label))
    natural = name in ("femnist", "shakespeare")
    return data.Dataset(
        name=name,
        num_classes=classes,
        train=data.Examples(np.broadcast_to(np.uint8(0), (count, *shape)), labels),
        test=data.Examples(np.broadcast_to(np.uint8(0), (100, *shape)), labels[:100]),
        mean=() if label else (127.5,),
        std=() if label else (127.5,),
        client_ids=np.arange(count) % 150 if natural else None,
        padding_label=0 if label else None,
    )


@pytest.fixture
def without_tracing(monkeypatch):
    """A plan that prepares each kind of run, which may be refused, and does not count what a round costs."""

    @functools.cache
    def count(key: tuple[str, ...]) -> None:
        build.prepare(configs_of[key])

    configs_of: dict[tuple[str, ...], object] = {}

    def of(config: object, limit: int | None = None) -> cost.Cost:
        key = configs.cost_key(config)
        configs_of[key] = config
        count(key)
        return cost.Cost(1, 1, work.Work(1, 1, 1), "tf32")

    monkeypatch.setattr(cost, "of", of)


def said(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    """What a dry run prints: its plan, or the one line of an error; nothing is written."""
    capsys.readouterr()
    code = sweep.main([f"--config={argument}", f"--workdir={tmp_path / 'out'}", "--dry_run"])
    shown = capsys.readouterr()
    assert not (tmp_path / "out").exists()
    assert code == (2 if shown.err else 0)
    if code:
        assert not shown.out
        assert len(shown.err.splitlines()) == 1
    return shown.err or shown.out


@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("dataset", TABLE)
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_plans_or_refuses_in_one_line(name, dataset, tmp_path, monkeypatch, capsys):
    """`TABLE` says which."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    # Of what sweeps of all rules and attacks have.
    monkeypatch.setattr(aggregators, "names", lambda: ["lasa", "mda", "median"])
    monkeypatch.setattr(attacks, "names", lambda: ["badnets", "lie", "min_sum", "min_sum_stealthy"])
    monkeypatch.setattr(attacks, "BACKDOORS", ("badnets",))
    prepared, missing = TABLE[dataset][:2], TABLE[dataset][2:]
    expect_of_each(name, dataset, missing, tmp_path, capsys)
    if dataset != "digits":
        monkeypatch.setattr(data, "load", made_up)
        expect_of_each(name, dataset, prepared, tmp_path, capsys)


def expect_of_each(name, dataset, expected, tmp_path, capsys):
    """What a sweep says without a partition, and with each."""
    for partition in PARTITIONS:
        argument = ",".join(filter(None, (f"{name}:{dataset}", partition, "seeds=1")))
        line = TEXT if (name, dataset) == ("backdoors", "shakespeare") else expected[bool(partition)]
        assert line in said(argument, tmp_path, capsys), argument


def test_the_table_has_every_dataset():
    assert sorted(TABLE) == data.names()


def values(declared: grid.Grid, field: str) -> list:
    """What the points of a grid have in a field, each once."""
    found = [value for axis in declared.axes for value in axis.get(field, ())]
    return list(dict.fromkeys(found + [point[field] for point in declared.points if field in point]))


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("alpha=0.1", {"name": "dirichlet", "alpha": 0.1, "min_samples": 10}),
        ("shards=3", {"name": "shards", "classes_per_client": 3}),
        ("gamma=0.25", {"name": "gamma_similarity", "gamma": 0.25}),
        ("quantity=2", {"name": "quantity_skew", "alpha": 2.0, "min_samples": 10}),
        ("iid", {"name": "class_balanced"}),
    ],
)
@pytest.mark.parametrize("name", SWEEPS)
def test_the_words_of_a_sweep_reach_its_runs(name, partition, expected):
    declared = grid.load(f"{name}:cifar10,{partition},seeds=2,stealthy")
    assert configs.resolve(declared.base).partition.to_dict() == expected
    assert values(declared, "seed") == [1, 2]
    assert "min_sum_stealthy" in [*values(declared, "attack.name"), declared.base.attack.name]
    assert grid.load(f"{name}:femnist,source=somewhere").base.source == "somewhere"


def test_a_few_runs_of_the_sweep_against_lasa():
    found = grid.points(grid.load("lasa_attack:mnist,few,clients=50,rounds=40,seeds=1"))
    assert len(found) == 9
    assert {point.config.aggregator.name for point in found} == {"lasa", "fedavg", "signguard"}
    for point in found:
        assert (point.config.clients_per_round, point.config.rounds, point.config.eval_every) == (50, 40, 5)
    assert len(grid.points(grid.load("lasa_attack:digits"))) == 216


def test_figure_1_is_not_iid_by_default():
    def partition(argument: str) -> dict:
        return configs.resolve(grid.load(argument).base).partition.to_dict()

    for dataset in ("", "digits", "mnist", "cifar100"):
        found = partition(f"figure1:{dataset}")
        assert (found["name"], found["alpha"]) == ("dirichlet", 0.5)
    for dataset in ("femnist", "shakespeare"):
        assert partition(f"figure1:{dataset}")["name"] == "natural"
    assert partition("figure1:digits,iid") == partition("table1:digits") == {"name": "iid"}
    points = grid.points(grid.load("table3:digits,seeds=2,alpha=0.1"))  # of a whole sweep
    assert {(point.config.partition.alpha, point.config.seed) for point in points} == {(0.1, 1), (0.1, 2)}


def test_the_stealthy_min_sum_is_in_the_place_of_min_sum():
    for word, attack in (("", "min_sum"), (",stealthy", "min_sum_stealthy")):
        names = values(grid.load(f"table1:digits{word}"), "attack.name")
        assert len(names) == 9
        assert names[6] == attack
    assert values(grid.load("table2:mnist,stealthy"), "attack.name")[-2:] == ["noise", "min_sum_stealthy"]
    assert grid.load("cost:mnist,stealthy").base.attack.name == "min_sum_stealthy"
    assert values(grid.load("cost:mnist"), "seed") == [1]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("imagenet", "dataset = 'imagenet': allowed are digits"),
        ("digits,alpha=x", "alpha = 'x', allowed is a number"),
        ("digits,alpha=0", "config.partition.alpha = 0.0: allowed is"),
        ("digits,shards=1.5", "shards = '1.5', allowed is a whole number"),
        ("digits,alpha=1,shards=2", "allowed is one of alpha, shards, gamma, quantity, iid"),
        ("digits,seeds=0", "seeds = '0', allowed is a whole number from 1 to 1000"),
        ("digits,stealthy=yes", "stealthy = 'yes', allowed is the word alone"),
        (
            "digits,beta=1",
            "'beta' is not known, allowed are alpha, shards, gamma, quantity, iid, source, seeds, stealthy",
        ),
        ("digits,source=here", "config.source = 'here': dataset 'digits' is not made from a raw source"),
        ("femnist,alpha=0.5", "femnist has clients of its own, so 'alpha' is not for it; allowed are source, seeds"),
        ("femnist,source=/no/such/folder", "config.source = '/no/such/folder': no such file or folder"),
        ("digits,alpha=0.01", "config.partition.min_samples = 2: not reached"),
    ],
)
def test_bad_words_are_one_line(argument, message, tmp_path, capsys):
    assert message in said(f"table3:{argument}", tmp_path, capsys)


def test_a_base_of_ones_own_sweep():
    asked = configs.read_sweep("mnist", alpha=0.2, seeds=2)
    assert (asked.base.partition.name, asked.base.partition.alpha, asked.seeds) == ("dirichlet", 0.2, [1, 2])
    assert configs.read_sweep("femnist,source=x,seeds=4", alpha=0.2).base.partition.name == "natural"
    with pytest.raises(InputError, match="allowed is one of"):
        configs.read_sweep("mnist,iid,gamma=1")
