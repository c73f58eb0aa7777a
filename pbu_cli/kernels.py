"""Sums of squares of the images' gradients, never kept for more than a few images: the kernels.

    add_...(total, a, g, ...):    total += sum_n (dL_n/dp)^2,    a and g as in `layer_rules.py`

Sums over the images, never means. There are several kernels for a linear layer and for a
convolution, in `LINEAR` and `CONV`. They give the same but for rounding; `linear_kernel` and
`conv_kernel` choose the fastest by shape.

Letters: n image, k map of an image, t position, q tap of a kernel, i and o features in and out,
c channel.

Source: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799 (linear, one
position).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product as each_of
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.layer_rules import MANY_TO_SUM, Options, conv, linear

# Numbers held at once beside the layer's own: a chunk that stays in the cache; on a GPU, one that
# keeps it busy: half as many cost a tenth more time, twice as many memory.
_HELD = {"cpu": 1 << 18}
_HELD_ELSEWHERE = 1 << 25
# What forming and squaring an image's gradient costs, as so many products for each of its numbers.
_PASS = 8
# From so many positions on a convolution's own weight gradient costs less than to unfold the input.
_MANY_POSITIONS = 512
# From so many on a GPU is quicker with all channels of all images than with one tap at a time.
_MANY_FOR_DEPTHWISE = 64
# From so many multiplications on a product is oneDNN's. It compiles code for every shape of one and
# keeps it, half a megabyte each, and smaller ones it makes no faster than MKL does.
_TO_COMPILE = 1 << 26


_ALL = slice(None)


def held(t: Tensor) -> int:
    """How many numbers to hold at once beside t."""
    return _HELD.get(t.device.type, _HELD_ELSEWHERE)


def chunks(a: Tensor, g: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """a and g by as many images at a time as may be held, `size` numbers for each.

    >>> a = torch.zeros(5, 1)
    >>> [len(part) for part, _ in chunks(a, a, held(a) // 2)]
    [2, 2, 1]
    """
    rows = max(1, held(a) // max(1, size))
    return zip(a.split(rows), g.split(rows), strict=True)


def add_squares(total: Tensor, each: Tensor) -> None:
    """total += sum_n each[n]^2; each [n, *total.shape].

    >>> total = torch.ones(2)
    >>> add_squares(total, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> total
    tensor([11., 21.])
    """
    if each.device.type != "cpu":  # one pass, which on a CPU is slow across the rows
        length = torch.linalg.vector_norm(each, dim=0)
        total.addcmul_(length, length)
    elif len(each) < 8:  # one pass over each, without another tensor
        for gradient in each:
            total.addcmul_(gradient, gradient)
    else:
        total += each.square().sum(0)


@cache
def _onednn(device: str, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """oneDNN's matrix product, where there is one: on AMD's CPUs faster than MKL's."""
    if device != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    try:
        product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:  # torch promises nothing of it
        return None
    return product


def _matmul(x: Tensor, y: Tensor, into: Tensor | None = None) -> Tensor:
    """x y^T for x [o, t], y [i, t] -> [o, i]; `into` may hold it and is warmer than new memory.

    >>> _matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    product = _onednn(x.device.type, x.dtype)
    if product is None or x.numel() * len(y) < _TO_COMPILE:
        return torch.mm(x, y.T, out=into)
    x = x.contiguous()
    if not y.is_contiguous() and not y.T.is_contiguous():
        y = y.contiguous()  # other strides take a hundred times as long
    return product(x, y, None, "none", [], "")


def _add_pairs(total: Tensor, a: Tensor, g: Tensor) -> None:
    """One matrix product for all images, none of whose gradients is formed:

    total[o, i] += sum_n sum_{t <= s} (2 if t < s else 1) (g[n,t,o] g[n,s,o]) (a[n,t,i] a[n,s,i])

    a [n, t, i], g [n, t, o]. With one position it is (g^2)^T (a^2).

    >>> a, g = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0]], [[10.0]]])
    >>> total = torch.zeros(1, 2)
    >>> _add_pairs(total, a, g)
    >>> total  # 1^2 + 30^2, 2^2 + 40^2
    tensor([[ 901., 1604.]])
    """
    for some_a, some_g in chunks(a, g, _pairs(a.shape[1]) * (a.shape[2] + g.shape[2]) // 16):
        _add_pairs_of(total, some_a.transpose(0, 1), some_g.permute(2, 1, 0).contiguous())


def _add_pairs_of(total: Tensor, y: Tensor, x: Tensor) -> None:
    """`_add_pairs` for y [t, n, i], x [o, t, n]."""
    pairs = _pairs(len(y))
    of_x, of_y = x.new_empty(len(x), pairs, x.shape[2]), y.new_empty(pairs, *y.shape[1:])
    twice, start = 2 * x if pairs > 1 else x, 0
    for gap in range(len(y)):
        left, right, part = (
            slice(len(y) - gap),
            slice(gap, None),
            slice(start, start + len(y) - gap),
        )
        torch.mul(x[:, left], (twice if gap else x)[:, right], out=of_x[:, part])
        torch.mul(y[left], y[right], out=of_y[part])
        start = part.stop
    # Of a sum that is zero, rounding may leave less than zero.
    total += _matmul(of_x.flatten(1), of_y.flatten(0, 1).T).clamp_(min=0)


def _add_products(total: Tensor, a: Tensor, g: Tensor) -> None:
    """Each image's gradient by a matrix product, a part that stays in the cache at a time.

    total[o, i] += sum_n (sum_t g[n, t, o] a[n, t, i])^2. a [n, t, i], g [n, t, o].
    """
    small = total.numel() <= held(a) // (4 if a.shape[1] < MANY_TO_SUM else 16)
    if small or a.device.type != "cpu":
        for some_a, some_g in chunks(a, g, total.numel()):
            add_squares(total, linear(some_a, some_g))
        return
    x, y = g.transpose(1, 2), a.transpose(1, 2)
    rows = max(1, 4 * held(a) // total.shape[1])
    for part, of_part in zip(total.split(rows), x.split(rows, dim=1), strict=True):
        own = torch.empty_like(part)
        for x_n, y_n in zip(of_part, y, strict=True):
            gradient = _matmul(x_n, y_n, own)
            part.addcmul_(gradient, gradient)


LINEAR: Mapping[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "pairs": _add_pairs,
    "products": _add_products,
}


def linear_kernel(positions: int) -> str:
    """The name in `LINEAR` of the kernel that is fastest: the one with the fewer products.

    >>> linear_kernel(1), linear_kernel(197)
    ('pairs', 'products')
    """
    return "pairs" if _pairs(positions) <= positions + _PASS else "products"


def _pairs(positions: int) -> int:
    return positions * (positions + 1) // 2


def add_linear(total: Tensor, a: Tensor, g: Tensor) -> None:
    """total += sum_n (sum_t g[n, t] a[n, t]^T)^2. a [n, t, i], g [n, t, o], total [o, i].

    >>> a, g = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0], [10.0]]])
    >>> total = torch.ones(1, 2)
    >>> add_linear(total, a, g)
    >>> total  # 1 + 31^2, 1 + 42^2
    tensor([[ 962., 1765.]])
    """
    LINEAR[linear_kernel(a.shape[1])](total, a, g)


class Tap(NamedTuple):
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
) -> list[Tap]:
    """The taps that meet the input somewhere.

    A tap over nothing but padding has no gradient: of 3x3 on a map of one pixel, all but one.

    >>> [tap.number for tap in taps((1, 1), (1, 1), (3, 3), Options((1, 1), (1, 1), (1, 1)))]
    [4]
    >>> taps((2,), (2,), (3,), Options((1,), (1,), (1,)))[0]  # the left one
    Tap(number=0, outputs=(slice(1, 2, None),), inputs=(slice(0, 1, 1),))
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
            found.append(Tap(number, tuple(outputs), tuple(inputs)))
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
