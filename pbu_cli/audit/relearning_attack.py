"""Relearning: how quickly a forgotten class comes back when the network is tuned on a few images.

The attacker holds ten images of the class and trains *all* parameters on them with cross-entropy,
by several optimisers and learning rates. The network is in eval mode, because the batch statistics
of one class would cost the retained accuracy. The attacker may then shift the class's logits by any
constant, which is a free choice of bias, as long as the retained accuracy stays within five points
of what it was.

The result is the best accuracy on forget images that were not trained on, after at most 0 to 40
steps. The attacker is granted the best of all rates and steps, judged on the very images that
count. So the result is an upper bound for these attackers, and no bound for others.

The choice of the ten images matters more than anything else: a ResNet-20 that never saw a ship gave
48 and 62 % with two draws of them. Therefore many draws are averaged, each scored on few images. A
network that never saw the class learns it from ten images too. What counts is the distance to that
network's value, in either direction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.audit.bias_shift import LabelledLogits, best_bias
from pbu_cli.evaluation.metrics import accuracy
from pbu_cli.evaluation.statistics import bootstrap
from pbu_cli.models.inference import predict

HELD_IMAGES = 10  # that the attacker trains on
MAX_COST = 5.0  # points of retained accuracy that the attacker may spend
MAX_SCORED = 100, 250  # forget and retained images that are scored in a draw
ENOUGH = 99.0  # percent; nothing is left to relearn, so the search ends
MAX_BATCH = 50  # images in a forward pass: so few stay in the cache of a core

LabelledImages = tuple[Tensor, Tensor]  # images [n, *image] and int64 labels [n]


@dataclass(frozen=True)
class Attacker:
    """An optimiser and its learning rate: SGD with momentum 0.9, or Adam with torch's defaults."""

    optimiser: Literal["sgd", "adam"]
    rate: float

    def __str__(self) -> str:
        return f"{self.optimiser} {self.rate:g}"


ATTACKERS = (
    *(Attacker("sgd", rate) for rate in (3e-5, 3e-4, 3e-3)),
    *(Attacker("adam", rate) for rate in (3e-5, 3e-4)),
)


@dataclass(frozen=True)
class RelearningSettings:
    """How hard the attackers try.

    draws: how many times the attacker's images are drawn. steps: numbers of training steps after
    which the network is scored. batch_size: images per pass at most; scoring never takes more than
    `MAX_BATCH`.
    """

    draws: int = 8
    attackers: tuple[Attacker, ...] = ATTACKERS
    steps: tuple[int, ...] = (0, 1, 2, 4, 10, 20, 40)
    batch_size: int = MAX_BATCH


DEFAULTS = RelearningSettings()


@dataclass(frozen=True)
class Relearning:
    """Accuracy on the forget images after relearning, in percent; means over the draws.

    curve: the best of all attackers, by the largest number of steps allowed. best: the value at
    which the curve ends. lowest, highest: of the draws. interval: 95 %, bootstrap over the draws,
    so that it covers the choice of the ten images and of those scored, and not the choice of the
    attacker. ways: the attacker and the steps that were best, for each draw.

    The fields are keys of the JSON document, and keep their names for it.
    """

    curve: dict[int, float]
    best: float
    lowest: float
    highest: float
    interval: tuple[float, float]
    ways: tuple[str, ...]


def _unchanged(images: Tensor) -> Tensor:
    return images


