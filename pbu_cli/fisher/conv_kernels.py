"""Sums of squared per-image gradients of convolutions: the kernels, and the choice of one.

A kernel here is a way to compute the sum, as in `linear_kernels.py`. The kernel of the convolution
is the weight [o, c / groups, *kernel]; its positions are called kernel offsets.

Letters: n image, k map of an image, o features out, c channel, q kernel offset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.fisher.linear_kernels import (
    FORM_AND_SQUARE_COST,
    add_pairs,
    add_products,
    add_squares,
    chunks,
    pair_count,
)
from pbu_cli.fisher.per_sample_gradients import ConvOptions, conv

# From this many positions on, a convolution's own weight gradient is cheaper than unfolding.
_MIN_POSITIONS_FOR_FOLDED = 512
# From this many positions on, a GPU is faster with all channels of all images at once than with
# one kernel offset at a time.
_MIN_POSITIONS_FOR_FOLDED_DEPTHWISE = 64

_ALL = slice(None)


class KernelOffset(NamedTuple):
    """A position in a convolution's kernel, and the output and input positions that it connects."""

    number: int
    outputs: tuple[slice, ...]
    inputs: tuple[slice, ...]

    def positions(self) -> int:
        """The number of output positions."""
        return prod(part.stop - part.start for part in self.outputs)


