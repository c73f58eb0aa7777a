"""Write `pbu_cli/models/sources/torchvision_registry.json` from the installed torchvision.

python -m tests.measure.make_registry
"""

from __future__ import annotations

import json
from pathlib import Path

import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from pbu_cli.models.sources.construction import WeightsOnMeta
from pbu_cli.models.sources.torchvision_inference import POSITIONS
from pbu_cli.models.sources.torchvision_registry import AUXILIARY, CHANNELS, CLASSES, TOKENS

FILE = Path(__file__).parents[2] / "pbu_cli" / "models" / "sources" / "torchvision_registry.json"
ODD_CLASSES = 1009  # a prime that is no layer's width, so that it marks the heads

Shape = tuple[int | str, ...]


def classifiers() -> list[str]:
    """Every classifier of the installed torchvision."""
    return sorted(list_models(module=torchvision.models))


def classifier(name: str, num_classes: int, **options: object) -> nn.Module:
    """A torchvision classifier with its weights on the meta device."""
    if name in AUXILIARY:
        options = {"init_weights": False, **options}
    with WeightsOnMeta():
        model: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def first_convolution(model: nn.Module) -> str:
    """The name of the weight whose input is the image: in torchvision the first convolution."""
    return next(
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )


def pattern(name: str) -> dict[str, Shape]:
    """Names and symbolic shapes of a classifier's tensors, without BatchNorm's counters."""
    model = classifier(name, ODD_CLASSES)
    shapes: dict[str, Shape] = {
        tensor: tuple(CLASSES if size == ODD_CLASSES else size for size in value.shape)
        for tensor, value in model.state_dict().items()
        if not tensor.endswith("num_batches_tracked")
    }
    conv = first_convolution(model)
    shapes[conv] = (shapes[conv][0], CHANNELS, *shapes[conv][2:])
    if POSITIONS in shapes:
        shapes[POSITIONS] = (1, TOKENS, shapes[POSITIONS][2])
    return shapes


def packed(patterns: dict[str, dict[str, Shape]]) -> str:
    """The text of the file. Each distinct module has one line, after the lines of its children.

    An entry of a module is the shape of a tensor or the line number of a child. A block that
    several networks have in common is therefore stored once.
    """
    lines: dict[str, int] = {}

    def line_of(tensors: dict[str, Shape]) -> int:
        children: dict[str, dict[str, Shape]] = {}
        module: dict[str, object] = {}
        for name, shape in tensors.items():
            head, dot, rest = name.partition(".")
            if dot:
                children.setdefault(head, {})[rest] = shape
            else:
                module[head] = shape
        module |= {head: line_of(child) for head, child in children.items()}
        return lines.setdefault(json.dumps(module, separators=(",", ":")), len(lines))

    architectures = {name: line_of(tensors) for name, tensors in sorted(patterns.items())}
    return (
        f'{{"architectures":{json.dumps(architectures)},\n'
        '"modules":[\n' + ",\n".join(lines) + "\n]}\n"
    )


if __name__ == "__main__":
    FILE.write_text(packed({name: pattern(name) for name in classifiers()}), encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size} bytes")
