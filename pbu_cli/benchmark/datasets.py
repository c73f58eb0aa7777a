"""Data sets with a training and a test split, as uint8 pixels and labels in memory.

MNIST, CIFAR-10, CIFAR-100 and Food-101 are read by torchvision's own classes. Any folder with
`train/<class>/` and `test/<class>/` is a data set too. Nothing is downloaded unless asked for.
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

LARGE_SIDE = 224  # pixels, for images that have no common size of their own
KNOWN_NORMALISATION = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "food101": "ImageNet",
}

Size = tuple[int, int]  # height and width in pixels
Progress = Callable[[str, int], None]  # gets the name of the split and the images read so far


@dataclass(frozen=True)
class Split:
    """pixels: uint8 [n, k, h, w]; labels: int64 [n]."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """name: in lower case. classes: the names of the classes, by label."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing

    def digest(self) -> str:
        """sha256 of the whole data set: its name, classes, normalisation, pixels and labels."""
        total = hashlib.sha256(repr((self.name, self.classes, self.preprocessing)).encode())
        for split in (self.train, self.test):
            total.update(repr(tuple(split.pixels.shape)).encode())
            total.update(split.pixels.contiguous().numpy().data)
            total.update(split.labels.numpy().tobytes())
        return total.hexdigest()


def load_dataset(
    name: str,
    root: Path,
    *,
    size: Size | None = None,
    per_class: int | None = None,
    download: bool = False,
    progress: Progress = lambda split, images: None,
) -> Dataset:
    """The data set `name` below `root`; with the name `folder`, the one that `root` itself holds.

    size: images are resized to it; None keeps their own size. per_class: read only the first
    images of each class, this many in each split, for trials. A folder takes its own name as the
    name of the data set, and is normalised and trained like the known data set of that name.
    Raises ImageError where the data set is missing or its splits have different classes.
    """
    reader = _READERS.get(name)
    if reader is None:
        name, classes, splits = _read_folder(root, size, per_class, progress)
    else:
        try:
            classes, splits = reader(root, download, size, progress)
        except RuntimeError as error:
            raise ImageError(
                f"{printable(root)}: holds no {name} in the layout of torchvision"
                f" ({printable(error)[:120]}); pass --data-root, or --download to fetch it"
            ) from None
    if per_class is not None:
        splits = [_first_of_each_class(split, per_class) for split in splits]
    train, test = splits
    data = Dataset(name, classes, train, test, _preprocessing(name, train.pixels))
    return data if size is None else resized(data, size)


def resized(data: Dataset, size: Size) -> Dataset:
    """The same data set with images of this size, bilinear and antialiased.

    The normalisation stays: it is not measured again on the resized images.
    """
    if data.preprocessing.size == size:
        return data
    train, test = (
        replace(split, pixels=_resized(split.pixels, size)) for split in (data.train, data.test)
    )
    return replace(
        data, train=train, test=test, preprocessing=replace(data.preprocessing, size=size)
    )


def _first_of_each_class(split: Split, count: int) -> Split:
    keep = torch.cat([torch.where(split.labels == c)[0][:count] for c in split.labels.unique()])
    keep = keep.sort().values
    return Split(split.pixels[keep], split.labels[keep])


def _resized(pixels: Tensor, size: Size) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    chunks = [resize(chunk, list(size), antialias=True) for chunk in pixels.split(1024)]
    return torch.cat(chunks)


def _preprocessing(name: str, pixels: Tensor) -> Preprocessing:
    """The known normalisation of the data set, or else the mean and std of its training pixels."""
    channels, size = pixels.shape[1], (pixels.shape[2], pixels.shape[3])
    if name in KNOWN_NORMALISATION:
        mean, std = (values[:channels] for values in NORMALISATIONS[KNOWN_NORMALISATION[name]])
        return Preprocessing(size, mean, std)
    total = squares = torch.zeros(channels, dtype=torch.float64)
    for chunk in pixels.split(1024):
        values = chunk.double().div_(255).movedim(1, 0).flatten(1)
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    count = pixels.numel() // channels
    means = total / count
    deviations = (squares / count - means.square()).sqrt().clamp_min(1 / 255)
    return Preprocessing(
        size,
        tuple(round(v, 4) for v in means.tolist()),
        tuple(round(v, 4) for v in deviations.tolist()),
    )


