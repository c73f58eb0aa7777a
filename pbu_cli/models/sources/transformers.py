"""transformers' image classifiers, built from a config.json.

The class comes from transformers' own table of image classifiers, by the `model_type` and the name
under `architectures`. Code from a model's folder is never run, and nothing is fetched: the keys of
a config.json that would lead to either are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.json_values import class_names
from pbu_cli.models.sources.construction import bounded
from pbu_cli.models.sources.extras import library, one_line
from pbu_cli.models.tensor_shapes import Shapes

# Keys that make transformers run code of a folder, fetch something, or compute with other weights.
REFUSED = {
    "auto_map": "code of its own",
    "custom_pipelines": "code of its own",
    "quantization_config": "quantised weights",
    "backbone": "a backbone that would be fetched",
    "fusion_config": "fused layers",
    "use_kernels": "kernels that would be fetched",
    "kernel_config": "kernels that would be fetched",
    "transformers_weights": "another file of weights",
}
# Keys that choose how attention is computed or tell where a model came from: left out.
LEFT_OUT = ("attn_implementation", "_attn_implementation", "experts_implementation",
            "_name_or_path", "name_or_path", "torch_dtype", "dtype")  # fmt: skip
TIMM_WRAPPER = "timm_wrapper"  # the model_type under which transformers wraps a network of timm
MAX_DEPTH = 6  # of lists and objects in a config.json
LARGEST_NUMBER = 1 << 24  # in a config.json; sizes and counts of published models are far below


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' own networks; its TimmWrapper builds timm's."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind != TIMM_WRAPPER


def build(config: Mapping[str, Any], shapes: Shapes) -> tuple[nn.Module, dict[str, str]]:
    """transformers' classifier for a config.json, in eval mode, with random weights, and the
    module's name of every tensor that the library's own loader renames.

    shapes: of the checkpoint's tensors. The module takes images [n, k, h, w] and returns logits.
    Raises CheckpointError where the config is of no image classifier or asks for anything but a
    network of the library's, and where the library builds none from it.
    """
    kind = config.get("model_type")
    transformers = library("transformers", f"config.json: model_type {printable(kind, 40)}")
    keys = checked(config)
    name = _class_name(transformers, kind, config.get("architectures"))
    numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    with torch.random.fork_rng(devices=[]), one_line(f"config.json: {name}"):
        settings = transformers.CONFIG_MAPPING[kind].from_dict(keys)
        builder = getattr(transformers, name)
        with torch.device("meta"), bounded(f"config.json: {name}", len(shapes), numbers):
            sketch = builder(settings)
        renamed = _renamed(builder, settings, sketch, shapes)
        with bounded(f"config.json: {name}", len(shapes), numbers):
            model: nn.Module = builder(settings).float().eval()
    model.register_forward_hook(_logits)
    return model, renamed


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names under `id2label`, None where there are none or only LABEL_0, LABEL_1, ...

    >>> label_names({"id2label": {"1": "dog", "0": "cat"}})
    ('cat', 'dog')
    """
    table = config.get("id2label")
    try:
        names = class_names(table) if isinstance(table, dict) else ()
    except (TypeError, ValueError):
        raise CheckpointError(
            "config.json: id2label is not a name for each class from 0 on; mend it, or move it away"
        ) from None
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def _class_name(transformers: Any, kind: Any, stated: Any) -> str:
    """The class that transformers has for this model_type, the stated one if there are several."""
    auto = transformers.models.auto.modeling_auto
    table = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in table:
        raise CheckpointError(
            f"config.json: model_type {printable(kind, 40)} is no image classifier of transformers"
            f" {printable(transformers.__version__, 20)}; expected one of {len(table)}, such as"
            " vit: pass --arch FILE.py:FUNCTION for a network of your own"
        )
    names = table[kind]
    names = (names,) if isinstance(names, str) else tuple(names)
    wanted = stated if isinstance(stated, list) else []
    if wanted and not any(name in wanted for name in names):
        raise CheckpointError(
            f"config.json: architectures is {printable(json.dumps(wanted), 80)}; expected"
            f" {' or '.join(names)}: this is not the checkpoint of a classifier, which has a head"
        )
    return str(next((name for name in names if name in wanted), names[0]))


def checked(config: Mapping[str, Any], file: str = "config.json", depth: int = 0) -> dict[str, Any]:
    """The config without the keys of LEFT_OUT. Raises CheckpointError for those of REFUSED, and
    for numbers that no published network has. file: its name, for messages."""
    for key, what in REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"{file}: {key} asks for {what}, which pbu never does; expected a network that"
                " transformers has itself: save it without, or pass --arch FILE.py:FUNCTION"
            )
    found = {}
    for key, value in config.items():
        if key not in LEFT_OUT:
            found[key] = checked(value, file, depth + 1) if isinstance(value, dict) else value
            _check_numbers(file, key, value, depth)
    return found


def _check_numbers(file: str, key: str, value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{file}: nested too deeply; expected one of transformers")
    if isinstance(value, list):
        for item in value:
            _check_numbers(file, key, item, depth + 1)
    layers = any(part in key for part in ("layer", "depth", "block", "stage"))
    most = 1 << 12 if layers else LARGEST_NUMBER
    if type(value) is int and abs(value) > most:
        raise CheckpointError(
            f"{file}: {printable(key, 40)} is {value:,}; expected at most {most:,}"
        )


def _renamed(builder: Any, settings: Any, sketch: nn.Module, shapes: Shapes) -> dict[str, str]:
    """stored name -> the module's name, for every tensor that the library's loader renames.

    The loader itself tells: it loads tensors that are filled with a number each, and the number
    that stands in a tensor of the module afterwards is that of the tensor that it came from.
    """
    state = {name: tuple(tensor.shape) for name, tensor in sketch.state_dict().items()}
    if state.keys() <= shapes.keys():
        return {}
    stored = list(shapes)
    marked = {
        name: torch.full((), float(number)).expand(shapes[name])
        for number, name in enumerate(stored, 1)
    }
    loaded = builder.from_pretrained(None, config=settings, state_dict=marked, dtype=torch.float32)
    found: dict[str, str] = {}
    for name, tensor in loaded.state_dict().items():
        number = _only_number(tensor)
        if number is not None and 1 <= number <= len(stored):
            source = stored[number - 1]
            if tuple(tensor.shape) == shapes[source] and source != name:
                found[source] = name
    return found


def _only_number(tensor: Tensor) -> int | None:
    """The whole number that all of a tensor is, None where its numbers differ."""
    flat = tensor.reshape(-1)
    if not len(flat) or not tensor.is_floating_point() or not bool((flat == flat[0]).all()):
        return None
    number = float(flat[0])
    return int(number) if number.is_integer() else None


def _logits(module: nn.Module, args: Any, output: Any) -> Any:
    """The logits of an output of transformers, in place of the whole output.

    PP-LCNet calls its logits `last_hidden_state`.
    """
    return getattr(output, "logits", getattr(output, "last_hidden_state", output))
