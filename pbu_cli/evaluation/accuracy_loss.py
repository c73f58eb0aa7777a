"""How much retained accuracy a run has cost, estimated without a retained image.

What is known is how far the answers among the other classes have moved (mean KL of the restricted
softmax from theta*, nats): on the forget images, F, and on the anchors, A, where there are any. The
loss of A_Dr against the head mask, which costs nothing, goes with d = F, or d = sqrt(F A), as

    loss(d) = 100 (1 - exp(-(d / scale)^power))    points

fitted to the runs of tests/gauge.csv, whose settings reach from the defaults of 2026-11-23, before
the head's row was moved, to what ruins a network, on ResNets of MNIST and CIFAR-10 (`python -m
tests.gauge fit`). The two together tell
more than either: a run may hold still what it looks at, and move the rest. Ten classes each; what
it is worth on other networks, nobody has measured.

Pure functions; no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AccuracyLossModel:
    """scale: nats. factor, margin: the same drift may do as much as `factor` times more or less of
    it, and A_Dr differs by up to `margin` points for no reason that shows in it."""

    scale: float
    power: float
    factor: float
    margin: float

    def loss(self, drift: float) -> float:
        """Points that go with a drift in nats."""
        return -100 * math.expm1(-((drift / self.scale) ** self.power))

    def damage(self, drift: float) -> AccuracyLoss:
        low, high = self.loss(drift / self.factor), self.loss(drift * self.factor)
        return AccuracyLoss(self.loss(drift), low - self.margin, min(high + self.margin, 100.0))


@dataclass(frozen=True)
class AccuracyLoss:
    """Estimated loss of A_Dr in points, with an interval that holds 95 % of the runs that it is
    calibrated on; below 0 is a gain."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.1f} [{self.low:.1f}, {self.high:.1f}]"


OF_IMAGES = AccuracyLossModel(scale=8.57, power=1.048, factor=6.70, margin=2.18)
OF_BOTH = AccuracyLossModel(scale=6.70, power=1.008, factor=8.99, margin=0.313)


def estimated(drift: float, on_anchors: float | None = None) -> AccuracyLoss:
    """The loss that goes with these drifts of the answers to the forget images and the anchors.

    >>> estimated(0.0).estimate, estimated(math.inf).estimate
    (0.0, 100.0)
    """
    drift = max(drift, 0.0)  # rounding may leave a KL a little below
    if on_anchors is None:
        return OF_IMAGES.damage(drift)
    return OF_BOTH.damage(math.sqrt(drift * max(on_anchors, 0.0)))
