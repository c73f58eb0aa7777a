"""Infer the torchvision classifier from the names and shapes of a checkpoint's tensors. No torch
needed.

A checkpoint is of an architecture if it has the tensor names that `registry` lists for it, and if
one value for each symbol there explains all shapes.

Shapes do not tell everything. Assumed is that a ResNet whose `conv1` is 3x3 applies it at stride 1;
that MaxViT has its default image size; that GoogLeNet and Inception do not renormalise their input
(`transform_input=False`); and that strides, dilations and epsilons are torchvision's. Whether a
max-pool follows a 3x3 `conv1` is left open: `inputs.fit` finds it out with the images.
"""

from __future__ import annotations

import difflib
from math import isqrt

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.models.sources.torchvision_registry import (
    AUXILIARY,
    CHANNELS,
    CLASSES,
    RESNETS,
    TOKENS,
    Architecture,
    Pattern,
    registry,
    stem,
)
from pbu_cli.models.tensor_shapes import Difference, Shapes

POSITIONS, PATCHES = "encoder.pos_embedding", "conv_proj.weight"
MAXVIT_IMAGE_SIZE = 224

CLOSEST_SHOWN = 3
DIFFERENCES_SHOWN_PER_KIND = 2
MOST_TENSORS = 10_000  # the largest classifier has 1 548; a file with more is not compared
OWN_MODEL = "for a model of your own pass --arch FILE.py:FUNCTION"


def infer(shapes: Shapes) -> Architecture:
    """The torchvision classifier that has exactly these tensors.

    BatchNorm's `num_batches_tracked` may be missing (files from before PyTorch 0.4.1), and so may
    the auxiliary heads of GoogLeNet and Inception.

    Raises CheckpointError if there are several such classifiers, or none; then it names the
    closest one and the tensors that differ.
    """
    shapes = _weights(shapes)
    fitting = _fitting(shapes)
    if len(fitting) == 1:
        return _architecture(fitting[0], shapes)
    if fitting:
        raise CheckpointError(
            f"architecture ambiguous: the tensors fit {' and '.join(fitting)} alike; choose one"
            " with --arch NAME"
        )
    found = {
        name: differences(name, shapes)
        for name, pattern in registry().items()
        if not shapes.keys().isdisjoint(pattern)
    }
    if not found:
        some = ", ".join(printable(tensor, 80) for tensor in list(shapes)[:CLOSEST_SHOWN])
        raise CheckpointError(
            f"architecture not recognised: {len(shapes)} tensors ({some or 'none'}), expected the"
            f" names of a torchvision classifier and found none of them; {OWN_MODEL}"
        )
    closest, *others = sorted(found, key=lambda name: _distance(found[name]))[:CLOSEST_SHOWN]
    then = "; then " + ", ".join(f"{name} ({len(found[name])})" for name in others)
    raise CheckpointError(
        f"architecture not recognised: closest of torchvision is {closest},"
        f" {_differences_text(found[closest])}{then if others else ''}; {OWN_MODEL}"
    )


def infer_as(name: str, shapes: Shapes, source: str = "--arch") -> Architecture:
    """The architecture `name`, with the classes, channels and stem that the tensors show.

    source: what gave the name, for messages. Raises CheckpointError for a name that torchvision
    does not have, and for tensors that do not fit.
    """
    if name not in registry():
        alike = difflib.get_close_matches(name, registry(), n=CLOSEST_SHOWN)
        hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
        raise CheckpointError(
            f"{source} {printable(name, 80)}: not one of the {len(registry())} torchvision"
            f" classifiers known to this version of pbu{hint}; {OWN_MODEL}"
        )
    shapes = _weights(shapes)
    found = differences(name, shapes)
    if not found:
        return _architecture(name, shapes)
    fitting = _fitting(shapes)
    hint = f"the tensors are those of {' or '.join(fitting)}" if fitting else OWN_MODEL
    raise CheckpointError(
        f"{source} {name}: not the architecture of this checkpoint,"
        f" {_differences_text(found)}; {hint}"
    )


def fits(name: str, shapes: Shapes) -> bool:
    """Whether the tensors are those of the architecture `name`; False for an unknown name."""
    return name in registry() and not differences(name, _weights(shapes))


