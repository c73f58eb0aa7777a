"""JSON, strictly: what it cannot say becomes null, what is said twice is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pbu_cli.errors import printable


def plain(value: Any) -> Any:
    """The same in what JSON has: keys are strings, tuples lists, NaN and infinities null.

    >>> plain({8: (1.5, float("nan"))})
    {'8': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping[str, Any]) -> str:
    """A document to read, ended by a newline."""
    return json.dumps(plain(content), indent=2) + "\n"


def from_json(content: bytes) -> Any:
    """What a text from a stranger says. Raises ValueError where it is no UTF-8, no JSON, nested too
    deeply to be read, or says one key twice, which readers take for one thing or the other.

    >>> from_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key a stands twice
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_doubles(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {printable(key, 80)} stands twice")
        found[key] = value
    return found
