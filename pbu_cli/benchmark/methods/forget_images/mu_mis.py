"""MU-Mis: lower the input sensitivity of the forgotten class, raise that of other classes.

Source: Cheng et al., "Remaining-data-free Machine Unlearning by Suppressing Sample Contribution",
ICLR 2026, arXiv 2402.15109. With the logits f, the class c of the image and another class c', which
is drawn anew for each image each time, the network starts as the original and minimises

    mean over the forget images x of   ||grad_x f_c(x)||^2 - ||grad_x f_c'(x)||^2

by gradient descent. The sensitivity of other classes, the mean of ||grad_x f_c'(x)||, ends the run:
it stops once this has risen above its least value so far and is more than delta times as large as
at the original. Reads the forget images.

Neither the paper's appendix nor the authors' code (github.com/poppopbean0903/MU-Mis) was at hand;
loss and stopping rule are from summaries of the paper. The rate, delta, the batch size, the most
epochs and the mode are therefore open. The mode is eval: in training mode BatchNorm would mix the
gradients of the images of a batch. The sensitivity is a mean over the last 256 images. Training
images held out of CIFAR-100 (ResNet-20, class bicycle, 450 forget images;
`tests/measure/benchmarks/baselines.py`) settled the rate: with delta 1.1 all rates forget the
class; A_Dr is 71.9 before, 69.5 at 2e-4, 66.7 at 5e-4 and 1.0 at 3e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from pbu_cli.benchmark.methods.task import Method, Result, Task


@dataclass(frozen=True)
class Settings:
    rate: float = 2e-4
    delta: float = 1.1
    batch_size: int = 64
    epochs: int = 20  # at most
    window: int = 256  # how many of the last images decide


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Descend until the sensitivity of the other classes has recovered, or the epochs are over."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copy_original()
    optimiser = torch.optim.SGD(network.parameters(), settings.rate)
    window = min(settings.window, len(task.forget))
    recent = torch.zeros(0, device=task.forget.device)
    start, least = start_sensitivity(task, settings, generator), torch.inf
    for _ in range(settings.epochs):
        for inputs, labels in task.forget.shuffled(settings.batch_size, generator):
            others = draw_other_classes(labels, task.num_classes, generator)
            own, other = squared_sensitivities(network, inputs, [labels, others])
            recent = torch.cat([recent, other.detach().sqrt()])[-window:]
            if len(recent) == window:
                mean = float(recent.mean())
                least = min(least, mean)
                if mean > least and mean > settings.delta * start:
                    yield Result(network)
                    return
            optimiser.zero_grad()
            (own - other).mean().backward()
            optimiser.step()
    yield Result(network)


def start_sensitivity(task: Task, settings: Settings, generator: torch.Generator) -> float:
    """The mean of ||grad_x f_c'(x)|| over the forget images at the original, c' drawn anew."""
    total = 0.0
    for inputs, labels in task.forget.batches(settings.batch_size):
        others = draw_other_classes(labels, task.num_classes, generator)
        (squares,) = squared_sensitivities(task.original, inputs, [others])
        total += float(squares.detach().sqrt().sum())
    return total / len(task.forget)


def draw_other_classes(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each label one of the other classes, all equally likely: int64 [n] -> [n].

    >>> draw_other_classes(torch.tensor([0, 1, 1]), 2, torch.Generator())
    tensor([1, 0, 0])
    """
    steps = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + steps.to(labels.device)) % num_classes


def squared_sensitivities(
    network: nn.Module, inputs: Tensor, classes: list[Tensor]
) -> tuple[Tensor, ...]:
    """||grad_x f_k(x)||^2 for each image and each choice of its class k.

    network: treats each image on its own. inputs: [n, ...]. classes: int64 [n] each -> [n] each,
    through which gradients flow to the parameters. Of a linear network it is the squared norm of
    the row of the class, whatever the image.

    >>> linear = nn.Linear(2, 2)
    >>> linear.weight.data = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    >>> own, other = squared_sensitivities(
    ...     linear, torch.zeros(1, 2), [torch.tensor([0]), torch.tensor([1])]
    ... )
    >>> own.item(), other.item()
    (25.0, 5.0)
    """
    inputs = inputs.detach().requires_grad_()
    logits = network(inputs)
    found = []
    for labels in classes:
        chosen = logits.gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, inputs, create_graph=True)
        found.append(gradient.square().flatten(1).sum(1))
    return tuple(found)


METHOD = Method(
    "mu-mis",
    "forget",
    unlearn,
    # A step passes the images forward once, back to the input twice, and through all of it again.
    lambda size: (SETTINGS.epochs * 3 + 1) * size.forget,
    asdict(SETTINGS),
)
