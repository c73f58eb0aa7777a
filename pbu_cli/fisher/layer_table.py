"""Which functional of torch is which layer, and which rule gives the gradients of its parameters.

One literal table, `LAYERS`. Normalisations, biases, layer scales, class tokens and position
embeddings are all `scale` or `shift` of something that the layer saw. Whatever is not in the
table is not wrong but slow: `plan.py` finds it and leaves it to another way.

Letters: n image, k map of an image, c channel; a and g have images first, see `layer_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.fisher.conv_kernels import add_conv
from pbu_cli.fisher.linear_kernels import add_linear, add_squares, chunks
from pbu_cli.fisher.per_sample_gradients import (
    Options,
    batch_norm,
    channel_sums,
    conv,
    linear,
    scale,
    shift,
)

Call = Mapping[str, Any]  # the arguments of one call of a layer, by name
Each = Callable[[Call, Tensor, Tensor, Sequence[int]], Tensor]  # (call, a, g, p.shape)
Add = Callable[[Tensor, Call, Tensor, Tensor], None]  # (total, call, a, g)
Back = Callable[[Call, Tensor], Tensor]  # (call, g) -> dL/da, both as the layer has them


@dataclass(frozen=True)
class Rule:
    """How the gradients of one parameter of a layer follow from what the layer saw."""

    reads: str | None  # the argument that is `a`; None: g alone is enough, and stands in for it
    each: Each  # dL_n/dp for every n: [n, *p.shape]
    fast: Add | None = None  # total += sum_n (dL_n/dp)^2 without `each` of all images

    def add_squared(self, total: Tensor, call: Call, a: Tensor, g: Tensor) -> None:
        """total += sum_n (dL_n/dp)^2. total [*p.shape]."""
        if self.fast is not None:
            self.fast(total, call, a, g)
            return
        for some_a, some_g in chunks(a, g, max(a[0].numel() // 2, total.numel())):
            add_squares(total, self.each(call, some_a, some_g, total.shape))


@dataclass(frozen=True)
class Layer:
    """A functional that a model may call, and the rule of every argument that can be learned."""

    name: str
    arguments: tuple[str, ...]  # in the functional's own order
    rules: Mapping[str, Rule]
    image_dims: Callable[[Call, int], int]  # of z's dimensions, how many leading may hold images
    applies: Callable[[Call], bool] = lambda call: True
    dense: str | None = None  # an argument that torch is slow with where it is not contiguous
    back: Back | None = None  # by hand, where autograd's own way back computes more than dL/da

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
        """The arguments by name; None where the rules do not hold for them.

        >>> LAYERS[torch.add].bind([1, 2], {}), LAYERS[torch.add].bind([1, 2], {"alpha": 3})
        ({'input': 1, 'other': 2}, None)
        """
        call = dict(zip(self.arguments, args, strict=False)) | dict(kwargs)
        known = call.keys() <= set(self.arguments) and len(args) <= len(self.arguments)
        return call if known and self.applies(call) else None


def _shift(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return shift(g, shape)


def _scale(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return scale(a, g, shape)


def _linear(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return linear(a.flatten(1, -2), g.flatten(1, -2))


def _add_linear(total: Tensor, call: Call, a: Tensor, g: Tensor) -> None:
    add_linear(total, a.flatten(1, -2), g.flatten(1, -2))


def _conv(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    a, options = _conv_options(call, a, shape)
    return conv(a, g, shape, options)


def _add_conv(total: Tensor, call: Call, a: Tensor, g: Tensor) -> None:
    a, options = _conv_options(call, a, total.shape)
    last = total.movedim(1, -1)
    into = last if last.is_contiguous() else torch.zeros_like(last).contiguous()
    add_conv(into, a, g, options)
    if into is not last:
        last += into


def _conv_options(call: Call, a: Tensor, shape: Sequence[int]) -> tuple[Tensor, Options]:
    """a, padded where `Options` cannot say how, and the options."""
    kernel, padding = shape[2:], call.get("padding", 0)
    stride, dilation = (_spread(call.get(key, 1), len(kernel)) for key in ("stride", "dilation"))
    if padding == "same":  # where it is odd there is one more behind, which no number can say
        spans = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        a = F.pad(a, [pad for span in reversed(spans) for pad in (span // 2, span - span // 2)])
    padding = 0 if isinstance(padding, str) else padding
    return a, Options(stride, _spread(padding, len(kernel)), dilation)


def _spread(option: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number per dimension.

    >>> _spread(2, 3), _spread((2,), 2), _spread((1, 2), 2)
    ((2, 2, 2), (2, 2), (1, 2))
    """
    values = (option,) if isinstance(option, int) else tuple(option)
    return values * dims if len(values) == 1 else values


