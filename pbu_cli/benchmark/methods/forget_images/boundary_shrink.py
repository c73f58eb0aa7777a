"""Boundary Shrink: train the forget images to be the class that is nearest to each of them.

Source: Chen, Gao, Liu, Peng, Wang, "Boundary Unlearning: Rapid Forgetting of Deep Networks via
Shifting the Decision Boundary", CVPR 2023, arXiv 2303.11570, and the authors' published code
(github.com/TY-LEE-KR/Boundary-Unlearning-Code). One step of the fast gradient sign method on the
original f* moves an image x with pixels in [0, 1] over the nearest boundary. The class there is the
nearest wrong label,

    y'(x) = argmax_(k != y) f*_k(x'),    x' = clip(x + epsilon sign(grad_x L(f*(x), y)), 0, 1),

with L the cross-entropy and x' rounded to 1/255. The network starts as the original and minimises
the cross-entropy of the unmoved images with the labels y'. Reads the forget images.

From the code are epsilon 0.1, SGD with momentum 0.9 at 1e-5, batches of 64, 10 epochs and the
network in training mode. Deviation: the code takes the largest of all logits at x', so that an
image that the step does not move over the boundary keeps its label; here the label is always a
wrong one, as the paper says. On training images held out of CIFAR-100 (ResNet-20, class bicycle,
450 forget images; `tests/measure/benchmarks/baselines.py`) no other setting did better: A_Dr is
71.9 before, 50.1 with these settings, 48.9 in eval mode, and there 10.5 at 1e-4 and 2.0 at 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.training import train_step
from pbu_cli.settings import Preprocessing


@dataclass(frozen=True)
class Settings:
    epsilon: float = 0.1  # of the range of a pixel
    rate: float = 1e-5
    momentum: float = 0.9
    batch_size: int = 64
    epochs: int = 10
    training_mode: bool = True  # of BatchNorm and dropout


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Find the labels at the original, then train on them."""
    generator = torch.Generator().manual_seed(task.seed)
    forget = task.forget
    found = [
        nearest_labels(task.original, inputs, labels, forget.preprocessing, settings.epsilon)
        for inputs, labels in forget.batches(settings.batch_size)
    ]
    relabelled = CountingLoader(
        forget.pixels, torch.cat(found).cpu(), forget.preprocessing, forget.device,
        forget.count_images,
    )  # fmt: skip
    network = task.copy_original().train(settings.training_mode)
    optimiser = torch.optim.SGD(network.parameters(), settings.rate, settings.momentum)
    for _ in range(settings.epochs):
        for inputs, labels in relabelled.shuffled(settings.batch_size, generator):
            train_step(network, optimiser, inputs, labels)
    yield Result(network.eval())


def nearest_labels(
    original: nn.Module, inputs: Tensor, labels: Tensor, preprocessing: Preprocessing,
    epsilon: float,
) -> Tensor:  # fmt: skip
    """y'(x) of the module's docstring for normalised inputs [n, k, h, w] and labels [n] -> [n].

    A linear network of one pixel has the logits (3 - 4x, 1, -2x). At x = 0.4 the step goes to 0.5,
    where the largest logit of the other classes is the second.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    >>> network[1].weight.data, network[1].bias.data = Tensor([[-4], [0], [-2]]), Tensor([3, 1, 0])
    >>> unit = Preprocessing((1, 1), (0.0,), (1.0,))
    >>> nearest_labels(network, torch.full((1, 1, 1, 1), 0.4), torch.tensor([0]), unit, 0.1)
    tensor([1])
    """
    start = inputs.detach().requires_grad_()
    loss = F.cross_entropy(original(start), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, start)
    mean, std = (
        torch.tensor(values, device=inputs.device)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    moved = inputs * std + mean + epsilon * gradient.sign()
    moved = moved.clamp(0, 1).mul(255).round().div(255)
    with torch.no_grad():
        logits: Tensor = original((moved - mean) / std)
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


METHOD = Method(
    "boundary-shrink",
    "forget",
    unlearn,
    lambda size: (SETTINGS.epochs + 4 / 3) * size.forget,
    asdict(SETTINGS),
)
