"""DELETE: distil the original with the forgotten logit masked, on the forget images.

Source: Zhou et al., "Decoupled Distillation to Erase: A General Unlearning Method for Any
Class-centric Tasks", CVPR 2025, arXiv 2503.23751, and the authors' published code
(github.com/shaaaaron/DELETE). Let p be the softmax of the frozen original's logits with the logit
of the image's class at minus infinity, and q the softmax of the network's own logits. The network
starts as the original and minimises the mean of

    KL(p || q) = sum_k p_k log(p_k / q_k)

over the forget images. Reads the forget images.

From the code are SGD with momentum 0.9 at 1e-3 (CIFAR-10, ResNet-18), batches of 128, 20 epochs,
and augmentation as in training, which here is the recipe's. Deviation: the network is in eval mode,
which the code has as an option, because in training mode BatchNorm's statistics become those of the
class. On training images held out of CIFAR-100 (ResNet-20, class bicycle, 450 forget images;
`tests/measure/benchmarks/baselines.py`) both forget the class; A_Dr is 71.9 before, 67.5 in eval
mode, and 59.6 after ten epochs in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.data.augmentation import augment


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-3
    momentum: float = 0.9
    batch_size: int = 128
    epochs: int = 20
    training_mode: bool = False  # of BatchNorm and dropout


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Distil the masked original into the network."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copy_original().train(settings.training_mode)
    optimiser = torch.optim.SGD(network.parameters(), settings.rate, settings.momentum)
    recipe = task.recipe
    vary = partial(augment, pad=recipe.pad, flip=recipe.flip, generator=generator)
    for _ in range(settings.epochs):
        for inputs, labels in task.forget.shuffled(settings.batch_size, generator, vary):
            with torch.no_grad():
                original = task.original(inputs)
            optimiser.zero_grad()
            distillation_loss(network(inputs), original, labels).backward()
            optimiser.step()
    yield Result(network.eval())


def distillation_loss(logits: Tensor, original: Tensor, labels: Tensor) -> Tensor:
    """The loss of the module's docstring, in nats: a mean over images.

    Logits of the network and of the original, [n, c], and the labels to mask, [n] -> [].

    The masked original is (0, 1/2, 1/2) here, and the network is uniform: log(3/2) nats.

    >>> z, original = torch.zeros(1, 3), torch.tensor([[9.0, 1.0, 1.0]])
    >>> distillation_loss(z, original, torch.tensor([0])).exp()
    tensor(1.5000)
    """
    target = original.scatter(1, labels[:, None], -torch.inf).softmax(1)
    return F.kl_div(logits.log_softmax(1), target, reduction="batchmean")


METHOD = Method(
    "delete",
    "forget",
    unlearn,
    lambda size: SETTINGS.epochs * size.forget * 4 / 3,
    asdict(SETTINGS),
)
