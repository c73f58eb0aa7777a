"""The supported layers: which torch functional is which layer, and its per-image gradient rules.

`LAYERS` is one literal table. Normalisations, biases, layer scales, class tokens and position
embeddings are all `scale` or `shift` of a tensor that the layer received. A layer that is not in
the table is slow but not wrong: `dispatch.py` finds its parameters and uses another strategy.

Letters: n image, k map of an image, c channel. a and g have the images first, as in
`per_sample_gradients.py`.
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
    Arguments,
    batch_norm,
    channel_sums,
    conv,
    conv_options,
    linear,
    scale,
    shift,
)

# (arguments, a, g, p.shape) -> [n, *p.shape]
PerSample = Callable[[Arguments, Tensor, Tensor, Sequence[int]], Tensor]
AddSquared = Callable[[Tensor, Arguments, Tensor, Tensor], None]  # (total, arguments, a, g)
# (arguments, g) -> dL/da, both as the layer lays them out
InputGradient = Callable[[Arguments, Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """How to compute the per-image gradients of one parameter of a layer.

    input: the name of the argument that is `a`. None means that g alone suffices; g is then passed
    as `a` too. per_sample: dL_n/dp for every n, [n, *p.shape]. add_squared_fast: adds
    sum_n (dL_n/dp)^2 to a total without the gradients of all images at once.
    """

    input: str | None
    per_sample: PerSample
    add_squared_fast: AddSquared | None = None

    def add_squared(self, total: Tensor, arguments: Arguments, a: Tensor, g: Tensor) -> None:
        """total += sum_n (dL_n/dp)^2. total [*p.shape]."""
        if self.add_squared_fast is not None:
            self.add_squared_fast(total, arguments, a, g)
            return
        for chunk_a, chunk_g in chunks(a, g, max(a[0].numel() // 2, total.numel())):
            add_squares(total, self.per_sample(arguments, chunk_a, chunk_g, total.shape))


@dataclass(frozen=True)
class Layer:
    """A torch functional that a model may call, and the rule of every argument that may train.

    arguments: the names, in the functional's own order. image_dims: how many leading dimensions of
    the output, of which it is given the number, may hold images. applies: whether the rules hold
    for these arguments. contiguous: an argument that is copied if it is not contiguous, because
    torch is slow with it. input_gradient: dL/da by hand, where autograd computes more than that.
    """

    name: str
    arguments: tuple[str, ...]
    rules: Mapping[str, Rule]
    image_dims: Callable[[Arguments, int], int]
    applies: Callable[[Arguments], bool] = lambda arguments: True
    contiguous: str | None = None
    input_gradient: InputGradient | None = None

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments | None:
        """The arguments by name, or None if the rules do not hold for them.

        >>> LAYERS[torch.add].bind([1, 2], {}), LAYERS[torch.add].bind([1, 2], {"alpha": 3})
        ({'input': 1, 'other': 2}, None)
        """
        arguments = dict(zip(self.arguments, args, strict=False)) | dict(kwargs)
        known = arguments.keys() <= set(self.arguments) and len(args) <= len(self.arguments)
        return arguments if known and self.applies(arguments) else None


def _shift(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return shift(g, shape)


def _scale(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return scale(a, g, shape)


def _linear(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    return linear(a.flatten(1, -2), g.flatten(1, -2))


def _add_linear(total: Tensor, arguments: Arguments, a: Tensor, g: Tensor) -> None:
    add_linear(total, a.flatten(1, -2), g.flatten(1, -2))


def _matmul(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    """`_linear` for a factor that is not transposed."""
    return linear(g.flatten(1, -2), a.flatten(1, -2))


def _add_matmul(total: Tensor, arguments: Arguments, a: Tensor, g: Tensor) -> None:
    add_linear(total, g.flatten(1, -2), a.flatten(1, -2))


def _conv(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    a, options = conv_options(arguments, a, shape)
    return conv(a, g, shape, options)


def _add_conv(total: Tensor, arguments: Arguments, a: Tensor, g: Tensor) -> None:
    a, options = conv_options(arguments, a, total.shape)
    channels_last = total.movedim(1, -1)
    if channels_last.is_contiguous():
        add_conv(channels_last, a, g, options)
    else:
        sums = torch.zeros_like(channels_last).contiguous()
        add_conv(sums, a, g, options)
        channels_last += sums


def _channel_shift(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    """`shift` by one number per channel: g [n, k, c, *space] -> [n, c]."""
    return channel_sums(g)


def _batch_norm(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    mean, variance = arguments["running_mean"].to(a), arguments["running_var"].to(a)
    return batch_norm(a, g, mean, variance, arguments["eps"])


def _batch_norm_input_gradient(arguments: Arguments, g: Tensor) -> Tensor:
    """dL/da = g p / sqrt(variance + eps). One pass over g; torch's own computes the sums too."""
    factor: Tensor = (arguments["running_var"] + arguments["eps"]).rsqrt()
    weight = arguments.get("weight")
    factor = factor if weight is None else factor * weight.detach()
    return (g * factor.view(-1, *(1 for _ in g.shape[2:]))).to(g.dtype)


