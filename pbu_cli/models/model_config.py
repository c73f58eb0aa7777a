"""The description of a model in a config.json beside its checkpoint and in its metadata.

Neither is trusted: every value is checked for type and bounds, and no value is run as code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io import json_values as values
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.strict_json import from_json
from pbu_cli.models.sources.image_processor import normalisation
from pbu_cli.models.sources.transformers import is_of_transformers, label_names
from pbu_cli.settings import MAX_SIZE

LARGEST_CONFIG = 1 << 20  # bytes; a timm config.json has a few kilobytes
OWN_KEY = "pbu"  # the metadata key under which pbu itself writes, as JSON
# The keys that are read from any author, and those that are read only from under OWN_KEY.
STATED = (
    "architecture", "num_classes", "label_names", "mean", "std", "input_size",
    "global_pool", "model_args", "crop_pct", "interpolation", "crop_mode",
)  # fmt: skip
RECORDED = ("mean", "std", "input_size", "resizing", "forgotten", "answers", "stem_pool")
PROCESSOR = "preprocessor_config.json"
METADATA, RECORD = "checkpoint metadata", "metadata written by pbu"


@dataclass(frozen=True)
class Description:
    """What config.json or the metadata tell about a model; every field may be unknown.

    label_ids: second names of the classes, such as WordNet ids; only a class-index file has them.
    size: height and width. forgotten: classes that an earlier run of pbu has made the network
    forget. answers: percent of the forget images of such a class by the class that the network then
    predicted for them. stem_pool: whether a max-pool follows a 3x3 stem. global_pools, model_args:
    what timm builds otherwise than by default. crop_pct, interpolation, crop_mode: how timm resizes
    images. resizing: how pbu resized them, as `Resizing.entry` has it. transformers: for a model of
    transformers its config.json, with preprocessor_config.json under `processor`. sources: for each
    known field, where its value comes from.
    """

    architecture: str | None = None
    num_classes: int | None = None
    label_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    forgotten: tuple[int, ...] = ()
    answers: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    stem_pool: bool | None = None
    resizing: Mapping[str, Any] = field(default_factory=dict)
    global_pools: tuple[str, ...] = ()
    model_args: Mapping[str, Any] = field(default_factory=dict)
    crop_pct: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    label_ids: tuple[str, ...] | None = None
    transformers: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def processed_like(self, other: Description) -> Description:
        """This description with the mean, std, size and stem that pbu recorded in `other`, if it
        did."""
        keys = ("mean", "std", "size", "stem_pool", "resizing")
        recorded = [key for key in keys if other.sources.get(key) == RECORD]
        sources = {**self.sources, **dict.fromkeys(recorded, RECORD)}
        return replace(self, **{key: getattr(other, key) for key in recorded}, sources=sources)


def describe(path: Path, metadata: Mapping[str, str]) -> Description:
    """Read the `config.json` beside the checkpoint at `path`, or in the folder there, and its
    metadata.

    A config.json with a `model_type` is one of transformers, any other is read as timm's. The
    keys are those in STATED. All but `num_classes` may also stand under `pretrained_cfg`.
    config.json wins over the metadata, because a person put it there. What pbu recorded in an
    output (RECORDED) wins over both, because these weights were unlearned with it and the
    config.json may have come from elsewhere since.

    Raises CheckpointError that names the malformed key.
    """
    found: dict[str, tuple[Any, str]] = {}
    folder = path if path.is_dir() else path.parent
    config = _config(folder / "config.json")
    model = config if is_of_transformers(config) else {}
    processor: dict[str, Any] = {}
    if model:
        processor = _config(folder / PROCESSOR)
        config = _stated_by_transformers(config, processor)
    for source, keys, fields in (  # later ones win
        (METADATA, STATED, {k: _parsed(k, metadata[k]) for k in STATED if k in metadata}),
        ("config.json", STATED, config),
        (RECORD, RECORDED, _parsed(OWN_KEY, metadata.get(OWN_KEY, "{}"))),
    ):
        if isinstance(fields, dict):
            found |= {k: (fields[k], source) for k in keys if fields.get(k) is not None}
    description = _description(found)
    if not model:
        return description
    sources = {**description.sources, "transformers": "config.json"}
    if description.sources.get("mean") == "config.json":
        sources |= {"mean": PROCESSOR, "std": PROCESSOR}
    return replace(description, transformers={**model, "processor": processor}, sources=sources)


def _stated_by_transformers(
    config: Mapping[str, Any], processor: Mapping[str, Any]
) -> dict[str, Any]:
    """What the two files of a transformers model state, under the keys of STATED."""
    found: dict[str, Any] = {"label_names": label_names(config)}
    channels = config.get("num_channels")
    pair = normalisation(processor, channels if isinstance(channels, int) else 3)
    if pair is not None:
        found |= {"mean": list(pair[0]), "std": list(pair[1])}
    return found


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
            f"{printable(path)}: not a readable {path.name} ({printable(_why(error))});"
            " correct it, or move it away and pass --arch, --mean, --std, --size"
        ) from None
    if "label_names" not in config and isinstance(config.get("id2label"), dict):
        config["label_names"] = config["id2label"]
    inner = config.get("pretrained_cfg")
    if not isinstance(inner, dict):
        return config
    stated = {key: value for key, value in inner.items() if value is not None}
    # `num_classes` in there belongs to the network that this one was fine-tuned from.
    merged = {**config, **stated, "num_classes": config.get("num_classes")}
    if isinstance(config.get("global_pool"), str) and isinstance(stated.get("global_pool"), str):
        merged["global_pool"] = [config["global_pool"], stated["global_pool"]]
    return merged


def _why(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def metadata_with(metadata: Mapping[str, str], **facts: Any) -> dict[str, str]:
    """The metadata of an output: all keys of the input, and `facts` as JSON under `pbu`.

    `describe` reads them back, so that the output can be evaluated without flags. transformers
    refuses files without the key `format`.
    """
    return {"format": "pt", **metadata, OWN_KEY: json.dumps(facts, sort_keys=True)}


def _parsed(key: str, text: str) -> Any:
    """The value of a metadata string: what it says as JSON, or the string itself if it is none.

    Raises CheckpointError for one that is longer than a config.json may be.
    """
    if len(text) > LARGEST_CONFIG:
        raise CheckpointError(
            f"{METADATA}: {key} has {len(text):,} characters; expected at most"
            f" {LARGEST_CONFIG:,}: save the file without it"
        )
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
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise CheckpointError(
                f"{source}: {key} is {printable(json.dumps(value)[:300], 80)}; expected {expected}:"
                " correct it, or move it away and use the flags"
            ) from None
    return Description(**known, sources=sources)


# key -> (field of Description, what is expected, parser)
FIELDS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "architecture": (
        "architecture",
        "a torchvision name such as resnet34",
        values.architecture_name,
    ),
    "num_classes": (
        "num_classes",
        f"a whole number from 1 to {values.MAX_CLASSES:,}",
        values.class_count,
    ),
    "label_names": ("label_names", "a list of class names", values.class_names),
    "mean": ("mean", "one number per channel between 0 and 1", values.numbers),
    "std": ("std", "one positive number per channel", values.positive_numbers),
    "input_size": ("size", f"[channels, height, width] up to {MAX_SIZE}", values.image_size),
    "forgotten": ("forgotten", "a list of class indices", values.indices),
    "answers": (
        "answers",
        "percent of the images by class, for each forgotten class",
        values.answers,
    ),
    "resizing": ("resizing", "what pbu wrote", values.json_object),
    "stem_pool": ("stem_pool", "true or false", values.flag),
    "global_pool": ("global_pools", "a text such as avg", values.one_or_more_texts),
    "model_args": ("model_args", "a JSON object", values.json_object),
    "crop_pct": ("crop_pct", "a number such as 0.875", float),
    "interpolation": ("interpolation", "a text such as bilinear", str),
    "crop_mode": ("crop_mode", "a text such as center", str),
}
