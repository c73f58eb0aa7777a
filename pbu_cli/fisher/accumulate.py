"""Squared gradients of single images, summed over one batch: at once, or image by image.

    totals += sum over images n, sum over output vectors v[n] of (J_n^T v[n])^2

with J_n = dz_n / dtheta. `add_with_hooks` takes one forward pass over the batch and one backward
pass for each output vector, with gradient hooks at the calls that the plan of `dispatch.py` names.
`add_per_image` is plain autograd on one image at a time, for parameters that no hook covers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pbu_cli.fisher.dispatch import PER_IMAGE, VIA_AUTOGRAD, FisherPlan
from pbu_cli.fisher.gradient_hooks import (
    Operands,
    backpropagate,
    checked_logits,
    forward_with_hooks,
    raise_changed,
)
from pbu_cli.fisher.layer_calls import LayerCalls, plain_call
from pbu_cli.fisher.per_sample_gradients import Arguments
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.runtime.cuda_graph import CudaGraphRunner

# (logits [n, C], targets [n, ...]) -> output vectors [n, C]. The targets are the labels, or the
# random numbers from which the Monte Carlo estimator draws labels.
OutputVectors = Callable[[Tensor, Tensor], Iterable[Tensor]]
Parameters = Mapping[str, nn.Parameter]
Totals = dict[str, Tensor]

# On these devices torch raises no error when memory runs out: the system kills the process.
NO_MEMORY_ERROR = {"cpu"}
# How many numbers the per-image gradients that go through autograd may hold: 256 MB in fp32.
_MAX_NUMBERS_VIA_AUTOGRAD = 1 << 26
# The average size, in numbers, of a hooked call's output for all images at once. From this size on,
# more images at once save no time on a CPU, since the fixed cost of a call is small by then.
_NUMBERS_THAT_KEEP_A_CPU_BUSY = 1 << 20
# A GPU records the pass as a graph up to this many hooked calls in backward, counted over all
# output vectors. A longer pass takes long to record and much memory.
_MAX_HOOKED_CALLS_IN_GRAPH = 4_000


def add_batch(
    model: nn.Module,
    parameters: Parameters,
    plan: FisherPlan,
    x: Tensor,
    targets: Tensor,
    output_vectors: OutputVectors,
    totals: Totals,
) -> None:
    """Add one batch to `totals`, each parameter by its strategy."""
    images = images_per_pass(plan, parameters, x)
    for start in range(0, len(x), images):
        part = slice(start, start + images)
        add_with_hooks(model, parameters, plan, x[part], targets[part], output_vectors, totals)
    per_image = {name: parameters[name] for name in plan.names(PER_IMAGE)}
    if per_image:
        add_per_image(model, per_image, x, targets, output_vectors, totals)


def images_per_pass(plan: FisherPlan, parameters: Parameters, x: Tensor) -> int:
    """How many of the images x go through the model together.

    The inputs of the layers are held for all of these images until backward has passed. So no more
    images go together than save time.

    >>> images_per_pass(FisherPlan(0, {}, {}, (), 2), {}, torch.zeros(3, 1))
    3
    """
    images = len(x)
    sizes = [call.shape.numel() for call in plan.hooked_calls.values()]
    if sizes and x.device.type in NO_MEMORY_ERROR:
        enough = -(-_NUMBERS_THAT_KEEP_A_CPU_BUSY * len(sizes) // sum(sizes))
        images = -(-len(x) // max(1, len(x) // enough))  # even parts, none smaller than `enough`
    held = sum(parameters[name].numel() for name in plan.names(VIA_AUTOGRAD))
    return min(images, max(1, _MAX_NUMBERS_VIA_AUTOGRAD // held)) if held else images


def batch_adder(
    model: nn.Module,
    parameters: Parameters,
    plan: FisherPlan,
    output_vectors: OutputVectors,
    count: int,
    totals: Totals,
) -> Callable[[Tensor, Tensor], None]:
    """A function that adds batches (x, targets) of one image size to `totals`.

    It is `add_batch`, on fewer images at a time once the device's memory has run out. count: the
    output vectors of an image.

    Backward adds to the totals as it goes. So where memory may run out half way, the images of a
    part have totals of their own until their backward is done.
    """

    def part_totals(x: Tensor, targets: Tensor) -> Sequence[Tensor]:
        sums = zero_totals(parameters)
        add_batch(model, parameters, plan, x, targets, output_vectors, sums)
        return [sums[name] for name in totals]

    hooks_run = count * len(plan.hooked_calls)
    recordable = hooks_run <= _MAX_HOOKED_CALLS_IN_GRAPH and not plan.names(PER_IMAGE)
    run = CudaGraphRunner(part_totals) if recordable else part_totals
    retry = BatchSizeRetry()

    def add(x: Tensor, targets: Tensor) -> None:
        if x.device.type in NO_MEMORY_ERROR:
            add_batch(model, parameters, plan, x, targets, output_vectors, totals)
            return
        for sums in retry.each(lambda part: run(x[part], targets[part]), len(x)):
            if totals:  # torch does not add empty lists
                torch._foreach_add_([*totals.values()], [*sums])

    return add


def add_with_hooks(
    model: nn.Module,
    parameters: Parameters,
    plan: FisherPlan,
    x: Tensor,
    targets: Tensor,
    output_vectors: OutputVectors,
    totals: Totals,
) -> None:
    """Add the squares of all parameters except those with the strategy `PER_IMAGE`.

    Raises PbuError if the model's calls are not those of the plan.
    """
    if not plan.hooked_calls:
        return
    via_autograd = {name: parameters[name] for name in plan.names(VIA_AUTOGRAD)}
    without_rule = {*via_autograd, *plan.names(PER_IMAGE)}
    names = {id(parameter): name for name, parameter in parameters.items()}
    visited: list[str] = []
    pending: list[tuple[Tensor, Tensor]] = []  # operands, and their per-image gradients

    def on_gradient(
        number: int, arguments: Arguments, operands: Operands, a: Tensor | None, g: Tensor
    ) -> None:
        call = plan.hooked_calls[number]
        g = _at_least_float32(call.images_first(g, len(x)))
        a = g if a is None else _at_least_float32(call.images_first(a, len(x)))
        for key, operand in operands.items():
            rule, name = call.layer.rules[key], names.get(id(operand), "")
            if name and name not in without_rule:
                rule.add_squared(totals[name], arguments, a, g)
            elif operand.requires_grad:
                gradients = rule.per_sample(arguments, a, g, operand.shape)
                pending.append((operand, gradients.to(operand.dtype)))

    def on_output(number: int, operands: Operands, z: Tensor) -> None:
        visited.extend(names.get(id(operand), "") for operand in operands.values())

    require_gradients(parameters, via_autograd)
    logits, leaf, calls = forward_with_hooks(model, x, plan.hooked_calls, on_gradient, on_output)
    if (calls, tuple(visited)) != (plan.layer_calls, plan.visited):
        raise_changed()
    if not logits.requires_grad:
        return
    for v, more in _with_more(output_vectors(logits.detach(), targets)):
        backpropagate(logits, v.to(logits), [leaf], keep_graph=more)
        _add_via_autograd(pending, via_autograd, totals)
        pending.clear()


def _add_via_autograd(
    pending: list[tuple[Tensor, Tensor]], parameters: Parameters, totals: Totals
) -> None:
    """pending: tensors made of parameters, each with its gradient [n, ...] for every image n.

    The uses of a parameter are added before squaring: a weight used twice has one gradient.
    """
    if not pending:
        return
    operands, gradients = zip(*pending, strict=True)
    for of_image in zip(*gradients, strict=True):
        found = torch.autograd.grad(
            operands, list(parameters.values()), of_image, retain_graph=True, allow_unused=True
        )
        _add_square(totals, parameters, found)


def add_per_image(
    model: nn.Module,
    parameters: Parameters,
    x: Tensor,
    targets: Tensor,
    output_vectors: OutputVectors,
    totals: Totals,
) -> None:
    """Add the squares of `parameters` by plain autograd, one image and output vector at a time."""
    require_gradients(parameters, parameters)
    for n in range(len(x)):
        with LayerCalls(lambda number, *call: plain_call(*call)):
            logits = checked_logits(model(x[n : n + 1]), 1)
        if not logits.requires_grad:
            continue
        for v, more in _with_more(output_vectors(logits.detach(), targets[n : n + 1])):
            leaves, v = list(parameters.values()), v.to(logits)
            # A name for the gradients would keep them in memory beside those of the next image.
            _add_square(totals, parameters, backpropagate(logits, v, leaves, keep_graph=more))


def _with_more(output_vectors: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each output vector, and whether more follow. The last backward pass frees the graph.

    >>> [more for _, more in _with_more(torch.zeros(3, 1))]
    [True, True, False]
    """
    rest = iter(output_vectors)
    v = next(rest, None)
    while v is not None:
        following = next(rest, None)
        yield v, following is not None
        v = following


def _add_square(totals: Totals, parameters: Parameters, found: Iterable[Tensor | None]) -> None:
    for name, g in zip(parameters, found, strict=True):
        if g is not None:
            g = _at_least_float32(g)
            totals[name].addcmul_(g, g)


def require_gradients(parameters: Parameters, names: Collection[str]) -> None:
    """Let those of `parameters` with one of these names require a gradient, and no others."""
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)


def zero_totals(parameters: Parameters) -> Totals:
    """Zeros to add to. Kernels of 2d convolutions have their channels last, as `add_conv` needs."""
    totals = {}
    for name, p in parameters.items():
        order = torch.channels_last if p.ndim == 4 else torch.contiguous_format
        totals[name] = _at_least_float32(torch.zeros_like(p.detach(), memory_format=order))
    return totals


def _at_least_float32(t: Tensor) -> Tensor:
    """t, in fp32 if it is in half precision, where the squares of gradients underflow."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
