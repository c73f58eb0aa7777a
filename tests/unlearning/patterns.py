"""A network that tells four noisy patterns apart, and the anchors and the forget set for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.settings import DEFAULT, Preprocessing, Schedule
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.model_inversion import Anchors, synthesise_anchors

CLASSES, GONE = 4, 2
FORGOTTEN = torch.arange(CLASSES) == GONE
HEAD = "3"  # the path of the network's head


@dataclass(frozen=True)
class Patterns:
    """model: the network. images: [n, 2, 4, 4], as it takes them. labels: [n]."""

    model: nn.Sequential
    images: Tensor
    labels: Tensor

    @property
    def forget_images(self) -> Tensor:
        return self.images[self.labels == GONE]

    def features(self, images: Tensor) -> Tensor:
        """The input of the network's head, [n, 16]."""
        return self.model[:3](images)


def trained_on_patterns() -> Patterns:
    torch.manual_seed(0)
    labels = torch.arange(400) % CLASSES
    images = torch.randn(CLASSES, 2, 4, 4)[labels] + 0.7 * torch.randn(400, 2, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Patterns(model.eval(), images, labels)


def anchors_for(
    patterns: Patterns, count: int = 200, schedule: Schedule = DEFAULT.schedule
) -> Anchors:
    return synthesise_anchors(
        patterns.model, HEAD, patterns.forget_images, ~FORGOTTEN, count=count, schedule=schedule
    )


def anchor_loss_for(
    patterns: Patterns,
    anchors: Anchors | None = None,
    schedule: Schedule = DEFAULT.schedule,
    **weights: float,
) -> AnchorLoss:
    return AnchorLoss(
        patterns.model,
        HEAD,
        anchors or anchors_for(patterns),
        FORGOTTEN,
        replace(DEFAULT.weights, **weights),
        schedule,
    )


def forget_set_of(patterns: Patterns) -> ForgetSet:
    """The images of the class as features, which is all that the loop asks for."""
    forget = patterns.forget_images
    return ForgetSet(
        torch.zeros(len(forget), 2, 4, 4, dtype=torch.uint8),
        patterns.labels[patterns.labels == GONE],
        FORGOTTEN,
        Preprocessing((4, 4), (0.0,) * 2, (1.0,) * 2),
        patterns.model(forget).detach(),
        forget,
    )