ClassesAndSplits = tuple[tuple[str, ...], list[Split]]


def _read_mnist(
    root: Path, download: bool, size: Size | None, progress: Progress
) -> ClassesAndSplits:
    from torchvision.datasets import MNIST

    found = [MNIST(str(root), train=train, download=download) for train in (True, False)]
    splits = [Split(data.data.unsqueeze(1), data.targets.long()) for data in found]
    return tuple(map(str, range(10))), splits


def _read_cifar(
    number: int, root: Path, download: bool, size: Size | None, progress: Progress
) -> ClassesAndSplits:
    import torchvision.datasets

    cifar = getattr(torchvision.datasets, f"CIFAR{number}")
    found = [cifar(str(root), train=train, download=download) for train in (True, False)]
    splits = [
        Split(
            torch.from_numpy(data.data).movedim(-1, 1).contiguous(),
            torch.tensor(data.targets, dtype=torch.long),
        )
        for data in found
    ]
    return tuple(found[0].classes), splits


def _read_food101(
    root: Path, download: bool, size: Size | None, progress: Progress
) -> ClassesAndSplits:
    """Food-101; its images differ in size, so each is resized and cropped to a square when read."""
    from torchvision.datasets import Food101
    from torchvision.transforms.v2.functional import center_crop, resize

    side = LARGE_SIDE if size is None else min(size)
    splits = []
    for which in ("train", "test"):
        data = Food101(str(root), split=which, download=download)
        pixels = torch.empty(len(data), 3, side, side, dtype=torch.uint8)
        labels = torch.empty(len(data), dtype=torch.long)
        for index in range(len(data)):
            image, labels[index] = data[index]
            assert isinstance(image, Image.Image)
            square = center_crop(resize(image.convert("RGB"), [side]), [side, side])
            pixels[index] = torch.from_numpy(np.array(square)).movedim(-1, 0)
            progress(which, index + 1)
        splits.append(Split(pixels, labels))
    return tuple(data.classes), splits


_READERS: dict[str, Any] = {
    "mnist": _read_mnist,
    "cifar10": partial(_read_cifar, 10),
    "cifar100": partial(_read_cifar, 100),
    "food101": _read_food101,
}


def _read_folder(
    root: Path, size: Size | None, per_class: int | None, progress: Progress
) -> tuple[str, tuple[str, ...], list[Split]]:
    """The name of the folder in lower case, its classes, and its two splits."""
    groups = {which: _class_folders(root / which) for which in ("train", "test")}
    classes = [group.name for group in groups["train"]]
    if [group.name for group in groups["test"]] != classes or len(classes) < 2:
        raise ImageError(
            f"{printable(root)}: found {len(classes)} class folders in train and"
            f" {len(groups['test'])} in test; expected the same two or more in both: add or rename"
            " the class folders"
        )
    size = size or common_size(groups["train"]) or (LARGE_SIDE, LARGE_SIDE)
    channels = channels_of(groups["train"][0].paths[0])
    splits = []
    for which, class_folders in groups.items():
        chosen = [replace(group, paths=group.paths[:per_class]) for group in class_folders]
        images = decode(chosen, channels=channels, size=size, progress=partial(progress, which))
        splits.append(Split(images.pixels, images.group))
    return (root.name or root.resolve().name).lower(), tuple(classes), splits


def _class_folders(folder: Path) -> tuple[Group, ...]:
    """The class folders in the order of their names, or of their numbers if all are numbers."""
    groups = split_by_subfolder(list_groups([str(folder)])[0])
    if all(group.name.isdecimal() for group in groups):
        return tuple(sorted(groups, key=lambda group: int(group.name)))
    return groups
