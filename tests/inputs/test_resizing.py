"""The warning where config.json states another way of resizing than pbu's."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.resizing import resizing_warnings
from pbu_cli.models.model_config import Description
from tests.images.made_images import save


@pytest.mark.parametrize(
    ("size", "stated", "warned"),
    [
        ((224, 224), {"crop_pct": 0.95}, "crop_pct 0.95 (pbu: 0.875)"),
        ((224, 224), {"interpolation": "bicubic"}, "interpolation bicubic (pbu: bilinear)"),
        ((224, 224), {"crop_mode": "squash", "crop_pct": 0.876}, "crop_mode squash"),
        ((224, 224), {"crop_pct": 0.875, "interpolation": "bilinear", "crop_mode": "center"}, ""),
        ((32, 32), {"crop_pct": 1.0}, ""),
        ((32, 32), {"crop_pct": 0.875}, "crop_pct 0.875 (pbu: 1.0)"),
        ((20, 30), {"crop_pct": 0.5, "interpolation": "bicubic"}, ""),  # nothing is resized
        ((224, 224), {}, ""),
    ],
)
def test_another_way_of_resizing_is_named_where_images_are_resized(
    tmp_path: Path, size: tuple[int, int], stated: dict[str, object], warned: str
) -> None:
    save(tmp_path / "a.png", Image.new("L", (30, 20)))
    description = Description(**stated, sources=dict.fromkeys(stated, "config.json"))  # type: ignore[arg-type]
    warnings = resizing_warnings(list_groups([str(tmp_path)]), size, description)
    assert len(warnings) == bool(warned)
    assert not warned or (warned in warnings[0] and warnings[0].startswith("config.json: "))
