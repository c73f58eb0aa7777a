"""How quickly a forgotten class comes back: an attacker tunes the network on a few of its images.

The attacker holds ten images of the class and trains *all* parameters on them with cross-entropy,
in eval mode (the batch statistics of one class would cost the retained accuracy), by several
optimisers and rates. The class's logits may then be shifted by any constant, a free choice of
bias, as long as the retained accuracy stays within five points of what it was. Reported is the
best accuracy on forget images that were not trained on, after at most 0 to 40 steps: the attacker
is granted the best of all rates and steps, judged on the very images that count, so the figure is
an upper bound for these attackers, and no bound for others.

Which ten images it is matters more than anything else: a ResNet-20 that never saw a ship gave 48
and 62 % by two draws. So many draws are averaged, each looked at on few images. A network that
never saw the class learns it from ten images too: what counts is the distance to that network's
figure, on either side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.evaluation.metrics import accuracy
from pbu_cli.evaluation.statistics import bootstrap

IMAGES = 10  # that the attacker holds
STEPS = (0, 1, 2, 4, 10, 20, 40)
COST = 5.0  # points of retained accuracy that the attacker may spend
DRAWS = 8
SCORED = 100, 250  # forget and retained images that are looked at in a draw, at most
ENOUGH = 99.0  # percent: nothing is left to relearn, and the search ends
BATCH = 50  # images a forward pass: small ones stay in a core's cache


@dataclass(frozen=True)
class Attacker:
    """An optimiser and its learning rate; SGD with momentum 0.9, Adam with torch's defaults."""

    optimiser: Literal["sgd", "adam"]
    rate: float

    def __str__(self) -> str:
        return f"{self.optimiser} {self.rate:g}"


ATTACKERS = (
    *(Attacker("sgd", rate) for rate in (3e-5, 3e-4, 3e-3)),
    *(Attacker("adam", rate) for rate in (3e-5, 3e-4)),
)


@dataclass(frozen=True)
class Relearning:
    """Percent of forget images recognised again, means over the draws of the attacker's images.

    curve: the best of all attackers after at most so many steps. best: after any number, where the
    curve ends; lowest, highest: of the draws. interval: 95 %, bootstrap over the draws, so that the
    ten images and those scored are in it and the choice of attacker is not. ways: attacker and
    steps that were best, one a draw.
    """

    curve: dict[int, float]
    best: float
    lowest: float
    highest: float
    interval: tuple[float, float]
    ways: tuple[str, ...]


LabelledImages = tuple[Tensor, Tensor]  # images [n, *image] or logits [n, c], and int64 labels [n]


def _as_they_are(images: Tensor) -> Tensor:
    return images


def relearn(
    model: nn.Module,
    forget: LabelledImages,
    retain: LabelledImages,
    forgotten: Tensor,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    attackers: Sequence[Attacker] = ATTACKERS,
    steps: Sequence[int] = STEPS,
    masked: bool = False,
    prepare: Callable[[Tensor], Tensor] = _as_they_are,
) -> Relearning | None:
    """Attack `model`, in eval mode, which stays as it is, and measure how much comes back.

    forget, retain: images and labels; at most `SCORED` of each, drawn by `seed`, are looked at.
    prepare: a batch of images -> what the model takes. forgotten: bool [c], true for the forgotten
    classes. masked: the network attacked has its forgotten logits at minus infinity, which the
    attacker undoes; only what it answered on the retained images before differs. None where there
    are too few forget images.
    """
    if len(forget[0]) < 2 * IMAGES:
        return None
    generator = torch.Generator().manual_seed(seed)
    curves: list[dict[int, float]] = []
    ways: list[str] = []
    for _ in range(draws):
        order = torch.randperm(len(forget[0]), generator=generator)
        held, scored = order[:IMAGES], order[IMAGES : IMAGES + SCORED[0]]
        kept = torch.randperm(len(retain[0]), generator=generator)[: SCORED[1]]
        curve, way = attack(
            model,
            (forget[0][held], forget[1][held]),
            (forget[0][scored], forget[1][scored]),
            (retain[0][kept], retain[1][kept]),
            forgotten,
            attackers,
            steps,
            masked,
            prepare,
        )
        curves.append(curve)
        ways.append(way)
    best = torch.tensor([max(curve.values()) for curve in curves], dtype=torch.double)
    return Relearning(
        {k: sum(curve[k] for curve in curves) / draws for k in curves[0]},
        float(best.mean()),
        float(best.min()),
        float(best.max()),
        bootstrap([best], lambda drawn: drawn.mean(dim=-1), seed=seed),
        tuple(ways),
    )


