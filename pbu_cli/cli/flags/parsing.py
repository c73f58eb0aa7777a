"""From the texts of flags to the options of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.settings import MAX_SIZE, InputOptions


def input_options(flags: Mapping[str, Any]) -> InputOptions:
    """What the flags of a command, by parameter name, say about network and images.

    Raises InvalidUsage where the text of a flag cannot be read.
    """
    return InputOptions(
        arch=flags["arch"],
        labels=tuple(flags["label"] or ()),
        mean=_numbers("--mean", flags["mean"]),
        std=_numbers("--std", flags["std"], positive=True),
        size=size_in_pixels(flags["size"]),
        channels=flags["channels"],
        device=flags["device"],
        batch_size=flags["batch_size"],
        skip_bad=flags["skip_bad"],
        deterministic=flags["deterministic"],
        exif_rotation=not flags["no_exif_rotation"],
        preset=flags["preset"],
        state_dict=flags["state_dict"],
        class_index=flags.get("class_index"),
    )


def _numbers(flag: str, text: str | None, *, positive: bool = False) -> tuple[float, ...] | None:
    """The numbers of a text such as `0.485,0.456,0.406`."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    valid = all(abs(number) < 1e6 and (number > 0 or not positive) for number in numbers)
    if not numbers or not valid:
        kind = "positive numbers" if positive else "numbers"
        raise InvalidUsage(
            f"{flag} {printable(text)}: expected {kind} such as 0.485,0.456,0.406, one a channel"
        )
    return numbers


def size_in_pixels(text: str | None) -> tuple[int, int] | None:
    """(height, width) of a text such as `224` or `192x256`.

    >>> size_in_pixels("224"), size_in_pixels("192x256")
    ((224, 224), (192, 256))
    """
    if text is None:
        return None
    found = re.fullmatch("([0-9]{1,4})(?:x([0-9]{1,4}))?", text.lower())
    size = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= min(size) <= max(size) <= MAX_SIZE:
        shown = printable(text, 80)
        raise InvalidUsage(
            f"--size {shown}: expected pixels such as 224 or 192x256, up to {MAX_SIZE}"
        )
    return size
