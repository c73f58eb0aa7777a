"""What is wrong with image files, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import UnidentifiedImageError

from pbu_cli.errors import printable
from pbu_cli.images.image_folders import FORMAT_NAMES, UNREAD_SUFFIXES

FAULTS_SHOWN = 3


class Fault(NamedTuple):
    """An image that cannot be used, and the reason."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path, 200)} ({self.reason})"


def reason_of(error: Exception, path: Path) -> str:
    """Why an image cannot be read, in a few printable words."""
    if isinstance(error, UnidentifiedImageError):
        kind = path.suffix.lower()
        if kind in UNREAD_SUFFIXES:
            return f"pbu does not read {kind[1:].upper()}: {UNREAD_SUFFIXES[kind]}"
        return f"not {FORMAT_NAMES}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error) or type(error).__name__, 100)


def counted(paths: Iterable[Path]) -> str:
    """How many of the files have which suffix of a format that pbu does not read, in brackets.

    >>> counted([Path("a.heic"), Path("b.HEIC"), Path("c.png")])
    ' (2 .heic)'
    """
    suffixes = Counter(path.suffix.lower() for path in paths)
    unread = [f"{suffixes[kind]} {kind}" for kind in UNREAD_SUFFIXES if kind in suffixes]
    return f" ({', '.join(unread)})" if unread else ""


def first_of(faults: Sequence[Fault]) -> str:
    """The first faults, and how many more there are."""
    more = len(faults) - FAULTS_SHOWN
    return ", ".join(map(str, faults[:FAULTS_SHOWN])) + (f" and {more} more" if more > 0 else "")
