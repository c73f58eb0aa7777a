"""Anchors: synthetic inputs that stand for the retained classes, made from the network alone.

An *anchor* is an input of the layers that train, optimised until the trained network theta*
predicts one of the retained classes for it, or a mixture of two. Forget images say little about the
retained classes, and no other image may be read, but the network holds what it has learnt of these
classes. So model inversion starts at a forget input x and minimises over x

    cross-entropy(f(x), t) + mean_l mean_k ((m_lk - m*_lk) / s*_lk)^2 + (s_lk / s*_lk - 1)^2

The target t is one of the retained classes, or a mixture of two; `class_shares` says how often each
class is drawn. m and s are the means and standard
deviations, over a batch, of the channels that enter each BatchNorm l after the frozen backbone. m*
and s* are the running statistics of that BatchNorm, which are those of the whole training set.
Without such a BatchNorm, m and s are those of the channels of x, m* and s* are their values at the
start, and the weight of this term is 3.

Anchors are not data: they come from theta*. Behind a frozen backbone x is a feature map, so no
image ever exists, and the backbone costs nothing. The same is then done in the other direction,
from anchors to the class to forget. These synthetic forget inputs are what else the network would
recognise as that class. If only the given images are forgotten, the class comes back on others.

Source: after DeepInversion (Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795), where
x starts as noise and has an image prior, which gained nothing here. Anchors that are held to the
statistics of their start alone, in a network with BatchNorm, exaggerate what marks their class: in
a ResNet-20 their features deviated 1.27 and 1.47 times as far as the features of images (without
ship, without cat), and 1.16 and 1.21 times if they were held to the running statistics.

Index letters: n inputs, l layers, k channels, c classes, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.models.features import read_head
from pbu_cli.models.hooks import gradients_for
from pbu_cli.models.inference import predict
from pbu_cli.runtime.device import multiplies_bfloat16
from pbu_cli.settings import Schedule
from pbu_cli.unlearning.batchnorm_mean import batch_norms
from pbu_cli.unlearning.channel_statistics import InputLimits, batchnorm_mismatches

BATCH = 128  # at most so many anchors are made together; a batch shares its statistics
ENOUGH = 100  # of each class: between 20 of a hundred classes and 227 of ten, where more harmed
RATE = 0.1  # Adam's learning rate, in standard deviations of a channel
START_WEIGHT = 3.0  # of the term that holds x to the statistics of its start


@dataclass(frozen=True)
class Anchors:
    """Anchors and what theta* gives for them.

    inputs: [n, *what the model takes]. logits: [n, c]. features: the input of the head, [n, d].
    forget_features: the same for the forget inputs that the anchors were made from, [m, d].
    """

    inputs: Tensor
    logits: Tensor
    features: Tensor
    forget_features: Tensor


def synthesise_anchors(
    model: nn.Module,
    head: str,
    seeds: Tensor,
    retained: Tensor,
    *,
    count: int,
    schedule: Schedule,
    channels_last: bool = False,
    done: Callable[[int], None] = lambda count: None,
) -> Anchors:
    """`count` anchors for a model in eval mode whose logits come from the module `head`.

    seeds: forget inputs as the model takes them, [n, *shape]. retained: bool [c], true for the
    classes to make anchors of. channels_last: whether feature maps are [n, height, width, k]
    instead of [n, k, height, width]. done: called with the number made so far. The result is
    deterministic in `schedule.seed`. The model is left as it is.
    """
    size = inputs_at_once(schedule)
    forget_features, forget_logits = read_head(model, head, seeds.split(size))
    limits = InputLimits.of(seeds, channels_last=channels_last)
    shares = class_shares(forget_logits, retained.cpu(), count)
    aim = _Aim(shares, limits, batch_norms(model, seeds[:2]))
    inputs = _invert(model, aim, seeds, count, schedule, done)
    features, logits = read_head(model, head, inputs.split(size))
    device = seeds.device
    return Anchors(inputs, logits.to(device), features.to(device), forget_features.to(device))


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
    """`count` synthetic forget inputs, [count, *shape], and theta*'s logits on them, [count, c].

    They start at anchors, and theta* predicts one of the classes `forgotten`, bool [c], for them.
    They have the range and the statistics of the forget inputs `like`, and not those of BatchNorms,
    which are of all classes.
    """
    shares = forgotten.float().cpu() / forgotten.sum().item()
    aim = _Aim(shares, InputLimits.of(like, channels_last=channels_last))
    inputs = _invert(model, aim, anchors.inputs, count, schedule, done)
    return inputs, predict(model, inputs.split(inputs_at_once(schedule))).logits


@dataclass(frozen=True)
class _Aim:
    """What an inversion makes inputs to be.

    shares: how often each class is the target, [c], with a sum of 1. limits: the range of the
    inputs, and their statistics. norms: if there are any, the running statistics of these
    BatchNorms take the place of the inputs' statistics.
    """

    shares: Tensor
    limits: InputLimits
    norms: Sequence[nn.Module] = ()


def _invert(
    model: nn.Module,
    aim: _Aim,
    seeds: Tensor,
    count: int,
    schedule: Schedule,
    done: Callable[[int], None],
) -> Tensor:
    """`count` inputs that start at random `seeds` and are optimised towards `aim`."""
    generator = torch.Generator().manual_seed(schedule.seed)
    made: list[Tensor] = []
    bfloat16 = bfloat16_if_possible(model, seeds[:2])
    targets = _targets(count, aim.shares, generator).to(seeds.device)
    with gradients_for(model, []):
        for target in targets.split(inputs_at_once(schedule)):
            chosen = torch.randint(len(seeds), (len(target),), generator=generator)
            x = seeds[chosen.to(seeds.device)]
            with bfloat16:
                made.append(_optimise(model, aim, x, target, schedule.inversion))
            done(sum(map(len, made)))
    return torch.cat(made)


@torch.no_grad()
def bfloat16_if_possible(model: nn.Module, x: Tensor) -> AbstractContextManager[object]:
    """A context in which the model multiplies in bfloat16.

    It changes nothing where bfloat16 is not faster, or where the model fails with it on the inputs
    x. Anchors need only about three digits of precision, and making them takes most of a run's
    time. Theta*'s logits on the finished anchors are computed in float32.
    """
    if not multiplies_bfloat16(x.device):
        return nullcontext()
    autocast = torch.autocast(x.device.type, torch.bfloat16)
    try:
        with autocast:
            works = bool(model(x).isfinite().all())
    except Exception:  # user code may require float32, and may raise anything
        works = False
    return autocast if works else nullcontext()


def _optimise(model: nn.Module, aim: _Aim, seeds: Tensor, target: Tensor, steps: int) -> Tensor:
    """Inputs for class probabilities `target`, [n, c], by `steps` steps of Adam from `seeds`."""
    limits = aim.limits
    low, high = limits.low / limits.deviation, limits.high / limits.deviation
    x = (seeds / limits.deviation).requires_grad_()
    optimizer = torch.optim.Adam([x], RATE)
    with batchnorm_mismatches(aim.norms) as mismatches:
        for _ in range(steps):
            inputs = x * limits.deviation
            loss = F.cross_entropy(model(inputs).float(), target)
            if aim.norms:
                loss = loss + torch.stack(mismatches).mean()
                mismatches.clear()
            else:
                loss = loss + START_WEIGHT * limits.mismatch(inputs)
            # Times n: the loss is a mean, and without it the gradient shrinks as the batch grows.
            (x.grad,) = torch.autograd.grad(loss * len(x), x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(low, high)
    return (x * limits.deviation).detach()


def class_shares(logits: Tensor, retained: Tensor, count: int) -> Tensor:
    """How often each class is the target of one of `count` anchors, [c], with a sum of 1.

    All retained classes alike, if each gets ENOUGH. Otherwise half of the anchors follow the
    network's predictions for the forget images among these classes, because the classes that the
    network confuses with the forgotten one have the most to lose.

    logits: on the forget images, [n, c]. retained: bool [c].

    >>> class_shares(torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([False, True, True]), 200)
    tensor([0.0000, 0.5000, 0.5000])
    """
    equal = retained / retained.sum()
    if count >= ENOUGH * retained.sum():
        return equal
    confused = logits.masked_fill(~retained, -math.inf).softmax(dim=1).mean(dim=0)
    return (equal + confused) / 2


def _targets(count: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Class probabilities: half of the targets are one of the classes, the others are a mixture of
    two, with a share of at least a half for the first.

    shares: how often each class is the first, and how often it is the second, [c] -> [count, c].
    """
    first, second = (_stratified(count, shares, generator) for _ in range(2))
    share = 0.5 + 0.5 * torch.rand(count, generator=generator)
    share[torch.rand(count, generator=generator) < 0.5] = 1.0
    target = torch.zeros(count, len(shares))
    target.scatter_add_(1, first[:, None], share[:, None])
    target.scatter_add_(1, second[:, None], 1 - share[:, None])
    return target


def _stratified(count: int, shares: Tensor, generator: torch.Generator) -> Tensor:
    """`count` classes in random order, int64: of each class its share of them, rounded down or up.

    Drawn one by one, 2,048 anchors would leave out 13 % of a thousand classes.
    """
    bounds = count * shares.double().cumsum(dim=0)
    # One offset for all (systematic sampling). The last bound may be rounded to below count.
    places = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
    classes = torch.searchsorted(bounds, places, right=True).clamp(max=shares.nonzero()[-1, 0])
    return classes[torch.randperm(count, generator=generator)]


def inputs_at_once(schedule: Schedule) -> int:
    """How many inputs pass through the network at once: as many as in a step, which takes
    `batch_size` forget inputs and as many anchors."""
    return min(BATCH, 2 * schedule.batch_size)
