"""Data sets from folders and from torchvision's classes, without a download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pbu_cli.benchmark.datasets import load_dataset, resized
from pbu_cli.errors import ImageError
from tests.conftest import Ran


def folders(root: Path, *, grey: bool = True, classes: tuple[str, ...] = ("0", "1")) -> Path:
    rng = np.random.default_rng(0)
    for which, count in (("train", 3), ("test", 2)):
        for name in classes:
            (root / which / name).mkdir(parents=True)
            for number in range(count):
                shape = (4, 4) if grey else (4, 4, 3)
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / which / name / f"{number}.png")
    return root


def test_a_folder_is_called_by_its_name_and_its_classes_by_theirs(tmp_path: Path) -> None:
    data = load_dataset("folder", folders(tmp_path / "Odd", classes=("cat", "dog")))
    assert (data.name, data.classes) == ("odd", ("cat", "dog"))
    assert data.train.pixels.shape == (6, 1, 4, 4)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_numbered_classes_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    names = tuple(map(str, range(11)))
    assert load_dataset("folder", folders(tmp_path / "a", classes=names)).classes == names


def test_a_folder_with_a_known_name_is_normalised_as_that_and_others_by_their_pixels(
    tmp_path: Path,
) -> None:
    data = load_dataset("folder", folders(tmp_path / "mnist"))
    assert data.preprocessing.mean == (0.1307,)
    other = load_dataset("folder", folders(tmp_path / "other", grey=False))
    values = other.train.pixels.double().div(255).movedim(1, 0).flatten(1)
    assert other.preprocessing.mean == pytest.approx(values.mean(1).tolist(), abs=1e-4)
    assert other.preprocessing.std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-4)


def test_a_cap_takes_the_first_of_each_class_in_both_splits(tmp_path: Path) -> None:
    data = load_dataset("folder", folders(tmp_path / "a"), per_class=1)
    whole = load_dataset("folder", tmp_path / "a")
    assert torch.equal(data.train.pixels, whole.train.pixels[[0, 3]])
    assert data.test.labels.tolist() == [0, 1]


def test_other_sizes_keep_the_normalisation(tmp_path: Path) -> None:
    data = load_dataset("folder", folders(tmp_path / "a"))
    larger = resized(data, (8, 8))
    assert larger.train.pixels.shape == (6, 1, 8, 8)
    assert larger.preprocessing.mean == data.preprocessing.mean
    assert larger.preprocessing.size == (8, 8)
    assert larger.digest() != data.digest()


def test_the_digest_is_of_every_pixel(tmp_path: Path) -> None:
    data = load_dataset("folder", folders(tmp_path / "a"))
    before = data.digest()
    data.test.pixels[0, 0, 0, 0] ^= 1
    assert data.digest() != before


def test_splits_that_differ_in_their_classes_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "a")
    (root / "test" / "1").rename(root / "test" / "2")
    with pytest.raises(ImageError, match="the same two or more in both"):
        load_dataset("folder", root)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "food101"])
def test_nothing_is_downloaded_unasked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="--data-root, or --download"):
        load_dataset(name, tmp_path)


def test_a_first_image_that_is_none_is_one_line(tmp_path: Path, pbu: Callable[..., Ran]) -> None:
    for which in ("train", "test"):
        for name in "ab":
            (tmp_path / which / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / which / name / "0.png")
    (tmp_path / "train" / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "train" / "a" / "0.png").symlink_to(tmp_path / "fifo")
    done = pbu("benchmark", "--dataset", "folder", "--data-root", tmp_path, "--dry-run",
               "--classes", "a", "--model", "resnet18", "--size", "4")  # fmt: skip
    assert done.code == 4
    assert "not a regular file" in done.err
