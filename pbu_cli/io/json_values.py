"""Values of JSON from strangers: each function hands one back in Python's types if it is plausible.

Each raises TypeError, ValueError or AttributeError otherwise; the caller knows what it is called.
"""

from __future__ import annotations

import re
from typing import Any

from pbu_cli.settings import MAX_SIZE

MAX_CLASSES = 1_000_000  # of a network; the largest published ones have tens of thousands


def architecture_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,80}", value):
        raise ValueError
    return value


def class_count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_CLASSES:
        raise ValueError
    return value


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError
    return tuple(value)


def class_names(value: Any) -> tuple[str, ...]:
    """A list of names, or a table of names by index, as timm and transformers write it.

    >>> class_names({"1": "dog", "0": "cat"}), class_names({"cat": 0, "dog": 1})
    (('cat', 'dog'), ('cat', 'dog'))
    """
    if not isinstance(value, dict):
        return texts(list(value) if isinstance(value, tuple) else value)
    by_index = {int(key): name for key, name in value.items() if str(key).isdecimal()}
    if len(by_index) != len(value):
        by_index = {index: name for name, index in value.items() if type(index) is int}
    if sorted(by_index) != list(range(len(value))):
        raise ValueError
    return texts([by_index[index] for index in range(len(value))])


def class_index(value: Any) -> tuple[tuple[str, ...], ...]:
    """What a class-index file says of each class: its name, or its id and its name.

    >>> class_index({"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]})
    (('n01440764', 'tench'), ('n01443537', 'goldfish'))
    >>> class_index(["tench", "goldfish"])
    (('tench',), ('goldfish',))
    """
    entries = value
    if isinstance(value, dict):
        if value and all(isinstance(entry, list) for entry in value.values()):
            by_index = {int(key): entry for key, entry in value.items() if key.isdecimal()}
            if sorted(by_index) != list(range(len(value))):
                raise ValueError("the keys are not the classes from 0 on")
            entries = [by_index[index] for index in range(len(value))]
        else:
            entries = list(class_names(value))
    found = tuple(texts([entry] if isinstance(entry, str) else entry) for entry in entries)
    if not all(len(entry) in (1, 2) for entry in found):
        raise ValueError("a class has more than an id and a name")
    return found


def numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):  # a text is a sequence of digits, too
        raise TypeError
    found = tuple(float(number) for number in value)
    if not 1 <= len(found) <= 64 or not all(abs(number) < 1e6 for number in found):
        raise ValueError
    return found


def positive_numbers(value: Any) -> tuple[float, ...]:
    found = numbers(value)
    if min(found) <= 0:
        raise ValueError
    return found


def image_size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise TypeError
    _, height, width = value
    if not (1 <= height <= MAX_SIZE and 1 <= width <= MAX_SIZE):
        raise ValueError
    return height, width


def indices(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise ValueError
    return tuple(value)


def answers(value: Any) -> dict[int, dict[int, float]]:
    found = {
        int(label): {int(predicted): float(share) for predicted, share in shares.items()}
        for label, shares in value.items()
    }
    shares = [share for by_class in found.values() for share in by_class.values()]
    if not all(0 <= share <= 100 for share in shares):
        raise ValueError
    return found


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def one_or_more_texts(value: Any) -> tuple[str, ...]:
    pools = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(pool, str) for pool in pools):
        raise ValueError
    return pools


def json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value
