"""Which parameters train: the head, the last stage, all, or those that match a pattern.

Unlearning changes the layers that tell classes apart. A table lists the last stage and the head of
each family of torchvision networks. For a network of the user's own they follow from one rule
(`_by_position`).
"""

from __future__ import annotations

import re

from torch import nn

from pbu_cli.errors import InvalidUsage, printable

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


def trained_parameters(
    model: nn.Module, architecture: str | None, layers: str
) -> tuple[list[str], list[str]]:
    """The names of the parameters that train, and of those among them that belong to the head.

    layers: `stage` (the last stage), `last` (the last stage and the head), `head`, `all`, or a
    regular expression that is searched for in parameter names. architecture: a torchvision
    builder, None for the user's own network.

    Raises InvalidUsage where `layers` is empty, matches nothing, or does not compile.
    """
    if not layers:
        raise InvalidUsage(
            "--layers: got an empty text; expected stage, last, head, all or a pattern"
        )
    names = [name for name, _ in model.named_parameters()]
    stage, head = _stage_and_head(model, architecture)
    in_head = {name for name in names if re.match(head, name)}
    if layers == "all":
        chosen = set(names)
    elif layers == "head":
        chosen = in_head
    elif layers == "stage":
        chosen = {name for name in names if re.match(stage, name)} - in_head or in_head
    elif layers == "last":
        chosen = in_head | {name for name in names if re.match(stage, name)}
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


def _stage_and_head(model: nn.Module, architecture: str | None) -> tuple[str, str]:
    for family, patterns in LAST_STAGES.items():
        if architecture is not None and re.fullmatch(family, architecture):
            return patterns
    return _by_position(model)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """A network's blocks by path, in order of definition: its children that have parameters.

    A child with more than nine tenths of all parameters (a `features` or `backbone`) is replaced
    by its own children.

    >>> inner = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
    >>> list(blocks(nn.Sequential(inner, nn.Linear(9, 1))))
    ['0.0', '0.2', '1']
    """
    found = {name: child for name, child in model.named_children() if _size(child)}
    total = sum(map(_size, found.values()))
    while True:
        wrapper = next((n for n, child in found.items() if _size(child) > 0.9 * total), None)
        inner = {} if wrapper is None else dict(found[wrapper].named_children())
        inner = {f"{wrapper}.{n}": child for n, child in inner.items() if _size(child)}
        if not inner or wrapper is None:
            return found
        opened: dict[str, nn.Module] = {}
        for name, child in found.items():
            opened.update(inner if name == wrapper else {name: child})
        found = opened


def head_module(model: nn.Module, architecture: str | None) -> str | None:
    """The path of the layer that gives the logits: the last linear or convolutional layer of the
    head, None where there is none. Its input is the network's last feature vector.

    >>> head_module(nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)), None)
    '2'
    """
    _, head = _stage_and_head(model, architecture)
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and re.match(head, f"{path}.weight")
    ]
    return found[-1] if found else None


def maps_channels_last(architecture: str | None) -> bool:
    """Whether the network's feature maps are [n, height, width, k], as in Swin."""
    return architecture is not None and architecture.startswith("swin")


def _by_position(model: nn.Module) -> tuple[str, str]:
    """Patterns for the user's own network: the head is the last block with parameters. The last
    stage is the smallest run of blocks before it with a quarter of the remaining parameters.
    """
    found = blocks(model)
    names = list(found)
    if not names:
        return r"(?!)", r""
    stage: list[str] = []
    body = sum(map(_size, found.values())) - _size(found[names[-1]])
    for name in reversed(names[:-1]):
        stage.append(name)
        if 4 * sum(_size(found[block]) for block in stage) >= body:
            break
    pattern = "|".join(map(re.escape, stage)) if stage else "(?!)"
    return rf"({pattern})(\.|$)", rf"{re.escape(names[-1])}(\.|$)"


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
