"""The frozen trunk: what lies before everything that trains gives an image the same features at
every step, so it is computed once.

Where it ends is found by trying, never concluded from a module's class: the *cut* is the last
frozen module whose output no trained parameter has touched and from whose output alone the logits
follow, with NaN in place of what the frozen modules before it give.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.runtime.device import keep_freed_memory

ATTEMPTS = 8  # where a trained block has branches, frozen modules in it come after the cut


@dataclass(frozen=True)
class SplitPoint:
    """Where a network is cut in two; shapes are for one image.

    path: the module whose output the features are. unneeded: frozen modules before it, whose
    outputs do not matter once the features are known, and the shapes of those. in_place: whether
    some of what the network does with these or with the features is done in place.
    """

    path: str
    features: torch.Size
    unneeded: Mapping[str, torch.Size]
    image: torch.Size
    in_place: bool = False


def find_split_point(model: nn.Module, trained: Collection[str], x: Tensor) -> SplitPoint | None:
    """The latest cut of `model` before the parameters named `trained`; None if there is none.

    x: a few images as the model takes them, [n, *image]. Needs eval mode.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)).eval()
    >>> find_split_point(model, ["2.weight"], torch.ones(2, 2)).path
    '1'
    """
    outputs: dict[str, list[Any]] = {}
    named = dict(model.named_parameters())
    asked = {parameter: parameter.requires_grad for parameter in named.values()}
    with ExitStack() as hooks, torch.enable_grad():
        for path, module in _frozen(model, {id(named[name]) for name in trained}):
            outputs[path] = []
            hooks.enter_context(module.register_forward_hook(_recorder(outputs, path)))
        try:
            for name, parameter in named.items():
                parameter.requires_grad_(name in trained)
            logits = model(x)
        finally:
            for parameter, wanted in asked.items():
                parameter.requires_grad_(wanted)
    if not isinstance(logits, Tensor):
        return None
    calls = [(*found[0], path) for path, found in outputs.items() if len(found) == 1]
    frozen = [
        (path, output)
        for _, output, path in sorted(calls, key=lambda call: call[0])
        if isinstance(output, Tensor) and output.ndim and len(output) == len(x)
        and not output.requires_grad
    ]  # fmt: skip
    for last in range(len(frozen) - 1, max(-1, len(frozen) - 1 - ATTEMPTS), -1):
        path, features = frozen[last]
        unneeded = {before: output.shape[1:] for before, output in frozen[:last]}
        for in_place in (False, True):
            split_point = SplitPoint(path, features.shape[1:], unneeded, x.shape[1:], in_place)
            if _same_logits(model, split_point, features.clone(), logits):
                return split_point
    return None


def _same_logits(
    model: nn.Module, split_point: SplitPoint, features: Tensor, logits: Tensor
) -> bool:
    """Whether the model beyond the cut gives the logits and leaves the features as they were."""
    kept = features.clone()
    try:
        with torch.no_grad(), from_features(model, split_point):
            again = model(features)
    except RuntimeError:  # of what works in place on one NaN that stands for many
        return False
    return torch.equal(features, kept) and torch.allclose(again, logits, 1e-4, 1e-5)


@contextmanager
def from_features(model: nn.Module, split_point: SplitPoint | None) -> Iterator[None]:
    """While it lasts, `model` takes features, [n, *split_point.features], in place of images.

    Nothing else changes: its parameters, their names and its modes are the same. Without a cut
    the model goes on taking images.
    """
    if split_point is None:
        yield
        return
    given: list[Tensor] = []
    whole = model.forward

    def from_features(features: Tensor) -> Any:
        given[:] = [features]
        try:
            return whole(nothing(features, split_point.image))
        finally:
            given.clear()

    def unneeded(shape: torch.Size) -> Any:
        return lambda *args, **kwargs: nothing(given[0], shape)

    def nothing(like: Tensor, shape: torch.Size) -> Tensor:
        found = _nothing(like, shape)
        return found.clone() if split_point.in_place else found

    def features_given(*args: Any, **kwargs: Any) -> Tensor:
        return given[0].clone() if split_point.in_place else given[0]

    with ExitStack() as replaced:
        for path, shape in split_point.unneeded.items():
            replaced.enter_context(_answering(model.get_submodule(path), unneeded(shape)))
        replaced.enter_context(_answering(model.get_submodule(split_point.path), features_given))
        replaced.enter_context(_answering(model, from_features))
        yield


@torch.no_grad()
def extract(
    model: nn.Module, split_point: SplitPoint | None, rounds: Iterable[Tensor]
) -> tuple[Tensor | None, Tensor]:
    """One pass over batches of images [n, *image]: features [N, *split_point.features] and logits [N, c],
    both float32. Without a cut there are no features.
    """
    keep_freed_memory()
    features, logits, portion = list[Tensor](), list[Tensor](), BatchSizeRetry()
    seen: list[Tensor] = []
    with ExitStack() as hooks:
        if split_point is not None:
            hooks.enter_context(
                model.get_submodule(split_point.path).register_forward_hook(
                    lambda module, args, output: seen.append(output.clone())
                )
            )
        for x in rounds:

            def answer(part: slice, x: Tensor = x) -> tuple[Tensor, list[Tensor]]:
                seen.clear()  # of what memory did not hold
                return model(x[part]).float(), seen[:]

            for found, of_trunk in portion.each(answer, len(x)):
                logits.append(found)
                features += of_trunk
    return torch.cat(features) if features else None, torch.cat(logits)


def bytes_held(split_point: SplitPoint, images: int) -> int:
    """What the float32 features of so many images take."""
    return 4 * images * math.prod(split_point.features)


def _nothing(like: Tensor, shape: torch.Size) -> Tensor:
    """NaN for every image, of no weight in memory: what depends on it shows."""
    return like.new_full((), math.nan).expand(len(like), *shape)


@contextmanager
def _answering(module: nn.Module, forward: Any) -> Iterator[None]:
    """`module` with another forward, and with its own again afterwards."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _frozen(model: nn.Module, trained: Collection[int], path: str = "") -> Iterator[Any]:
    """(path, module) of the largest modules without a trained parameter."""
    for name, child in model.named_children():
        inner = f"{path}.{name}" if path else name
        if any(id(parameter) in trained for parameter in child.parameters()):
            yield from _frozen(child, trained, inner)
        else:
            yield inner, child


def _recorder(outputs: dict[str, list[Any]], path: str) -> Any:
    """A hook that keeps a module's output and how many outputs came before it."""

    def record(module: nn.Module, args: Any, output: Any) -> None:
        number = sum(map(len, outputs.values()))
        # A copy, since an in-place layer behind it would change what is recorded.
        outputs[path].append((number, output.clone() if isinstance(output, Tensor) else output))

    return record
