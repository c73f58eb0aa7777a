"""CIFAR-10 and CIFAR-100: pickles of arrays, of which only the published ones are loaded."""

from __future__ import annotations

import hashlib
import hmac
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pbu_cli.benchmark.archives import Pixels, Splits
from pbu_cli.errors import ImageError, printable
from pbu_cli.io.regular_files import read_whole

MAX_BYTES = 1 << 28  # of a file; the published ones have at most 155 MB


@dataclass(frozen=True)
class Archive:
    """The files of one of the two, with the md5 that its authors publish.

    A file with another content and the same md5 is not known for a given file; only pairs are.
    """

    folder: str
    train: dict[str, str]
    test: dict[str, str]
    names: tuple[str, str]
    name_key: str
    label_key: str


CIFAR10 = Archive(
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    {"test_batch": "40351d587109b95175f43aff81a1287e"},
    ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    "label_names",
    "labels",
)
CIFAR100 = Archive(
    "cifar-100-python",
    {"train": "16019d7e3df5f24257cddd939b257f8d"},
    {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ("meta", "7973b15100ade9c7d40fb424638fde48"),
    "fine_label_names",
    "fine_labels",
)


def read(archive: Archive, root: Path) -> Splits:
    """Raises OSError where a file cannot be read, ImageError where it is not the published one."""
    folder = root / archive.folder
    names = _published(folder, *archive.names)[archive.name_key]
    splits = [_split(archive, folder, files) for files in (archive.train, archive.test)]
    return tuple(names), splits


def _split(archive: Archive, folder: Path, files: dict[str, str]) -> Pixels:
    parts = [_published(folder, name, digest) for name, digest in files.items()]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = [label for part in parts for label in part[archive.label_key]]
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)


def _published(folder: Path, name: str, md5: str) -> dict[str, Any]:
    """The content of a pickle. The bytes that are compared with the digest are those loaded."""
    data = read_whole(folder / name, MAX_BYTES)
    if not hmac.compare_digest(hashlib.md5(data, usedforsecurity=False).hexdigest(), md5):
        raise ImageError(
            f"{printable(folder / name)}: is not the published file, and a pickle can run any code;"
            " expected the one from the authors' page: fetch it again, or use --dataset folder"
        )
    found: dict[str, Any] = pickle.loads(data, encoding="latin1")  # noqa: S301 (published bytes)
    return found