def _channel_shift(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    """`shift` by one number per channel: g [n, k, c, *space] -> [n, c]."""
    return channel_sums(g)


def _batch_norm(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    mean, variance = call["running_mean"].to(a), call["running_var"].to(a)
    return batch_norm(a, g, mean, variance, call["eps"])


def _batch_norm_back(call: Call, g: Tensor) -> Tensor:
    """dL/da = g p / sqrt(variance + eps), one pass over g where torch's takes the sums as well."""
    factor: Tensor = (call["running_var"] + call["eps"]).rsqrt()
    factor = factor if call.get("weight") is None else factor * call["weight"].detach()
    return (g * factor.view(-1, *(1 for _ in g.shape[2:]))).to(g.dtype)


def _group_norm(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    normed = F.group_norm(a.flatten(0, 1), call["num_groups"], eps=call["eps"]).view(a.shape)
    return channel_sums(normed * g)


def _layer_norm(call: Call, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return scale(F.layer_norm(a, call["normalized_shape"], eps=call["eps"]), g, shape)


_LINEAR = Layer(
    "linear",
    ("input", "weight", "bias"),
    {"weight": Rule("input", _linear, _add_linear), "bias": Rule(None, _shift)},
    image_dims=lambda call, dims: dims - 1,
    applies=lambda call: call["weight"].ndim == 2,
    # Its matmul folds a strided [t, n, i] into one product only for a weight that asks for a
    # gradient, and else takes t of them: https://github.com/pytorch/pytorch/pull/166891
    dense="input",
)
_CONV = Layer(
    "conv",
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    {"weight": Rule("input", _conv, _add_conv), "bias": Rule(None, _channel_shift)},
    image_dims=lambda call, dims: 1,
)
_BATCH_NORM = Layer(
    "batch norm",
    ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    {"weight": Rule("input", _batch_norm), "bias": Rule(None, _channel_shift)},
    image_dims=lambda call, dims: 1,
    applies=lambda call: call["running_mean"] is not None and not call["training"],
    back=_batch_norm_back,
)
_GROUP_NORM = Layer(
    "group norm",
    ("input", "num_groups", "weight", "bias", "eps"),
    {"weight": Rule("input", _group_norm), "bias": Rule(None, _channel_shift)},
    image_dims=lambda call, dims: 1,
)
_LAYER_NORM = Layer(
    "layer norm",
    ("input", "normalized_shape", "weight", "bias", "eps"),
    {"weight": Rule("input", _layer_norm), "bias": Rule(None, _shift)},
    image_dims=lambda call, dims: dims - len(call["normalized_shape"]),
)
_SCALE = Layer(
    "scale",
    ("input", "other"),
    {"input": Rule("other", _scale), "other": Rule("input", _scale)},
    image_dims=lambda call, dims: dims,
)
_SHIFT = Layer(
    "shift",
    ("input", "other"),
    {"input": Rule(None, _shift), "other": Rule(None, _shift)},
    image_dims=lambda call, dims: dims,
)
_EXPAND = Layer(
    "expand",
    ("input", *"01234567"),  # sizes, one by one or in a tuple
    {"input": Rule(None, _shift)},
    image_dims=lambda call, dims: dims,
)

LAYERS: Mapping[Callable[..., Any], Layer] = {
    F.linear: _LINEAR,
    F.conv1d: _CONV,
    F.conv2d: _CONV,
    F.conv3d: _CONV,
    F.batch_norm: _BATCH_NORM,
    F.group_norm: _GROUP_NORM,
    F.layer_norm: _LAYER_NORM,
    torch.mul: _SCALE,
    Tensor.mul: _SCALE,
    torch.add: _SHIFT,
    Tensor.add: _SHIFT,
    Tensor.expand: _EXPAND,
}
