"""The frozen backbone: the part of a network before all trained parameters.

For a given image its output is the same at every step of training, so it is computed once.

Where the backbone ends is found by trying, never concluded from a module's class. The network is
split after the last frozen module for which three things hold: no trained parameter influences its
output; the logits follow from its output alone, even if the frozen modules before it return NaN;
and the rest of the network leaves its output unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.models.hooks import OutputHook, capture_output, forward_hooks, gradients_for
from pbu_cli.models.inference import predict
from pbu_cli.runtime.device import keep_freed_memory

# How many modules are tried, from the last one back. A trained block with branches has frozen
# modules in it that are called after the best place to split.
ATTEMPTS = 8


@dataclass(frozen=True)
class SplitPoint:
    """Where a network is split into a frozen backbone and the rest. Shapes are for one image.

    path: the last module of the backbone; its output is called the features. features: their
    shape. unneeded: path and output shape of each frozen module before it, whose outputs do not
    matter once the features are known. image: the shape of an input image. in_place: whether the
    network changes one of these outputs, or the features, in place.
    """

    path: str
    features: torch.Size
    unneeded: Mapping[str, torch.Size]
    image: torch.Size
    in_place: bool = False

    @property
    def channels_last(self) -> bool:
        """Whether the features are maps [height, width, k], as in Swin, and not [k, height, width].

        Maps have the proportions of the image; where both readings fit equally, k comes first.
        """
        if len(self.features) != 3 or len(self.image) != 3 or 0 in self.features:
            return False
        shape = math.log(self.image[1] / self.image[2])
        first, second, third = map(math.log, self.features)
        return abs(first - second - shape) < abs(second - third - shape)


def find_split_point(model: nn.Module, trained: Collection[str], x: Tensor) -> SplitPoint | None:
    """The latest point to split `model` before the parameters named `trained`, or None.

    x: a few images as the model takes them, [n, *image]. The model has to be in eval mode.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)).eval()
    >>> find_split_point(model, ["2.weight"], torch.ones(2, 2)).path
    '1'
    """
    logits, outputs = _frozen_outputs(model, trained, x)
    if not isinstance(logits, Tensor):
        return None
    for last in range(len(outputs) - 1, max(-1, len(outputs) - 1 - ATTEMPTS), -1):
        path, features = outputs[last]
        unneeded = {earlier: output.shape[1:] for earlier, output in outputs[:last]}
        for in_place in (False, True):
            split_point = SplitPoint(path, features.shape[1:], unneeded, x.shape[1:], in_place)
            if _same_logits(model, split_point, features.clone(), logits):
                return split_point
    return None


def _frozen_outputs(
    model: nn.Module, trained: Collection[str], x: Tensor
) -> tuple[Any, list[tuple[str, Tensor]]]:
    """What the model returns for x, and (path, output) of its frozen modules in order of calls.

    Left out are modules that are not called exactly once, whose output is not a tensor with one
    entry per image, or whose output depends on a trained parameter.
    """
    calls: list[tuple[str, Any]] = []
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in trained]

    def record(path: str) -> OutputHook:
        def hook(module: nn.Module, output: Any) -> None:
            # A copy, because a later layer may change the output in place.
            calls.append((path, output.clone() if isinstance(output, Tensor) else output))

        return hook

    frozen = _frozen_modules(model, set(map(id, chosen)))
    hooks = forward_hooks(outputs=[(module, record(path)) for path, module in frozen])
    with hooks, gradients_for(model, chosen), torch.enable_grad():
        logits = model(x)
    called = [path for path, _ in calls]
    return logits, [
        (path, output)
        for path, output in calls
        if called.count(path) == 1
        and isinstance(output, Tensor)
        and output.ndim
        and len(output) == len(x)
        and not output.requires_grad
    ]


def _frozen_modules(
    model: nn.Module, trained: Collection[int], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the largest modules without a trained parameter; `trained` holds ids."""
    for name, child in model.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if any(id(parameter) in trained for parameter in child.parameters()):
            yield from _frozen_modules(child, trained, path)
        else:
            yield path, child


def _same_logits(
    model: nn.Module, split_point: SplitPoint, features: Tensor, logits: Tensor
) -> bool:
    """Whether the rest of the model gives the logits and leaves the features as they were."""
    before = features.clone()
    try:
        with torch.no_grad(), from_features(model, split_point):
            found = model(features)
    except RuntimeError:  # an in-place operation on the expanded NaN of `_expanded_nan`
        return False
    return torch.equal(features, before) and torch.allclose(found, logits, 1e-4, 1e-5)


@contextmanager
def from_features(model: nn.Module, split_point: SplitPoint | None) -> Iterator[None]:
    """Within this context `model` takes features, [n, *split_point.features], in place of images.

    Nothing else changes: its parameters, their names and its modes stay the same. Without a split
    point the model takes images as before.
    """
    if split_point is None:
        yield
        return
    current: list[Tensor] = []  # the features of the call in progress
    whole_forward = model.forward

    def forward(features: Tensor) -> Any:
        current[:] = [features]
        try:
            return whole_forward(placeholder(features, split_point.image))
        finally:
            current.clear()

    def skipped(shape: torch.Size) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: placeholder(current[0], shape)

    def placeholder(like: Tensor, shape: torch.Size) -> Tensor:
        nan = _expanded_nan(like, shape)
        return nan.clone() if split_point.in_place else nan

    def features_of_call(*args: Any, **kwargs: Any) -> Tensor:
        return current[0].clone() if split_point.in_place else current[0]

    with ExitStack() as replaced:
        for path, shape in split_point.unneeded.items():
            replaced.enter_context(_forward_replaced(model.get_submodule(path), skipped(shape)))
        last = model.get_submodule(split_point.path)
        replaced.enter_context(_forward_replaced(last, features_of_call))
        replaced.enter_context(_forward_replaced(model, forward))
        yield


def extract(
    model: nn.Module, split_point: SplitPoint | None, batches: Iterable[Tensor]
) -> tuple[Tensor | None, Tensor]:
    """One pass over batches of images, [n, *image] each, in total N.

    Returns the features, [N, *split_point.features], and the logits, [N, c]; the logits are
    float32, the features are as the module returns them. Without a split point the features are
    None.
    """
    keep_freed_memory()
    if split_point is None:
        return None, predict(model, batches).logits
    with capture_output(model, split_point.path) as captured:
        found = predict(model, batches, captured={split_point.path: captured})
    return found.captured[split_point.path], found.logits


def bytes_held(split_point: SplitPoint, images: int) -> int:
    """Bytes that the float32 features of `images` images take."""
    return 4 * images * math.prod(split_point.features)


def _expanded_nan(like: Tensor, shape: torch.Size) -> Tensor:
    """[len(like), *shape] of NaN in the memory of one number.

    Whatever depends on the placeholder becomes NaN, so that the dependence shows.
    """
    return like.new_full((), math.nan).expand(len(like), *shape)


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within this context `module` has another forward; at the end it has its own again."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
