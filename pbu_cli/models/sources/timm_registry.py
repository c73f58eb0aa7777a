"""Recognise timm's classifiers by the names and shapes of a checkpoint's tensors. No timm needed.

`timm_registry.json` has for each network a digest of its tensor names and one of their shapes. A
size that the user chooses is left out of the second one: the number of classes, the channels of the
images, and what follows the image size. `forms` of the file lists the sets of such sizes, which
hundreds of networks share. `python -m tests.measure.make_timm_registry` writes the file; a test
compares it with the installed timm.

A match is no proof. Digests are short, and strides, activations and epsilons leave no trace in the
tensors. The caller builds the network and compares all shapes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from pbu_cli.models.sources.timm_patterns import (
    CHANNELS,
    CLASSES,
    SIZE,
    Form,
    Free,
    Shape,
    Shapes,
    free_sizes,
    image_size,
    names_digest,
    positions_digest,
    read_form,
    shapes_digest,
)

MOST_TENSORS = 10_000  # the largest network of timm has 2 683; a file with more is not compared
ALIKE_SHOWN = 3


class Row(NamedTuple):
    """Networks with the same tensors.

    kind: networks with the same tensor names and the same number are one and the same network at
    the same image size.
    positions: the digest of the sizes that follow the image size, at `size`, the default.
    """

    kind: int
    positions: str
    size: int
    names: tuple[str, ...]


class Entry(NamedTuple):
    """The networks with the same tensors but for free sizes, and the digest of the fixed ones."""

    form: Form
    fixed: str
    rows: tuple[Row, ...]


class _Fit(NamedTuple):
    """An entry whose fixed sizes are those of a checkpoint, and the values of the free ones."""

    entry: Entry
    free: Mapping[str, tuple[Free, ...]]
    classes: int
    channels: int


@dataclass(frozen=True)
class TimmMatch:
    """The networks of timm that have a checkpoint's tensors.

    kinds: their names. Those in one group are one network under several names; networks of
    different groups differ in something that leaves no trace in the tensors. If some networks have
    these tensors at their default image size, only those are here, and `others` has the names that
    have them at another size.
    sized: the tensors that follow the image size. image_size: what they say, in whole patches; None
    where there are none or where they do not tell. takes_size: the constructor takes an image size.
    """

    kinds: tuple[tuple[str, ...], ...]
    num_classes: int
    channels: int
    sized: Mapping[str, Shape] = field(default_factory=dict)
    image_size: int | None = None
    takes_size: bool = False
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names of `kinds`."""
        return tuple(name for kind in self.kinds for name in kind)


def infer(shapes: Shapes) -> TimmMatch | None:
    """The networks that have exactly these tensors, None if timm has none.

    BatchNorm's `num_batches_tracked` may be missing. A network without a head
    (`num_classes=0`) is not a classifier and is not found.
    """
    if not 0 < len(shapes) <= MOST_TENSORS:
        return None
    weights = {name: tuple(shape) for name, shape in shapes.items() if not _counter(name, shape)}
    fits = []
    for entry in _entries().get(names_digest(weights), ()):
        free = free_sizes(entry.form, weights)
        if free is not None and shapes_digest(weights, free) == entry.fixed:
            classes, channels = _value(CLASSES, free, weights), _value(CHANNELS, free, weights)
            if classes is not None and channels is not None:
                fits.append(_Fit(entry, free, classes, channels))
    return _match(fits, weights) if fits else None


def known(name: str) -> bool:
    """Whether timm has a classifier of this name, without the tag of pretrained weights.

    >>> known("resnet50"), known("resnet5")
    (True, False)
    """
    return name in _default_sizes()


def alike(name: str) -> list[str]:
    """Known names that resemble `name`, the closest first.

    >>> alike("resnet5")[0]
    'resnet50'
    """
    return difflib.get_close_matches(name[:80], _default_sizes(), n=ALIKE_SHOWN)


def default_size(name: str) -> int:
    """The image size that the network `name` has by default.

    >>> default_size("vit_base_patch16_384")
    384
    """
    return _default_sizes()[name]


def _counter(name: str, shape: Shape) -> bool:
    """BatchNorm counts batches; old files lack these counters, and no output depends on them."""
    return name.endswith("num_batches_tracked") and tuple(shape) == ()


def _value(kind: str, free: Mapping[str, tuple[Free, ...]], shapes: Shapes) -> int | None:
    """The number of classes or channels on which all tensors agree, None if they do not."""
    found = set()
    for name, choices in free.items():
        for choice in choices:
            if choice.kind == kind:
                number, rest = divmod(shapes[name][choice.dim], (choice.rule or (1,))[0])
                found.add(0 if rest else number)
    if not found and kind == CHANNELS:
        return 3  # the few networks for which the channels of the images are fixed
    return found.pop() if len(found) == 1 and 0 not in found else None


def _match(fits: list[_Fit], shapes: Shapes) -> TimmMatch:
    """The networks that fit best: at their default image size, or else at another square one."""
    rows = [(fit, row) for fit in fits for row in fit.entry.rows]
    usual = [(fit, row) for fit, row in rows if row.positions == positions_digest(shapes, fit.free)]
    square = [(fit, row) for fit, row in rows if None not in _told(fit, shapes)]
    chosen = usual or square or rows
    kinds: dict[int, list[str]] = {}
    for _, row in chosen:
        kinds.setdefault(row.kind, []).extend(row.names)
    first = chosen[0][0]
    told = {size for fit, _ in chosen for size in _told(fit, shapes)}
    if usual and told:  # it tells whole patches, and the default size may not be a multiple of them
        sizes: set[int | None] = {row.size for _, row in usual}
        told = sizes if len(sizes) == 1 else told
    return TimmMatch(
        kinds=tuple(sorted(tuple(sorted(names)) for names in kinds.values())),
        num_classes=first.classes,
        channels=first.channels,
        sized={name: shapes[name] for name, _ in _sized(first)},
        image_size=told.pop() if len(told) == 1 else None,
        takes_size=first.entry.form.takes_size,
        others=tuple(sorted(name for one in rows if one not in chosen for name in one[1].names)),
    )


def _sized(fit: _Fit) -> list[tuple[str, Free]]:
    return [(name, one) for name in fit.free for one in fit.free[name] if one.kind == SIZE]


def _told(fit: _Fit, shapes: Shapes) -> set[int | None]:
    """The image sizes that the tensors tell, with None for one that tells an impossible size.

    Those with the smallest patches decide. Coarser ones are rounded up or down.
    """
    told: dict[float, set[int | None]] = {}
    for name, one in _sized(fit):
        if one.rule:
            size = image_size(one.rule, shapes[name][one.dim])
            told.setdefault(one.rule[0] / one.rule[1], set()).add(size)
    return told[min(told)] if told else set()


@cache
def _stored() -> dict[str, Any]:
    file = resources.files("pbu_cli.models.sources").joinpath("timm_registry.json")
    stored: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return stored


@cache
def _entries() -> dict[str, list[Entry]]:
    """The networks by the digest of their tensor names."""
    forms = [read_form(form) for form in _stored()["forms"]]
    return {
        names: [
            Entry(
                forms[form],
                fixed,
                tuple(Row(kind, at, size, tuple(text.split())) for kind, at, size, text in rows),
            )
            for form, fixed, rows in entries
        ]
        for names, entries in _stored()["networks"].items()
    }


@cache
def _default_sizes() -> dict[str, int]:
    return {
        name: row.size
        for entries in _entries().values()
        for entry in entries
        for row in entry.rows
        for name in row.names
    }
