"""Results as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.card.items import Facts

Items = Mapping[str, Facts]
Columns = Mapping[str, Callable[[Facts], str]]


def by_item(items: Items, columns: Columns, first: str = "item") -> list[str]:
    """One line for each item, `first` being its name; an item that failed or is not measured says so."""
    lines = [line([first, *columns]), line(["---"] * (1 + len(columns)))]
    for name, facts in items.items():
        cells = [cell(facts) for cell in columns.values()] if facts.get("done") else [_unmeasured(facts)]
        lines.append(line([name, *cells, *[""] * (len(columns) - len(cells))]))
    return lines


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def _unmeasured(facts: Facts) -> str:
    return facts.get("error", "not measured").replace("|", "/")[:120]


def number(value: Any, scale: float = 1, digits: int = 2) -> str:
    """A number times a scale, a dash where there is none."""
    return "-" if value is None else f"{scale * value:,.{digits}f}"


def milliseconds(facts: Facts) -> str:
    """The median, and the quartiles."""
    low, median, high = (number(facts.get(name), 1e3, 3) for name in ("low", "seconds", "high"))
    return f"{median} ({low} to {high})"


def gigabytes(name: str) -> Callable[[Facts], str]:
    """A column of bytes."""
    return lambda facts: number(facts.get(name), 1e-9, 3)


def compile_seconds(facts: Facts) -> str:
    """How long tracing and compiling took."""
    return number(facts.get("compile_seconds"), digits=1)


def heading(head: Mapping[str, Any]) -> str:
    """What was measured, on what, in a line."""
    size = ", at the small size" if head["small"] else ""
    commit = (head["commit"] or "unknown")[:12]
    return (
        f"{head['part']}{size}: {head['machine']}; Python {head['python']}; commit {commit}, sources {head['sources']}"
    )
