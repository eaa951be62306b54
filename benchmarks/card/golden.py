"""The recorded vectors of the official code on this device, and whether the digits end with the same bits again.

The tests of `tests/golden` run as they are, on the recordings at hand, and say how far each compared number is from the
recorded one. Needs pytest, which holds their cases.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.card import tables
from benchmarks.card.items import Facts, Item, Prepared
from configs.digits import get_config
from lasa_jax import build
from lasa_jax import config as configs
from lasa_jax.federated import Simulation, make_mesh
from lasa_jax.workdir import records
from tests.golden import test_golden
from tests.golden.recordings import Difference, noting

Case = Callable[[], None]


def items(small: bool) -> list[Item]:
    """Every method on every recording that has it, on one where `small`; the digits with `config.deterministic` and not."""
    groups: dict[str, dict[str, Case]] = {}
    for name, group in cases().items():
        method = name.split(", ")[0]
        if not small or not any(method == other.split(", ")[0] for other in groups):
            groups[name] = group
    found = [Item(name, functools.partial(_compare, group)) for name, group in groups.items()]
    found += [Item(f"digits, deterministic={on}", functools.partial(_digits, on, small)) for on in (False, True)]
    return found


def cases() -> dict[str, dict[str, Case]]:
    """The cases of the tests by method and recording, `"krum, a2_n25_f6"`, and in it by the test and its case.

    Cases of a method on one recording share compiled programs, and so a thread.
    """
    found: dict[str, dict[str, Case]] = {}
    for test, function in vars(test_golden).items():
        if not test.startswith("test_"):
            continue
        for arguments in _arguments(function):
            words = [str(x) for x in arguments.values() if isinstance(x, str | int)]
            method = _method(test, arguments.get("key", ""))
            where = arguments["recording"].name if "recording" in arguments else "several"
            group = found.setdefault(f"{method}, {where}", {})
            group[", ".join([test, *words])] = functools.partial(function, **arguments)
    return found


def _method(test: str, key: str) -> str:
    """The rule or attack that a case is about; keys are those of the recordings."""
    if test == "test_krum_family":
        return key.split("/")[1]
    if test == "test_crafted_rows":
        return f"attack {key.split('/')[0]}"
    return test.removeprefix("test_").replace("_", " ")


def _arguments(function: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of each case of a test, as `pytest.mark.parametrize` has them."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    for chosen in itertools.product(*(mark.args[1] for mark in marks)):
        arguments: dict[str, Any] = {}
        for mark, values in zip(marks, chosen, strict=True):
            names = [mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0]
            values = getattr(values, "values", values)  # of pytest.param
            arguments |= zip(names, values if isinstance(values, tuple | list) else [values], strict=True)
        yield arguments


def _compare(group: Mapping[str, Case]) -> Prepared:
    """Runs cases: how many, what is wrong, and the difference that uses most of its tolerance."""
    skipped, wrong = 0, []
    with noting() as differences:
        for name, case in group.items():
            try:
                case()
            except pytest.skip.Exception:
                skipped += 1
            except AssertionError as error:
                wrong.append(f"{name}: {' '.join(str(error).split())[:300]}")
    most = max(differences, key=lambda one: one.used, default=Difference(0.0, 0.0))
    facts = {"cases": len(group), "skipped": skipped, "comparisons": len(differences)}
    return Prepared({**facts, "wrong": wrong, **most._asdict(), "used": most.used}, None)


def _digits(deterministic: bool, small: bool) -> Prepared:
    """The whole run of `configs/digits.py`, by a program and by the same one compiled again, twice each."""
    config = configs.updated(get_config(), {"deterministic": deterministic, **({"rounds": 2} if small else {})})
    simulation, *start = build.simulation([configs.resolve(config)], make_mesh(jax.devices()[:1]))
    programs = [simulation.compile(*start)[0] for _ in range(2)]
    (first, again), (other, other_again) = found = [
        [_parameters(program, simulation, *start) for _ in range(2)] for program in programs
    ]
    same = {"run_again": first == again and other == other_again, "compiled_again": first == other}
    wrong = [f"not the same bits: {what}" for what, is_same in same.items() if deterministic and not is_same]
    return Prepared({"sha256": found, **same, "wrong": wrong}, None)


def _parameters(program: jax.stages.Compiled, simulation: Simulation, states: Any, points: Any, fed: Any) -> str:
    """The SHA-256 of the final parameters of a whole run."""
    states = jax.tree.map(jnp.copy, states)  # they are given away
    for done in range(0, simulation.rounds, simulation.block_rounds):
        states, _ = program(states, points, fed, np.int32(done))
    return records.parameters_sha256(jax.tree.map(lambda x: x[0], jax.device_get(states.variables)))


def table(found: tables.Items) -> list[str]:
    """A line for each method over its recordings, then the digits."""
    vectors = {name: facts for name, facts in found.items() if not name.startswith("digits")}
    methods: dict[str, list[Facts]] = {}
    for name, facts in vectors.items():
        methods.setdefault(name.split(", ")[0], []).append(facts)
    return [
        *tables.by_item({name: _together(parts) for name, parts in methods.items()}, _VECTORS, "method"),
        "",
        *tables.by_item({name: facts for name, facts in found.items() if name not in vectors}, _BITS, "run"),
    ]


_VECTORS: tables.Columns = {
    "cases": lambda facts: str(facts["cases"] - facts["skipped"]),
    "numbers compared, arrays": lambda facts: str(facts["comparisons"]),
    "largest difference": lambda facts: f"{facts['largest'] or 0:.1e}",
    "allowed there": lambda facts: f"{facts['allowed'] or 0:.1e}",
    "as recorded": lambda facts: f"{len(facts['wrong'])} cases are not" if facts["wrong"] else "yes",
}
_BITS: tables.Columns = {
    "run again": lambda facts: "the same bits" if facts["run_again"] else "other bits",
    "compiled again": lambda facts: "the same bits" if facts["compiled_again"] else "other bits",
    "SHA-256 of the final parameters": lambda facts: facts["sha256"][0][0][:12],
}


def _together(parts: list[Facts]) -> Facts:
    """The facts of a method over its recordings; those of the first that is not done, if there is one."""
    for facts in parts:
        if not facts.get("done"):
            return facts
    counts = {name: sum(facts[name] for facts in parts) for name in ("cases", "skipped", "comparisons")}
    most = max(parts, key=lambda facts: float("inf") if facts["used"] is None else facts["used"])
    return {**most, **counts, "wrong": [line for facts in parts for line in facts["wrong"]]}
