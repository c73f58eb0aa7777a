"""Sums of squared per-image gradients of linear layers: the kernels, and the choice of one.

    add_...(total, a, g, ...):    total += sum_n (dL_n/dp)^2

a and g are as in `per_sample_gradients.py`. These are sums over the images, never means, and a
kernel holds the gradients of only a few images at a time. There are several kernels for a linear
layer (`LINEAR`) and for a convolution (`CONV` in `conv_kernels.py`). Their results differ only by
rounding; `linear_kernel` and `conv_kernel` choose the fastest one by shape.

Letters: n image, t position, i and o features in and out.

Source: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799 (linear, one
position).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from pbu_cli.fisher.per_sample_gradients import MIN_POSITIONS_FOR_SUM, linear

# The size of a scratch buffer, in numbers. On a CPU a chunk of this size stays in the cache. On a
# GPU it keeps the device busy: half the size takes a tenth more time, twice the size more memory.
_SCRATCH_NUMBERS = {"cpu": 1 << 18}
_SCRATCH_NUMBERS_ELSEWHERE = 1 << 25
# The cost of forming and squaring one number of an image's gradient, in multiplications.
FORM_AND_SQUARE_COST = 8
# oneDNN computes a matrix product from this many multiplications on. It compiles code for every
# shape and keeps it, half a megabyte each, and it is no faster than MKL for smaller products.
_MIN_MULTIPLICATIONS_FOR_ONEDNN = 1 << 26


def scratch_numbers(t: Tensor) -> int:
    """How many numbers a scratch buffer on the device of t holds."""
    return _SCRATCH_NUMBERS.get(t.device.type, _SCRATCH_NUMBERS_ELSEWHERE)


def chunks(a: Tensor, g: Tensor, numbers_per_image: int) -> Iterator[tuple[Tensor, Tensor]]:
    """a and g in chunks of as many images as fit the scratch buffer, and of one image at least.

    >>> a = torch.zeros(5, 1)
    >>> [len(chunk) for chunk, _ in chunks(a, a, scratch_numbers(a) // 2)]
    [2, 2, 1]
    """
    images = max(1, scratch_numbers(a) // max(1, numbers_per_image))
    return zip(a.split(images), g.split(images), strict=True)


def add_squares(total: Tensor, gradients: Tensor) -> None:
    """total += sum_n gradients[n]^2; gradients [n, *total.shape].

    >>> total = torch.ones(2)
    >>> add_squares(total, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> total
    tensor([11., 21.])
    """
    if gradients.device.type != "cpu":  # one pass over the data; a CPU is slow across the rows
        length = torch.linalg.vector_norm(gradients, dim=0)
        total.addcmul_(length, length)
    elif len(gradients) < 8:  # one pass over each image, without another tensor
        for gradient in gradients:
            total.addcmul_(gradient, gradient)
    else:
        total += gradients.square().sum(0)


@cache
def _onednn(device: str, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """oneDNN's matrix product if it is available. On AMD CPUs it is faster than MKL's."""
    if device != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    try:
        product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:  # this operator is not part of torch's public interface
        return None
    return product


def _matmul(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x y^T for x [o, t], y [i, t] -> [o, i].

    `out` may receive the product: its memory is in the cache already, which new memory is not.

    >>> _matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    product = _onednn(x.device.type, x.dtype)
    if product is None or x.numel() * len(y) < _MIN_MULTIPLICATIONS_FOR_ONEDNN:
        return torch.mm(x, y.T, out=out)
    x = x.contiguous()
    if not y.is_contiguous() and not y.T.is_contiguous():
        y = y.contiguous()  # other strides take a hundred times as long
    return product(x, y, None, "none", [], "")


def _add_linear_pairs(total: Tensor, a: Tensor, g: Tensor) -> None:
    """One matrix product for all images, which forms no image's gradient:

    total[o, i] += sum_n sum_{t <= s} (2 if t < s else 1) (g[n,t,o] g[n,s,o]) (a[n,t,i] a[n,s,i])

    a [n, t, i], g [n, t, o]. With one position it is (g^2)^T (a^2).

    >>> a, g = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0]], [[10.0]]])
    >>> total = torch.zeros(1, 2)
    >>> _add_linear_pairs(total, a, g)
    >>> total  # 1^2 + 30^2, 2^2 + 40^2
    tensor([[ 901., 1604.]])
    """
    numbers = pair_count(a.shape[1]) * (a.shape[2] + g.shape[2]) // 16
    for chunk_a, chunk_g in chunks(a, g, numbers):
        add_pairs(total, chunk_a.transpose(0, 1), chunk_g.permute(2, 1, 0).contiguous())


def add_pairs(total: Tensor, y: Tensor, x: Tensor) -> None:
    """The sum of `_add_linear_pairs` for inputs y [t, n, i] and gradients x [o, t, n]."""
    pairs = pair_count(len(y))
    x_pairs, y_pairs = x.new_empty(len(x), pairs, x.shape[2]), y.new_empty(pairs, *y.shape[1:])
    twice_x, start = 2 * x if pairs > 1 else x, 0
    for gap in range(len(y)):
        left, right = slice(len(y) - gap), slice(gap, None)
        part = slice(start, start + len(y) - gap)
        torch.mul(x[:, left], (twice_x if gap else x)[:, right], out=x_pairs[:, part])
        torch.mul(y[left], y[right], out=y_pairs[part])
        start = part.stop
    # Where the exact sum is zero, rounding may leave a negative number.
    total += _matmul(x_pairs.flatten(1), y_pairs.flatten(0, 1).T).clamp_(min=0)


def add_products(total: Tensor, a: Tensor, g: Tensor) -> None:
    """The gradient of each image by a matrix product, in parts that stay in the cache.

    total[o, i] += sum_n (sum_t g[n, t, o] a[n, t, i])^2. a [n, t, i], g [n, t, o].
    """
    divisor = 4 if a.shape[1] < MIN_POSITIONS_FOR_SUM else 16
    small = total.numel() <= scratch_numbers(a) // divisor
    if small or a.device.type != "cpu":
        for chunk_a, chunk_g in chunks(a, g, total.numel()):
            add_squares(total, linear(chunk_a, chunk_g))
        return
    x, y = g.transpose(1, 2), a.transpose(1, 2)
    rows = max(1, 4 * scratch_numbers(a) // total.shape[1])
    for total_rows, x_rows in zip(total.split(rows), x.split(rows, dim=1), strict=True):
        scratch = torch.empty_like(total_rows)
        for x_n, y_n in zip(x_rows, y, strict=True):
            gradient = _matmul(x_n, y_n, scratch)
            total_rows.addcmul_(gradient, gradient)


LINEAR: Mapping[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "pairs": _add_linear_pairs,
    "products": add_products,
}


def linear_kernel(positions: int) -> str:
    """The name in `LINEAR` of the fastest kernel: the one with fewer multiplications.

    >>> linear_kernel(1), linear_kernel(197)
    ('pairs', 'products')
    """
    return "pairs" if pair_count(positions) <= positions + FORM_AND_SQUARE_COST else "products"


def pair_count(positions: int) -> int:
    """The number of pairs t <= s of positions.

    >>> pair_count(3)
    6
    """
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
