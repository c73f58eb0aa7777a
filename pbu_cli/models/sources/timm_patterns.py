"""Names and shapes of tensors in which some sizes are free, and the digests they are looked up by.

`timm_registry` looks networks up with them, and `tests.measure.make_timm_registry` writes its table
with them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any, NamedTuple

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by tensor name

CLASSES, CHANNELS, SIZE = "classes", "channels", "size"  # the kinds of a free size
DIGEST_LENGTH = 12


class Free(NamedTuple):
    """A size of a tensor that the user chooses.

    dim: its place in the shape. kind: CLASSES, CHANNELS or SIZE. rule: for CHANNELS what one
    channel counts, such as the 256 pixels of a flattened patch. For SIZE the numbers (p, k, a, b,
    c): images of size s have (k (s // p) + a)^b + c here; None where no such rule is known.
    """

    dim: int
    kind: str
    rule: tuple[int, ...] | None = None


class Form(NamedTuple):
    """free: the free sizes by tensor name, or by the name with # for each number in it.
    takes_size: the constructor takes an image size (`img_size`)."""

    free: Mapping[str, tuple[Free, ...]]
    takes_size: bool


def read_form(stored: Mapping[str, Any]) -> Form:
    """A form as the file has it."""
    free = {
        name: tuple(Free(dim, kind, tuple(rule) if rule else None) for dim, kind, rule in choices)
        for name, choices in stored["free"].items()
    }
    return Form(free, stored["takes_size"])


def free_sizes(form: Form, shapes: Shapes) -> dict[str, tuple[Free, ...]] | None:
    """The free sizes of each tensor that has any; None where a tensor has too few dimensions."""
    free = {}
    for name, shape in shapes.items():
        found = form.free.get(name) or form.free.get(numberless(name))
        if found:
            if found[-1].dim >= len(shape):
                return None
            free[name] = found
    return free


def numberless(name: str) -> str:
    """A tensor's name with # for each number between its dots.

    >>> numberless("blocks.11.norm1.weight")
    'blocks.#.norm1.weight'
    """
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "#", name)


def names_digest(names: Iterable[str]) -> str:
    """What a set of tensor names is looked up by."""
    return _digest(sorted(names))


def shapes_digest(shapes: Shapes, free: Mapping[str, tuple[Free, ...]]) -> str:
    """What shapes are looked up by: all sizes that are not free."""
    masked = []
    for name in sorted(shapes):
        sizes: list[int | None] = list(shapes[name])
        for choice in free.get(name, ()):
            sizes[choice.dim] = None
        masked.append((name, sizes))
    return _digest(masked)


def positions_digest(shapes: Shapes, free: Mapping[str, tuple[Free, ...]]) -> str:
    """The digest of the sizes that follow the image size; empty where there are none."""
    sizes = [
        (name, shapes[name][choice.dim])
        for name in sorted(free)
        for choice in free[name]
        if choice.kind == SIZE
    ]
    return _digest(sizes) if sizes else ""


def image_size(rule: tuple[int, ...], count: int) -> int | None:
    """The image size for which a rule of `Free` gives `count`; None if there is none.

    >>> image_size((16, 1, 0, 2, 1), 197)  # a class token and 14 x 14 patches of 16 x 16
    224
    """
    patch, each, inner, power, outer = rule
    root = isqrt(max(count - outer, 0)) if power == 2 else count - outer
    patches, rest = divmod(root - inner, each)
    return patches * patch if root**power == count - outer and not rest and patches > 0 else None


def _digest(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
