"""The description of a model in a config.json beside its checkpoint and in its metadata.

Neither is trusted: every value is checked for type and bounds, and no value is run as code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json

LARGEST_CONFIG = 1 << 20  # bytes; a timm config.json has a few kilobytes
OWN_KEY = "pbu"  # the metadata key under which pbu itself writes, as JSON
# The keys that are read from any author, and those that are read only from under OWN_KEY.
STATED = ("architecture", "num_classes", "label_names", "mean", "std", "input_size")
RECORDED = ("mean", "std", "input_size", "forgotten")
RECORD = "metadata written by pbu"


@dataclass(frozen=True)
class Description:
    """What config.json or the metadata tell about a model; every field may be unknown.

    size: height and width. forgotten: classes that an earlier run of pbu has made the network
    forget. sources: for each known field, where its value comes from.
    """

    architecture: str | None = None
    num_classes: int | None = None
    label_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    forgotten: tuple[int, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def processed_like(self, other: Description) -> Description:
        """This description with the mean, std and size that pbu recorded in `other`, if it did."""
        recorded = [key for key in ("mean", "std", "size") if other.sources.get(key) == RECORD]
        sources = {**self.sources, **dict.fromkeys(recorded, RECORD)}
        return replace(self, **{key: getattr(other, key) for key in recorded}, sources=sources)


def describe(path: Path, metadata: Mapping[str, str]) -> Description:
    """Read the timm-style `config.json` beside the checkpoint at `path`, and its metadata.

    The keys are `architecture`, `num_classes`, `label_names`, `mean`, `std` and `input_size`. All
    but `num_classes` may also stand under `pretrained_cfg`. config.json wins over the metadata,
    because a person put it there. What pbu recorded in an output (`mean`, `std`, `input_size`,
    `forgotten`) wins over both, because these weights were unlearned with it and the config.json
    may have come from elsewhere since.

    Raises CheckpointError that names the malformed key.
    """
    found: dict[str, tuple[Any, str]] = {}
    for source, keys, fields in (  # later ones win
        ("checkpoint metadata", STATED, {k: _parsed(metadata[k]) for k in STATED if k in metadata}),
        ("config.json", STATED, _config(path.parent / "config.json")),
        (RECORD, RECORDED, _parsed(metadata.get(OWN_KEY, "{}"))),
    ):
        if isinstance(fields, dict):
            found |= {k: (fields[k], source) for k in keys if fields.get(k) is not None}
    return _description(found)


def _config(path: Path) -> dict[str, Any]:
    """The keys of a config.json, including those under `pretrained_cfg`; none without a file."""
    try:
        config = from_json(read_whole(path, LARGEST_CONFIG))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{printable(path)}: not a readable config.json ({printable(_why(error))});"
            " correct it, or move it away and pass --arch, --mean, --std, --size"
        ) from None
    inner = config.get("pretrained_cfg")
    if not isinstance(inner, dict):
        return config
    # `num_classes` in there belongs to the network that this one was fine-tuned from.
    return {**config, **inner, "num_classes": config.get("num_classes")}


def _why(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def metadata_with(metadata: Mapping[str, str], **facts: Any) -> dict[str, str]:
    """The metadata of an output: all keys of the input, and `facts` as JSON under `pbu`.

    `describe` reads them back, so that the output can be evaluated without flags.
    """
    return {**metadata, OWN_KEY: json.dumps(facts, sort_keys=True)}


def _parsed(text: str) -> Any:
    """The value of a metadata string: what it says as JSON, or the string itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _description(found: Mapping[str, tuple[Any, str]]) -> Description:
    known: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, (name, expected, parse) in FIELDS.items():
        if key not in found:
            continue
        value, source = found[key]
        try:
            known[name], sources[name] = parse(value), source
        except (TypeError, ValueError, OverflowError):
            raise CheckpointError(
                f"{source}: {key} is {printable(json.dumps(value))[:80]}; expected {expected}:"
                " correct it, or move it away and use the flags"
            ) from None
    return Description(**known, sources=sources)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,80}", value):
        raise ValueError
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
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


# key -> (field of Description, what is expected, parser)
FIELDS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "architecture": ("architecture", "a torchvision name such as resnet34", _name),
    "num_classes": ("num_classes", "a whole number", _count),
    "label_names": ("label_names", "a list of class names", _names),
    "mean": ("mean", "one number per channel between 0 and 1", _numbers),
    "std": ("std", "one positive number per channel", _positive),
    "input_size": ("size", "[channels, height, width]", _size),
    "forgotten": ("forgotten", "a list of class indices", _indices),
}
