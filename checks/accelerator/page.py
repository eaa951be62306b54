"""The page of the table: docs/results/accelerator.md, made from the JSON and from nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checks.accelerator import programs
from checks.accelerator.compiling import ROOT
from checks.accelerator.rows import Row
from checks.accelerator.targets import TARGETS, Target

PAGE = ROOT / "docs" / "results" / "accelerator.md"
_INTRODUCTION = Path(__file__).parent / "introduction.md"
_TRIED = Path(__file__).parent / "tried.md"  # by program, what was tried to make its largest kernels smaller
_TRIPS = "A trip is one pass through the body of a loop, counted on a CPU in the forms of a GPU."


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.2f}"


def _ratio(row: Row) -> str:
    return f"{row['temporaries'] / row['stack']:.2f}"


def _collectives(row: Row) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in row["collectives"].items()) or "-"


def line(name: str, row: Row) -> str:
    """One row in words, for the terminal."""
    if "refused" in row:
        return f"{name}: {row['refused']}"
    loops = sum(loop[3] == "counted once" for loop in row["loops"])
    return (
        f"{name}: bound {_ms(row['bound s'])} ms, {row['launches']} launches, {row['bytes'] / 1e9:.2f} GB moved "
        f"({row['bytes'] / row['stack']:.1f} readings of the stack), peak {row['peak'] / 1e9:.2f} GB, temporaries "
        f"{_ratio(row)} stacks{f', {loops} loops counted once' if loops else ''}"
        f"{', unknown: ' + ', '.join(row['unknown']) if row['unknown'] else ''}"
    )


def write(table: Mapping[str, Mapping[str, Row]]) -> None:
    """Makes the page anew."""
    PAGE.write_text(text(table))


def text(table: Mapping[str, Mapping[str, Row]]) -> str:
    """The whole page."""
    parts, order = [_INTRODUCTION.read_text().rstrip()], list(programs.items())
    for name, target in TARGETS.items():
        if now := {program: table[name][program] for program in order if program in table.get(name, {})}:
            parts += [f"## {target.title}", _made_with(now), *_target(now, table.get(f"{name} before", {}), target)]
    if trips := table.get("trips"):
        parts += ["## Loops of unknown length", _TRIPS, _trips(trips)]
    parts.append("## Largest kernels, H100")
    for section in _TRIED.read_text().split("\n## ")[1:]:
        name, tried = (part.strip() for part in section.split("\n", 1))
        if largest := table.get("h100", {}).get(name, {}).get("largest"):
            parts += [f"### {name}", tried, _kernels(largest)]
    return "\n\n".join(parts) + "\n"


def _made_with(rows: Mapping[str, Row]) -> str:
    versions = sorted({row["jax"] for row in rows.values() if "jax" in row})
    return f"JAX {', '.join(versions)}."


def _target(now: Mapping[str, Row], before: Mapping[str, Row], target: Target) -> list[str]:
    parts = []
    if before:
        parts += ["### 887551a and now", _against(now, before)]
    return [*parts, "### Now", _details(now)]


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def _against(now: Mapping[str, Row], before: Mapping[str, Row]) -> str:
    measures: dict[str, Any] = {
        "bound, ms": lambda row: _ms(row["bound s"]),
        "launches": lambda row: f"{row['launches']:,}",
        "GB moved": lambda row: f"{row['bytes'] / 1e9:.2f}",
        "temporaries, GB": lambda row: f"{row['temporaries'] / 1e9:.2f}",
        "in stacks": _ratio,
        "collectives": _collectives,
    }
    head = ["program", *(f"{name}: {which}" for name in measures for which in ("887551a", "now"))]
    lines = []
    for name, row in now.items():
        cells = [name]
        for measure in measures.values():
            cells += [_cell(before.get(name), measure), _cell(row, measure)]
        lines.append(cells)
    return _table(head, lines)


def _cell(row: Row | None, measure: Any) -> str:
    return "-" if row is None else "does not fit" if "refused" in row else measure(row)


def _details(now: Mapping[str, Row]) -> str:
    head = ["program", "peak, GB", "temporaries / stack", "launches", "readings of the stack", "collectives", "TFLOP"]
    head += ["bound, ms", "open loops once", "products in float32", "commit"]
    lines = []
    for name, row in now.items():
        if "refused" in row:
            lines.append([name, f"does not fit: {row['refused']}", *[""] * (len(head) - 3), row["commit"]])
            continue
        products = ", ".join(f"{count / 1e12:.3g} {kind}" for kind, count in row["products"].items() if count)
        bounds = [row[f"bound s{kind}"] for kind in ("", ", open loops once", ", products in float32")]
        calls = f" ({', '.join(row['unknown'])})" if row["unknown"] else ""
        moved = f"{row['bytes'] / row['stack']:.1f}"
        cells = [name, f"{row['peak'] / 1e9:.2f}", _ratio(row), f"{row['launches']:,}", moved, _collectives(row)]
        lines.append([*cells, products or "-", _ms(bounds[0]) + calls, *map(_ms, bounds[1:]), row["commit"]])
    return _table(head, lines)


def _trips(trips: Mapping[str, Row]) -> str:
    lines = [
        [name, f"`{where}`", ", ".join(map(str, counts))]
        for name, found in trips.items()
        for where, counts in found.items()
    ]
    return _table(["rule", "loop", "trips, in the order of the program"], lines)


def _kernels(largest: list[Row]) -> str:
    lines = [
        [
            f"{one['seconds'] * 1e3:.3f}",
            str(one["times"]),
            f"{one['read'] / 1e6:,.0f}",
            f"{one['written'] / 1e6:,.0f}",
            f"{sum(one['products'].values()) / 1e9:.1f}" if one["products"] else "-",
            f"`{one['kernel']}`",
            f"`{one['from']}`",
        ]
        for one in largest
    ]
    return _table(["ms in all", "times", "each reads, MB", "writes, MB", "GFLOP", "kernel", "from"], lines)
