"""The gradient of every single image, as one pure rule per layer type.

A layer computes z = f(a; p). The loss is L = sum_n L_n over images n. Backward hands over
g = dL/dz, and g[n] = dL_n/dz[n], because in eval mode no image affects another one. From a and g
a rule computes dL_n/dp for every n, [n, *p.shape], without a second backward pass.

The first dimension is the image: a[n] and g[n] are the tensors that the layer sees when image n is
alone in its batch. A convolution therefore has a [n, k, c, *space], where k = 1 unless the model
folds windows or crops into its batch. Every layer of `layer_table.py` is reduced to these rules.

Letters: n image, k map of an image, t position, i and o features in and out, c channel.

Source: Rochette, Manoel, Tramel, "Efficient per-example gradient computations in convolutional
neural networks", arXiv 1912.06015 (batch folded into groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = Mapping[str, Any]  # the arguments of one call of a layer, by name


class ConvOptions(NamedTuple):
    """The options of a convolution: one number for each dimension of its kernel."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


# Below this number of positions, a matrix product with ones is faster than `sum`.
MIN_POSITIONS_FOR_SUM = 32


def shift(g: Tensor, shape: Sequence[int]) -> Tensor:
    """z = a + p, where p is broadcast against one image.

    dL_n/dp is the sum of g[n] over the dimensions along which p is repeated. g [n, *z]; p has
    `shape`, aligned with z from the right. Returns [n, *shape].

    >>> shift(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), [2])
    tensor([[4., 6.]])
    """
    leading = g.ndim - len(shape)
    repeated = [*range(1, leading), *(leading + j for j, size in enumerate(shape) if size == 1)]
    return (g.sum(repeated) if repeated else g).reshape(len(g), *shape)


def scale(a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    """z = a * p, where p is broadcast against one image: dL_n/dp = sum of a[n] g[n], as in `shift`.

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


def conv(
    a: Tensor,
    g: Tensor,
    size: Sequence[int],
    options: ConvOptions,
) -> Tensor:
    """Convolution of any dimension: torch's own weight gradient with the batch folded into groups.

    a [n, k, c, *space], g [n, k, o, *positions], weight `size` [o, c / groups, *kernel]. Groups do
    not mix, so one call on a single image of n k c channels gives the gradient of every image.
    Returns [n, *size].

    >>> a, g = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0])
    >>> conv(a.view(1, 1, 1, 3), g.view(1, 1, 1, 2), (1, 1, 2), ConvOptions((1,), (0,), (1,)))
    tensor([[[[21., 32.]]]])
    """
    n, k, c = a.shape[:3]
    blocks = torch.ops.aten.convolution_backward(
        g.reshape(1, n * k * size[0], *g.shape[3:]),
        a.reshape(1, n * k * c, *a.shape[3:]),
        g.new_empty(1).expand(n * k * size[0], *size[1:]),  # only its shape is read
        bias_sizes=None,
        stride=options.stride,
        padding=options.padding,
        dilation=options.dilation,
        transposed=False,
        output_padding=[0],
        groups=n * k * (c // size[1]),
        output_mask=[False, True, False],
    )[1]
    assert isinstance(blocks, Tensor)
    return blocks.view(n, k, *size).sum(1)


def conv_options(
    arguments: Arguments, a: Tensor, shape: Sequence[int]
) -> tuple[Tensor, ConvOptions]:
    """The options, and a, which is padded here where `ConvOptions` cannot express the padding."""
    kernel, padding = shape[2:], arguments.get("padding", 0)
    stride, dilation = (
        _per_dimension(arguments.get(key, 1), len(kernel)) for key in ("stride", "dilation")
    )
    if padding == "same":  # an odd padding has one more at the end, which one number cannot express
        spans = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        a = F.pad(a, [pad for span in reversed(spans) for pad in (span // 2, span - span // 2)])
    padding = 0 if isinstance(padding, str) else padding
    return a, ConvOptions(stride, _per_dimension(padding, len(kernel)), dilation)


def _per_dimension(option: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number per dimension.

    >>> _per_dimension(2, 3), _per_dimension((2,), 2), _per_dimension((1, 2), 2)
    ((2, 2, 2), (2, 2), (1, 2))
    """
    values = (option,) if isinstance(option, int) else tuple(option)
    return values * dims if len(values) == 1 else values


def channel_sums(t: Tensor) -> Tensor:
    """Sum over maps and space: [n, k, c, *space] -> [n, c].

    >>> channel_sums(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2))
    tensor([[3., 7.]])
    """
    flat = t.flatten(3) if t.ndim > 3 else t[..., None]
    if 1 < flat.shape[-1] < MIN_POSITIONS_FOR_SUM:  # on a short row `sum` is as slow as on a long
        sums = flat @ flat.new_ones(flat.shape[-1])
    else:
        sums = flat.sum(-1)
    return sums.sum(1)


def batch_norm(a: Tensor, g: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """z = p (a - mean) / sqrt(variance + eps): dL_n/dp, a and g [n, k, c, *space] -> [n, c].

    >>> a, g = torch.tensor([3.0, 5.0]).view(1, 1, 1, 2), torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    >>> batch_norm(a, g, torch.tensor([1.0]), torch.tensor([4.0]), 0.0)  # 1 (2/2) + 2 (4/2)
    tensor([[5.]])
    """
    n, k, c = a.shape[:3]
    if a[0, 0, 0].numel() < MIN_POSITIONS_FOR_SUM:
        per_channel = (-1, *(1 for _ in a.shape[3:]))
        return channel_sums((a - mean.view(per_channel)).mul_(g)) * (variance + eps).rsqrt()
    # As in `conv`, this is one image of n k c channels, whose own gradient reads a and g once.
    # The saved statistics and the weight's values are not read, but CUDA does not accept None.
    unread = mean.new_empty(0)
    sums = torch.ops.aten.native_batch_norm_backward(
        g.reshape(1, n * k * c, -1),
        a.reshape(1, n * k * c, -1),
        mean.new_ones(n * k * c),
        mean.repeat(n * k),
        variance.repeat(n * k),
        unread,
        unread,
        False,
        eps,
        [False, True, False],
    )[1]
    assert isinstance(sums, Tensor)
    return sums.view(n, k, c).sum(1)
