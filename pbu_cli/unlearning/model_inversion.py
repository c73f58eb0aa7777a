"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.models.features import read_head
from pbu_cli.models.hooks import first_argument, gradients_for
from pbu_cli.runtime.device import multiplies_bfloat16
from pbu_cli.settings import Schedule
from pbu_cli.unlearning.batchnorm_mean import batch_norms

BATCH = 128  # anchors that are made together at most; their statistics are compared as one
RATE = 0.1  # Adam's, in standard deviations of a channel
STATISTICS = 3.0  # weight of those of the start
EPSILON = 1e-5


@dataclass(frozen=True)
class Anchors:
    """inputs: [n, *what the model takes]; answers, features: theta*'s logits [n, c] on them and
    the input of its head [n, d]. opposite: that of the forget inputs they were made from, [m, d].
    """

    inputs: Tensor
    answers: Tensor
    features: Tensor
    opposite: Tensor


def synthesise_anchors(
    model: nn.Module,
    head: str,
    starts: Tensor,
    staying: Tensor,
    *,
    count: int,
    schedule: Schedule,
    channels_last: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> Anchors:
    """`count` anchors for a model in eval mode, whose logits the module `head` gives.

    starts: forget inputs as the model takes them, [n, *shape]; staying: bool [c], true for the
    classes to make anchors of. Deterministic in `schedule.seed`. theta* is left as it is.
    Maps are [n, k, height, width], or [n, height, width, k] where they have their `channels_last`.
    """
    norms = batch_norms(model, starts[:2])
    inputs = _invert(model, norms, starts, starts, staying, count, schedule, channels_last, done)
    size = inputs_at_once(schedule)
    features, answers = read_head(model, head, inputs.split(size))
    opposite, _ = read_head(model, head, starts.split(size))
    device = starts.device
    return Anchors(inputs, answers.to(device), features.to(device), opposite.to(device))


def synthesise_forget_inputs(
    model: nn.Module,
    anchors: Anchors,
    like: Tensor,
    forgotten: Tensor,
    *,
    count: int,
    schedule: Schedule,
    channels_last: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """`count` inputs [count, *shape] that theta* takes for a class to forget, made from anchors
    with the range and statistics of the inputs `like`, whatever BatchNorm holds of the other
    classes; and its logits on them, [count, c].
    """
    inputs = _invert(
        model, [], anchors.inputs, like, forgotten, count, schedule, channels_last, done
    )  # fmt: skip
    with torch.no_grad():
        parts = inputs.split(inputs_at_once(schedule))
        return inputs, torch.cat([model(part).float() for part in parts])


def _invert(
    model: nn.Module,
    norms: list[nn.Module],
    starts: Tensor,
    like: Tensor,
    wanted: Tensor,
    count: int,
    schedule: Schedule,
    channels_last: bool,
    done: Callable[[int], None],
) -> Tensor:
    """Inputs for the `wanted` classes, bool [c], from some of `starts`, with the statistics of
    the BatchNorms `norms`, or without any those of `like`."""
    generator = torch.Generator().manual_seed(schedule.seed)
    places = _all_but_channel(like, channels_last)
    own = _statistics(like, places)
    bounds = like.amin(places, True), like.amax(places, True)
    made: list[Tensor] = []
    short = shorter(model, starts[:2])
    with gradients_for(model, []):
        for first in range(0, count, inputs_at_once(schedule)):
            size = min(inputs_at_once(schedule), count - first)
            chosen = torch.randint(len(starts), (size,), generator=generator).to(starts.device)
            target = _targets(size, wanted, generator)
            with short:
                found = _descend(
                    model, norms, starts[chosen], target, own, bounds, places, schedule.inversion
                )
            made.append(found)
            done(first + size)
    return torch.cat(made)


@torch.no_grad()
def shorter(model: nn.Module, x: Tensor) -> AbstractContextManager[object]:
    """A context in which the model multiplies in bfloat16, where that is quicker and the model,
    tried on x, bears it. Where an anchor ends is of no account to three digits, and making them is
    most of what a run takes; what the model answers to them is asked in float32.
    """
    if not multiplies_bfloat16(x.device):
        return nullcontext()
    autocast = torch.autocast(x.device.type, torch.bfloat16)
    try:
        with autocast:
            bears = bool(model(x).isfinite().all())
    except Exception:  # code of the user's own may insist on float32
        bears = False
    return autocast if bears else nullcontext()


def _descend(
    model: nn.Module,
    norms: list[nn.Module],
    starts: Tensor,
    target: Tensor,
    own: tuple[Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
    places: tuple[int, ...],
    steps: int,
) -> Tensor:
    deviation = own[1]
    low, high = (bound / deviation for bound in bounds)
    x = (starts / deviation).requires_grad_()
    optimiser = torch.optim.Adam([x], RATE)
    with _mismatches(norms) as heard:
        for _ in range(steps):
            inputs = x * deviation
            loss = F.cross_entropy(model(inputs).float(), target)
            if norms:
                loss = loss + torch.stack(heard).mean()
                heard.clear()
            else:
                found = _statistics(inputs, places)
                loss = loss + STATISTICS * _mismatch(found, own)
            # The mean over a batch would give each of its members a smaller step.
            (x.grad,) = torch.autograd.grad(loss * len(x), x)
            optimiser.step()
            with torch.no_grad():
                x.clamp_(low, high)
    return (x * deviation).detach()


@contextmanager
def _mismatches(norms: list[nn.Module]) -> Iterator[list[Tensor]]:
    """While it lasts, the list takes from each of these BatchNorms that a pass meets how far what
    enters it is from its statistics."""
    heard: list[Tensor] = []

    def compare(norm: Any, args: Any, named: Any) -> None:
        x = first_argument(args, named)
        var, mean = torch.var_mean(x.float(), [d for d in range(x.dim()) if d != 1], correction=0)
        own = norm.running_mean, (norm.running_var + norm.eps).sqrt()
        heard.append(_mismatch((mean, (var + norm.eps).sqrt()), own))

    handles = [norm.register_forward_pre_hook(compare, with_kwargs=True) for norm in norms]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _mismatch(found: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> Tensor:
    """Of means and deviations, in `own` deviations. -> []."""
    (mean, deviation), (own_mean, own_deviation) = found, own
    apart = ((mean - own_mean) / own_deviation).square() + (deviation / own_deviation - 1).square()
    return apart.mean()


def _targets(size: int, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Half of them one of the classes wanted, the others a mixture of two, at least half the first.

    wanted: bool [c] -> [size, c].
    """
    classes = wanted.cpu().nonzero()[:, 0]
    first, second = classes[torch.randint(len(classes), (2, size), generator=generator)]
    share = 0.5 + 0.5 * torch.rand(size, generator=generator)
    share[torch.rand(size, generator=generator) < 0.5] = 1.0
    target = torch.zeros(size, len(wanted))
    target.scatter_add_(1, first[:, None], share[:, None])
    target.scatter_add_(1, second[:, None], 1 - share[:, None])
    return target.to(wanted.device)


def inputs_at_once(schedule: Schedule) -> int:
    """How many inputs go through the network at once: as in a step, of forget inputs and as many
    anchors."""
    return min(BATCH, 2 * schedule.batch_size)


def _all_but_channel(x: Tensor, channels_last: bool) -> tuple[int, ...]:
    """Of maps [n, k, h, w] or [n, h, w, k], tokens [n, t, k] and vectors [n, k]."""
    return (0, 2, 3) if x.dim() == 4 and not channels_last else tuple(range(x.dim() - 1))


def _statistics(x: Tensor, places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, in x's dimensions."""
    variance, mean = torch.var_mean(x.float(), places, correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()
