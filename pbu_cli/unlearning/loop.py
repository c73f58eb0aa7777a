"""The unlearning loop: from theta*, train_step the objective on the forget images until told to stop.

The model is in eval mode throughout, so that BatchNorm uses and never updates its statistics.
Yields what it sees and never prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.errors import PbuError, printable
from pbu_cli.models.hooks import gradients_for
from pbu_cli.models.kernel_cropping import NO_CROPS, Crops
from pbu_cli.runtime.cuda_graph import CudaGraphRunner
from pbu_cli.runtime.device import keep_freed_memory
from pbu_cli.settings import FORGOTTEN, HEAVIEST, Schedule, Weights
from pbu_cli.unlearning import objective
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.learning_rate import calibrated_rate, rate_share
from pbu_cli.unlearning.optimizer import PenalisedAdam
from pbu_cli.unlearning.stopping import SLOWER, Decision, Seen, decide

CHECK_EVERY = 5  # steps; each check waits for the device once


@dataclass(frozen=True)
class Progress:
    """One check of a run: what the recent forget images showed, and what follows from it."""

    seen: Seen
    decision: Decision
    learning_rate: float


def unlearn(
    model: nn.Module,
    images: ForgetSet,
    fisher: dict[str, Tensor],
    *,
    trained: list[str],
    head: list[str],
    weights: Weights,
    schedule: Schedule,
    anchor_loss: AnchorLoss | None = None,
    crops: Crops = NO_CROPS,
) -> Iterator[Progress]:
    """Move the `trained` parameters of `model`, in place, until the forget set is forgotten.

    With `anchor_loss` there are anchors beside the forget images in every step, and unless delta is 0
    the head's row of the class is withdrawn first, whether the head trains or not. `fisher` holds
    the Fisher diagonal of every trained parameter at any scale, of whole kernels where the model's
    are `crops`; it may be empty where beta is 0. The last Progress carries the reason for stopping.
    Raises PbuError, with theta* restored, where the loss becomes NaN or infinite.
    """
    keep_freed_memory()
    model.eval()
    named = dict(model.named_parameters())
    theta = [named[name] for name in trained]
    factors = [schedule.head_rate if name in set(head) else 1.0 for name in trained]
    by_name = objective.penalty_weights(fisher, {n: named[n] for n in trained}, weights, crops)
    slopes = [2 * by_name[name] for name in trained]
    bounded = weights.delta > 0
    device = images.labels.device

    with gradients_for(model, theta):
        reference = objective.restricted_log_softmax(images.answers, images.forgotten)
        deep = anchor_loss is not None and bounded
        rate = calibrated_rate(model, images, theta, factors, schedule, from_even=deep)
        # The rate is that of the row as it was: it has excess to lose. The paper's objective would
        # be reached by the row alone, and stop.
        if anchor_loss is not None and bounded:
            anchor_loss.apply(images.answers)
        theta_star = _copy(theta)
        some = images.inputs(torch.arange(min(2, len(images)), device=device))
        # Nobody keeps the answers: autograd would have what leads to them on their stream.
        descent = PenalisedAdam(theta, theta_star, slopes, factors, model(some))
        window = _Window(schedule, len(images), device)
        alpha = torch.full((), weights.alpha, device=device)
        zero = torch.zeros((), device=device)

        def move(
            inputs: Tensor,
            labels: Tensor,
            before: Tensor,
            alpha: Tensor,
            rate: Tensor,
            *anchors: Any,
        ) -> list[Tensor]:
            """One step on these alone, so that a GPU can have it recorded: the loss, the odds, the
            drift, and what `anchor_loss` is to see."""
            if anchor_loss is None:
                answers, beside, of_anchors, *seen = model(inputs), zero, None
            else:
                answers, beside, of_anchors, *seen = anchor_loss.meet(inputs, *anchors)
            odds = objective.log_odds(answers, images.forgotten)
            drift = objective.stability(answers, before, images.forgotten)
            if bounded:
                above = objective.excess_odds(odds, schedule.tau)
                below = objective.excess_odds(-odds, 1 - schedule.tau)
                loss = alpha * above + schedule.restraint * below + weights.delta * drift
            else:
                loss = alpha * objective.log_likelihood(answers, labels)
            loss = loss + beside
            descent.step(loss, rate)
            drift = drift if of_anchors is None else of_anchors
            return [t.detach() for t in (loss, odds, drift, *seen)]

        replay = CudaGraphRunner(move)
        broke = torch.zeros((), dtype=torch.int64, device=device)  # the first step to go wrong
        history: list[Seen] = []
        sound = _copy(theta)
        rounds = _shuffled(len(images), schedule, device)
        for step, index in enumerate(rounds, start=1):
            anchors = () if anchor_loss is None else anchor_loss.draw(len(index))
            work = move if anchor_loss is not None and anchor_loss.fits else replay
            loss, odds, drift, *seen = work(
                images.inputs(index), images.labels[index], reference[index], alpha,
                _number(rate * rate_share(step, schedule), device), *anchors,
            )  # fmt: skip
            if anchor_loss is not None:
                anchor_loss.see(*seen)
            broke = torch.where((broke == 0) & ~loss.isfinite(), step, broke)
            window.add(odds, drift)
            alpha = _adapted(alpha, window.recognised(), weights, schedule)
            if step % CHECK_EVERY and step < schedule.steps:
                continue
            found = torch.stack([broke.float(), window.recognised(), window.drift()]).tolist()
            if found[0]:
                message = _broken(int(found[0]), trained, theta)
                _restore(theta, theta_star)
                if anchor_loss is not None:
                    anchor_loss.undo()
                raise PbuError(message)
            history.append(Seen(step, 100 * found[1], found[2]))
            decision = decide(
                history, steps=schedule.steps, bounded=bounded, most_drift=schedule.most_drift
            )
            if decision.action == "back off":
                _restore(theta, theta_star)
                descent.restart()
                if anchor_loss is not None:
                    anchor_loss.restart()
                window = _Window(schedule, len(images), device)
                alpha = torch.full_like(alpha, weights.alpha)
            elif decision.action == "give up":
                _restore(theta, sound)
            else:
                torch._foreach_copy_(sound, [parameter.detach() for parameter in theta])
            yield Progress(history[-1], decision, rate)
            if decision.action in ("give up", "stop"):
                break
            if decision.action == "back off":
                rate *= SLOWER


class _Window:
    """The most recent forget images: odds and drift, on the device so that no step waits."""

    def __init__(self, schedule: Schedule, count: int, device: torch.device) -> None:
        self.odds = torch.zeros(0, device=device)
        self.drifts = torch.zeros(0, device=device)
        # As many batches of a small forget set as of a large one.
        self.length = schedule.window * min(count, schedule.batch_size) // schedule.batch_size
        self.threshold = math.log(schedule.recognised / (1 - schedule.recognised))

    def add(self, odds: Tensor, drift: Tensor) -> None:
        self.odds = torch.cat([self.odds, odds])[-self.length :]
        self.drifts = torch.cat([self.drifts, drift.expand(len(odds))])[-self.length :]

    def recognised(self) -> Tensor:
        return (self.odds > self.threshold).float().mean()

    def drift(self) -> Tensor:
        return self.drifts.mean()


def _adapted(alpha: Tensor, recognised: Tensor, weights: Weights, schedule: Schedule) -> Tensor:
    """alpha a little larger while too many images are recognised, else a little smaller."""
    factor = torch.where(recognised > FORGOTTEN / 100, 1 + schedule.growth, 1 - schedule.growth)
    # The paper's log P is flat where P is near 1, and no fixed alpha moves every network.
    ceiling = schedule.ceiling * weights.alpha if weights.delta > 0 else HEAVIEST
    return (alpha * factor).clamp(weights.alpha, ceiling)


def _shuffled(count: int, schedule: Schedule, device: torch.device) -> Iterator[Tensor]:
    """`steps` batches of indices, epoch after epoch, each in its own order, drawn on the CPU so
    that it is the same on every device."""
    generator = torch.Generator().manual_seed(schedule.seed)
    size = min(schedule.batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(schedule.steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator).to(device)
        yield order[:size]
        order = order[size:]


def _number(value: float, device: torch.device) -> Tensor:
    """As exact as it is, or on a GPU, for kernels there to read."""
    if device.type == "cuda":
        return torch.full((), value, device=device)
    return torch.tensor(value, dtype=torch.float64)


def _copy(theta: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in theta]


def _broken(step: int, trained: Sequence[str], theta: list[nn.Parameter]) -> str:
    """What to say where the loss was no number at `step`."""
    layers = [n for n, p in zip(trained, theta, strict=True) if not bool(p.isfinite().all())]
    share = f"{len(layers)} of {len(trained)} tensors"
    where = f", and with it {share}, first {printable(layers[0])}" if layers else ""
    return (
        f"the loss became NaN or infinite at step {step}{where}; nothing was written: lower"
        " --alpha, or check the checkpoint"
    )


@torch.no_grad()
def _restore(theta: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(theta, values, strict=True):
        parameter.copy_(value)
