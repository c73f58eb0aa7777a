"""JiT: make the network's outputs less sensitive to noise on the forget images.

Source: Foster, Fogarty, Schoepf, Dugue, Oeztireli, Brintrup, "An Information Theoretic Approach to
Machine Unlearning", arXiv 2402.01401, whose first version is called "Zero-Shot Machine Unlearning
at Scale via Lipschitz Regularization", and the authors' published code
(github.com/jwf40/Information-Theoretic-Unlearning). The network starts as the original and
minimises, over the logits f and N noisy copies of each image of a batch,

    1/N sum_x sum_(j=1..N)  ||f(x) - f(x + e_j)|| / ||e_j||,    e_j Gaussian.

As in the code, the loss is a sum over the batch, f(x + e_j) counts as a constant, and the noisy
copies are clipped to the range of the batch. Reads the forget images.

From the code for whole classes are N = 25, noise of standard deviation 0.5 on normalised inputs,
plain SGD, batches of 128 and one epoch. Its rate is 3e-4 for VGG-16 and 1.5 for ViT; it has none
for other networks. Training images held out of CIFAR-100 (ResNet-20, class bicycle, 450 forget
images; `tests/measure/benchmarks/baselines.py`) settled it: 3e-4 leaves A_Df 0.0 and A_Dr 1.0, a
destroyed network, 1e-4 leaves 20.0 and 51.7, and 5e-5 for two epochs 20.0 and 50.3; before it is
80.0 and 71.9. No rate that was tried forgets the class and keeps the others. Deviation: the network
is in eval mode; the code stays in training mode, where noisy copies move BatchNorm's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pbu_cli.benchmark.methods.task import Method, Result, Task


@dataclass(frozen=True)
class Settings:
    noise: float = 0.5  # standard deviation, in units of normalised inputs
    copies: int = 25
    rate: float = 1e-4
    batch_size: int = 128
    epochs: int = 1


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Descend on the mean sensitivity to noise."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copy_original()
    optimiser = torch.optim.SGD(network.parameters(), settings.rate)
    for _ in range(settings.epochs):
        for inputs, _ in task.forget.shuffled(settings.batch_size, generator):
            outputs = network(inputs)
            loss = outputs.new_zeros(())
            for _ in range(settings.copies):
                noise = torch.randn(inputs.shape, generator=generator).to(inputs)
                noisy = (inputs + settings.noise * noise).clamp(inputs.min(), inputs.max())
                with torch.no_grad():
                    noisy_outputs = network(noisy)
                loss = loss + sensitivity(outputs, noisy_outputs, noisy - inputs).sum()
            task.forget.count_images(settings.copies * len(inputs))
            optimiser.zero_grad()
            (loss / settings.copies).backward()
            optimiser.step()
    yield Result(network)


def sensitivity(outputs: Tensor, noisy_outputs: Tensor, noise: Tensor) -> Tensor:
    """||f(x) - f(x + e)|| / ||e|| of each image: [n, c], [n, c], [n, k, h, w] -> [n].

    >>> noise = torch.full((1, 1, 2, 2), 0.5)
    >>> sensitivity(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]), noise)
    tensor([5.])
    """
    change: Tensor = torch.linalg.vector_norm(outputs - noisy_outputs, dim=1)
    length: Tensor = torch.linalg.vector_norm(noise, dim=(1, 2, 3))
    return change / length


METHOD = Method(
    "jit",
    "forget",
    unlearn,
    lambda size: SETTINGS.epochs * (1 + SETTINGS.copies / 3) * size.forget,
    asdict(SETTINGS),
)
