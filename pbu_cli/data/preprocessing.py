"""Normalise uint8 images and run a model on them, batch by batch, on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from pbu_cli.models.inference import predict
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
    """All images normalised on `device`, channels last: uint8 [n, k, h, w] -> float32 [n, k, h, w].

    On a CPU, convolutions of channels-last batches take half the time.
    """
    inputs = normalise(pixels.to(device), preprocessing)
    return inputs.contiguous(memory_format=torch.channels_last)


def batches(
    pixels: Tensor, labels: Tensor, preprocessing: Preprocessing, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (normalised inputs, labels) in order, `size` images each, on `device`.

    pixels uint8 [n, k, h, w], labels [n]. Only one batch at a time is on the device.
    """
    inputs = input_batches(pixels, preprocessing, size, device)
    for batch, target in zip(inputs, labels.split(size), strict=True):
        yield batch, target.to(device, non_blocking=True)


def input_batches(
    pixels: Tensor, preprocessing: Preprocessing, size: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches of normalised inputs in order, `size` images each, on `device`.

    pixels uint8 [n, k, h, w]. Only one batch at a time is on the device.
    """
    for chunk in pixels.split(size):
        yield normalise(chunk.to(device, non_blocking=True), preprocessing)


def image_logits(
    model: nn.Module, pixels: Tensor, preprocessing: Preprocessing, batch_size: int = 256
) -> Tensor:
    """The model's logits for uint8 images [n, k, h, w]: float32 [n, c], on the model's device."""
    device = next(model.parameters()).device
    return predict(model, input_batches(pixels, preprocessing, batch_size, device)).logits


@lru_cache(maxsize=16)
def _mean_and_std(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, [k, 1, 1] each. They are cached because making them on a GPU waits for it."""
    rows = torch.tensor([preprocessing.mean, preprocessing.std], device=device)
    mean, std = rows.view(2, preprocessing.channels, 1, 1)
    return mean, std