@cache
def kernel_offsets(
    space: tuple[int, ...],
    positions: tuple[int, ...],
    kernel: tuple[int, ...],
    options: ConvOptions,
) -> list[KernelOffset]:
    """The kernel offsets that reach the input at some output position.

    An offset that only reaches padding has no gradient. A 3x3 kernel on a map of one pixel has
    eight such offsets.

    >>> same = ConvOptions((1, 1), (1, 1), (1, 1))
    >>> [offset.number for offset in kernel_offsets((1, 1), (1, 1), (3, 3), same)]
    [4]
    >>> kernel_offsets((2,), (2,), (3,), ConvOptions((1,), (1,), (1,)))[0]  # the left one
    KernelOffset(number=0, outputs=(slice(1, 2, None),), inputs=(slice(0, 1, 1),))
    """
    found = []
    for number, q in enumerate(product(*map(range, kernel))):
        outputs, inputs = [], []
        for j, (stride, padding, dilation) in enumerate(zip(*options, strict=True)):
            reach = padding - q[j] * dilation  # input position = output position * stride - reach
            low = max(0, -(-reach // stride))
            count = min(positions[j], (space[j] - 1 + reach) // stride + 1) - low
            first, last = low * stride - reach, (low + count - 1) * stride - reach
            outputs.append(slice(low, low + count))
            inputs.append(slice(first, last + 1, stride))
        if all(part.stop > part.start for part in outputs):
            found.append(KernelOffset(number, tuple(outputs), tuple(inputs)))
    return found


def _offsets_of(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> list[KernelOffset]:
    """`kernel_offsets` for total [o, *kernel, c / groups], a [n, k, c, *space], g likewise."""
    return kernel_offsets(a.shape[3:], g.shape[3:], total.shape[1:-1], options)


def _add_conv_pairs(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """`add_pairs` for each kernel offset, over the positions at which it reaches the input."""
    by_offset = total.flatten(1, -2)
    y = a.movedim((0, 1, 2), (-2, 0, -1)).contiguous()  # [k, *space, n, c]
    x = g.movedim((2, 0), (0, -1)).contiguous()  # [o, k, *positions, n]
    for offset in _offsets_of(total, a, g, options):
        inputs, gradients = y[(_ALL, *offset.inputs)], x[(_ALL, _ALL, *offset.outputs)]
        add_pairs(by_offset[:, offset.number], inputs.flatten(0, -3), gradients.flatten(1, -2))


def _add_depthwise(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """One output for each channel: a sum of products for each kernel offset.

    total [c, *kernel, 1].
    """
    by_offset = total.flatten(1)
    for chunk_a, chunk_g in chunks(a, g, g[0].numel() // 2):
        last_a, last_g = chunk_a.movedim(2, -1).contiguous(), chunk_g.movedim(2, -1).contiguous()
        for offset in _offsets_of(total, a, g, options):
            inputs = last_a[(_ALL, _ALL, *offset.inputs)]
            gradients = last_g[(_ALL, _ALL, *offset.outputs)]
            per_image = (inputs * gradients).flatten(1, -2).sum(1)
            add_squares(by_offset[:, offset.number], per_image)


def _add_unfolded(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """`add_products` of the window that the kernel covers at every position.

    The windows have the kernel offsets and the channels in one dimension.
    """
    kernel, positions, rows = total.shape[1:-1], g.shape[3:], total.flatten(1)
    pad = [0, 0, *(p for p in reversed(options.padding) for _ in range(2))]
    for chunk_a, chunk_g in chunks(a, g, a.shape[1] * prod(positions) * rows.shape[1] // 4):
        x = chunk_a.movedim(2, -1)  # [n, k, *space, c]: neighbouring offsets are close in memory
        x = F.pad(x, pad) if any(pad) else x
        *outer, channel = x.stride()
        windows = x.as_strided(
            (*x.shape[:2], *positions, *kernel, x.shape[-1]),
            (
                *outer[:2],
                *(d * s for d, s in zip(outer[2:], options.stride, strict=True)),
                *(d * s for d, s in zip(outer[2:], options.dilation, strict=True)),
                channel,
            ),
        )
        gradients = chunk_g.movedim(2, -1).flatten(1, -2)  # [n, positions, o]
        add_products(rows, windows.reshape(len(x), -1, rows.shape[1]), gradients)


def _add_swapped(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """`_add_unfolded` with input and gradient swapped, for a gradient with fewer channels.

    With stride 1 the weight gradient of a convolution is also the weight gradient of a convolution
    of g, with the kernel reversed.
    """
    kernel, dims = total.shape[1:-1], range(1, total.ndim - 1)
    extents = ((size - 1) * gap for size, gap in zip(kernel, options.dilation, strict=True))
    padding = tuple(e - p for e, p in zip(extents, options.padding, strict=True))
    swapped = total.new_zeros(total.shape[-1], *kernel, total.shape[0])
    _add_unfolded(swapped, g, a, options._replace(padding=padding))
    total += swapped.flip(*dims).transpose(0, -1)


def _add_folded(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """`conv` on a chunk of images at a time."""
    size = torch.Size([total.shape[0], total.shape[-1], *total.shape[1:-1]])
    sums = total.new_zeros(size)  # in the memory order of `conv`, so that adding does not stride
    for chunk_a, chunk_g in chunks(a, g, a.shape[1] * size.numel() // 2):
        add_squares(sums, conv(chunk_a, chunk_g, size, options))
    total += sums.movedim(1, -1)


CONV: Mapping[str, Callable[[Tensor, Tensor, Tensor, ConvOptions], None]] = {
    "pairs": _add_conv_pairs,
    "depthwise": _add_depthwise,
    "unfolded": _add_unfolded,
    "swapped": _add_swapped,
    "folded": _add_folded,
}


@cache
def conv_kernel(
    size: tuple[int, ...],
    maps: int,
    space: tuple[int, ...],
    positions: tuple[int, ...],
    groups: int,
    options: ConvOptions,
    device: str = "cpu",
) -> str:
    """The name in `CONV` of the kernel that is fastest on this type of device.

    >>> same = ConvOptions((1, 1), (1, 1), (1, 1))
    >>> for width in (2, 16, 32):
    ...     conv_kernel((8, 8, 3, 3), 1, (width, width), (width, width), 1, same)
    'pairs'
    'unfolded'
    'folded'
    """
    if groups > 1:
        few = device != "cuda" or prod(positions) < _MIN_POSITIONS_FOR_FOLDED_DEPTHWISE
        return "depthwise" if groups == size[0] and size[1] == 1 and few else "folded"
    offsets = kernel_offsets(space, positions, size[2:], options)
    pairs = sum(pair_count(maps * offset.positions()) for offset in offsets)
    count = maps * prod(positions)
    if pairs <= prod(size[2:]) * (count + FORM_AND_SQUARE_COST):
        return "pairs"
    if prod(size[2:]) == 1:
        return "unfolded"
    if 2 * size[0] <= size[1] and set(options.stride) == {1}:
        return "swapped"
    return "unfolded" if count < _MIN_POSITIONS_FOR_FOLDED else "folded"


def add_conv(total: Tensor, a: Tensor, g: Tensor, options: ConvOptions) -> None:
    """total += sum_n (weight gradient of image n)^2; a and g as in `conv`.

    total [o, *kernel, c / groups], contiguous: the channels come last.

    >>> a, g = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.tensor([1.0, 10.0])
    >>> total = torch.zeros(1, 2, 1)
    >>> add_conv(total, a.view(2, 1, 1, 2), g.view(2, 1, 1, 1), ConvOptions((1,), (0,), (1,)))
    >>> total.flatten()  # 1^2 + 40^2, 2^2 + 0
    tensor([1601.,    4.])
    """
    size = (total.shape[0], total.shape[-1], *total.shape[1:-1])
    groups = a.shape[2] // total.shape[-1]
    space, positions = a.shape[3:], g.shape[3:]
    name = conv_kernel(size, a.shape[1], space, positions, groups, options, a.device.type)
    CONV[name](total, a, g, options)
