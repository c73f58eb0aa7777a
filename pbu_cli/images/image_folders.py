"""Folders and lists of paths -> groups of image files, in a fixed order.

The files of a group are sorted by the bytes of their paths, so neither the file system nor the
order of a list has an effect. Links to folders are followed, but each folder is listed once, so
that no loop of links is endless. No file is opened here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pbu_cli.errors import ImageError, InvalidUsage, printable
from pbu_cli.images.list_text import list_text

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
}  # fmt: skip
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or AVIF"
EXPECTED = f"{FORMAT_NAMES} images"
# Files with these suffixes are images too, which pbu cannot read. They are listed like the others,
# so that a class is not forgotten by a part of its images without a word.
_CONVERT = "convert it to PNG or JPEG"
UNREAD_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), f"{_CONVERT}, for example with heif-convert"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".svg", ".svgz", ".tga"), _CONVERT),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), _CONVERT),
    **dict.fromkeys((".eps", ".psd", ".exr", ".pcx"), _CONVERT),
}
MAX_LIST_BYTES = 1 << 28  # of a list of paths, because a stream may never end
# Files and folders that file managers create. The last two hold thumbnails or copies of images.
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclass(frozen=True)
class Group:
    """Images that share a label: those of one --forget source, or of one of its subfolders.

    name: the folder's name, from which the label is inferred; empty for a list on stdin. paths:
    absolute, in the fixed order; images of formats that pbu does not read are among them. root: the
    folder itself, None for a list. ignored: files without the suffix of an image, FIFOs and the
    like, and `repeated`: links to folders that are listed under another name or contain the link.
    """

    name: str
    paths: tuple[Path, ...]
    root: Path | None = None
    ignored: tuple[Path, ...] = ()
    repeated: tuple[Path, ...] = ()


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
    located = _Located()
    for number, group in enumerate(groups):
        for path in group.paths if len(groups) > 1 else ():
            place = located(path)
            if first.setdefault(place, number) != number:
                raise ImageError(
                    f"{printable(path)}: in {printable(sources[first[place]])} and in"
                    f" {printable(sources[number])}; expected each image in one of them"
                )
    return groups


def repeated_folders(groups: Sequence[Group]) -> list[str]:
    """A warning of the links to folders that were not followed, if there are any."""
    links = [link for group in groups for link in group.repeated]
    if not links:
        return []
    return [
        f"{len(links)} links to folders were not followed, first {printable(links[0])}: each leads"
        " to a folder that is listed under another name, or that contains the link"
    ]


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
    """The images in a folder and all its subfolders. A link to a file or folder counts as one.

    Real folders come before links, and links in the order of their paths, so that what a folder is
    called does not depend on the file system where several links lead to it.
    """
    expected = "expected a folder of images, or - for one path a line on stdin"
    if not source:  # often an unset shell variable, which realpath takes for the current folder
        raise ImageError(f"the folder's name is empty; {expected}")
    root = Path(os.path.realpath(source))
    images: list[Path] = []
    ignored: list[Path] = []
    repeated: list[Path] = []
    folders = [(root, root)]  # each as it is called below root, and where it really is
    links: list[tuple[Path, Path]] = []  # each with the real folder that holds it
    listed: set[Path] = set()
    while folders or links:
        if folders:
            folder, place = folders.pop()
        else:
            links.sort(key=lambda link: os.fsencode(link[0]), reverse=True)
            folder, holder = links.pop()
            place = Path(os.path.realpath(folder))
            if root.is_relative_to(place) or holder.is_relative_to(place):
                repeated.append(folder)
                continue
        if place in listed:
            repeated.append(folder)
            continue
        listed.add(place)
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not _is_clutter(entry.name)]
        except OSError as error:
            raise ImageError(f"{printable(folder)}: {error.strerror}; {expected}") from None
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append((path, place / entry.name))
            elif entry.is_symlink() and os.path.isdir(path):  # noqa: PTH112 (never an error)
                links.append((path, place))
            elif _is_image(path) and (entry.is_symlink() or entry.is_file(follow_symlinks=False)):
                images.append(path)  # a dangling link is kept, so that `decode` reports it
            else:
                ignored.append(path)
    name = Path(source).name
    name = root.name if name in ("", "..") else name
    return _group(name, images, root, [*ignored, *repeated], repeated)


def _from_list(stdin: BinaryIO) -> Group:
    """The images whose paths stdin lists; each path counts once."""
    data = stdin.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise ImageError(f"stdin: more than {MAX_LIST_BYTES:,} bytes; expected one path a line")
    text = list_text(data, "stdin", os.fsdecode)
    paths: set[Path] = set()
    located = _Located()
    for line in text.split("\0" if "\0" in text else "\n"):
        path = Path(line.removesuffix("\r"))
        if path.name and not _is_clutter(path.name):
            paths.add(located(path))
    images = {path for path in paths if _is_image(path)}
    return _group("", images, None, paths - images)


class _Located:
    """The path of a file in its folder as it really is: one lookup for each folder."""

    def __init__(self) -> None:
        self._folders: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = Path(os.path.realpath(folder))
        return self._folders[folder] / path.name


def _group(
    name: str,
    images: Iterable[Path],
    root: Path | None,
    ignored: Iterable[Path],
    repeated: Iterable[Path] = (),
) -> Group:
    """The group with its files in the fixed order. Raises ImageError where it has no image."""
    paths, others, links = (
        tuple(sorted(files, key=os.fsencode)) for files in (images, ignored, repeated)
    )
    if not paths:
        found = (
            f"nothing but {len(others)} other files, first {others[0].name}" if others else "empty"
        )
        raise ImageError(
            f"{printable(root or 'stdin')}: {printable(found)}; expected {EXPECTED}, named"
            " .png, .jpg and so on"
        )
    return Group(name, paths, root, others, links)


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix in UNREAD_SUFFIXES
