"""The torchvision classifiers known by the names and shapes of their tensors; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

Shapes = Mapping[str, tuple[int, ...]]
Pattern = Mapping[str, tuple[int | str, ...]]

CLASSES, CHANNELS, TOKENS = "classes", "channels", "1+n*n"

# Heads used in training only, which many checkpoints leave out.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
RESNETS = ("resnet", "resnext", "wide_resnet")


@dataclass(frozen=True)
class Architecture:
    """A torchvision classifier and the variations of it that tensors can show.

    `image_size` is the one size that the module takes, None where it takes any. For a ViT the
    tensors fix it; MaxViT has the same tensors at every size, so it is the default there, and
    `dataclasses.replace` may change it.
    """

    name: str
    num_classes: int
    in_channels: int = 3
    small_stem: bool = False
    image_size: int | None = None
    aux_logits: bool = False


def stem(name: str) -> str:
    """Name of the weight of the convolution that sees the image.

    >>> stem("resnet18"), stem("vit_b_16")
    ('conv1.weight', 'conv_proj.weight')
    """
    return next(tensor for tensor, shape in registry()[name].items() if CHANNELS in shape)


@cache
def registry() -> dict[str, Pattern]:
    """Tensor names and symbolic shapes of every known classifier, in alphabetical order.

    In the file each distinct module stands once, after its children: an entry of a module is
    the shape of a tensor or the index of a child.
    """
    stored = json.loads(
        resources.files("pbu_cli.models").joinpath("registry.json").read_text("utf-8")
    )
    modules: list[dict[str, tuple[int | str, ...]]] = []
    for module in stored["modules"]:
        tensors = {}
        for name, entry in module.items():
            if isinstance(entry, list):
                tensors[name] = tuple(entry)
            else:
                tensors |= {f"{name}.{rest}": shape for rest, shape in modules[entry].items()}
        modules.append(tensors)
    return {name: modules[index] for name, index in stored["architectures"].items()}
