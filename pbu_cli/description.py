"""What a config.json beside the checkpoint, or the checkpoint's metadata, say of the model.

Both come from strangers: every value is checked for type and bounds, and none is code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbu_cli.errors import CheckpointError, printable

LARGEST_CONFIG = 1 << 20  # bytes; a timm config.json has a few kilobytes
OWN_KEY = "pbu"  # metadata that pbu itself writes, as JSON


@dataclass(frozen=True)
class Description:
    """What config.json or metadata say of a model; every field may be unknown."""

    source: str = ""
    architecture: str | None = None
    label_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    forgotten: tuple[int, ...] = ()


def describe(path: Path, metadata: Mapping[str, str]) -> Description:
    """Read the timm-style `config.json` beside the checkpoint at `path`, and its metadata.

    Understood keys: `architecture`, `label_names`, and `mean`, `std`, `input_size` at the top or
    under `pretrained_cfg`; config.json wins over metadata. Raises CheckpointError naming the key
    that is malformed.
    """
    fields = _from_metadata(metadata)
    beside = path.parent / "config.json"
    if not beside.is_file():
        return _description(fields, "checkpoint metadata") if fields else Description()
    try:
        if beside.stat().st_size > LARGEST_CONFIG:
            raise ValueError("larger than 1 MiB")
        config = json.loads(beside.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{printable(beside)}: not a readable config.json ({printable(error)}); mend it or"
            " move it away and say --arch, --mean, --std, --size"
        ) from None
    inner = config.get("pretrained_cfg")
    return _description(
        {**fields, **config, **(inner if isinstance(inner, dict) else {})}, beside.name
    )


def metadata_with(metadata: Mapping[str, str], **facts: Any) -> dict[str, str]:
    """The metadata of an output: every key of the input's kept, and what pbu knows under `pbu`.

    `describe` reads it back, so that the output can be evaluated without a flag.
    """
    return {**metadata, OWN_KEY: json.dumps(facts, sort_keys=True)}


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key in ("architecture", "label_names", "mean", "std", "input_size"):
        if key in metadata:
            fields[key] = metadata[key]
            with suppress(ValueError, RecursionError):
                fields[key] = json.loads(metadata[key])
    with suppress(ValueError, RecursionError):
        own = json.loads(metadata.get(OWN_KEY, "{}"))
        if isinstance(own, dict):
            fields = {**own, **fields}
    return fields


def _description(fields: Mapping[str, Any], source: str) -> Description:
    def field(key: str, expected: str, parse: Callable[[Any], Any]) -> Any:
        value = fields.get(key)
        if value is None:
            return None
        try:
            return parse(value)
        except (TypeError, ValueError, OverflowError):
            raise CheckpointError(
                f"{source}: {key} is {printable(json.dumps(value))[:80]}; expected {expected}:"
                " mend it, or move it away and use the flags"
            ) from None

    return Description(
        source=source,
        architecture=field("architecture", "a torchvision name such as resnet34", _name),
        label_names=field("label_names", "a list of class names", _names),
        mean=field("mean", "one number per channel between 0 and 1", _numbers),
        std=field("std", "one positive number per channel", _positive),
        size=field("input_size", "[channels, height, width]", _size),
        forgotten=field("forgotten", "a list of class indices", _indices) or (),
    )


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,80}", value):
        raise ValueError
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in value)
    if not 1 <= len(numbers) <= 64 or not all(abs(number) < 1e6 for number in numbers):
        raise ValueError
    return numbers


def _positive(value: Any) -> tuple[float, ...]:
    numbers = _numbers(value)
    if min(numbers) <= 0:
        raise ValueError
    return numbers


def _size(value: Any) -> tuple[int, int]:
    _, height, width = (int(number) for number in value)
    if not (1 <= height <= 4096 and 1 <= width <= 4096):
        raise ValueError
    return height, width


def _indices(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise ValueError
    return tuple(value)
