"""The tensors of timm's networks at several sizes, from the installed timm.

Every network is built with its weights on the meta device: with its default arguments, with other
classes, with other image channels, and with other image sizes where its constructor takes one.
What was found is kept in a file with one line a network, so that an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbu_cli.models.sources.construction import WeightsOnMeta

CLASSES, OTHER_CLASSES = 1009, 1013  # primes that are no layer's width
CHANNELS, OTHER_CHANNELS = 3, 5

Shapes = dict[str, tuple[int, ...]]


def network(name: str, **options: Any) -> nn.Module:
    """A network of timm with its weights on the meta device."""
    import timm  # here, so that the doctests of this folder are found without it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names warn
        try:
            with WeightsOnMeta():
                model: nn.Module = timm.create_model(name, pretrained=False, **options)
        except (RuntimeError, NotImplementedError):  # arithmetic that mixes devices
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, **options)
    return model


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of all tensors but BatchNorm's counters."""
    return {
        tensor: tuple(value.shape)
        for tensor, value in model.state_dict().items()
        if not tensor.endswith("num_batches_tracked")
    }


def studied(name: str) -> dict[str, Any]:
    """What one network's tensors are, and which of them another choice changes.

    `tensors` is the network with CLASSES classes at the image size `size`. `changes` has for each
    other choice the tensors whose shape changes, or the error why there is no such network. `sizes`
    are the image sizes of the choices that are one.
    """
    try:
        model = network(name, num_classes=CLASSES)
    except Exception as error:  # whatever a constructor of timm raises is a result
        return {"name": name, "error": f"{type(error).__name__}: {error}"[:200]}
    found = {
        "name": name,
        "size": model.pretrained_cfg.get("input_size", (3, 224, 224))[-1],
        "tensors": shapes_of(model),
        "changes": {},
        "sizes": {},
    }
    change(found, "classes", num_classes=OTHER_CLASSES)
    change(found, "channels", in_chans=OTHER_CHANNELS)
    change(found, "same", img_size=found["size"])
    if not str(found["changes"]["same"]).startswith("TypeError"):  # it takes an image size
        for label, size in image_sizes(found["size"]).items():
            change(found, label, img_size=size)
            found["sizes"][label] = size
    return found


def image_sizes(default: int) -> dict[str, int]:
    """Other image sizes. In small images windows shrink that else keep their size."""
    factors = {"double": 2.0, "half": 0.5, "larger": 1.5}
    return {label: int(factor * default) for label, factor in factors.items()} | {
        "small": 64,
        "tiny": 32,
    }


def change(found: dict[str, Any], label: str, **options: Any) -> None:
    """Add to `changes` what the options change."""
    base: Shapes = found["tensors"]
    try:
        other = shapes_of(network(found["name"], **{"num_classes": CLASSES, **options}))
    except Exception as error:
        found["changes"][label] = f"{type(error).__name__}: {error}"[:200]
        return
    if other.keys() != base.keys():
        found["changes"][label] = "other tensors"
    else:
        found["changes"][label] = {
            tensor: shape for tensor, shape in other.items() if shape != tuple(base[tensor])
        }


def study(names: list[str], cache: Path) -> Iterator[dict[str, Any]]:
    """`studied` of every name; what the file `cache` has is taken from there, the rest added."""
    known = set()
    if cache.exists():
        for line in cache.read_text("utf-8").splitlines():
            found = json.loads(line)
            known.add(found["name"])
            yield found
    with cache.open("a", encoding="utf-8") as file:
        for name in names:
            if name not in known:
                line = json.dumps(studied(name), separators=(",", ":"))
                file.write(line + "\n")
                file.flush()
                yield json.loads(line)
