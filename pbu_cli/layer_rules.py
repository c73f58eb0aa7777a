"""The gradient of every image by itself, one pure rule per layer type.

A layer computes z = f(a; p). Of the loss L = sum_n L_n over images n, backward hands over
g = dL/dz, and g[n] = dL_n/dz[n], for in eval mode no image touches another one. From a and g
a rule gives, without a second backward pass,

    shift, scale, linear, conv:     dL_n/dp for every n    [n, *p.shape]
    linear_squared, conv_squared:   sum_n (dL_n/dp)^2      [*p.shape]

Sums over the images, never means. Images come first: a[n] and g[n] are the tensors the layer
sees when image n is alone in its batch, so a convolution has a [n, k, c, *space], k = 1 unless
the model folds windows or crops into its batch. Every layer of `layers.py` comes down to these.

Letters: n image, k map of an image, t position, i and o features in and out, c channel.

Sources: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799 (linear,
one position); Rochette, Manoel, Tramel, "Efficient per-example gradient computations in
convolutional neural networks", arXiv 1912.06015 (batch folded into groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers held at once for the gradients of single images: a chunk that stays in the cache.
_CHUNK = 1 << 19
# Up to so many positions unfolding the input costs less than a convolution with n groups.
_FEW_POSITIONS = 64


def shift(g: Tensor, shape: Sequence[int]) -> Tensor:
    """z = a + p, p broadcast against one image: dL_n/dp = sum of g[n] over what p repeats over.

    g [n, *z], p of `shape` aligned with z from the right. Returns [n, *shape].

    >>> shift(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), [2])
    tensor([[4., 6.]])
    """
    lead = g.ndim - len(shape)
    repeats = [*range(1, lead), *(lead + j for j, size in enumerate(shape) if size == 1)]
    return (g.sum(repeats) if repeats else g).reshape(len(g), *shape)


def scale(a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    """z = a * p, p broadcast against one image: dL_n/dp = sum of a[n] g[n], as in `shift`.

    >>> scale(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.ones(1, 2, 2), [2, 1])
    tensor([[[3.],
             [7.]]])
    """
    return shift(a * g, shape)


def linear(a: Tensor, g: Tensor) -> Tensor:
    """z = a p^T: dL_n/dp = sum_t g[n, t] a[n, t]^T. a [n, t, i], g [n, t, o] -> [n, o, i].

    >>> linear(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0], [10.0]]]))
    tensor([[[31., 42.]]])
    """
    return g.transpose(1, 2) @ a


def linear_squared(a: Tensor, g: Tensor) -> Tensor:
    """sum_n (sum_t g[n, t] a[n, t]^T)^2. a [n, t, i], g [n, t, o] -> [o, i].

    With one position the square goes inside, (g^2)^T (a^2), and no image's gradient is formed.

    >>> a, g = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.tensor([[[1.0]], [[10.0]]])
    >>> linear_squared(a, g)  # 1^2 + 30^2, 2^2 + 40^2
    tensor([[ 901., 1604.]])
    """
    if a.shape[1] == 1:
        return torch.einsum("no,ni->oi", g[:, 0].square(), a[:, 0].square())
    return _squared(linear, a, g, a.shape[2] * g.shape[2])


def conv(
    a: Tensor,
    g: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Convolution of any dimension: its ordinary weight gradient, the batch folded into groups.

    a [n, k, c, *space], g [n, k, o, *positions], weight `size` [o, c / groups, *kernel], the
    options one number a dimension. As groups never mix, one call on a single image of n k c
    channels gives every image's block [o, c / groups, *kernel]. Returns [n, *size].

    >>> a, g = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0])
    >>> conv(a.view(1, 1, 1, 3), g.view(1, 1, 1, 2), (1, 1, 2), [1], [0], [1])
    tensor([[[[21., 32.]]]])
    """
    n, k, c = a.shape[:3]
    blocks = torch.ops.aten.convolution_backward(
        g.reshape(1, n * k * size[0], *g.shape[3:]),
        a.reshape(1, n * k * c, *a.shape[3:]),
        g.new_empty(1).expand(n * k * size[0], *size[1:]),  # read for its shape alone
        bias_sizes=None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        transposed=False,
        output_padding=[0],
        groups=n * k * (c // size[1]),
        output_mask=[False, True, False],
    )[1]
    assert isinstance(blocks, Tensor)
    return blocks.view(n, k, *size).sum(1)


def conv_squared(
    a: Tensor,
    g: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """sum_n (weight gradient of image n)^2; shapes as in `conv`. Returns `size`.

    >>> a, g = torch.tensor([1.0, 2.0, 4.0, 0.0]), torch.tensor([1.0, 10.0])
    >>> conv_squared(a.view(2, 1, 1, 2), g.view(2, 1, 1, 1), (1, 1, 2), [1], [0], [1])
    tensor([[[1601.,    4.]]])
    """
    n, k, c = a.shape[:3]
    few = k * prod(g.shape[3:]) <= _FEW_POSITIONS or prod(size[2:]) == 1
    if len(size) == 4 and c == size[1] and few:
        taps = F.unfold(
            a.flatten(0, 1), tuple(size[2:]), tuple(dilation), tuple(padding), tuple(stride)
        )  # [n k, c taps, t]
        rows = taps.view(n, k, *taps.shape[1:]).transpose(2, 3).flatten(1, 2)
        return linear_squared(rows, g.flatten(3).transpose(2, 3).flatten(1, 2)).view(*size)
    return _squared(lambda a, g: conv(a, g, size, stride, padding, dilation), a, g, k * prod(size))


def _squared(each: Callable[[Tensor, Tensor], Tensor], a: Tensor, g: Tensor, size: int) -> Tensor:
    """sum_n each(a, g)[n]^2, at most `_CHUNK` numbers at once; an image's gradient has `size`."""
    rows = max(1, _CHUNK // size)
    total = each(a[:rows], g[:rows]).square_().sum(0)
    for start in range(rows, len(a), rows):
        total += each(a[start : start + rows], g[start : start + rows]).square_().sum(0)
    return total
