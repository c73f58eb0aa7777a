"""Images are resized exactly as timm and torchvision resize them for evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pbu_cli.images.resizing import ResizeAndCrop, resize_and_crop, timm_resizing


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=40, deadline=None)
@given(
    image=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    size=st.sampled_from([(32, 32), (24, 24), (32, 48), (48, 32)]),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0, 224 / 256]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos"]),
    crop_mode=st.sampled_from(["center", "squash", None]),
)
def test_pixels_are_those_of_timm(
    image: tuple[int, int],
    size: tuple[int, int],
    crop_pct: float,
    interpolation: str,
    crop_mode: str | None,
) -> None:
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, *size), crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation,
        normalize=False,
    )  # fmt: skip
    picture = photo(*image)
    found = timm_resizing(size, crop_pct, interpolation, crop_mode)(picture, size)
    assert torch.equal(torch.from_numpy(np.array(found)).permute(2, 0, 1), transform(picture))


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_pixels_are_those_of_a_torchvision_preset(weights: str) -> None:
    from torchvision.models import get_model_weights

    preset = get_model_weights("resnet50")[weights].transforms()
    (resized,), (side,) = preset.resize_size, preset.crop_size
    picture = photo(300, 400)
    found = ResizeAndCrop((resized, resized), (side, side), preset.interpolation.value)(
        picture, (side, side)
    )
    pixels = torch.from_numpy(np.array(found)).permute(2, 0, 1)
    mean, std = (torch.tensor(x)[:, None, None] for x in (preset.mean, preset.std))
    assert torch.allclose((pixels / 255 - mean) / std, preset(picture), atol=1e-6)


def test_an_entry_makes_the_same_way_again() -> None:
    for way in (
        timm_resizing((224, 224), 0.9, None, None),
        timm_resizing((8, 9), 1, None, "squash"),
    ):
        assert resize_and_crop(json.loads(json.dumps(way.entry()))) == way


@pytest.mark.parametrize(
    "entry",
    [
        {"resized": [0, 8], "squash": False, "size": [8, 8], "interpolation": "bilinear"},
        {"resized": [8, 8], "squash": False, "size": [8], "interpolation": "bilinear"},
        {"resized": [8, 8], "squash": False, "size": [8, 10**9], "interpolation": "bilinear"},
        {"resized": [8, 8], "squash": False, "size": [8, 8], "interpolation": "os.system"},
    ],
)
def test_an_entry_with_other_values_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"pixels|Pillow"):
        resize_and_crop(entry)


def test_an_image_that_would_become_huge_is_refused() -> None:
    with pytest.raises(ValueError, match="too oblong"):
        timm_resizing((224, 224), None, None, None)(photo(2, 9000), (224, 224))
