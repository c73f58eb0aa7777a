"""Estimate how much retained accuracy a run has cost, without a retained image.

The drift of the predictions among the retained classes is known: the mean KL divergence of the
restricted softmax from the one at theta*, in nats. It is F on the forget images, and A on the
anchors where there are any. The loss of A_Dr against the head mask, which costs nothing, grows with
the drift d = F, or d = sqrt(F A) where there are anchors:

    loss(d) = 100 (1 - exp(-(d / scale)^power))    points

The constants are fitted to the runs of tests/measure/accuracy_loss_runs.csv (`python -m
tests.measure.accuracy_loss_fit`): ResNets on MNIST and CIFAR-10, whose settings reach from the
defaults of 2026-11-23, before the head's row was moved, to settings that ruin a network. Both
drifts together tell more than one, because a run may keep the outputs that its loss sees and change
all others. All runs have ten classes; nobody has measured how good the estimate is on other
networks.

Pure functions; no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AccuracyLossModel:
    """The constants of the formula above, and how far the truth may differ from it.

    scale: nats. factor: the same loss may go with up to `factor` times less or more drift.
    margin: points by which A_Dr varies for reasons that the drift does not show.
    """

    scale: float
    power: float
    factor: float
    margin: float

    def loss(self, drift: float) -> float:
        """The loss in points at a drift in nats."""
        return -100 * math.expm1(-((drift / self.scale) ** self.power))

    def accuracy_loss(self, drift: float) -> AccuracyLoss:
        """The loss at a drift in nats, with its interval."""
        low, high = self.loss(drift / self.factor), self.loss(drift * self.factor)
        return AccuracyLoss(self.loss(drift), low - self.margin, min(high + self.margin, 100.0))


@dataclass(frozen=True)
class AccuracyLoss:
    """Estimated loss of A_Dr in points; below 0 is a gain.

    The interval from `low` to `high` holds 95 % of the runs that the estimate is calibrated on.
    The JSON key of the whole, the criterion of `--require` and the flag `--max-damage` call it
    `damage`: they keep the name under which they were published.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.1f} [{self.low:.1f}, {self.high:.1f}]"


FROM_IMAGES = AccuracyLossModel(scale=8.57, power=1.048, factor=6.70, margin=2.18)
FROM_IMAGES_AND_ANCHORS = AccuracyLossModel(scale=6.70, power=1.008, factor=8.99, margin=0.313)


def estimate_accuracy_loss(drift: float, drift_on_anchors: float | None = None) -> AccuracyLoss:
    """The loss at these drifts, in nats, on the forget images and on the anchors.

    >>> estimate_accuracy_loss(0.0).estimate, estimate_accuracy_loss(math.inf).estimate
    (0.0, 100.0)
    """
    drift = max(drift, 0.0)  # rounding may leave a KL divergence slightly below 0
    if drift_on_anchors is None:
        return FROM_IMAGES.accuracy_loss(drift)
    return FROM_IMAGES_AND_ANCHORS.accuracy_loss(math.sqrt(drift * max(drift_on_anchors, 0.0)))
