"""A trace of one forward pass: when each module is entered, and at how many pixels or tokens each
layer computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pbu_cli.models.hooks import InputHook, OutputHook, first_argument, forward_hooks

# Between one position and two: a kernel that sees a map of one pixel is part of a stage, which
# small images have shrunk that far. A layer after pooling is not.
SHRUNK = 1.5


@dataclass(frozen=True)
class Call:
    """One call of a layer: when it was entered, and the shape of its output.

    positions: at how many pixels or tokens it computes, None where that cannot be told.
    """

    time: int
    path: str
    shape: tuple[int, ...]
    positions: float | None


@dataclass
class Trace:
    """The calls of a forward pass. entered: the time of the first call of each module, by path."""

    calls: list[Call] = field(default_factory=list)
    entered: dict[str, int] = field(default_factory=dict)
    images: int = 0
    _clock: int = 0
    _width: int = 0
    _positions: float = 1
    _open: dict[str, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)

    def enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_argument(args, kwargs) if args or kwargs else None
        shape = tuple(x.shape) if isinstance(x, Tensor) else ()
        if not self._clock and shape:
            self.images = shape[0]
        self._clock += 1
        self.entered.setdefault(path, self._clock)
        self._open.setdefault(path, []).append((self._clock, shape))

    def leave(self, path: str, module: nn.Module, output: Any) -> None:
        time, shape = self._open[path].pop()
        if not _is_layer(module) or not isinstance(output, Tensor):
            return
        positions = self._count(module, shape, tuple(output.shape))
        self.calls.append(Call(time, path, tuple(output.shape), positions))
        if positions is not None and positions > 1:
            self._positions = positions

    def _count(
        self, module: nn.Module, before: tuple[int, ...], shape: tuple[int, ...]
    ) -> float | None:
        size = math.prod(shape)
        if isinstance(module, nn.Linear):
            self._width = module.out_features
            # The other axes are tokens, or channels where a layer mixes tokens: the layer before
            # tells how many tokens there are.
            return 1 if len(shape) == 2 and shape[0] == self.images else self._positions
        if isinstance(module, _ConvNd):
            # Left out are convolutions over the channels, or over the heads of an attention.
            over_channels = isinstance(module, nn.Conv1d) and module.in_channels == 1
            if over_channels or shape[0] != self.images:
                return None
            self._width = module.out_channels
            positions = size / (shape[0] * module.out_channels)
            pools = before[2:] == tuple(module.kernel_size)
            shrunk = positions == 1 and max(module.kernel_size) > 1 and not pools
            return SHRUNK if shrunk else positions
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() != 1 or size % (self.images * len(weight)):
            return None
        # A norm that is narrower than the layer before it normalises the heads of an attention.
        if len(weight) < max(2, self._width):
            return None
        return size / (self.images * len(weight))


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """A trace that records the next forward pass of the model.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    >>> with traced(model) as trace:
    ...     _ = model(torch.zeros(2, 1, 4, 4))
    >>> [(call.path, call.positions) for call in trace.calls]
    [('0', 4.0), ('2', 1)]
    """
    trace = Trace()

    def enter(path: str) -> InputHook:
        return lambda module, args, kwargs: trace.enter(path, args, kwargs)

    def leave(path: str) -> OutputHook:
        return lambda module, output: trace.leave(path, module, output)

    modules = list(model.named_modules())
    with forward_hooks(
        inputs=[(module, enter(path)) for path, module in modules],
        outputs=[(module, leave(path)) for path, module in modules],
    ):
        yield trace


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd) or any(
        p is not None for p in module._parameters.values()
    )
