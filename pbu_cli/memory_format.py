"""Maps with their channels last in memory, where a CPU is quicker so.

Of images of 224 pixels a forward pass takes 0.65 to 0.88 of its time (seven torchvision networks,
ConvNeXt 0.99), a training step 0.86 to 0.92. Where maps are small it may take twice as long, and
the Fisher pass, whose rules look at channels one by one, a tenth longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pbu_cli.images import SMALL


@torch.no_grad()
def put_channels_last(model: nn.Module, channels: int, size: tuple[int, int]) -> None:
    """Have the model's kernels lie so if it is on a CPU, takes images larger than `SMALL` pixels,
    and bears it: a module of the user's own may rely on how maps lie, or have one memory for two
    kernels. Only its rounding changes.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    alone = len({kernel.data_ptr() for kernel in kernels}) == len(kernels)
    if not kernels or kernels[0].device.type != "cpu" or min(size) <= SMALL or not alone:
        return
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    before = model(images)
    model.to(memory_format=torch.channels_last)
    try:
        bears = torch.allclose(model(images), before, 1e-3, 1e-3 * float(before.abs().max()))
    except Exception:  # a view that is none here, say
        bears = False
    if not bears:
        model.to(memory_format=torch.contiguous_format)


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
    for parameter in last:
        parameter.data = parameter.data.contiguous()
    try:
        yield
    finally:
        for parameter in last:
            parameter.data = parameter.data.contiguous(memory_format=order)
