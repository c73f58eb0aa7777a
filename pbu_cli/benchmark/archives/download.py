"""Download a data set by torchvision, which checks what it fetches, and read nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def download(name: str, root: Path) -> None:
    """Fetch and unpack below `root` what is missing of `mnist`, `cifar10`, `cifar100`, `food101`.

    torchvision's classes read a data set when they are made, by loaders of their own. So an object
    is made without that, with nothing but the folders that a download needs. Raises RuntimeError
    where the download fails, OSError where it cannot be written.
    """
    import torchvision.datasets

    kinds = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "food101": "Food101"}
    kind: Any = getattr(torchvision.datasets, kinds[name])
    fetcher = kind.__new__(kind)
    fetcher.root = str(root)
    if name == "food101":
        base = root / "food-101"
        fetcher._base_folder = base
        fetcher._meta_folder, fetcher._images_folder = base / "meta", base / "images"
        fetcher._download()
    else:
        fetcher.download()