def relearn(
    model: nn.Module,
    forget: LabelledImages,
    retain: LabelledImages,
    forgotten: Tensor,
    settings: RelearningSettings = DEFAULTS,
    *,
    seed: int = 0,
    masked: bool = False,
    prepare: Callable[[Tensor], Tensor] = _unchanged,
) -> Relearning | None:
    """Attack copies of `model`, in eval mode, and measure how much of the class comes back.

    forget, retain: at most `MAX_SCORED` images of each, drawn by `seed`, are scored in a draw.
    forgotten: bool [c], true for the forgotten classes. masked: the network has its forgotten
    logits at minus infinity. The attacker undoes this, so that only the retained accuracy before
    the attack differs. prepare: makes model inputs of a batch of images.

    None where there are fewer than 20 forget images.
    """
    if len(forget[0]) < 2 * HELD_IMAGES:
        return None
    generator = torch.Generator().manual_seed(seed)
    curves: list[dict[int, float]] = []
    ways: list[str] = []
    for _ in range(settings.draws):
        order = torch.randperm(len(forget[0]), generator=generator)
        held, scored = order[:HELD_IMAGES], order[HELD_IMAGES : HELD_IMAGES + MAX_SCORED[0]]
        retained = torch.randperm(len(retain[0]), generator=generator)[: MAX_SCORED[1]]
        curve, way = relearn_once(
            model,
            (forget[0][held], forget[1][held]),
            (forget[0][scored], forget[1][scored]),
            (retain[0][retained], retain[1][retained]),
            forgotten,
            settings,
            masked=masked,
            prepare=prepare,
        )
        curves.append(curve)
        ways.append(way)
    best = torch.tensor([max(curve.values()) for curve in curves], dtype=torch.double)
    return Relearning(
        {k: sum(curve[k] for curve in curves) / settings.draws for k in curves[0]},
        float(best.mean()),
        float(best.min()),
        float(best.max()),
        bootstrap([best], lambda values: values.mean(dim=-1), seed=seed),
        tuple(ways),
    )


def relearn_once(
    model: nn.Module,
    held: LabelledImages,
    forget: LabelledImages,
    retain: LabelledImages,
    forgotten: Tensor,
    settings: RelearningSettings = DEFAULTS,
    *,
    masked: bool = False,
    prepare: Callable[[Tensor], Tensor] = _unchanged,
) -> tuple[dict[int, float], str]:
    """One draw: the best A_Df by the number of steps allowed, and which attacker reached the best.

    The attackers train on `held`, and are scored on `forget` and `retain`.
    """

    def logits(network: nn.Module, images: LabelledImages) -> LabelledLogits:
        batches = map(prepare, images[0].split(min(MAX_BATCH, settings.batch_size)))
        return predict(network, batches, device="cpu").logits, images[1].cpu()

    before = logits(model, retain)
    allowed = before[0].masked_fill(forgotten.cpu(), -math.inf) if masked else before[0]
    floor = accuracy(allowed.argmax(dim=1), before[1]) - MAX_COST
    best, way = best_bias(logits(model, forget), before, forgotten, floor), "bias alone"
    best_after = {0: best}
    inputs = prepare(held[0]), held[1]
    for attacker in settings.attackers:
        for step, tuned in tune(model, attacker, inputs, settings):
            if best >= ENOUGH:
                break
            a_df = best_bias(logits(tuned, forget), logits(tuned, retain), forgotten, floor)
            if math.isnan(a_df):  # no bias reaches the floor: this attacker has damaged too much
                break
            best_after[step] = max(best_after.get(step, 0.0), a_df)
            if a_df > best:
                best, way = a_df, f"{attacker}, {step} steps"
    # An attacker who may take k steps may also take fewer.
    curve = {
        k: max(a_df for step, a_df in best_after.items() if step <= k) for k in (0, *settings.steps)
    }
    return curve, way


def tune(
    model: nn.Module,
    attacker: Attacker,
    held: LabelledImages,
    settings: RelearningSettings = DEFAULTS,
) -> Iterator[tuple[int, nn.Module]]:
    """Tune a copy of `model` on `held` with cross-entropy; yield it after each of `settings.steps`.

    All parameters train. BatchNorm uses its running statistics and never updates them. Each step
    takes the gradient of the mean loss of all images in `held`, which are model inputs. Where they
    are more than the batch size, the gradient is accumulated over several passes.
    """
    tuned = copy.deepcopy(model).eval().requires_grad_()
    labels = held[1].to(held[0].device)
    size = settings.batch_size
    parameters = list(tuned.parameters())
    optimiser: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, attacker.rate, momentum=0.9)
        if attacker.optimiser == "sgd"
        else torch.optim.Adam(parameters, attacker.rate)
    )
    for step in range(1, max(settings.steps) + 1):
        optimiser.zero_grad()
        with torch.enable_grad():
            for x, target in zip(held[0].split(size), labels.split(size), strict=True):
                share = len(target) / len(labels)
                (share * F.cross_entropy(tuned(x), target)).backward()
        optimiser.step()
        if step in settings.steps:
            yield step, tuned