def _group_norm(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    flat = a.flatten(0, 1)
    normed = F.group_norm(flat, arguments["num_groups"], eps=arguments["eps"]).view(a.shape)
    return channel_sums(normed * g)


def _layer_norm(arguments: Arguments, a: Tensor, g: Tensor, shape: Sequence[int]) -> Tensor:
    normed = F.layer_norm(a, arguments["normalized_shape"], eps=arguments["eps"])
    return scale(normed, g, shape)


_LINEAR = Layer(
    "linear",
    ("input", "weight", "bias"),
    {"weight": Rule("input", _linear, _add_linear), "bias": Rule(None, _shift)},
    image_dims=lambda arguments, dims: dims - 1,
    applies=lambda arguments: arguments["weight"].ndim == 2,
    # torch folds a strided [t, n, i] into one matrix product only if the weight requires a
    # gradient, and else computes t products: https://github.com/pytorch/pytorch/pull/166891
    contiguous="input",
)
_MATMUL = Layer(
    "matmul",
    ("input", "other"),
    {"other": Rule("input", _matmul, _add_matmul)},
    image_dims=lambda arguments, dims: dims - 1,
    applies=lambda arguments: arguments["other"].ndim == 2 < arguments["input"].ndim,
)
_CONV = Layer(
    "conv",
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    {"weight": Rule("input", _conv, _add_conv), "bias": Rule(None, _channel_shift)},
    image_dims=lambda arguments, dims: 1,
)
_BATCH_NORM = Layer(
    "batch norm",
    ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    {"weight": Rule("input", _batch_norm), "bias": Rule(None, _channel_shift)},
    image_dims=lambda arguments, dims: 1,
    applies=lambda arguments: arguments["running_mean"] is not None and not arguments["training"],
    input_gradient=_batch_norm_input_gradient,
)
_GROUP_NORM = Layer(
    "group norm",
    ("input", "num_groups", "weight", "bias", "eps"),
    {"weight": Rule("input", _group_norm), "bias": Rule(None, _channel_shift)},
    image_dims=lambda arguments, dims: 1,
)
_LAYER_NORM = Layer(
    "layer norm",
    ("input", "normalized_shape", "weight", "bias", "eps"),
    {"weight": Rule("input", _layer_norm), "bias": Rule(None, _shift)},
    image_dims=lambda arguments, dims: dims - len(arguments["normalized_shape"]),
)
_SCALE = Layer(
    "scale",
    ("input", "other"),
    {"input": Rule("other", _scale), "other": Rule("input", _scale)},
    image_dims=lambda arguments, dims: dims,
)
_SHIFT = Layer(
    "shift",
    ("input", "other"),
    {"input": Rule(None, _shift), "other": Rule(None, _shift)},
    image_dims=lambda arguments, dims: dims,
)
_SCALE_AND_SHIFT = Layer(
    "scale and shift",
    ("input", "tensor1", "tensor2"),
    {
        "input": Rule(None, _shift),
        "tensor1": Rule("tensor2", _scale),
        "tensor2": Rule("tensor1", _scale),
    },
    image_dims=lambda arguments, dims: dims,
)
_EXPAND = Layer(
    "expand",
    ("input", *"01234567"),  # sizes, one by one or in a tuple
    {"input": Rule(None, _shift)},
    image_dims=lambda arguments, dims: dims,
)

LAYERS: Mapping[Callable[..., Any], Layer] = {
    F.linear: _LINEAR,
    torch.matmul: _MATMUL,
    Tensor.matmul: _MATMUL,
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
    torch.addcmul: _SCALE_AND_SHIFT,
    Tensor.expand: _EXPAND,
}
