"""Class-index files: the name, or the WordNet id and the name, of each class of a network.

Networks trained on ImageNet are published with `imagenet_class_index.json`, which has
`{"0": ["n01440764", "tench"], ...}`, or with a text of one name or id a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pbu_cli.errors import ImageError, InvalidUsage, printable
from pbu_cli.images.list_text import list_text
from pbu_cli.io import json_values
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json

MAX_BYTES = 1 << 24  # of a class-index file; that of ImageNet has 35 kilobytes
WORDNET_ID = re.compile(r"n[0-9]{8}")
EXPECTED = (
    '{"0": ["n01440764", "tench"], ...}, {"0": "tench", ...} or a list in JSON, or a text with the'
    " name or the WordNet id of class 0 in the first line, of class 1 in the second, and so on"
)


@dataclass(frozen=True)
class ClassIndex:
    """Names and, where the file has both, ids of all classes in their order."""

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None


def read_class_index(path: Path) -> ClassIndex:
    """Read a class-index file. Raises InvalidUsage where it cannot be understood."""
    try:
        data = read_whole(path, MAX_BYTES)
        if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
            entries = json_values.class_index(from_json(data.removeprefix(b"\xef\xbb\xbf")))
        else:
            entries = _lines(list_text(data, "it", lambda unmarked: unmarked.decode("utf-8")))
        return _index(entries)
    except (OSError, AttributeError, TypeError, ValueError, ImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        found = f" ({printable(reason, 200)})" if reason else ""
        raise InvalidUsage(
            f"--class-index {printable(path)}: cannot be read as a class-index file{found};"
            f" expected {EXPECTED}"
        ) from None


def _lines(text: str) -> tuple[tuple[str, ...], ...]:
    """A line a class; a WordNet id may be followed by the name."""
    found = []
    for number, line in enumerate(text.rstrip().splitlines(), start=1):
        first, _, rest = line.strip().partition(" ")
        if not first:
            raise ValueError(f"line {number} is empty")
        is_pair = bool(WORDNET_ID.fullmatch(first) and rest.strip())
        found.append((first, rest.strip()) if is_pair else (line.strip(),))
    return tuple(found)


def _index(entries: Sequence[Sequence[str]]) -> ClassIndex:
    """The index of entries that are all names, or all pairs of an id and a name."""
    if not entries:
        raise ValueError("it names no class")
    if len(entries) > json_values.MAX_CLASSES:
        raise ValueError(f"more than {json_values.MAX_CLASSES:,} classes")
    if len({len(entry) for entry in entries}) != 1:
        raise ValueError("some classes have an id and a name, and some have one of them")
    names, ids = tuple(entry[-1] for entry in entries), tuple(entry[0] for entry in entries)
    first: dict[str, int] = {}
    for number, one in enumerate(ids):
        # Names may occur twice, as `crane` does in ImageNet; then they name no class.
        if len(entries[0]) == 2 and first.setdefault(one, number) != number:
            raise ValueError(f"{printable(one, 40)} is class {first[one]} and class {number}")
    return ClassIndex(names, ids if len(entries[0]) == 2 else None)
