"""The class that a text names: a flag, the name of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from pbu_cli.errors import InvalidUsage, printable

MAX_DIGITS = 9  # a longer number is no class


def parse_label(
    text: str,
    flag: str,
    label_names: Sequence[str] | None,
    num_classes: int,
    ids: Sequence[str] | None = None,
) -> int:
    """The class that the user names on the command line, by its name, its id or its index.

    label_names, ids: of the classes, if they are known. flag: what the error message calls the
    input. Raises InvalidUsage where there is no such class, or several of that name.
    """
    for names in (label_names, ids):
        found = [] if names is None else [k for k, name in enumerate(names) if name == text]
        if len(found) > 1:
            raise InvalidUsage(
                f"{flag} {printable(text)}: the name of {len(found)} classes,"
                f" {', '.join(map(str, found[:5]))}; expected one class: pass its index"
            )
        if found:
            return found[0]
    if re.fullmatch("[0-9]{1,9}", text) and int(text) < num_classes:
        return int(text)
    known = "" if label_names is None else " or a class name of the checkpoint's config"
    raise InvalidUsage(
        f"{flag} {printable(text)}: expected a class from 0 to {num_classes - 1}{known}"
    )


def label_from_name(
    folder: str,
    label_names: Sequence[str] | None,
    num_classes: int,
    *,
    strict: bool = False,
    ids: Sequence[str] | None = None,
) -> int | None:
    """The label that a folder's name gives: a class name or id, or its only number; else None.

    strict: a number counts only if it is alone or follows `class`, `label` or `digit`, as in the
    names of class folders.

    >>> label_from_name("class8", None, 10), label_from_name("train2017", None, 10)
    (8, None)
    """
    for names in (label_names, ids):
        if names is not None:
            index = _by_normal_name(tuple(names)).get(_normal(folder))
            if index is not None:
                return index
    if strict and not re.fullmatch(r"((class|label|digit)[ _-]?)?[0-9]+", folder, re.IGNORECASE):
        return None
    if re.match(r"[+-][0-9]", folder):  # -1 often stands for no class
        return None
    numbers = re.findall("[0-9]+", folder)
    if len(numbers) != 1 or len(numbers[0]) > MAX_DIGITS or int(numbers[0]) >= num_classes:
        return None
    return int(numbers[0])


def _normal(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


@lru_cache(maxsize=8)
def _by_normal_name(names: tuple[str, ...]) -> dict[str, int | None]:
    """The class of each name; None for a name of several classes, and for an empty one."""
    found: dict[str, int | None] = {}
    for index, name in enumerate(map(_normal, names)):
        found[name] = None if name in found or not name else index
    return found


def contradiction(folder: str, label: int) -> str:
    """Why a folder's name does not go together with a label, in words; empty where it does.

    >>> contradiction("class12", 3), contradiction("ship", 8), contradiction("img_8", 8)
    ('the name says 12', '', '')
    """
    numbers = [text for text in re.findall("[0-9]+", folder) if len(text) <= MAX_DIGITS]
    if not numbers or any(int(text) == label for text in numbers):
        return ""
    return f"the name says {' and '.join(numbers)}"