def attack(
    model: nn.Module,
    held: LabelledImages,
    forget: LabelledImages,
    retain: LabelledImages,
    forgotten: Tensor,
    attackers: Sequence[Attacker] = ATTACKERS,
    steps: Sequence[int] = STEPS,
    masked: bool = False,
    prepare: Callable[[Tensor], Tensor] = _as_they_are,
) -> tuple[dict[int, float], str]:
    """One draw: A_Df by number of steps, of the best attacker, and who was best when.

    `held` is what the attackers train on, `forget` and `retain` what is looked at.
    """

    def answers(network: nn.Module, images: LabelledImages) -> LabelledImages:
        return _logits(network, images[0], prepare), images[1].cpu()

    before = answers(model, retain)
    shown = before[0].masked_fill(forgotten.cpu(), -math.inf) if masked else before[0]
    floor = accuracy(shown.argmax(dim=1), before[1]) - COST
    best, way = best_bias(answers(model, forget), before, forgotten, floor), "bias alone"
    found = {0: best}
    trained = prepare(held[0]), held[1]
    for attacker in attackers:
        for step, tuned in tune(model, attacker, trained, steps):
            if best >= ENOUGH:
                break
            a_df = best_bias(answers(tuned, forget), answers(tuned, retain), forgotten, floor)
            if math.isnan(a_df):  # no bias keeps the others: this attacker has overdone it
                break
            found[step] = max(found.get(step, 0.0), a_df)
            if a_df > best:
                best, way = a_df, f"{attacker}, {step} steps"
    # Who may take k steps may take fewer.
    return {k: max(a_df for step, a_df in found.items() if step <= k) for k in (0, *steps)}, way


def tune(
    model: nn.Module, attacker: Attacker, held: LabelledImages, steps: Sequence[int] = STEPS
) -> Iterator[tuple[int, nn.Module]]:
    """A copy of `model` tuned on `held` with cross-entropy, after each number of `steps` above 0.

    All its parameters train; BatchNorm uses, and never updates, its running statistics.
    """
    tuned = copy.deepcopy(model).eval().requires_grad_()
    labels = held[1].to(held[0].device)
    parameters = list(tuned.parameters())
    optimiser: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, attacker.rate, momentum=0.9)
        if attacker.optimiser == "sgd"
        else torch.optim.Adam(parameters, attacker.rate)
    )
    for step in range(1, max(steps) + 1):
        optimiser.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(tuned(held[0]), labels).backward()
        optimiser.step()
        if step in steps:
            yield step, tuned


def best_bias(
    forget: LabelledImages, retain: LabelledImages, forgotten: Tensor, floor: float
) -> float:
    """A_Df, percent, at the shift of the forgotten logits that serves it best.

    forget, retain: logits and labels. One constant t is added to the logits of the classes in
    `forgotten`, bool [c]. An image turns to one of them where t exceeds max_kept z - max_gone z, so
    that A_Df never falls and A_Dr never rises with t: the best t is the largest that leaves A_Dr at
    `floor`, percent, or above. NaN where not even t = -inf does, or where an answer is NaN.

    >>> forgotten = torch.tensor([True, False])
    >>> forget = torch.tensor([[0.0, 3], [0, 6]]), torch.tensor([0, 0])
    >>> retain = torch.tensor([[0.0, 4], [0, 7]]), torch.tensor([1, 1])
    >>> best_bias(forget, retain, forgotten, 100)   # t up to 4 keeps both retained images,
    50.0
    >>> best_bias(forget, retain, forgotten, 50)    # up to 7 one of them
    100.0
    """
    forgotten = forgotten.cpu()
    if not bool(forget[0].isfinite().all() and retain[0].isfinite().all()):
        return math.nan
    right = retain[0].masked_fill(forgotten, -math.inf).argmax(dim=1) == retain[1]
    turns = _turn(retain[0], forgotten)[right].sort(descending=True).values
    needed = math.ceil(floor / 100 * len(retain[1]) - 1e-9)
    if needed > len(turns):
        return math.nan
    most = float(turns[needed - 1]) if needed > 0 else math.inf
    answers = forget[0].masked_fill(~forgotten, -math.inf).argmax(dim=1)
    return 100 * float(
        ((answers == forget[1]) & (_turn(forget[0], forgotten) < most)).double().mean()
    )


def _turn(logits: Tensor, forgotten: Tensor) -> Tensor:
    """The shift of the forgotten logits at which an image's answer becomes one of them."""
    kept = logits.masked_fill(forgotten, -math.inf).amax(dim=1)
    return kept - logits.masked_fill(~forgotten, -math.inf).amax(dim=1)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([model(prepare(x)).float().cpu() for x in images.split(BATCH)])
