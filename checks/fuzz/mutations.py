"""Mutations of bytes, values and JSON files."""

import json
import math
import random
from typing import Any

JUNK: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, math.nan, math.inf, -math.inf, 1e-320]
JUNK += [
    "",
    "x",
    "nan",
    "../../etc/passwd",
    "\x00",
    "ü\u202e",
    "x" * 10_000,
    [],
    [1, 2],
    {},
    {"a": {"b": []}},
    [[]] * 3,
]
WORDS = ["nan", "inf", "-inf", "-1", "0", "1", "1e999", "1e-400", "0x10", "", "None", "True", "false", "[1]", "(1, 2)"]
WORDS += [
    "{}",
    "9" * 5000,
    "1_000",
    " 5 ",
    "'",
    '"',
    "a=b",
    "1,2",
    "\u0661",
    "..",
    "%s",
    "{0}",
    "lambda: 0",
    "1.5",
    "3",
]


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to three small damages."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randint(1, 20))
        elif kind == 4:
            del changed[at : at + chance.randint(1, 50)]
        else:
            changed[at : at + 8] = chance.choice(
                [b"\0" * 8, b"\xff" * 8, b"[" * 2000, b'{"a":' * 2000, b"NaN", b"1e999"]
            )
    return bytes(changed)


def mutate_value(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        changed = dict(value)
        kind = chance.randrange(8)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[f"{name}x"] = changed.pop(name)
        else:
            changed[name] = mutate_value(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.9:
        changed = list(value)
        at = chance.randrange(len(value))
        changed[at] = mutate_value(value[at], chance)
        return changed
    return chance.choice(JUNK)


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """As `mutate_value` for a JSON file, or one with a value a line."""
    if chance.random() < 0.3:
        return mutate_bytes(content, chance)
    try:
        return json.dumps(mutate_value(json.loads(content), chance)).encode()
    except ValueError:
        lines = content.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(mutate_value(json.loads(lines[at]), chance)).encode()
        if chance.random() < 0.2:
            lines.insert(at, lines[at])  # a line twice
        return b"\n".join(lines) + b"\n"
