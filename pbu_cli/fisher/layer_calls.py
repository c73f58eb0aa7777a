"""The calls of layers in a forward pass: seeing each of them, and which of them can be hooked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pbu_cli.fisher.layer_table import LAYERS, Layer

Visit = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class LayerCalls(TorchFunctionMode):
    """While active, a call of a layer returns `visit(number, functional, args, kwargs)`."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # A mode is off inside its own handler. Switch it on again for the calls inside.
            with self:
                return _without_override_check(func)(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            with self:
                args, kwargs = _with_expanded_bias(*args, **kwargs)
        if func not in LAYERS:
            return func(*args, **kwargs)
        self.count += 1
        return self.visit(self.count - 1, func, args, kwargs)


def plain_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call itself, with right gradients where torch's own are wrong.

    For a single image torch 2.15 on a CPU takes a gradient of a batch norm's output that is laid
    out as [1, h, w, c] for one that is laid out as [1, c, h, w]. This happens in CvT, which
    flattens the output and moves its channels to the end.
    """
    z = func(*args, **kwargs)
    if func is F.batch_norm and len(z) == 1 and z.requires_grad:
        z.register_hook(Tensor.contiguous)
    return z


def _without_override_check(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func` without its first test, which asks whether a mode overrides it: this mode has."""
    assert isinstance(func, FunctionType)
    scope = {**func.__globals__, "has_torch_function": lambda tensors: False}
    return FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)


def _with_expanded_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *rest: Any,
    **kwargs: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention, with a bias that all images share expanded to all of them.

    The bias may be made of parameters, and `Tensor.expand` is in the table. The attention is not.
    """
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:])
    return (query, key, value, attn_mask, *rest), kwargs


@dataclass(frozen=True)
class HookedCall:
    """A call in which a parameter, or a tensor made of parameters alone, is combined with images.

    operands: the names of the arguments to detach. shape: of the output for one image. Dimension
    `dim` of the output runs over [outer, images, inner]: inner = 1 where the images are adjacent
    ([T, N, E] flattened), outer = 1 where the parts of an image are adjacent (windows of Swin).
    """

    layer: Layer
    operands: tuple[str, ...]
    shape: torch.Size
    dim: int
    inner: int = 1

    def images_first(self, t: Tensor, images: int) -> Tensor:
        """t, an output or a tensor that broadcasts to it, as [images, *(shape for one image)].

        >>> hooked = HookedCall(LAYERS[F.linear], (), torch.Size([2, 1]), 0, inner=1)
        >>> hooked.images_first(torch.tensor([[1], [2], [3], [1], [2], [3]]), 3).tolist()
        [[[1], [1]], [[2], [2]], [[3], [3]]]
        """
        if self.dim == 0 and len(t) == images:  # the usual case
            return t[:, None]
        t = t.reshape((1,) * (len(self.shape) - t.ndim) + t.shape)
        before, after = t.shape[: self.dim], t.shape[self.dim + 1 :]
        split = t.reshape(*before, -1, images, self.inner, *after)
        return split.movedim(self.dim + 1, 0).flatten(self.dim + 1, self.dim + 2)

    def fits(self, shape: torch.Size, images: int) -> bool:
        """Whether an output of this shape is the planned one for `images` images."""
        expected = list(self.shape)
        expected[self.dim] *= images
        return list(shape) == expected

    def rule_input(self) -> str | None:
        """The argument that the rules of the operands need as `a`, or None if g suffices."""
        inputs = (self.layer.rules[name].input for name in self.operands)
        return next((name for name in inputs if name), None)


@dataclass(frozen=True)
class TracedCall:
    """One call of a layer in a plain forward pass.

    operands: shapes of the arguments that depend on a trainable parameter, by name. output: the
    shape of the output, of which the first `image_dims` dimensions may hold images.
    """

    layer: Layer
    operands: Mapping[str, torch.Size]
    output: torch.Size
    image_dims: int


def trace(model: nn.Module, x: Tensor) -> list[TracedCall]:
    """Every call of a layer in one forward pass."""
    traced = []

    def visit(
        number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        z, layer = func(*args, **kwargs), LAYERS[func]
        arguments = layer.bind(args, kwargs) or {}
        operands = {
            name: operand.shape
            for name in layer.rules
            if isinstance(operand := arguments.get(name), Tensor) and operand.requires_grad
        }
        image_dims = layer.image_dims(arguments, z.ndim) if arguments else 0
        traced.append(TracedCall(layer, operands, z.shape, image_dims))
        return z

    with LayerCalls(visit):
        model(x)
    return traced


def hookable_calls(
    both: Sequence[TracedCall], single: Sequence[TracedCall]
) -> dict[int, HookedCall]:
    """The calls whose output doubles with the batch while an operand keeps its size.

    both, single: the traces of the same model on two images and on one. The result is keyed by the
    number of the call; its `inner` is not known yet.
    """
    if [call.layer for call in both] != [call.layer for call in single]:
        return {}
    hooked = {}
    for number, (two, one) in enumerate(zip(both, single, strict=True)):
        names = tuple(name for name in one.operands if one.operands[name] == two.operands.get(name))
        for dim in range(one.image_dims):
            doubled = (*one.output[:dim], 2 * one.output[dim], *one.output[dim + 1 :])
            if names and two.output == doubled:
                hooked[number] = HookedCall(one.layer, names, one.output, dim)
    return hooked
