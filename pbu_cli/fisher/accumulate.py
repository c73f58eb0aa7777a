"""Squared gradients of single images, summed over one batch: at once, or image by image.

    totals += sum over images n, sum over columns v[n] of (J_n^T v[n])^2,    J_n = dz_n / dtheta

`add_at_once` takes one forward pass over the batch and one backward pass for each column, forward_with_hooks
as `plan.py` found; `add_alone` is plain autograd on one image at a time, for what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pbu_cli.fisher.dispatch import PER_IMAGE, VIA_AUTOGRAD, FisherPlan
from pbu_cli.fisher.gradient_hooks import (
    Operands,
    checked_logits,
    forward_with_hooks,
    raise_changed,
    sent_back,
)
from pbu_cli.fisher.layer_table import Call
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry
from pbu_cli.runtime.cuda_graph import CudaGraphRunner

OutputVectors = Callable[
    [Tensor, Tensor], Iterable[Tensor]
]  # (logits [n, C], given [n]) -> v [n, C]
Parameters = Mapping[str, nn.Parameter]
Totals = dict[str, Tensor]

# Of these torch never says that memory ran out: the system ends the process.
NEVER_OUT = {"cpu"}
# Numbers held for gradients of single images that are to be pulled back: 256 MB in fp32.
_HELD = 1 << 26
# Numbers that a forward_with_hooks call gives for all images at once, on average, from which more images at
# once save no time on a CPU: what is fixed for each call is then small beside the work.
_BUSY = 1 << 20
# Tapped calls on the way back, of all columns together, up to which a GPU has the pass as a graph;
# one of more takes long to record and much memory.
_RECORDED = 4_000


def add(
    model: nn.Module,
    wanted: Parameters,
    plan: FisherPlan,
    x: Tensor,
    given: Tensor,
    columns: OutputVectors,
    totals: Totals,
) -> None:
    """Add one batch to `totals`, each parameter in its way."""
    rows = images_at_once(plan, wanted, x)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        add_at_once(model, wanted, plan, x[part], given[part], columns, totals)
    alone = {name: wanted[name] for name in plan.by(PER_IMAGE)}
    if alone:
        add_alone(model, alone, x, given, columns, totals)


def images_at_once(plan: FisherPlan, wanted: Parameters, x: Tensor) -> int:
    """How many of the images x go through the model together: no more than there is a use for.

    What the layers saw is held until backward has passed, for as many images as go together.

    >>> images_at_once(FisherPlan(0, {}, {}, (), 2), {}, torch.zeros(3, 1))
    3
    """
    rows = len(x)
    sizes = [site.shape.numel() for site in plan.sites.values()]
    if sizes and x.device.type in NEVER_OUT:
        enough = -(-_BUSY * len(sizes) // sum(sizes))
        rows = -(-len(x) // max(1, len(x) // enough))  # parts as even as can be, none too small
    held = sum(wanted[name].numel() for name in plan.by(VIA_AUTOGRAD))
    return min(rows, max(1, _HELD // held)) if held else rows


def adder(
    model: nn.Module,
    wanted: Parameters,
    plan: FisherPlan,
    columns: OutputVectors,
    count: int,
    totals: Totals,
) -> Callable[[Tensor, Tensor], None]:
    """What adds batches (x, given) of one image size to `totals`, `count` columns for each image:
    `add`, on fewer images at a time from where the device's memory runs out.

    Backward adds to the totals as it goes. So where memory may run out in the midst of it, some
    images have totals of their own until they are through.
    """

    def squares(x: Tensor, given: Tensor) -> Sequence[Tensor]:
        own = zeros(wanted)
        add(model, wanted, plan, x, given, columns, own)
        return [own[name] for name in totals]

    short = count * len(plan.sites) <= _RECORDED and not plan.by(PER_IMAGE)
    work, portion = CudaGraphRunner(squares) if short else squares, BatchSizeRetry()

    def add_batch(x: Tensor, given: Tensor) -> None:
        if x.device.type in NEVER_OUT:
            add(model, wanted, plan, x, given, columns, totals)
            return
        for own in portion.each(lambda part: work(x[part], given[part]), len(x)):
            if totals:  # torch adds no empty lists
                torch._foreach_add_([*totals.values()], [*own])

    return add_batch


def add_at_once(
    model: nn.Module,
    wanted: Parameters,
    plan: FisherPlan,
    x: Tensor,
    given: Tensor,
    columns: OutputVectors,
    totals: Totals,
) -> None:
    """Add the squares of all parameters but those that go image by image."""
    if not plan.sites:
        return
    pulled = {name: wanted[name] for name in plan.by(VIA_AUTOGRAD)}
    others = {*pulled, *plan.by(PER_IMAGE)}
    names = {id(parameter): name for name, parameter in wanted.items()}
    met: list[str] = []
    owed: list[tuple[Tensor, Tensor]] = []

    def show(number: int, call: Call, operands: Operands, a: Tensor | None, g: Tensor) -> None:
        site = plan.sites[number]
        g = _wide(site.images_first(g, len(x)))
        a = g if a is None else _wide(site.images_first(a, len(x)))
        for slot, operand in operands.items():
            rule, name = site.layer.rules[slot], names.get(id(operand), "")
            if name and name not in others:
                rule.add_squared(totals[name], call, a, g)
            elif operand.requires_grad:
                owed.append((operand, rule.each(call, a, g, operand.shape).to(operand.dtype)))

    def at_output(number: int, operands: Operands, z: Tensor) -> None:
        met.extend(names.get(id(operand), "") for operand in operands.values())

    require(wanted, pulled)
    logits, anchor, calls = forward_with_hooks(model, x, plan.sites, show, at_output)
    if (calls, tuple(met)) != (plan.calls, plan.met):
        raise_changed()
    if not logits.requires_grad:
        return
    for v, more in _ahead(columns(logits.detach(), given)):
        sent_back(logits, v.to(logits), [anchor], more=more)
        _pull_back(owed, pulled, totals)
        owed.clear()


def _pull_back(owed: list[tuple[Tensor, Tensor]], pulled: Parameters, totals: Totals) -> None:
    """owed: what is made of parameters, and the gradient [n, ...] there of every image n.

    Uses add up before the square: a weight used twice has one gradient.
    """
    if not owed:
        return
    operands, gradients = zip(*owed, strict=True)
    for of_image in zip(*gradients, strict=True):
        found = torch.autograd.grad(
            operands, list(pulled.values()), of_image, retain_graph=True, allow_unused=True
        )
        _add_square(totals, pulled, found)


def add_alone(
    model: nn.Module,
    alone: Parameters,
    x: Tensor,
    given: Tensor,
    columns: OutputVectors,
    totals: Totals,
) -> None:
    """Add the squares of `alone` by plain autograd, one image and one column at a time."""
    require(alone, alone)
    for n in range(len(x)):
        logits = checked_logits(model(x[n : n + 1]), 1)
        if not logits.requires_grad:
            continue
        for v, more in _ahead(columns(logits.detach(), given[n : n + 1])):
            leaves, v = list(alone.values()), v.to(logits)
            # Without a name for the gradients, which would keep them beside the next image's.
            _add_square(totals, alone, sent_back(logits, v, leaves, more=more))


def _ahead(columns: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each column, and whether there are more: the last backward pass frees what it has used.

    >>> [more for _, more in _ahead(torch.zeros(3, 1))]
    [True, True, False]
    """
    rest = iter(columns)
    v = next(rest, None)
    while v is not None:
        following = next(rest, None)
        yield v, following is not None
        v = following


def _add_square(totals: Totals, parameters: Parameters, found: Iterable[Tensor | None]) -> None:
    for name, g in zip(parameters, found, strict=True):
        if g is not None:
            g = _wide(g)
            totals[name].addcmul_(g, g)


def require(wanted: Parameters, asking: Collection[str]) -> None:
    """Of `wanted`, exactly `asking` require a gradient from now on."""
    for name, parameter in wanted.items():
        parameter.requires_grad_(name in asking)


def zeros(parameters: Parameters) -> Totals:
    """Zeros to add to, of convolutions with the channels last, as `layer_rules.py` wants them."""
    totals = {}
    for name, p in parameters.items():
        order = torch.channels_last if p.ndim == 4 else torch.contiguous_format
        totals[name] = _wide(torch.zeros_like(p.detach(), memory_format=order))
    return totals


def _wide(t: Tensor) -> Tensor:
    """At least fp32: squares of half-precision gradients vanish."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
