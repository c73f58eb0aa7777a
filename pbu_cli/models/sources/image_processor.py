"""The image processor of a transformers model: its way of resizing, and its mean and std."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.models.sources.extras import library, one_line
from pbu_cli.models.sources.transformers import checked

KIND = "transformers"  # of the entry in records
NAMES = re.compile(r"[A-Za-z0-9]{1,60}(ImageProcessor|FeatureExtractor)(Fast|Pil)?")


@dataclass(frozen=True, eq=False)
class ProcessorResizing:
    """Resize as the image processor of a transformers folder does.

    config: of the processor, without normalisation. size: (height, width) of what it returns.
    """

    processor: Any
    config: Mapping[str, Any]
    size: tuple[int, int]

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(_processed(self.processor, image))

    def entry(self) -> dict[str, Any]:
        return {"kind": KIND, "config": dict(self.config)}

    def __str__(self) -> str:
        return f"{type(self.processor).__name__}, to {self.size[0]}x{self.size[1]}"


def processor_resizing(config: Mapping[str, Any], model_type: str) -> ProcessorResizing:
    """The image processor that a preprocessor_config.json describes.

    Raises CheckpointError where transformers has no such processor, and where the sizes of what it
    returns depend on the image.
    """
    processor, keys = _built(config, model_type)
    with one_line("preprocessor_config.json"):
        sizes = {
            _processed(processor, Image.new("RGB", (width, height))).shape[:2]
            for width, height in ((300, 300), (320, 240), (240, 320))
        }
    if len(sizes) > 1:
        raise CheckpointError(
            "preprocessor_config.json: its images have different sizes; expected one that crops or"
            " resizes to one size: pass --size"
        )
    ((height, width),) = sizes
    return ProcessorResizing(processor, keys, (int(height), int(width)))


def default_normalisation(
    config: Mapping[str, Any], model_type: str, channels: int
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std where the file states none, so that those of the processor's class act."""
    processor, keys = _built(config, model_type)
    stated = {k: list(v) if isinstance(v, tuple) else v for k, v in processor.to_dict().items()}
    return normalisation({**stated, **keys}, channels)


def normalisation(
    config: Mapping[str, Any], channels: int
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std, for pixels in [0, 1], of a preprocessor_config.json; None where unknown.

    The processor computes (pixel * rescale_factor - image_mean) / image_std of pixels in [0, 255].
    MobileViT's only rescales. EfficientNet's can subtract 1 after it has rescaled, and divides by
    image_std once more where it has `include_top`. PPLCNet's reverses the channels afterwards.

    >>> normalisation({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 127.5}, 1)
    ([0.25], [0.25])
    """
    factor = 1.0
    if config.get("do_rescale", True):
        factor = float(config.get("rescale_factor", 1 / 255))
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    normalises = config.get("do_normalize", True) and not kind.startswith("MobileViT")
    mean, std = config.get("image_mean"), config.get("image_std")
    mean, std = ([x] * channels if isinstance(x, float) else x for x in (mean, std))
    stated = std
    if not normalises:
        mean, std = [0.0] * channels, [1.0] * channels
    if not isinstance(mean, list) or not isinstance(std, list) or not factor > 0:
        return None
    if kind.startswith("EfficientNet"):
        if config.get("rescale_offset") and factor < 1:
            mean = [m + 1 for m in mean]
        if config.get("include_top", True) and isinstance(stated, list):
            std = [s * t for s, t in zip(std, stated, strict=False)]
    if kind.startswith("PPLCNet"):
        mean, std = mean[::-1], std[::-1]
    scale = 255 * factor
    return [float(m) / scale for m in mean], [float(s) / scale for s in std]


def _built(config: Mapping[str, Any], model_type: str) -> tuple[Any, dict[str, Any]]:
    """The library's image processor, and the checked keys that it was made from."""
    transformers = library("transformers", "preprocessor_config.json")
    keys = {**checked(config, "preprocessor_config.json"), "model_type": model_type}
    for key in ("image_processor_type", "feature_extractor_type"):
        if key in keys and not NAMES.fullmatch(str(keys[key])):
            raise CheckpointError(
                f"preprocessor_config.json: {key} is {printable(keys[key], 40)}; expected the name"
                " of an image processor of transformers, such as ViTImageProcessor"
            )
    with one_line("preprocessor_config.json"), tempfile.TemporaryDirectory() as folder:
        # The library reads processors from a folder alone; this one holds checked values only.
        for name, content in (
            ("preprocessor_config.json", keys),
            ("config.json", {"model_type": model_type}),
        ):
            (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return processor, keys


def _processed(processor: Any, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [h, w, k]: what the processor makes of an image before it rescales and normalises."""
    options = {"do_rescale": False, "do_normalize": False}
    if hasattr(processor, "include_top"):  # EfficientNet's, which would normalise once more
        options["include_top"] = False
    found = processor(image, **options, return_tensors="np")
    pixels = np.asarray(found["pixel_values"])[0]
    return np.ascontiguousarray(pixels.transpose(1, 2, 0)).round().clip(0, 255).astype(np.uint8)
