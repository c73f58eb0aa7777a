"""uint8 images -> logits, batch by batch, on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from pbu_cli.settings import Preprocessing


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(pixels / 255 - mean) / std per channel: uint8 [n, k, h, w] -> float32 of the same shape.

    >>> unit = Preprocessing((1, 1), (0.5,), (0.5,))
    >>> normalise(torch.tensor([[[[0]], ], [[[255]]]], dtype=torch.uint8), unit).flatten()
    tensor([-1.,  1.])
    """
    mean, std = _mean_and_std(preprocessing, pixels.device)
    return pixels.float().div_(255).sub_(mean).div_(std)


def model_inputs(pixels: Tensor, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """uint8 [n, k, h, w] -> normalised on `device`, channels last: on a CPU, convolutions of such
    batches take half the time."""
    inputs = normalise(pixels.to(device), preprocessing)
    return inputs.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _mean_and_std(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """[k, 1, 1] each; kept, since making them on a GPU waits for it."""
    columns = torch.tensor([preprocessing.mean, preprocessing.std], device=device)
    mean, std = columns.view(2, preprocessing.channels, 1, 1)
    return mean, std


def batches(
    pixels: Tensor, labels: Tensor, preprocessing: Preprocessing, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised inputs, labels) in order, on `device`; only one batch at a time lives there."""
    for chunk, target in zip(pixels.split(size), labels.split(size), strict=True):
        inputs = chunk.to(device, non_blocking=True)
        yield normalise(inputs, preprocessing), target.to(device, non_blocking=True)
