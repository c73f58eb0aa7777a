"""Sums of squared per-sample gradients of convolutions: the kernels, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import product as each_of
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.fisher.linear_kernels import (
    _PASS,
    _add_pairs_of,
    _add_products,
    _pairs,
    add_squares,
    chunks,
)
from pbu_cli.fisher.per_sample_gradients import Options, conv

# From so many positions on a convolution's own weight gradient costs less than to unfold the input.
_MANY_POSITIONS = 512
# From so many on a GPU is quicker with all channels of all images than with one tap at a time.
_MANY_FOR_DEPTHWISE = 64


_ALL = slice(None)


class KernelOffset(NamedTuple):
    """A tap of a convolution's kernel, and where it meets the input."""

    number: int
    outputs: tuple[slice, ...]
    inputs: tuple[slice, ...]

    def positions(self) -> int:
        return prod(part.stop - part.start for part in self.outputs)


@cache
def taps(
    space: tuple[int, ...],
    positions: tuple[int, ...],
    kernel: tuple[int, ...],
    options: Options,
) -> list[KernelOffset]:
    """The taps that meet the input somewhere.

    A tap over nothing but padding has no gradient: of 3x3 on a map of one pixel, all but one.

    >>> [tap.number for tap in taps((1, 1), (1, 1), (3, 3), Options((1, 1), (1, 1), (1, 1)))]
    [4]
    >>> taps((2,), (2,), (3,), Options((1,), (1,), (1,)))[0]  # the left one
    KernelOffset(number=0, outputs=(slice(1, 2, None),), inputs=(slice(0, 1, 1),))
    """
    found = []
    for number, q in enumerate(each_of(*map(range, kernel))):
        outputs, inputs = [], []
        for j, (stride, padding, dilation) in enumerate(zip(*options, strict=True)):
            reach = padding - q[j] * dilation  # input = output * stride - reach
            low = max(0, -(-reach // stride))
            count = min(positions[j], (space[j] - 1 + reach) // stride + 1) - low
            first, last = low * stride - reach, (low + count - 1) * stride - reach
            outputs.append(slice(low, low + count))
            inputs.append(slice(first, last + 1, stride))
        if all(part.stop > part.start for part in outputs):
            found.append(KernelOffset(number, tuple(outputs), tuple(inputs)))
    return found


def _rows(t: Tensor) -> Tensor:
    """[n, k, c, *space] -> [n, positions, c]."""
    return t.movedim(2, -1).flatten(1, -2)


def _add_conv_pairs(total: Tensor, a: Tensor, g: Tensor, options: Options) -> None:
    """`_add_pairs` for each tap, over the positions at which it meets the input."""
    by_tap = total.flatten(1, -2)
    y = a.movedim((0, 1, 2), (-2, 0, -1)).contiguous()  # [k, *space, n, c]
    x = g.movedim((2, 0), (0, -1)).contiguous()  # [o, k, *positions, n]
    for tap in taps(a.shape[3:], g.shape[3:], total.shape[1:-1], options):
        seen, sent = y[(_ALL, *tap.inputs)], x[(_ALL, _ALL, *tap.outputs)]
        _add_pairs_of(by_tap[:, tap.number], seen.flatten(0, -3), sent.flatten(1, -2))


def _add_depthwise(total: Tensor, a: Tensor, g: Tensor, options: Options) -> None:
    """One output for each channel: for each tap a sum of products, total [c, *kernel, 1]."""
    by_tap = total.flatten(1)
    for some_a, some_g in chunks(a, g, g[0].numel() // 2):
        last_a, last_g = some_a.movedim(2, -1).contiguous(), some_g.movedim(2, -1).contiguous()
        for tap in taps(a.shape[3:], g.shape[3:], total.shape[1:-1], options):
            seen, sent = last_a[(_ALL, _ALL, *tap.inputs)], last_g[(_ALL, _ALL, *tap.outputs)]
            add_squares(by_tap[:, tap.number], (seen * sent).flatten(1, -2).sum(1))


def _add_unfolded(total: Tensor, a: Tensor, g: Tensor, options: Options) -> None:
    """`_add_products` of what the kernel sees at every position: total [o, taps c]."""
    kernel, positions, rows = total.shape[1:-1], g.shape[3:], total.flatten(1)
    pad = [0, 0, *(p for p in reversed(options.padding) for _ in range(2))]
    for some_a, some_g in chunks(a, g, a.shape[1] * prod(positions) * rows.shape[1] // 4):
        seen = some_a.movedim(2, -1)  # [n, k, *space, c], so that taps in a row lie in a row
        seen = F.pad(seen, pad) if any(pad) else seen
        *outer, channel = seen.stride()
        windows = seen.as_strided(
            (*seen.shape[:2], *positions, *kernel, seen.shape[-1]),
            (
                *outer[:2],
                *(d * s for d, s in zip(outer[2:], options.stride, strict=True)),
                *(d * s for d, s in zip(outer[2:], options.dilation, strict=True)),
                channel,
            ),
        )
        _add_products(rows, windows.reshape(len(seen), -1, rows.shape[1]), _rows(some_g))


def _add_swapped(total: Tensor, a: Tensor, g: Tensor, options: Options) -> None:
    """`_add_unfolded` with the gradient in the place of the input, where that has fewer channels.

    With stride 1 a convolution's weight gradient is another's, with the kernel turned about.
    """
    kernel, dims = total.shape[1:-1], range(1, total.ndim - 1)
    reach = ((size - 1) * gap for size, gap in zip(kernel, options.dilation, strict=True))
    padding = tuple(r - p for r, p in zip(reach, options.padding, strict=True))
    own = total.new_zeros(total.shape[-1], *kernel, total.shape[0])
    _add_unfolded(own, g, a, options._replace(padding=padding))
    total += own.flip(*dims).transpose(0, -1)


def _add_folded(total: Tensor, a: Tensor, g: Tensor, options: Options) -> None:
    """`conv` of some images at a time."""
    size = torch.Size([total.shape[0], total.shape[-1], *total.shape[1:-1]])
    own = total.new_zeros(size)  # in the order of `conv`, which squares would only stride through
    for some_a, some_g in chunks(a, g, a.shape[1] * size.numel() // 2):
        add_squares(own, conv(some_a, some_g, size, options))
    total += own.movedim(1, -1)


CONV: Mapping[str, Callable[[Tensor, Tensor, Tensor, Options], None]] = {
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
    options: Options,
    device: str = "cpu",
) -> str:
    """The name in `CONV` of the kernel that is fastest on this type of device.

    >>> same = Options((1, 1), (1, 1), (1, 1))
    >>> for width in (2, 16, 32):
    ...     conv_kernel((8, 8, 3, 3), 1, (width, width), (width, width), 1, same)
    'pairs'
    'unfolded'
    'folded'
    """
    if groups > 1:
        few = device != "cuda" or prod(positions) < _MANY_FOR_DEPTHWISE
        return "depthwise" if groups == size[0] and size[1] == 1 and few else "folded"
    met = (_pairs(maps * tap.positions()) for tap in taps(space, positions, size[2:], options))
    count = maps * prod(positions)
    if sum(met) <= prod(size[2:]) * (count + _PASS):
        return "pairs"
    if prod(size[2:]) == 1:
        return "unfolded"
    if 2 * size[0] <= size[1] and set(options.stride) == {1}:
        return "swapped"
    return "unfolded" if count < _MANY_POSITIONS else "folded"


def add_conv(
    total: Tensor,
    a: Tensor,
    g: Tensor,
    options: Options,
) -> None:
    """total += sum_n (weight gradient of image n)^2; a and g as in `conv`.

    total [o, *kernel, c / groups]: contiguous, the channels last.

    >>> a, g = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.tensor([1.0, 10.0])
    >>> total = torch.zeros(1, 2, 1)
    >>> add_conv(total, a.view(2, 1, 1, 2), g.view(2, 1, 1, 1), Options((1,), (0,), (1,)))
    >>> total.flatten()  # 1^2 + 40^2, 2^2 + 0
    tensor([1601.,    4.])
    """
    size = (total.shape[0], total.shape[-1], *total.shape[1:-1])
    groups = a.shape[2] // total.shape[-1]
    space, positions = a.shape[3:], g.shape[3:]
    name = conv_kernel(size, a.shape[1], space, positions, groups, options, a.device.type)
    CONV[name](total, a, g, options)
