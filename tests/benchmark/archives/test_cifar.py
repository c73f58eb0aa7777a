"""CIFAR's pickles: loaded only where they are the published ones."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from pbu_cli.benchmark.archives import cifar
from pbu_cli.benchmark.datasets import load_dataset
from pbu_cli.errors import ImageError

PIXELS = np.arange(2 * 3072, dtype=np.uint64).reshape(2, 3072).astype(np.uint8)


def published(folder: Path, name: str, content: object) -> str:
    """Write a pickle, and its md5 as it would be published."""
    data = pickle.dumps(content)
    (folder / name).write_bytes(data)
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-100, whose files count as the published ones."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    part = {"data": PIXELS, "fine_labels": [1, 0]}
    small = replace(
        cifar.CIFAR100,
        train={"train": published(folder, "train", part)},
        test={"test": published(folder, "test", part)},
        names=("meta", published(folder, "meta", {"fine_label_names": ["apple", "pear"]})),
    )
    monkeypatch.setattr(cifar, "CIFAR100", small)
    return folder


def test_it_is_read_as_torchvision_reads_it(tmp_path: Path, folder: Path) -> None:
    data = load_dataset("cifar100", tmp_path)
    expected = PIXELS.reshape(2, 3, 32, 32)
    assert (data.train.pixels.numpy() == expected).all()
    assert data.test.labels.tolist() == [1, 0]
    assert data.classes == ("apple", "pear")


@pytest.mark.parametrize("archive", ["CIFAR10", "CIFAR100"])
def test_the_digests_are_those_that_torchvision_knows(archive: str) -> None:
    ours, theirs = getattr(cifar, archive), getattr(torchvision.datasets, archive)
    assert ours.folder == theirs.base_folder
    assert list(ours.train.items()) == [tuple(pair) for pair in theirs.train_list]
    assert list(ours.test.items()) == [tuple(pair) for pair in theirs.test_list]
    assert ours.names == (theirs.meta["filename"], theirs.meta["md5"])
    assert ours.name_key == theirs.meta["key"]


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_another_pickle_is_never_loaded(
    tmp_path: Path, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ImageError, match="is not the published file"):
        load_dataset("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_fifo_does_not_hang(tmp_path: Path, folder: Path) -> None:
    (folder / "train").unlink()
    os.mkfifo(folder / "train")
    with pytest.raises(ImageError, match="not a regular file"):
        load_dataset("cifar100", tmp_path)
