"""Food-101: the pixels of torchvision, by pbu's own decoder, and no file outside the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.datasets import Food101
from torchvision.transforms.v2.functional import center_crop, resize

from pbu_cli.benchmark.datasets import load_dataset
from pbu_cli.errors import ImageError

LISTS = {"soup": ["soup/1", "soup/22"], "cake_2": ["cake_2/3", "cake_2/4"]}


@pytest.fixture
def food(tmp_path: Path) -> Path:
    """Photographs of different sizes, one of them turned by its EXIF data."""
    folder, photo = tmp_path / "food-101", load_sample_image("flower.jpg")
    (folder / "meta").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, name in enumerate(path for paths in LISTS.values() for path in paths):
        place = folder / "images" / f"{name}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(photo[10 * number : 300, : 250 + 91 * number])
        image.save(place, exif=exif if number else Image.Exif())
    for which in ("train", "test"):
        (folder / "meta" / f"{which}.json").write_text(json.dumps(LISTS))
    return folder


@pytest.mark.parametrize("side", [32, 224])
def test_the_pixels_are_those_of_torchvision(tmp_path: Path, food: Path, side: int) -> None:
    found = load_dataset("food101", tmp_path, size=(side, side)).train
    theirs = Food101(str(tmp_path), split="train")
    for index in range(len(theirs)):
        image, label = theirs[index]
        square = center_crop(resize(image.convert("RGB"), [side]), [side, side])
        assert torch.equal(found.pixels[index], torch.from_numpy(np.array(square)).movedim(-1, 0))
        assert found.labels[index] == label


def lists(food: Path, content: Any) -> None:
    (food / "meta" / "train.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{}", {"soup": ["soup/1"]}, {**LISTS, "soup": []}, {**LISTS, "soup": "soup/1"},
     {**LISTS, "soup": [3]}, {**LISTS, "soup": ["cake_2/3"]}, {**LISTS, "soup": ["soup/../../x"]},
     {**LISTS, "soup": ["soup/"]}, {**LISTS, "..": ["../x"]}, {**LISTS, "/etc": ["/etc/x"]},
     {**LISTS, "": ["/x"]}, {**LISTS, "a\x1b[2J": ["a\x1b[2J/x"]}, "[" * 100_000,
     '{"soup": ["soup/1"], "soup": ["soup/1"]}'],
)  # fmt: skip
def test_a_list_that_is_none_is_one_line(tmp_path: Path, food: Path, content: Any) -> None:
    lists(food, content)
    with pytest.raises(ImageError, match=r"train\.json: .*fetch Food-101 again") as caught:
        load_dataset("food101", tmp_path, size=(8, 8))
    assert str(caught.value).isprintable()


def test_classes_that_differ_between_the_lists_are_one_line(tmp_path: Path, food: Path) -> None:
    lists(food, {**LISTS, "tea": ["tea/1"], "soup": ["soup/1"]})
    (food / "images" / "tea").mkdir()
    Image.new("RGB", (9, 9)).save(food / "images" / "tea" / "1.jpg")
    with pytest.raises(ImageError, match="the same in both"):
        load_dataset("food101", tmp_path, size=(8, 8))


def test_other_formats_and_fifos_are_not_read(tmp_path: Path, food: Path) -> None:
    """Pillow by itself would start Ghostscript for an EPS, whatever its name."""
    path = food / "images" / "soup" / "1.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ImageError, match=r"1 of 4 images cannot be read: .*1\.jpg \(not PNG"):
        load_dataset("food101", tmp_path, size=(8, 8))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageError, match="not a regular file"):
        load_dataset("food101", tmp_path, size=(8, 8))
