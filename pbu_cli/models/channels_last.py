"""Maps with their channels last in memory, where a CPU is quicker so.

Of images of 224 pixels a forward pass takes 0.7 to 0.9 of its time, a training step 0.6 to 0.9,
and ConvNeXt's 0.9 and 1.1 (`tests.benchmarks.memory_format`). Where maps are small it may take
twice as long, and the Fisher pass, whose rules look at channels one by one, a tenth longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pbu_cli.settings import SMALL


@torch.no_grad()
def put_channels_last(model: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Have the model's kernels lie so if it is on a CPU, takes images larger than `SMALL` pixels,
    and bears it: a module of the user's own may rely on how maps lie, or have one memory for two
    kernels. Only its rounding changes.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    if not kernels or kernels[0].device.type != "cpu" or min(size) <= SMALL:
        return
    everything = (*model.parameters(), *model.buffers())
    uses = Counter(tensor.untyped_storage().data_ptr() for tensor in everything)
    if any(uses[kernel.untyped_storage().data_ptr()] > 1 for kernel in kernels):
        return
    images = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    try:
        before = _there_and_back(model, images)
        _lay(kernels, torch.channels_last)
        after = _there_and_back(model, images)
    except Exception:  # a view that is none here, say
        _lay(kernels, torch.contiguous_format)
        return
    pairs = zip(after, before, strict=True)
    if not all(torch.allclose(a, b, 1e-3, 1e-3 * float(b.abs().max())) for a, b in pairs):
        _lay(kernels, torch.contiguous_format)


def _there_and_back(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the model answers, and the gradient of its sum by the images."""
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        answers = model(images.clone())  # in which the model may work in place
        return answers.detach(), torch.autograd.grad(answers.sum(), images)[0]


def _lay(kernels: Sequence[nn.Parameter], order: torch.memory_format) -> None:
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=order)


@contextmanager
def contiguous(model: nn.Module) -> Iterator[None]:
    """While it lasts the kernels lie as torch makes them; afterwards as they did.

    >>> conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    >>> with contiguous(conv):
    ...     conv.weight.is_contiguous()
    True
    >>> conv.weight.is_contiguous()
    False
    """
    order = torch.channels_last
    last = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    last = [p for p in last if p.is_contiguous(memory_format=order)]
    _lay(last, torch.contiguous_format)
    try:
        yield
    finally:
        _lay(last, order)
