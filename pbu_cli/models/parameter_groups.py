"""Which parameters train: the head, the last stage, all, or those that match a pattern.

Unlearning changes the layers that tell classes apart. A table lists the last stage and the head of
each family of torchvision networks. For any other network they follow from the order in which its
layers run (`layer_order`).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.models.layer_order import Layout, layout_by_order
from pbu_cli.models.layer_trace import Trace, traced

# torchvision builder -> (last stage, head), both as patterns on parameter names. The last stage is
# all blocks at the network's last resolution, with the norm or 1x1 convolution after them. For
# AlexNet and VGG it is the hidden fully connected layers, for transformers the last quarter.
LAST_STAGES: dict[str, tuple[str, str]] = {
    r"(wide_)?resne[x]?t\d+.*": (r"layer4\.", r"fc\."),
    r"regnet_.*": (r"trunk_output\.block4\.", r"fc\."),
    r"densenet\d+": (r"features\.(denseblock4|norm5)\.", r"classifier\."),
    r"convnext_.*": (r"features\.7\.", r"classifier\."),
    r"efficientnet_b\d|efficientnet_v2_[ml]": (r"features\.[78]\.", r"classifier\."),
    r"efficientnet_v2_s": (r"features\.[67]\.", r"classifier\."),
    r"mobilenet_v2": (r"features\.1[4-8]\.", r"classifier\."),
    r"mobilenet_v3_large": (r"features\.1[3-6]\.|classifier\.0\.", r"classifier\.3\."),
    r"mobilenet_v3_small": (r"features\.(9|1[0-2])\.|classifier\.0\.", r"classifier\.3\."),
    r"mnasnet.*": (r"layers\.1[2-5]\.", r"classifier\."),
    r"shufflenet_.*": (r"(stage4|conv5)\.", r"fc\."),
    r"squeezenet.*": (r"features\.1[0-2]\.", r"classifier\."),
    r"googlenet": (r"inception5[ab]\.", r"fc\."),
    r"inception_v3": (r"Mixed_7[abc]\.", r"fc\."),
    r"alexnet|vgg.*": (r"classifier\.[0134]\.", r"classifier\.6\."),
    r"vit_b_.*": (r"encoder\.(ln|layers\.encoder_layer_(9|1[01]))\.", r"heads\."),
    r"vit_l_.*": (r"encoder\.(ln|layers\.encoder_layer_(1[89]|2[0-3]))\.", r"heads\."),
    r"vit_h_.*": (r"encoder\.(ln|layers\.encoder_layer_(2[4-9]|3[01]))\.", r"heads\."),
    r"swin_.*": (r"features\.7\.|norm\.", r"head\."),
    r"maxvit_t": (r"blocks\.3\.|classifier\.[23]\.", r"classifier\.5\."),
}


@torch.no_grad()
def layout_of(model: nn.Module, architecture: str | None, images: Tensor) -> Layout:
    """The last stage and the head of a classifier in eval mode.

    architecture: a torchvision builder, None for any other network. images: at least two that the
    model takes, [n, k, h, w]; black ones will do.
    """
    with traced(model) as trace:
        logits = model(images)
    return find_layout(model, architecture, trace, logits.shape[1])


def find_layout(model: nn.Module, architecture: str | None, trace: Trace, classes: int) -> Layout:
    """The same from the trace of a forward pass, which gave logits of so many classes."""
    for family, (stage, head) in LAST_STAGES.items():
        if architecture is not None and re.fullmatch(family, architecture):
            return _by_table(model, stage, head)
    return layout_by_order(model, trace, classes)


def _by_table(model: nn.Module, stage: str, head: str) -> Layout:
    names = [name for name, _ in model.named_parameters()]
    layers = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and re.match(head, f"{path}.weight")
    ]
    return Layout(
        stage=tuple(n for n in names if re.match(stage, n) and not re.match(head, n)),
        head=tuple(n for n in names if re.match(head, n)),
        head_layer=layers[-1] if layers else None,
    )


def trained_parameters(
    model: nn.Module, layout: Layout, layers: str
) -> tuple[list[str], list[str]]:
    """The names of the parameters that train, and of those among them that belong to the head.

    layers: `stage` (the last stage), `last` (the last stage and the head), `head`, `all`, or a
    regular expression that is searched for in parameter names. layout: from `layout_of`.

    Raises InvalidUsage where `layers` is empty, matches nothing, or does not compile.
    """
    if not layers:
        raise InvalidUsage(
            "--layers: got an empty text; expected stage, last, head, all or a pattern"
        )
    names = [name for name, _ in model.named_parameters()]
    in_head = set(layout.head)
    if layers == "all":
        chosen = set(names)
    elif layers == "head":
        chosen = in_head
    elif layers == "stage":
        chosen = set(layout.stage) or in_head
    elif layers == "last":
        chosen = in_head | set(layout.stage)
    else:
        try:
            chosen = {name for name in names if re.search(layers, name)}
        except re.error as error:
            raise InvalidUsage(
                f"--layers {printable(layers)}: expected stage, last, head, all or a regular"
                f" expression, got one that does not compile ({error})"
            ) from None
    if not chosen:
        raise InvalidUsage(
            f"--layers {printable(layers)}: matches none of the {len(names)} parameters; expected"
            f" stage, last, head, all or a pattern in names such as {printable(names[-1])}"
        )
    return [n for n in names if n in chosen], [n for n in names if n in chosen & in_head]


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """A network's blocks by path, in order of definition: its children that have parameters.

    A child with more than nine tenths of all parameters (a `features` or `backbone`) is replaced
    by its own children, and so is a list, which is never called.

    >>> inner = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
    >>> list(blocks(nn.Sequential(inner, nn.Linear(9, 1))))
    ['0.0', '0.2', '1']
    """
    found = {name: child for name, child in model.named_children() if _size(child)}
    total = sum(map(_size, found.values()))
    while True:
        wrapper = next(
            (
                name
                for name, child in found.items()
                if _size(child) > 0.9 * total or type(child) in (nn.ModuleList, nn.ModuleDict)
            ),
            None,
        )
        inner = {} if wrapper is None else dict(found[wrapper].named_children())
        inner = {f"{wrapper}.{n}": child for n, child in inner.items() if _size(child)}
        if not inner or wrapper is None:
            return found
        opened: dict[str, nn.Module] = {}
        for name, child in found.items():
            opened.update(inner if name == wrapper else {name: child})
        found = opened


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
