"""The mean and std that pbu reads from a preprocessor_config.json are those of the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pbu_cli.models.sources.image_processor import normalisation, processor_resizing

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "BeitImageProcessor": [{}],
    "BitImageProcessor": [{}],
    "CLIPImageProcessor": [{}],
    "ConvNextImageProcessor": [{}],
    "DeiTImageProcessor": [{}],
    "EfficientNetImageProcessor": [
        {},
        {"include_top": False},
        {"rescale_offset": True, "rescale_factor": 1 / 127.5},
        {"do_normalize": False, "image_std": [0.3, 0.4, 0.5]},
    ],
    "LevitImageProcessor": [{}],
    "MobileNetV1ImageProcessor": [{}],
    "MobileNetV2ImageProcessor": [{}],
    "MobileViTImageProcessor": [{}, {"do_flip_channel_order": False}],
    "PoolFormerImageProcessor": [{}],
    "PPLCNetImageProcessor": [{}],
    "PvtImageProcessor": [{}],
    "SegformerImageProcessor": [{}],
    "SiglipImageProcessor": [{}],
    "TextNetImageProcessor": [{}],
    "ViTImageProcessor": [
        {},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    ],
}
CASES = [(name, options) for name, several in OPTIONS.items() for options in several]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_mean_and_std_are_those_that_the_processor_subtracts_and_divides_by(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    black, white = (
        np.asarray(
            processor(Image.new("RGB", (64, 64), (grey,) * 3), return_tensors="np")["pixel_values"]
        )[0][:, 30, 30]
        for grey in (0, 255)
    )
    found = normalisation(config, 3)
    assert found is not None
    mean, std = (np.array(each) for each in found)
    assert np.allclose((0 - mean) / std, black, rtol=1e-3, atol=1e-3)
    assert np.allclose((1 - mean) / std, white, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("EfficientNetImageProcessor", "efficientnet"), ("MobileViTImageProcessor", "mobilevit")],
)
def test_pixels_are_resized_before_anything_is_subtracted(
    name: str, kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    getattr(transformers, name)().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    way = processor_resizing(config, kind)
    assert np.asarray(way(Image.new("RGB", (300, 300), (9, 9, 9)), way.size)).max() <= 9
    white = np.asarray(way(Image.new("RGB", (300, 300), (255, 255, 255)), way.size))
    assert white[100, 100].tolist() == [255, 255, 255]
