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

import torch
from torch import Tensor

from pbu_cli.fisher.per_sample_gradients import MANY_TO_SUM, linear

# Numbers held at once beside the layer's own: a chunk that stays in the cache; on a GPU, one that
# keeps it busy: half as many cost a tenth more time, twice as many memory.
_HELD = {"cpu": 1 << 18}
_HELD_ELSEWHERE = 1 << 25
# What forming and squaring an image's gradient costs, as so many products for each of its numbers.
_PASS = 8
# From so many multiplications on a product is oneDNN's. It compiles code for every shape of one and
# keeps it, half a megabyte each, and smaller ones it makes no faster than MKL does.
_TO_COMPILE = 1 << 26


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
