"""Folders and lists of paths -> groups of image files, in a fixed order.

The order is that of the paths' bytes, so neither the file system nor the order of a list matters.
What is in a folder is not trusted: links to folders are not followed, and nothing is open_session here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pbu_cli.errors import ImageError, InvalidUsage, printable

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"}
EXPECTED = "PNG, JPEG, WebP, BMP or TIFF images"
MOST_LISTED = 1 << 28  # bytes of paths; a stream need not end
# Made by file managers, unasked; the last two hold thumbnails or doubles of the images.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclass(frozen=True)
class Group:
    """Images that share a label: those of one --forget source, or of one of its subfolders.

    name: the folder's, evidence of the label; empty for a list on stdin. paths: absolute, in the
    fixed order. root: the folder itself, None for a list. ignored: files that are no images by
    their suffix, links to folders, FIFOs and the like.
    """

    name: str
    paths: tuple[Path, ...]
    root: Path | None = None
    ignored: tuple[Path, ...] = ()


def list_groups(sources: Sequence[str], stdin: BinaryIO | None = None) -> tuple[Group, ...]:
    """One group for each source: a folder, nested or not, or `-` for one path a line on stdin
    (or paths ended by NUL, as `find -print0` writes them).

    Raises ImageError where a source cannot be listed, holds no image, or shares one with another.
    """
    if "-" in sources and (stdin is None or list(sources).count("-") > 1):
        raise InvalidUsage(
            "- stands for the paths on stdin, for --forget alone; expected once, with stdin open"
        )
    groups = tuple(_listed(stdin) if s == "-" and stdin else _folder(s) for s in sources)
    first: dict[Path, int] = {}
    for number, group in enumerate(groups):
        for path in group.paths:
            if first.setdefault(path, number) != number:
                raise ImageError(
                    f"{printable(path)}: in {printable(sources[first[path]])} and in"
                    f" {printable(sources[number])}; expected each image in one of them"
                )
    return groups


def split_by_subfolder(group: Group) -> tuple[Group, ...]:
    """The first-level subfolders as groups, by name; the group alone unless every image is in one.

    A subfolder without images gives no group; what it holds is in `ignored` of the whole.
    """
    root = group.root
    if root is None or any(path.parent == root for path in group.paths):
        return (group,)

    def below(paths: Sequence[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in paths:
            found.setdefault(path.relative_to(root).parts[0], []).append(path)
        return found

    images, ignored = below(group.paths), below(group.ignored)
    return tuple(
        Group(name, tuple(images[name]), root / name, tuple(ignored.get(name, ())))
        for name in sorted(images, key=os.fsencode)
    )


def _folder(source: str) -> Group:
    """The images anywhere below a folder. Links to files count as files of their own."""
    expected = "expected a folder of images, or - for one path a line on stdin"
    if not source:  # an unset variable of the shell; realpath would take it for this folder
        raise ImageError(f"the folder's name is empty; {expected}")
    root = Path(os.path.realpath(source))
    images: list[Path] = []
    ignored: list[Path] = []
    folders = [root]
    for folder in folders:  # grows as it goes
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not _is_clutter(entry.name)]
        except OSError as error:
            raise ImageError(f"{printable(folder)}: {error.strerror}; {expected}") from None
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif _is_image(path) and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                images.append(path)  # a dangling link is a fault to report, not to pass over
            else:
                ignored.append(path)
    name = Path(source).name
    return _group(root.name if name in ("", "..") else name, images, root, ignored)


def _listed(stdin: BinaryIO) -> Group:
    """The images whose paths stdin lists; each path once."""
    data = stdin.read(MOST_LISTED + 1)
    if len(data) > MOST_LISTED:
        raise ImageError(f"stdin: more than {MOST_LISTED:,} bytes; expected one path a line")
    lines = data.split(b"\0") if b"\0" in data else data.split(b"\n")
    paths: set[Path] = set()
    real: dict[Path, Path] = {}  # one look-up a folder, not one a file
    for line in lines:
        path = Path(os.fsdecode(line.removesuffix(b"\r")))
        if path.name and not _is_clutter(path.name):
            folder = path.parent
            if folder not in real:
                real[folder] = Path(os.path.realpath(folder))
            paths.add(real[folder] / path.name)
    images = {path for path in paths if _is_image(path)}
    return _group("", images, None, paths - images)


def _group(name: str, images: Iterable[Path], root: Path | None, ignored: Iterable[Path]) -> Group:
    """The group in its fixed order; ImageError if there is no image in it."""
    paths, others = (tuple(sorted(some, key=os.fsencode)) for some in (images, ignored))
    if not paths:
        found = (
            f"nothing but {len(others)} other files, first {others[0].name}" if others else "empty"
        )
        raise ImageError(
            f"{printable(root or 'stdin')}: {printable(found)}; expected {EXPECTED}, named"
            " .png, .jpg and so on"
        )
    return Group(name, paths, root, others)


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
