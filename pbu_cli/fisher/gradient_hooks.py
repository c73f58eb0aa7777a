"""Taps: hand out what a layer saw and the gradient of its output, in the midst of a plain backward.

A forward pass under `Calls` shows every call of a layer of `LAYERS`, whoever makes it: a module,
`F.linear` inside an attention, `self.scale * x`. At a chosen call, a site, the layer runs on
detached parameters, so autograd never computes their gradients, and a tap behind it hands (a, g)
to the rules when backward passes by. Everything else stays torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pbu_cli.errors import PbuError
from pbu_cli.fisher.layer_table import LAYERS, Call, Layer

Operands = Mapping[str, Tensor]  # what stands where parameters may: argument name -> tensor
Visit = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Calls(TorchFunctionMode):
    """While active, `visit(number, functional, args, kwargs)` answers every call of a layer."""

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
            # A mode is off within its own handler: switch it on again for the calls inside.
            with self:
                return _unguarded(func)(*args, **kwargs)
        if func not in LAYERS:
            return func(*args, **kwargs)
        self.count += 1
        return self.visit(self.count - 1, func, args, kwargs)


def _unguarded(func: Callable[..., Any]) -> Callable[..., Any]:
    """`func` without its first question, "does a mode want this call?", which has been answered."""
    assert isinstance(func, FunctionType)
    scope = {**func.__globals__, "has_torch_function": lambda tensors: False}
    return FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)


@dataclass(frozen=True)
class HookedCall:
    """A call at which a parameter, or something made of parameters alone, meets the images.

    Dimension `dim` of the output runs over [outer, images, inner]: inner = 1 where images lie
    side by side ([T, N, E] flattened), outer = 1 where the parts of an image do (windows of Swin).
    """

    layer: Layer
    slots: tuple[str, ...]  # the arguments to detach
    shape: torch.Size  # of the output for one image
    dim: int
    inner: int = 1

    def images_first(self, t: Tensor, images: int) -> Tensor:
        """t, an output or what broadcasts to it, as [images, *(what one image alone gives)].

        >>> site = HookedCall(LAYERS[F.linear], (), torch.Size([2, 1]), 0, inner=1)
        >>> site.images_first(torch.tensor([[1], [2], [3], [1], [2], [3]]), 3).tolist()
        [[[1], [1]], [[2], [2]], [[3], [3]]]
        """
        if self.dim == 0 and len(t) == images:  # the usual case
            return t[:, None]
        t = t.reshape((1,) * (len(self.shape) - t.ndim) + t.shape)
        before, after = t.shape[: self.dim], t.shape[self.dim + 1 :]
        split = t.reshape(*before, -1, images, self.inner, *after)
        return split.movedim(self.dim + 1, 0).flatten(self.dim + 1, self.dim + 2)

    def fits(self, shape: torch.Size, images: int) -> bool:
        """Whether an output of this shape is `images` times the planned one."""
        grown = list(self.shape)
        grown[self.dim] *= images
        return list(shape) == grown


class _Tap(torch.autograd.Function):
    """The identity, in place; on the way back it shows (a, g).

    `anchor` is a leaf that wants a gradient and never gets one: it makes autograd walk back to
    the first tap and no further. `a` goes through save_for_backward, so that autograd notices if
    a later in-place operation overwrites it.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, a: Tensor | None, anchor: Tensor, show: Callable[..., None]
    ) -> Tensor:
        ctx.save_for_backward(a)
        ctx.show = show
        ctx.mark_dirty(z)  # not a view of z: the model may go on in place, as ReLU(inplace) does
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.autocast(g.device.type, enabled=False):
            ctx.show(ctx.saved_tensors[0], g)
        return g, None, None, None


