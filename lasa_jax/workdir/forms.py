"""Forms of JSON objects: what each field must be, and which fields of a value are not that."""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]
Form = Mapping[str, Check]


def is_number(value: Any) -> bool:
    """A finite int or float; a boolean is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_count(value: Any) -> bool:
    """An integer from 0 on."""
    return is_number(value) and isinstance(value, int) and value >= 0


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def or_null(check: Check) -> Check:
    """What a check allows, or null."""
    return lambda value: value is None or check(value)


def is_mapping(check: Check) -> Check:
    """An object with any names, each value of which a check allows."""
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


def is_record(form: Form) -> Check:
    """An object of a form."""
    return lambda value: isinstance(value, dict) and not wrong_fields(value, form)


def wrong_fields(value: Mapping[str, Any], form: Form) -> list[str]:
    """Fields that are missing or of another type; a value may have more."""
    return [name for name, check in form.items() if name not in value or not check(value[name])]
