"""Partially Blinded Unlearning as its authors ran it, for five epochs, each of them reported.

Source: Panda, Sourav, Prathosh, "Partially Blinded Unlearning", AAAI 2025, arXiv 2403.16246, with
the settings of the authors' published notebook (MNIST): from theta*, over all parameters,

    alpha log P(S_n | theta) + beta sum_i F_i (theta_i - theta*_i)^2 + gamma ||theta - theta*||^2

with F the exact Fisher diagonal, a mean over the forget images at theta* in eval mode; then Adam at
1e-4, batches of 64, the network in training mode. Reads the forget images.

Deviations: one setting for every class, the notebook's of class 8 (it has alpha 721, beta 90 for
class 6 and alpha 631, beta 100 for class 2). An image that is alone in its batch is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.unlearning.objective import log_likelihood, penalised


@dataclass(frozen=True)
class Settings:
    alpha: float = 721.0
    beta: float = 100.0
    gamma: float = 4001.0
    rate: float = 1e-4
    batch_size: int = 64
    epochs: int = 5


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """The five epochs; the network that each yields is the same one, on its way."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copied()
    sums = fisher_diagonal(network, task.forget.batches(settings.batch_size), estimator="exact")
    named = dict(network.named_parameters())
    theta = [named[name] for name in sums]
    theta_star = [parameter.detach().clone() for parameter in theta]
    slopes = [
        2 * (settings.beta * total / len(task.forget) + settings.gamma) for total in sums.values()
    ]
    optimiser = torch.optim.Adam(theta, settings.rate)
    for epoch in range(1, settings.epochs + 1):
        network.train()
        for inputs, labels in task.forget.shuffled(settings.batch_size, generator):
            loss = settings.alpha * log_likelihood(network(inputs), labels)
            gradients = torch.autograd.grad(loss, theta, materialize_grads=True)
            whole = penalised(gradients, theta, theta_star, slopes)
            for parameter, gradient in zip(theta, whole, strict=True):
                parameter.grad = gradient
            optimiser.step()
        yield Result(network.eval(), f"epoch {epoch}")


METHOD = Method(
    "pbu-paper",
    "forget",
    unlearn,
    # Each of the C - 1 columns of the exact Fisher costs about three quarters of a step.
    lambda size: (SETTINGS.epochs + 0.75 * (size.classes - 1)) * size.forget,
    asdict(SETTINGS),
)
