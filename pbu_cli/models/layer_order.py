"""The last stage and the head of any image classifier, by the order in which its layers run.

One pass over two black images is traced (`layer_trace`). Units are the blocks or stages that a
network repeats: the outermost modules whose class occurs at least twice. A unit's resolution is the
number of positions (pixels or tokens) at which most of its parameters are used. The last stage
starts at the first unit of the last resolution above one position, and ends before the head. Where
most units share that resolution, as in ViT, it starts at the last quarter of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from pbu_cli.models.layer_trace import Trace

PARAMETRIZED = ".parametrizations."  # torch keeps what a layer's weight is computed from there
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layout:
    """Which parameters are the last stage and which the head, by name in order of definition.

    head_layer: the path of the layer that gives the logits, whose input is the network's last
    feature vector; None where no linear or convolutional layer does.
    """

    stage: tuple[str, ...]
    head: tuple[str, ...]
    head_layer: str | None


NO_LAYOUT = Layout((), (), None)  # of a network that has not been run


def layout_by_order(model: nn.Module, trace: Trace, classes: int) -> Layout:
    """The layout of a model from the trace of one pass, which gave logits of so many classes.

    >>> import torch
    >>> from pbu_cli.models.layer_trace import traced
    >>> block = lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2))
    >>> model = nn.Sequential(block(), block(), block(), nn.Flatten(), nn.Linear(4, 3))
    >>> with traced(model) as trace:
    ...     _ = model(torch.zeros(2, 1, 16, 16))
    >>> layout_by_order(model, trace, 3)
    Layout(stage=('2.0.weight', '2.0.bias'), head=('4.weight', '4.bias'), head_layer='4')
    """
    heads = _heads(model, trace, classes)
    names = [name for name, _ in model.named_parameters()]
    head = tuple(n for n in names if any(_within(n, path) for path in heads))
    clock = _Clock(model, trace)
    start = _start(model, clock, set(head))
    end = max((trace.entered.get(path, math.inf) for path in heads), default=math.inf)
    stage = tuple(n for n in names if n not in head and start <= clock.times[n] <= end)
    layer = heads[0] if heads else None
    linear = layer is not None and isinstance(model.get_submodule(layer), nn.Linear | nn.Conv2d)
    return Layout(stage, head, layer if linear else None)


class _Clock:
    """Of each parameter its size, when it is first used (infinity for never), and at how many
    positions its layer computes, where that is known.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        owners = {name: _owner(name) for name in self.sizes}
        self.times = {name: _time(trace, path) for name, path in owners.items()}
        most: dict[str, float] = {}
        for call in trace.calls:
            if call.positions is not None:
                most[call.path] = max(call.positions, most.get(call.path, 0))
        self.positions = {n: most[path] for n, path in owners.items() if path in most}
        spread = max((c.time for c in trace.calls if (c.positions or 1) > 1), default=0)
        single = [c.time for c in trace.calls if c.positions == 1 and c.time > spread]
        # When the first layer runs after which all compute at a single position.
        self.pooled = min(single, default=math.inf)

    def resolution(self, names: list[str]) -> float:
        """At how many positions most of these parameters are used; squeeze-and-excite layers do not
        count, which compute at one."""
        known = [(self.positions[n], self.sizes[n]) for n in names if n in self.positions]
        found = sorted(((p, size) for p, size in known if p > 1), reverse=True)
        half, passed = sum(size for _, size in found) / 2, 0
        for positions, size in found:
            passed += size
            if passed > half:
                return positions
        return 1


