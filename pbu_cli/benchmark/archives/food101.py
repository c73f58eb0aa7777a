"""Food-101: JPEG files of different sizes, and two lists of their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pbu_cli.benchmark.archives import Splits
from pbu_cli.errors import ImageError, printable
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_files import fit_whole_pixels
from pbu_cli.images.image_folders import Group
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json

MAX_LIST_BYTES = 1 << 24
NAME = re.compile(r"\w[\w-]*")  # of a class and of an image: no separator, and no dot


def read(root: Path, side: int, progress: Callable[[str, int], None]) -> Splits:
    """Each image is resized and cropped to a square of `side` pixels when it is read.

    EXIF data turn no image, as in torchvision. Raises OSError where a list cannot be read, and
    ImageError for a name or an image that is none.
    """
    folder, splits = root / "food-101", []
    classes: tuple[str, ...] = ()
    for which in ("train", "test"):
        groups = _groups(folder, which)
        found = tuple(sorted(group.name for group in groups))
        if classes not in ((), found):
            raise ImageError(
                f"{printable(folder)}: other classes in meta/test.json than in meta/train.json;"
                " expected the same in both: fetch Food-101 again"
            )
        classes = found
        images = decode(
            groups,
            channels=3,
            size=(side, side),
            exif_rotation=False,
            fit=fit_whole_pixels,
            progress=partial(progress, which),
        )
        label = {name: index for index, name in enumerate(classes)}
        labels = images.group.new_tensor([label[group.name] for group in groups])[images.group]
        splits.append((images.pixels, labels))
    return classes, splits


def _groups(folder: Path, which: str) -> list[Group]:
    """The images of each class, in the order of the list. No name leaves the folder."""
    path = folder / "meta" / f"{which}.json"
    try:
        lists = from_json(read_whole(path, MAX_LIST_BYTES))
        if not isinstance(lists, dict) or len(lists) < 2:
            raise ValueError("not the images of at least two classes")
        groups = []
        for name, images in lists.items():
            if not NAME.fullmatch(name) or not isinstance(images, list) or not images:
                raise ValueError(f"no class {printable(name, 80)}")
            for image in images:
                start, _, rest = image.partition("/") if isinstance(image, str) else ("", "", "")
                if start != name or not NAME.fullmatch(rest):
                    raise ValueError(f"no image {printable(image, 80)} of {name}")
            paths = tuple(folder / "images" / f"{image}.jpg" for image in images)
            groups.append(Group(name, paths, folder / "images" / name))
    except ValueError as error:
        raise ImageError(
            f"{printable(path)}: {printable(error)}; expected the published list of class/image:"
            " fetch Food-101 again"
        ) from None
    return groups
