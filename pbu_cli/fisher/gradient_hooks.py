"""Gradient hooks: what a layer received and the gradient of its output, during a plain backward.

A forward pass inside `LayerCalls` sees every call of a layer of `LAYERS`, whoever makes it: a
module, `F.linear` inside an attention, or `self.scale * x`. At a chosen call, the `HookedCall`, the
layer runs on detached parameters, so that autograd never computes their gradients. A gradient hook
behind the layer hands (a, g) to the rules when backward passes by. torch does everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError
from pbu_cli.fisher.layer_calls import HookedCall, LayerCalls, plain_call
from pbu_cli.fisher.layer_table import LAYERS
from pbu_cli.fisher.per_sample_gradients import Arguments

Operands = Mapping[str, Tensor]  # the trainable arguments of a call: argument name -> tensor
OnGradient = Callable[[int, Arguments, Operands, Tensor | None, Tensor], None]
OnOutput = Callable[[int, Operands, Tensor], None]
ShowGradient = Callable[[Tensor | None, Tensor], None]  # (a, g)


class _GradientHook(torch.autograd.Function):
    """The identity, in place. Its backward shows (a, g).

    `leaf` requires a gradient and never gets one. It makes autograd walk back to the first hook and
    no further. `a` goes through save_for_backward, so that autograd notices if a later in-place
    operation overwrites it.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor | None, leaf: Tensor, show: ShowGradient) -> Tensor:
        ctx.save_for_backward(a)
        ctx.show = show
        ctx.mark_dirty(z)  # not a view of z: the model may go on in place, as ReLU(inplace) does
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.autocast(g.device.type, enabled=False):
            ctx.show(ctx.saved_tensors[0], g)
        return g, None, None, None


class _HookedLayer(torch.autograd.Function):
    """A layer and the hook behind it in one, for a layer that has its own input gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        leaf: Tensor,
        run: Callable[[], Tensor],
        show: ShowGradient,
        input_gradient: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(a)
        ctx.show, ctx.input_gradient = show, input_gradient
        return run()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        with torch.autocast(g.device.type, enabled=False):
            ctx.show(ctx.saved_tensors[0], g)
            of_input = ctx.input_gradient(g) if ctx.needs_input_grad[0] else None
            return of_input, None, None, None, None


def forward_with_hooks(
    model: nn.Module,
    x: Tensor,
    hooked_calls: Mapping[int, HookedCall],
    on_gradient: OnGradient,
    on_output: OnOutput = lambda number, operands, z: None,
) -> tuple[Tensor, Tensor, int]:
    """One forward pass with a gradient hook at every hooked call.

    Returns the logits, the leaf and the number of calls of layers. `backpropagate(logits, v,
    [leaf])` then calls `on_gradient(number, arguments, operands, a, g)` for each hooked call.
    `arguments` lacks the operands and a, since autograd has to look after those tensors.
    """
    leaf = x.new_zeros((), requires_grad=True)

    def visit(
        number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        hooked = hooked_calls.get(number)
        if hooked is None:
            return plain_call(func, args, kwargs)
        arguments, operands, run = _detached_call(hooked, func, args, kwargs)
        name = hooked.rule_input()
        others = {key: value for key, value in arguments.items() if key != name}
        shown = {key: value for key, value in others.items() if key not in operands}

        def show(a: Tensor | None, g: Tensor) -> None:
            on_gradient(number, shown, operands, a, g)

        by_hand = hooked.layer.input_gradient
        if name is None or by_hand is None:
            z = run()
        else:
            z = _HookedLayer.apply(arguments[name], leaf, run, show, partial(by_hand, others))
        if not hooked.fits(z.shape, len(x)):
            raise_changed()
        on_output(number, operands, z)
        if name is not None and by_hand is not None:
            return z
        a = None if name is None else arguments[name].detach()
        z = z.clone() if z._is_view() else z  # the hook is in place, which a view would pass on
        return _GradientHook.apply(z, a, leaf, show)

    with LayerCalls(visit) as calls:
        logits = model(x)
    return checked_logits(logits, len(x)), leaf, calls.count


def _detached_call(
    hooked: HookedCall, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Arguments, Operands, Callable[[], Any]]:
    """The call's arguments by name, its operands, and a function that runs it on detached operands.

    Raises PbuError if the call is not the planned one.
    """
    arguments = LAYERS[func].bind(args, kwargs) if LAYERS[func] is hooked.layer else None
    if arguments is None:
        raise_changed()
    operands = {name: arguments[name] for name in hooked.operands}
    replaced = {id(operand): operand.detach() for operand in operands.values()}
    name = hooked.layer.contiguous
    if name is not None and name not in operands and not arguments[name].is_contiguous():
        copy = arguments[name].contiguous()
        replaced[id(arguments[name])] = copy
        arguments = {**arguments, name: copy}

    def run() -> Any:
        return func(
            *(replaced.get(id(value), value) for value in args),
            **{key: replaced.get(id(value), value) for key, value in kwargs.items()},
        )

    return arguments, operands, run


def backpropagate(
    logits: Tensor, v: Tensor, leaves: Sequence[Tensor], *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of sum(v * logits) with respect to `leaves`, None where there is none.

    v is not passed to `torch.autograd.grad` itself, which would import a computer algebra system to
    compare two shapes.

    >>> x = torch.tensor([3.0], requires_grad=True)
    >>> backpropagate(x * x, torch.tensor([10.0]), [x])
    (tensor([60.]),)
    """
    total = (logits * v).sum()
    return torch.autograd.grad(total, leaves, retain_graph=keep_graph, allow_unused=True)


def checked_logits(logits: Any, images: int) -> Tensor:
    """The model's output, which has to be [images, classes] and nothing else."""
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == images:
        return logits
    found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    raise PbuError(
        f"the model has to give logits of shape ({images}, classes) for {images} images, "
        f"got {found}; wrap it so that it returns the logits alone"
    )


def raise_changed() -> NoReturn:
    """Raise PbuError: the plan was made for another computation than the one that ran."""
    raise PbuError(
        "the model calls other layers or sees other shapes than on the images that its plan was "
        "made for, so its gradients may be wrong; make its forward pass the same for all images"
    )
