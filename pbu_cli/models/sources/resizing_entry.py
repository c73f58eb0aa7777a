"""From the entry of a record, or of an output's metadata, to the way of resizing that it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pbu_cli.errors import CheckpointError
from pbu_cli.images.resizing import Resizing, resize_and_crop
from pbu_cli.models.sources.image_processor import KIND, processor_resizing


def from_entry(entry: Mapping[str, Any]) -> Resizing:
    """The way that `Resizing.entry` described. Raises CheckpointError for anything else.

    >>> way = {"resized": [9, 9], "size": [8, 8], "interpolation": "bicubic", "squash": False}
    >>> print(from_entry({"kind": "resize and crop", **way}))
    bicubic, to cover 9x9, then the inner 8x8
    """
    try:
        if entry["kind"] == KIND:
            return processor_resizing(entry["config"], str(entry["config"]["model_type"]))
        return resize_and_crop(entry)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            "the recorded way of resizing is none that pbu writes; expected the metadata as pbu"
            " wrote them: restore the file, or pass --size"
        ) from None
