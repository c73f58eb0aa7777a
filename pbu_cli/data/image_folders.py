"""Folders and lists of paths -> groups of image files, in a fixed order.

The files of a group are sorted by the bytes of their paths, so neither the file system nor the
order of a list has an effect. Folders are not trusted: links to folders are not followed, and no
file is opened here.
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
MAX_LIST_BYTES = 1 << 28  # of a list of paths, because a stream may never end
# Files and folders that file managers create. The last two hold thumbnails or copies of images.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclass(frozen=True)
class Group:
    """Images that share a label: those of one --forget source, or of one of its subfolders.

    name: the folder's name, from which the label is inferred; empty for a list on stdin. paths:
    absolute, in the fixed order. root: the folder itself, None for a list. ignored: files without
    the suffix of an image, links to folders, FIFOs and the like.
    """

    name: str
    paths: tuple[Path, ...]
    root: Path | None = None
    ignored: tuple[Path, ...] = ()


def list_groups(sources: Sequence[str], stdin: BinaryIO | None = None) -> tuple[Group, ...]:
    """One group for each source.

    A source is a folder, whose subfolders are listed too, or `-` for paths on stdin: one on each
    line, or each ended by NUL as `find -print0` writes them.

    Raises ImageError where a source cannot be listed, holds no image, or holds an image that
    another source holds too. Raises InvalidUsage where `-` cannot be read.
    """
    if "-" in sources and (stdin is None or list(sources).count("-") > 1):
        raise InvalidUsage(
            "- stands for the paths on stdin, for --forget alone; expected once, with stdin open"
        )
    groups = tuple(_from_list(stdin) if s == "-" and stdin else _from_folder(s) for s in sources)
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
    """The first-level subfolders as groups, by name; the group itself unless each image is in one.

    A subfolder without images gives no group; its files are only in `ignored` of the whole group.
    """
    root = group.root
    if root is None or any(path.parent == root for path in group.paths):
        return (group,)

    def by_subfolder(paths: Sequence[Path]) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in paths:
            found.setdefault(path.relative_to(root).parts[0], []).append(path)
        return found

    images, ignored = by_subfolder(group.paths), by_subfolder(group.ignored)
    return tuple(
        Group(name, tuple(images[name]), root / name, tuple(ignored.get(name, ())))
        for name in sorted(images, key=os.fsencode)
    )


def _from_folder(source: str) -> Group:
    """The images in a folder and all its subfolders. A link to a file counts as a file."""
    expected = "expected a folder of images, or - for one path a line on stdin"
    if not source:  # often an unset shell variable, which realpath takes for the current folder
        raise ImageError(f"the folder's name is empty; {expected}")
    root = Path(os.path.realpath(source))
    images: list[Path] = []
    ignored: list[Path] = []
    folders = [root]
    for folder in folders:  # subfolders are appended while the loop runs
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
                images.append(path)  # a dangling link is kept, so that `decode` reports it
            else:
                ignored.append(path)
    name = Path(source).name
    return _group(root.name if name in ("", "..") else name, images, root, ignored)


def _from_list(stdin: BinaryIO) -> Group:
    """The images whose paths stdin lists; each path counts once."""
    data = stdin.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise ImageError(f"stdin: more than {MAX_LIST_BYTES:,} bytes; expected one path a line")
    lines = data.split(b"\0") if b"\0" in data else data.split(b"\n")
    paths: set[Path] = set()
    real: dict[Path, Path] = {}  # resolved folders: one lookup for each folder, not for each file
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
    """The group with its files in the fixed order. Raises ImageError where it has no image."""
    paths, others = (tuple(sorted(files, key=os.fsencode)) for files in (images, ignored))
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
