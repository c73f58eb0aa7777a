"""The table of torchvision's classifiers: the names and shapes of their tensors. No torch needed.

`torchvision_registry.json` holds the table. A size that the user chooses stands there as a symbol:
`classes`, `channels` (of the image) and `1+n*n` (position embedding of a ViT: a class token and
n x n patches). `python -m tests.measure.make_registry` writes the file; a test compares it with the
installed torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

Pattern = Mapping[str, tuple[int | str, ...]]  # by tensor name; a symbol for each free size

CLASSES, CHANNELS, TOKENS = "classes", "channels", "1+n*n"  # the symbols

# Prefixes of the heads that are used in training only. Many checkpoints omit their tensors.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
RESNETS = ("resnet", "resnext", "wide_resnet")


@dataclass(frozen=True)
class Architecture:
    """A torchvision classifier and those of its variations that tensors can show.

    image_size: the only size that the module takes, None where it takes any. The tensors of a ViT
    determine it. MaxViT has the same tensors at every size; there it is the default size, which
    `dataclasses.replace` may change.
    """

    # The class's name and fields are part of its repr, which is digested: do not rename them.

    name: str
    num_classes: int
    in_channels: int = 3
    small_stem: bool = False
    image_size: int | None = None
    aux_logits: bool = False


def stem(name: str) -> str:
    """The name of the weight of the first convolution, whose input is the image.

    >>> stem("resnet18"), stem("vit_b_16")
    ('conv1.weight', 'conv_proj.weight')
    """
    return next(tensor for tensor, shape in registry()[name].items() if CHANNELS in shape)


@cache
def registry() -> dict[str, Pattern]:
    """Tensor names and symbolic shapes of every known classifier, in alphabetical order.

    The file lists each distinct module once, after its children. An entry of a module is either
    the shape of a tensor or the index of a child module.
    """
    stored = json.loads(
        resources.files("pbu_cli.models.sources")
        .joinpath("torchvision_registry.json")
        .read_text("utf-8")
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