def differences(name: str, shapes: Shapes) -> list[Difference]:
    """Every tensor in which `shapes` differs from the architecture `name`.

    >>> [str(d) for d in differences("alexnet", {"odd": (3,)})][-2:]
    ['classifier.6.bias is missing', 'odd is unexpected']
    """
    pattern = _variation(name, shapes)
    sizes = _sizes(pattern, shapes)
    found = []
    for tensor, symbolic in pattern.items():
        expected = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in symbolic)
        shape = shapes.get(tensor)
        if shape != expected:
            found.append(Difference(tensor, shape, expected))
    found.extend(
        Difference(tensor, shape, None) for tensor, shape in shapes.items() if tensor not in pattern
    )
    return found


def _weights(shapes: Shapes) -> Shapes:
    """All tensors but BatchNorm's counters, which old files lack and no output depends on."""
    if len(shapes) > MOST_TENSORS:
        raise CheckpointError(
            f"architecture not recognised: {len(shapes)} tensors, more than any classifier of"
            f" torchvision; {OWN_MODEL}"
        )
    counter = "num_batches_tracked"
    return {
        name: tuple(shape)
        for name, shape in shapes.items()
        if not (
            name.endswith(f".{counter}")
            and tuple(shape) == ()
            and name.removesuffix(counter) + "running_mean" in shapes
        )
    }


def _fitting(shapes: Shapes) -> list[str]:
    return [
        name
        for name in registry()
        if _variation(name, shapes).keys() == shapes.keys() and not differences(name, shapes)
    ]


def _architecture(name: str, shapes: Shapes) -> Architecture:
    """The variation of the architecture that fitting tensors show."""
    sizes = _sizes(_variation(name, shapes), shapes)
    image_size = None
    if TOKENS in sizes:
        image_size = isqrt(sizes[TOKENS] - 1) * shapes[PATCHES][-1]
    elif name.startswith("maxvit"):
        image_size = MAXVIT_IMAGE_SIZE
    return Architecture(
        name=name,
        num_classes=sizes[CLASSES],
        in_channels=sizes[CHANNELS],
        small_stem=_has_small_stem(name, shapes),
        image_size=image_size,
        aux_logits=_has_auxiliary(name, shapes),
    )


def _variation(name: str, shapes: Shapes) -> Pattern:
    """The registry's entry, without auxiliary heads or with a small stem where `shapes` is so."""
    pattern = registry()[name]
    if name in AUXILIARY and not _has_auxiliary(name, shapes):
        heads = AUXILIARY[name]
        return {tensor: shape for tensor, shape in pattern.items() if not tensor.startswith(heads)}
    if _has_small_stem(name, shapes):
        return {**pattern, stem(name): (*pattern[stem(name)][:2], 3, 3)}
    return pattern


def _has_auxiliary(name: str, shapes: Shapes) -> bool:
    return any(tensor.startswith(AUXILIARY.get(name, ())) for tensor in shapes)


def _has_small_stem(name: str, shapes: Shapes) -> bool:
    return name.startswith(RESNETS) and shapes.get(stem(name), ())[2:] == (3, 3)


def _sizes(pattern: Pattern, shapes: Shapes) -> dict[str, int]:
    """A value for each symbol for which some tensor gives a possible one.

    The last tensor with the symbol decides, and the others are then compared with it, because the
    head that gives the logits comes after the auxiliary ones.
    """
    return {
        dim: size
        for tensor, symbolic in pattern.items()
        if len(shapes.get(tensor, ())) == len(symbolic)
        for dim, size in zip(symbolic, shapes[tensor], strict=True)
        if isinstance(dim, str)
        and size > 0
        and (dim != TOKENS or (size > 1 and isqrt(size - 1) ** 2 == size - 1))
    }


def _distance(found: list[Difference]) -> float:
    """The number of tensors that differ; one with the right name and another shape counts half."""
    return sum(0.5 if d.found is not None and d.expected is not None else 1.0 for d in found)


def _differences_text(found: list[Difference]) -> str:
    """The first few differences of each kind, and how many more there are."""
    kinds = (
        [d for d in found if d.found is not None and d.expected is not None],
        [d for d in found if d.found is None],
        [d for d in found if d.expected is None],
    )
    shown = [str(d) for kind in kinds for d in kind[:DIFFERENCES_SHOWN_PER_KIND]]
    more = f"; and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    count = "1 tensor differs" if len(found) == 1 else f"{len(found)} tensors differ"
    return f"{count} ({'; '.join(shown)}{more})"
