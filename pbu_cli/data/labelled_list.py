"""A CSV file of `path,label` lines -> groups of image files, one a label."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pbu_cli.errors import ImageError, printable
from pbu_cli.images.image_folders import MAX_LIST_BYTES, SUFFIXES, Group
from pbu_cli.images.list_text import list_text
from pbu_cli.io.regular_files import read_whole


@dataclass(frozen=True)
class LabelledList:
    """The images that a list names, each once.

    groups: one a label, in the order of the labels. labels, texts: the class of each group, and
    how the list writes it. header: the first line, if it names columns.
    """

    groups: tuple[Group, ...]
    labels: tuple[int, ...]
    texts: tuple[str, ...]
    header: str | None


@dataclass
class _Listing:
    """What the rows have said so far. lines: by real path, the line and the label."""

    lines: dict[str, tuple[int, int]] = field(default_factory=dict)
    paths: dict[int, list[Path]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    missing: list[tuple[int, str]] = field(default_factory=list)
    header: str | None = None


def label_from_text(
    text: str,
    label_names: Sequence[str] | None,
    num_classes: int,
    ids: Sequence[str] | None = None,
) -> int | None:
    """The class that a label in a list names: an exact class name or id, or a plain index; else
    None.

    >>> [label_from_text(text, None, 10) for text in ("1", "-1", "+1", " 1", "1.0", "10")]
    [1, None, None, None, None, None]
    """
    for names in (label_names, ids):
        if names is not None and list(names).count(text) == 1:
            return list(names).index(text)
    if re.fullmatch("[0-9]{1,9}", text) and int(text) < num_classes:
        return int(text)
    return None


def read_labelled_list(
    path: Path,
    label_names: Sequence[str] | None,
    num_classes: int,
    *,
    skip_missing: bool,
    ids: Sequence[str] | None = None,
) -> LabelledList:
    """Read a list whose paths are relative to its folder. A file that is listed twice counts once.

    A first line is a header if its label is no class and no number, and its path is no image.
    skip_missing: leave paths that do not exist to `decode`. Raises ImageError that names the list
    and the line where a line is no path and label, where a file has two labels, and where a path
    does not exist.
    """
    names = "" if label_names is None else " or an exact class name"
    expected = f"a label from 0 to {num_classes - 1}{names}"

    @cache  # a list of 50,000 images has 1,000 labels
    def label_of(text: str) -> int | None:
        return label_from_text(text, label_names, num_classes, ids)

    try:
        data = read_whole(path, MAX_LIST_BYTES)
        text = list_text(data, str(path), lambda unmarked: unmarked.decode("utf-8"))
        found = _Listing()
        with io.StringIO(text, newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                if row:
                    _add(found, path, rows.line_num, row, label_of, expected)
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            f"{printable(path)}: cannot be read as a list of path,label lines: {printable(reason)}"
        ) from None
    if not found.paths:
        raise ImageError(f"{printable(path)}: lists no image; expected path,label lines")
    if found.missing and not skip_missing:
        number, name = found.missing[0]
        raise ImageError(
            f"{printable(path)}, line {number}: no file {printable(name)};"
            f" {len(found.missing)} of {len(found.lines)} paths lead to none; expected paths"
            f" relative to {printable(path.parent.absolute())}: correct them, or pass --skip-bad to"
            " leave them out"
        )
    labels = tuple(sorted(found.paths))
    groups = (Group(f"{path}, label {c}", tuple(sorted(found.paths[c]))) for c in labels)
    return LabelledList(tuple(groups), labels, tuple(found.texts[c] for c in labels), found.header)


def _add(
    found: _Listing,
    path: Path,
    number: int,
    row: list[str],
    label_of: Callable[[str], int | None],
    expected: str,
) -> None:
    """Add line `number` of the list at `path`."""
    label = label_of(row[-1])
    shown = printable(",".join(row), 80)
    if number == 1 and label is None and _is_header(row, path.parent):
        found.header = shown
        return
    if len(row) != 2 or label is None or not row[0] or "\0" in row[0]:
        raise ImageError(
            f"{printable(path)}, line {number}: expected path,label with {expected}, got {shown}"
        )
    image = path.parent / row[0]
    before = found.lines.setdefault(os.path.realpath(image), (number, label))
    if before[1] != label:
        raise ImageError(
            f"{printable(path)}, line {number}: {printable(row[0])} has the label {label} here and"
            f" {before[1]} in line {before[0]}; expected one label an image"
        )
    if before[0] != number:
        return
    if not os.path.exists(image):  # noqa: PTH110 (never an error)
        found.missing.append((number, row[0]))
    found.paths.setdefault(label, []).append(image)
    found.texts.setdefault(label, row[1])


def _is_header(row: list[str], folder: Path) -> bool:
    """Whether a first line of two columns names the columns: no number, no image, no file."""
    if len(row) != 2 or re.match(r"\s*[+-]?\d", row[1]) or "\0" in row[0]:
        return False
    is_image = Path(row[0]).suffix.lower() in SUFFIXES
    return not is_image and not os.path.isfile(folder / row[0])  # noqa: PTH113
