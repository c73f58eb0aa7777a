"""Data sets with a training and a test split -> uint8 pixels and labels, all in memory.

MNIST, CIFAR-10, CIFAR-100 and Food-101 through torchvision's own classes, and any folder with
`train/<class>/` and `test/<class>/`. Nothing is downloaded unless it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pbu_cli.data.decoding import common_size, decode
from pbu_cli.data.image_files import channels_of
from pbu_cli.data.image_folders import Group, list_groups, split_by_subfolder
from pbu_cli.errors import ImageError, printable
from pbu_cli.settings import NORMALISATIONS, Preprocessing

FOOD_SIZE = 224
USUAL = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "food101": "ImageNet"}

Heard = Callable[[str, int], None]  # the split, images so far


@dataclass(frozen=True)
class Split:
    """pixels: uint8 [n, k, h, w]; labels: int64 [n]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """name: in small letters; classes: their names, by label."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing

    def digest(self) -> str:
        """sha256 of everything in it: pixels, labels, normalisation."""
        total = hashlib.sha256(repr((self.name, self.classes, self.preprocessing)).encode())
        for split in (self.train, self.test):
            total.update(repr(tuple(split.pixels.shape)).encode())
            total.update(split.pixels.contiguous().numpy().data)
            total.update(split.labels.numpy().tobytes())
        return total.hexdigest()


def load(
    name: str,
    root: Path,
    *,
    size: tuple[int, int] | None = None,
    per_class: int | None = None,
    download: bool = False,
    heard: Heard = lambda what, images: None,
) -> Dataset:
    """A data set by name, or `folder`, below `root`; images at `size`, else at their own.

    per_class: of each class only the first so many images, in either split: for trials. A folder
    is called by its own name, and normalised and trained as the data set of that name.
    """
    read = _READERS.get(name)
    if read is None:
        called, classes, splits = _folder(root, size, per_class, heard)
    else:
        try:
            classes, splits = read(root, download, size, heard)
        except RuntimeError as error:
            raise ImageError(
                f"{printable(root)}: no {name} as torchvision lays it out"
                f" ({printable(error)[:120]}); pass --data-root, or --download to fetch it"
            ) from None
        called = name
    if per_class is not None:
        splits = [_capped(split, per_class) for split in splits]
    train, test = splits
    data = Dataset(called, classes, train, test, _preprocessing(called, train.pixels))
    return data if size is None else resized(data, size)


def resized(data: Dataset, size: tuple[int, int]) -> Dataset:
    """The same with images of this size, bilinear and antialiased; normalised as before."""
    if data.preprocessing.size == size:
        return data
    train, test = (
        replace(split, pixels=_resized(split.pixels, size)) for split in (data.train, data.test)
    )
    return replace(
        data, train=train, test=test, preprocessing=replace(data.preprocessing, size=size)
    )


def _capped(split: Split, per_class: int) -> Split:
    keep = torch.cat([torch.where(split.labels == c)[0][:per_class] for c in split.labels.unique()])
    keep = keep.sort().values
    return Split(split.pixels[keep], split.labels[keep])


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    chunks = [resize(chunk, list(size), antialias=True) for chunk in pixels.split(1024)]
    return torch.cat(chunks)


def _preprocessing(name: str, pixels: Tensor) -> Preprocessing:
    """The data set's usual normalisation; else the mean and std of its training pixels."""
    channels, size = pixels.shape[1], (pixels.shape[2], pixels.shape[3])
    if name in USUAL:
        mean, std = (values[:channels] for values in NORMALISATIONS[USUAL[name]])
        return Preprocessing(size, mean, std)
    first = total = torch.zeros(channels, dtype=torch.float64)
    for chunk in pixels.split(1024):
        values = chunk.double().div_(255).movedim(1, 0).flatten(1)
        first, total = first + values.sum(1), total + values.square().sum(1)
    count = pixels.numel() // channels
    mean_ = first / count
    spread = (total / count - mean_.square()).sqrt().clamp_min(1 / 255)
    return Preprocessing(
        size,
        tuple(round(v, 4) for v in mean_.tolist()),
        tuple(round(v, 4) for v in spread.tolist()),
    )


Read = tuple[tuple[str, ...], list[Split]]


def _mnist(root: Path, download: bool, size: tuple[int, int] | None, heard: Heard) -> Read:
    from torchvision.datasets import MNIST

    found = [MNIST(str(root), train=train, download=download) for train in (True, False)]
    splits = [Split(data.data.unsqueeze(1), data.targets.long()) for data in found]
    return tuple(map(str, range(10))), splits


def _cifar(number: int) -> Any:
    def read(root: Path, download: bool, size: tuple[int, int] | None, heard: Heard) -> Read:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, f"CIFAR{number}")
        found = [kind(str(root), train=train, download=download) for train in (True, False)]
        splits = [
            Split(torch.from_numpy(data.data).movedim(-1, 1).contiguous(), _long(data.targets))
            for data in found
        ]
        return tuple(found[0].classes), splits

    return read


def _food101(root: Path, download: bool, size: tuple[int, int] | None, heard: Heard) -> Read:
    from torchvision.datasets import Food101
    from torchvision.transforms.v2.functional import center_crop
    from torchvision.transforms.v2.functional import resize as resized

    side = FOOD_SIZE if size is None else min(size)
    splits = []
    for which in ("train", "test"):
        data = Food101(str(root), split=which, download=download)
        pixels = torch.empty(len(data), 3, side, side, dtype=torch.uint8)
        labels = torch.empty(len(data), dtype=torch.long)
        for index in range(len(data)):
            image, labels[index] = data[index]
            assert isinstance(image, Image.Image)
            small = center_crop(resized(image.convert("RGB"), [side]), [side, side])
            pixels[index] = torch.from_numpy(np.array(small)).movedim(-1, 0)
            heard(which, index + 1)
        splits.append(Split(pixels, labels))
    return tuple(data.classes), splits


_READERS: dict[str, Any] = {
    "mnist": _mnist,
    "cifar10": _cifar(10),
    "cifar100": _cifar(100),
    "food101": _food101,
}


def _long(targets: list[int]) -> Tensor:
    return torch.tensor(targets, dtype=torch.long)


def _folder(
    root: Path, size: tuple[int, int] | None, per_class: int | None, heard: Heard
) -> tuple[str, tuple[str, ...], list[Split]]:
    groups = {which: _class_folders(root / which) for which in ("train", "test")}
    classes = [group.name for group in groups["train"]]
    if [group.name for group in groups["test"]] != classes or len(classes) < 2:
        raise ImageError(
            f"{printable(root)}: {len(classes)} class folders in train, {len(groups['test'])} in"
            " test; expected the same two or more in both"
        )
    size = size or common_size(groups["train"]) or (FOOD_SIZE, FOOD_SIZE)
    channels = channels_of(groups["train"][0].paths[0])
    splits = []
    for which, some in groups.items():
        few = [replace(group, paths=group.paths[:per_class]) for group in some]
        images = decode(few, channels=channels, size=size, progress=partial(heard, which))
        splits.append(Split(images.pixels, images.group))
    return (root.name or root.resolve().name).lower(), tuple(classes), splits


def _class_folders(folder: Path) -> tuple[Group, ...]:
    """The class folders by name, numbers by value."""
    groups = split_by_subfolder(list_groups([str(folder)])[0])
    if all(group.name.isdecimal() for group in groups):
        return tuple(sorted(groups, key=lambda group: int(group.name)))
    return groups
