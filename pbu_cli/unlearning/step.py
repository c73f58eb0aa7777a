"""One step of the loop, what the most recent steps showed, and the weight of the next one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pbu_cli.settings import FORGOTTEN, MAX_WEIGHT, Schedule, Weights
from pbu_cli.unlearning import objective
from pbu_cli.unlearning.anchor_loss import AnchorLoss, NoAnchors
from pbu_cli.unlearning.optimizer import PenalisedAdam


class Step:
    """One step as a function of tensors alone, so that a GPU can record it as a CUDA graph."""

    def __init__(
        self,
        anchor_loss: AnchorLoss | NoAnchors,
        optimizer: PenalisedAdam,
        forgotten: Tensor,
        weights: Weights,
        schedule: Schedule,
    ) -> None:
        self._anchor_loss, self._optimizer, self._forgotten = anchor_loss, optimizer, forgotten
        self._weights, self._schedule = weights, schedule
        self._goal = schedule.goal(len(forgotten))

    def __call__(
        self,
        inputs: Tensor,
        labels: Tensor,
        reference: Tensor,
        alpha: Tensor,
        rate: Tensor,
        *sample: Tensor,
    ) -> list[Tensor]:
        """The loss, [], the log odds, [n], the drift, [], and the features to record.

        reference: theta*'s restricted log-softmax, [n, c]. sample: from `AnchorLoss.sample`.
        """
        weights, schedule = self._weights, self._schedule
        found = self._anchor_loss.forward(inputs, *sample)
        odds = objective.log_odds(found.logits, self._forgotten)
        stability = objective.stability(found.logits, reference, self._forgotten)
        if weights.delta > 0:
            above = objective.excess_odds(odds, self._goal)
            below = objective.excess_odds(-odds, -self._goal)
            loss = alpha * above + schedule.restraint * below + weights.delta * stability
        else:
            loss = alpha * objective.log_likelihood(found.logits, labels)
        loss = loss + found.loss
        self._optimizer.step(loss, rate)
        drift = self._anchor_loss.judged_drift(stability, found.drift)
        return [tensor.detach() for tensor in (loss, odds, drift, *found.features)]


class Window:
    """Log odds and drift of the most recent forget images, kept on the device so that no step
    waits for it."""

    def __init__(self, schedule: Schedule, count: int, device: torch.device) -> None:
        self._odds = torch.zeros(0, device=device)
        self._drifts = torch.zeros(0, device=device)
        # A small forget set fills its window with as many batches as a large one.
        self._length = schedule.window * min(count, schedule.batch_size) // schedule.batch_size
        self._threshold = math.log(schedule.recognised / (1 - schedule.recognised))

    def add(self, odds: Tensor, drift: Tensor) -> None:
        """Add the images of one step: log odds, [n], and drift, []."""
        self._odds = torch.cat([self._odds, odds])[-self._length :]
        self._drifts = torch.cat([self._drifts, drift.expand(len(odds))])[-self._length :]

    def recognised(self) -> Tensor:
        """The share of these images in which the forgotten classes are still recognised, []."""
        return (self._odds > self._threshold).float().mean()

    def drift(self) -> Tensor:
        """The mean drift over these images' steps, nats, []."""
        return self._drifts.mean()


def adapted_alpha(
    alpha: Tensor, recognised: Tensor, weights: Weights, schedule: Schedule
) -> Tensor:
    """alpha for the next step: a little larger while too many images are recognised, and otherwise
    a little smaller, but never below its start."""
    factor = torch.where(recognised > FORGOTTEN / 100, 1 + schedule.growth, 1 - schedule.growth)
    # The paper's log P is flat where P is near 1. No fixed alpha would move every network there.
    ceiling = schedule.ceiling * weights.alpha if weights.delta > 0 else MAX_WEIGHT
    return (alpha * factor).clamp(weights.alpha, ceiling)