class _TappedLayer(torch.autograd.Function):
    """A layer and the tap behind it in one, for a layer that knows its own way back."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        anchor: Tensor,
        run: Callable[[], Tensor],
        show: Callable[..., None],
        back: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(a)
        ctx.show, ctx.back = show, back
        return run()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        with torch.autocast(g.device.type, enabled=False):
            ctx.show(ctx.saved_tensors[0], g)
            return ctx.back(g) if ctx.needs_input_grad[0] else None, None, None, None, None


def forward_with_hooks(
    model: nn.Module,
    x: Tensor,
    sites: Mapping[int, HookedCall],
    show: Callable[[int, Call, Operands, Tensor | None, Tensor], None],
    at_output: Callable[[int, Operands, Tensor], None] = lambda number, operands, z: None,
) -> tuple[Tensor, Tensor, int]:
    """One forward pass with a tap at every site: logits, anchor, number of calls of layers.

    `sent_back(logits, v, [anchor])` then calls, for each site,
    `show(number, call, operands, a, g)`; `call` lacks the tensors, which autograd looks after.
    """
    anchor = x.new_zeros((), requires_grad=True)

    def visit(
        number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        site = sites.get(number)
        if site is None:
            return func(*args, **kwargs)
        call = LAYERS[func].bind(args, kwargs) if LAYERS[func] is site.layer else None
        if call is None:
            raise_changed()
        operands = {slot: call[slot] for slot in site.slots}
        frozen = {id(p): p.detach() for p in operands.values()}
        dense = site.layer.dense
        if dense is not None and dense not in operands and not call[dense].is_contiguous():
            strided = call[dense]
            frozen[id(strided)] = strided.contiguous()
            call = {**call, dense: frozen[id(strided)]}

        def run() -> Any:
            return func(
                *(frozen.get(id(arg), arg) for arg in args),
                **{key: frozen.get(id(arg), arg) for key, arg in kwargs.items()},
            )

        reads = next((read for slot in site.slots if (read := site.layer.rules[slot].reads)), None)
        rest = {key: arg for key, arg in call.items() if key not in operands and key != reads}

        def seen(a: Tensor | None, g: Tensor) -> None:
            show(number, rest, operands, a, g)

        back = site.layer.back
        if reads is None or back is None:
            z, a = run(), call[reads].detach() if reads else None
        else:
            given = {key: arg for key, arg in call.items() if key != reads}
            z, a = _TappedLayer.apply(call[reads], anchor, run, seen, partial(back, given)), None
        if not site.fits(z.shape, len(x)):
            raise_changed()
        at_output(number, operands, z)
        if reads is not None and back is not None:
            return z
        z = z.clone() if z._is_view() else z  # a tap is in place, which a view would pass on
        return _Tap.apply(z, a, anchor, seen)

    with Calls(visit) as calls:
        logits = model(x)
    return checked_logits(logits, len(x)), anchor, calls.count


def sent_back(
    logits: Tensor, v: Tensor, leaves: Sequence[Tensor], *, more: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of sum(v * logits) by `leaves`, None where it does not depend on one.

    Where `torch.autograd.grad` is handed v itself, it imports a computer algebra system to compare
    two shapes.

    >>> x = torch.tensor([3.0], requires_grad=True)
    >>> sent_back(x * x, torch.tensor([10.0]), [x])
    (tensor([60.]),)
    """
    total = (logits * v).sum()
    return torch.autograd.grad(total, leaves, retain_graph=more, allow_unused=True)


def checked_logits(logits: Any, images: int) -> Tensor:
    """The model's answer, which has to be [images, classes] and nothing else."""
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == images:
        return logits
    found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise PbuError(
        f"the model has to give logits of shape ({images}, classes) for {images} images, "
        f"got {found}; wrap it so that it returns the logits alone"
    )


def raise_changed() -> NoReturn:
    """The plan was made for another computation than the one that ran."""
    raise PbuError(
        "the model calls other layers, or on other shapes, than it did for the images it was tried "
        "on, so its gradients cannot be vouched for; make its forward pass the same for all images"
    )