def _start(model: nn.Module, clock: _Clock, head: set[str]) -> float:
    """When the last stage starts."""
    body = {n: size for n, size in clock.sizes.items() if n not in head}
    body = {n: size for n, size in body.items() if math.isfinite(clock.times[n])}
    pooled = [n for n in body if clock.times[n] >= clock.pooled]
    if 4 * sum(body[n] for n in pooled) >= 3 * sum(body.values()):
        # Hidden layers after pooling hold most parameters, as in VGG.
        return clock.pooled
    units = []
    for path in _units(model, clock, head):
        names = [n for n in body if _within(n, path)]
        units.append((min(clock.times[n] for n in names), clock.resolution(names)))
    units.sort(reverse=True)
    # Branches may compute at fewer positions than what comes after them.
    resolutions = list(accumulate((resolution for _, resolution in units), max))
    last = min((resolution for resolution in resolutions if resolution > 1), default=1)
    starts = [time for (time, _), found in zip(units, resolutions, strict=True) if found == last]
    if 2 * len(starts) > len(units):
        starts = starts[: math.ceil(len(starts) / 4)]
    return starts[-1] if starts else math.inf


def _units(model: nn.Module, clock: _Clock, head: set[str]) -> list[str]:
    """The paths of the modules that the network repeats; its layers where these hold too little."""

    def used(path: str, module: nn.Module) -> bool:
        names = (f"{path}.{name}" for name, _ in module.named_parameters())
        return any(n not in head and math.isfinite(clock.times.get(n, math.inf)) for n in names)

    modules = {p: m for p, m in model.named_modules() if p and used(p, m)}
    modules = {p: m for p, m in modules.items() if PARAMETRIZED not in f"{p}."}
    inner = {path.rpartition(".")[0] for path in modules}
    classes = Counter(type(m) for p, m in modules.items() if p in inner)
    repeated = {p for p in inner if p and classes[type(modules[p])] > 1}
    repeated = {p for p in repeated if type(modules[p]) not in CONTAINERS}
    outermost = [p for p in modules if p in repeated and not _inside(p, repeated)]
    body = {n: size for n, size in clock.sizes.items() if clock.times[n] < clock.pooled}
    if 2 * sum(body[n] for n in body if _inside(n, outermost)) >= sum(body.values()):
        return outermost
    layers = [p for p in modules if p not in inner and not _inside(p, outermost)]
    return [*outermost, *layers]


def _heads(model: nn.Module, trace: Trace, classes: int) -> list[str]:
    """The layer that gives the logits, and its twins, as a distilled DeiT has one.

    Where no output has the shape of the logits, that is a layer whose weight has, and which is not
    called itself, or else the last layer.
    """
    modules = dict(model.named_modules())
    n = trace.images
    linear = [c for c in trace.calls if isinstance(modules[c.path], nn.Linear | nn.Conv2d)]
    wide = [c for c in linear if _gives(modules[c.path], classes)]
    exact = [c for c in wide if c.shape[0] == n and math.prod(c.shape) == n * classes]
    other = [c for c in trace.calls if c.shape == (n, classes)]
    found = exact or wide or other
    if not found:
        uncalled = [p for p, m in modules.items() if _gives(m, classes)]
        return uncalled[-1:] or [call.path for call in trace.calls[-1:]]
    head = found[-1]
    heads = [head.path]
    shape = _shape(modules[head.path])
    if shape is None or shape[0] == shape[1]:
        return heads
    for call in reversed(linear):
        if _shape(modules[call.path]) == shape and call.path not in heads:
            heads.append(call.path)
        elif call.path not in heads:
            break
    return heads


def _gives(module: nn.Module, classes: int) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes


def _shape(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return None


def _time(trace: Trace, path: str) -> float:
    """When the module at this path is first used: when it, or the nearest module around it that is
    called, is entered, or else a module inside it. Infinity for never.

    What belongs to the network itself, such as class tokens, is used from the beginning.
    """
    around = path
    while around and around not in trace.entered:
        around = around.rpartition(".")[0]
    if around or not path:
        return trace.entered[around]
    inside = (time for other, time in trace.entered.items() if _within(other, path))
    return min(inside, default=math.inf)


def _owner(name: str) -> str:
    """The path of the layer that a parameter belongs to."""
    before, parametrized, _ = name.partition(PARAMETRIZED)
    return before if parametrized else name.rpartition(".")[0]


def _within(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _inside(name: str, paths: Collection[str]) -> bool:
    """Whether a parameter or module lies in one of the modules at these paths."""
    parts = name.split(".")
    return any(".".join(parts[:k]) in paths for k in range(1, len(parts)))
