"""Data sets with a training and a test split, as uint8 pixels and labels in memory.

MNIST, CIFAR-10, CIFAR-100 and Food-101 are read as torchvision lays them out. Any folder with
`train/<class>/` and `test/<class>/` is a data set too. Nothing is downloaded unless asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.benchmark.archives import Splits, cifar, food101, mnist
from pbu_cli.benchmark.archives.download import download as fetch
from pbu_cli.data.normalization_inference import NORMALISATIONS
from pbu_cli.errors import ImageError, printable
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_files import channels_of
from pbu_cli.images.image_folders import Group, list_groups, split_by_subfolder
from pbu_cli.images.image_sizes import usual_size
from pbu_cli.settings import Preprocessing

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
    exif_rotation: bool = True,
    progress: Progress = lambda split, images: None,
) -> Dataset:
    """The data set `name` below `root`; with the name `folder`, the one that `root` itself holds.

    size: images are resized to it; None keeps their own size. per_class: read only the first
    images of each class, this many in each split, for trials. exif_rotation: turn the images of a
    folder as their EXIF data say. A folder takes its own name as the
    name of the data set, and is normalised and trained like the known data set of that name.
    Raises ImageError where the data set is missing or its splits have different classes.
    """
    if name == "folder":
        name, classes, splits = _read_folder(root, size, per_class, exif_rotation, progress)
    else:
        classes, splits = _read_archive(name, root, size, download, progress)
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


def _read_archive(
    name: str, root: Path, size: Size | None, download: bool, progress: Progress
) -> tuple[tuple[str, ...], list[Split]]:
    """The classes of a published data set, and its two splits."""
    readers: dict[str, Callable[[], Splits]] = {
        "mnist": lambda: mnist.read(root),
        "cifar10": lambda: cifar.read(cifar.CIFAR10, root),
        "cifar100": lambda: cifar.read(cifar.CIFAR100, root),
        "food101": lambda: food101.read(root, LARGE_SIDE if size is None else min(size), progress),
    }
    try:
        if download:
            fetch(name, root)
        classes, splits = readers[name]()
    except (OSError, RuntimeError) as error:
        place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{printable(root)}: holds no {name} in the layout of torchvision"
            f" ({printable(f'{place}{reason}', 200)}); pass --data-root, or --download to fetch it"
        ) from None
    return classes, [Split(*split) for split in splits]


def _read_folder(
    root: Path,
    size: Size | None,
    per_class: int | None,
    exif_rotation: bool,
    progress: Progress,
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
    if size is None:
        usual = usual_size(groups["train"], exif_rotation=exif_rotation)
        size = usual.size if usual else (LARGE_SIDE, LARGE_SIDE)
    channels = channels_of(groups["train"][0].paths[0])
    splits = []
    for which, class_folders in groups.items():
        chosen = [replace(group, paths=group.paths[:per_class]) for group in class_folders]
        images = decode(
            chosen,
            channels=channels,
            size=size,
            exif_rotation=exif_rotation,
            progress=partial(progress, which),
        )
        splits.append(Split(images.pixels, images.group))
    return (root.name or root.resolve().name).lower(), tuple(classes), splits


def _class_folders(folder: Path) -> tuple[Group, ...]:
    """The class folders in the order of their names, or of their numbers if all are numbers."""
    groups = split_by_subfolder(list_groups([str(folder)])[0])
    if all(group.name.isdecimal() for group in groups):
        return tuple(sorted(groups, key=lambda group: int(group.name)))
    return groups
