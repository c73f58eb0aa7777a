"""The channels-last memory format for kernels, where it makes a network faster on a CPU.

For images of 224 pixels a forward pass takes 0.7 to 0.9 of its time in this format and a training
step 0.6 to 0.9; for ConvNeXt it is 0.9 and 1.1 (`tests.measure.benchmarks.memory_format`). For
small feature maps it may take twice as long. The Fisher pass, whose rules read channels one by
one, takes a tenth longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pbu_cli.settings import SMALL_IMAGE


@torch.no_grad()
def put_channels_last(model: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Store the model's kernels channels last if it is on a CPU, takes images larger than
    `SMALL_IMAGE` pixels, and still gives the same logits and gradients up to rounding.

    A module of the user's own may depend on the memory format of its feature maps, or may share
    memory between two kernels; its kernels stay as they are.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    if not kernels or kernels[0].device.type != "cpu" or min(size) <= SMALL_IMAGE:
        return
    everything = (*model.parameters(), *model.buffers())
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in everything)
    if any(uses[kernel.untyped_storage().data_ptr()] > 1 for kernel in kernels):
        return
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    try:
        before = _logits_and_gradient(model, images)
        _set_format(kernels, torch.channels_last)
        after = _logits_and_gradient(model, images)
    except Exception:  # user code may, for example, call `view` on a map
        _set_format(kernels, torch.contiguous_format)
        return
    pairs = zip(after, before, strict=True)
    if not all(torch.allclose(a, b, 1e-3, 1e-3 * float(b.abs().max())) for a, b in pairs):
        _set_format(kernels, torch.contiguous_format)


def _logits_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The model's logits, and the gradient of their sum with respect to the images."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        logits = model(images.clone())  # a clone, because the model may change its input in place
        return logits.detach(), torch.autograd.grad(logits.sum(), images)[0]


def _set_format(kernels: Sequence[nn.Parameter], memory_format: torch.memory_format) -> None:
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=memory_format)


@contextmanager
def contiguous(model: nn.Module) -> Iterator[None]:
    """Within this context the kernels have torch's default memory format, afterwards their own.

    >>> conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    >>> with contiguous(conv):
    ...     conv.weight.is_contiguous()
    True
    >>> conv.weight.is_contiguous()
    False
    """
    kernels = [
        parameter
        for parameter in model.parameters()
        if parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    ]
    _set_format(kernels, torch.contiguous_format)
    try:
        yield
    finally:
        _set_format(kernels, torch.channels_last)
