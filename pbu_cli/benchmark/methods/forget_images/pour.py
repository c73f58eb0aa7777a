"""POUR: project the direction of the forgotten class out of the features.

Source: Le, Peng, Liu, Noble, "POUR: A Provably Optimal Method for Unlearning Representations via
Neural Collapse", CVPR 2026, arXiv 2511.19339. Let h* be the features of the original, the input of
its last linear layer with the weights W, and w the row of the class. There are two results.

POUR-P, stage `P`, in closed form and without images: the features h become P h with

    P = I - w w^T / ||w||^2.

The projection is folded into the head, whose weights become W P; the biases stay. POUR-D, stage
`D`: the layers before the head of the original are trained to

    mean over the forget images x of   ||h(x) - P h*(x)||^2,

with the head W unchanged. Reads the forget images.

The authors' code (github.com/ale256/representation_unlearning) was not at hand; the formulas are
from summaries of the paper. From a port of the code by others are SGD with Nesterov momentum 0.9, a
weight decay of 5e-4, a cosine schedule, BatchNorm's statistics and the head frozen. The port also
sets the bias of the class to 0, which the summaries do not say and POUR-P does not do here. Batch
size, epochs and rate of POUR-D are open. Training images held out of CIFAR-100 (ResNet-20, class
bicycle, 450 forget images; `tests/measure/benchmarks/baselines.py`) settled the rate: all forget
the class; A_Dr is 71.9 before, 71.3 of POUR-P, and of POUR-D 67.5 at 1e-5, 64.7 at 3e-5 and 1.0 at
1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from pbu_cli.benchmark.methods.linear_head import find_linear_head
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.models.hooks import capture_input


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    epochs: int = 10


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Yield the projected network, then the distilled one.

    Raises PbuError where the network has no linear head.
    """
    projected, student = task.copy_original(), task.copy_original()
    path, head = find_linear_head(projected, task, METHOD.name)
    direction = head.weight.detach()[task.label].clone()
    with torch.no_grad():
        head.weight.copy_(project_out(head.weight, direction))
    yield Result(projected, "P")
    distil(task, student, path, direction, settings)
    yield Result(student, "D")


def project_out(rows: Tensor, direction: Tensor) -> Tensor:
    """Each row without its component along `direction`: [n, d], [d] -> [n, d].

    This is P applied to features, and also W P, because P is symmetric.

    >>> project_out(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([2.0, 0.0]))
    tensor([[0., 2.],
            [0., 0.]])
    """
    return rows - torch.outer(rows @ direction, direction) / direction.square().sum()


def distil(
    task: Task, student: nn.Module, path: str, direction: Tensor, settings: Settings
) -> None:
    """Train the student's layers before the head at `path` to the projected features, in place."""
    generator = torch.Generator().manual_seed(task.seed)
    encoder = [p for name, p in student.named_parameters() if not name.startswith(f"{path}.")]
    optimiser = torch.optim.SGD(
        encoder, settings.rate, settings.momentum, nesterov=True,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    for _ in range(settings.epochs):
        for inputs, _ in task.forget.shuffled(settings.batch_size, generator):
            with torch.no_grad():
                target = project_out(features_of(task.original, path, inputs), direction)
            optimiser.zero_grad()
            difference = features_of(student, path, inputs) - target
            difference.square().sum(1).mean().backward()
            optimiser.step()
        schedule.step()


def features_of(network: nn.Module, path: str, inputs: Tensor) -> Tensor:
    """The input of the head at `path`: [n, k, h, w] -> [n, d]. Gradients flow through it."""
    with capture_input(network, path) as captured:
        network(inputs)
    return captured[0]


METHOD = Method(
    "pour",
    "forget",
    unlearn,
    lambda size: SETTINGS.epochs * size.forget * 4 / 3,
    asdict(SETTINGS),
)
