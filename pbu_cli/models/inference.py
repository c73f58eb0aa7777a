"""The one loop that runs a model over batches without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pbu_cli.runtime.batch_size_retry import BatchSizeRetry

Captures = Mapping[str, list[Tensor]]  # lists that forward hooks append to, by any name
NO_CAPTURES: Captures = MappingProxyType({})


@dataclass(frozen=True)
class Predictions:
    """What a model computed for n inputs.

    logits: float32 [n, c]. captured: by name, all tensors that a hook captured, concatenated; a
    name without any tensor is left out. other_counts: for each name that did not capture exactly
    one tensor in every pass, how many it captured in the first pass where it was not one.
    """

    logits: Tensor
    captured: dict[str, Tensor]
    other_counts: dict[str, int]


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    captured: Captures = NO_CAPTURES,
    device: torch.device | str | None = None,
    may_split: bool = True,
    retry: BatchSizeRetry | None = None,
) -> Predictions:
    """Run `model` over `batches` of inputs, [n, *input] each, without gradients and in order.

    captured: lists that hooks fill, as from `hooks.capture_output`. They are emptied before and
    after each pass. device: where the results go after each pass; by default they stay where the
    model computed them. The model's mode, train or eval, is left alone.

    A batch for which the device's memory does not suffice is done again in halves, and so are all
    later ones; what hooks captured in the failed pass is dropped. Raises the device's error where
    a single input does not fit. may_split: False for a model whose results depend on which inputs
    are in a batch; then no batch is split, and the device's error is raised at once. retry: what
    earlier calls have found out about the device's memory.

    >>> predict(nn.Flatten(), [torch.ones(2, 1, 3), torch.zeros(1, 1, 3)]).logits
    tensor([[1., 1., 1.],
            [1., 1., 1.],
            [0., 0., 0.]])
    """
    retry = BatchSizeRetry() if retry is None else retry
    logits: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in captured}
    other_counts: dict[str, int] = {}

    def forward(inputs: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        try:
            for tensors in captured.values():
                tensors.clear()
            output = _moved(model(inputs).float(), device)
            return output, {
                name: [_moved(tensor, device) for tensor in tensors]
                for name, tensors in captured.items()
            }
        finally:
            for tensors in captured.values():
                tensors.clear()

    for batch in batches:
        passes = (
            retry.each(lambda part, batch=batch: forward(batch[part]), len(batch))  # type: ignore[misc]
            if may_split
            else [forward(batch)]
        )
        for output, found in passes:
            logits.append(output)
            for name, tensors in found.items():
                kept[name] += tensors
                if len(tensors) != 1:
                    other_counts.setdefault(name, len(tensors))
    joined = {name: torch.cat(tensors) for name, tensors in kept.items() if tensors}
    return Predictions(torch.cat(logits), joined, other_counts)


@torch.no_grad()
def largest_layer(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes per image of the layer whose inputs and outputs are the largest together.

    shape: of an image, (channels, height, width). A forward pass needs at least that much. It is
    computed on torch's device `meta`, which knows shapes and holds no numbers. 0 for a module that
    cannot be run there.

    >>> largest_layer(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten()), (1, 8, 8))
    2048
    """
    largest = 0

    def measure(layer: nn.Module, args: tuple[object, ...], output: object) -> None:
        nonlocal largest
        tensors = {id(t): t.nbytes for t in (*args, output) if isinstance(t, Tensor)}
        largest = max(largest, sum(tensors.values()))

    layers = [layer for layer in module.modules() if next(layer.children(), None) is None]
    handles = [layer.register_forward_hook(measure) for layer in layers]
    numbers = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in numbers.items()}
    try:
        functional_call(module, state, torch.empty(2, *shape, device="meta"))
    except (Exception, SystemExit):  # it is the user's code, and `try_out` reports what is wrong
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return largest // 2


def _moved(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    return tensor if device is None else tensor.to(device)
