"""Strict JSON: values that JSON cannot express become null, and repeated keys are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pbu_cli.errors import printable


def plain(value: Any) -> Any:
    """The same value in JSON's types: string keys, lists for tuples, null for NaN and infinity.

    >>> plain({8: (1.5, float("nan"))})
    {'8': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(content: Mapping[str, Any]) -> str:
    """An indented JSON document with a newline at its end."""
    return json.dumps(plain(content), indent=2) + "\n"


def from_json(content: bytes) -> Any:
    """Parse JSON from an untrusted source.

    Raises ValueError where the text is not UTF-8, not JSON, nested too deeply, holds NaN or an
    infinity, which are no JSON, or repeats a key in an object: readers disagree on which of the two
    values counts.

    >>> from_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key a occurs twice
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object_with_unique_keys,
                          parse_constant=_refuse_constant, parse_float=_finite)  # fmt: skip
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # such as 1e999
        raise ValueError(f"{printable(text, 40)} is too large a number")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _object_with_unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {printable(key, 80)} occurs twice")
        found[key] = value
    return found
