"""Names and shapes of tensors, and in what they differ from those of a network. No torch needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pbu_cli.errors import printable

Shapes = Mapping[str, tuple[int, ...]]  # by tensor name


class Difference(NamedTuple):
    """One tensor that does not fit: it is missing (`found` is None), unexpected (`expected` is
    None), or of another shape."""

    tensor: str
    found: tuple[int, ...] | None
    expected: tuple[int | str, ...] | None

    def __str__(self) -> str:
        name = printable(self.tensor, 80)
        if self.found is None:
            return f"{name} is missing"
        if self.expected is None:
            return f"{name} is unexpected"
        return f"{name} is {_shape_text(self.found)}, expected {_shape_text(self.expected)}"


def _shape_text(shape: Iterable[object]) -> str:
    return printable(f"[{', '.join(map(str, shape))}]", 60)
