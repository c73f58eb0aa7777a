"""Train the original further without the class, so that it forgets the class gradually.

Source: the "finetune" of Panda, Sourav, Prathosh, AAAI 2025, arXiv 2403.16246; cross-entropy on
the retained images from theta*. Reads the retained images.

The optimiser is the one of the authors' notebook, Adam at 1e-3. Deviations: it runs for a third of
the original's epochs and not for as many, because with as many it costs what retraining does.
Batch size, precision and augmentation are the recipe's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.training import shuffled_epochs, train_step


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-3
    share: float = 1 / 3  # of the original's epochs


SETTINGS = Settings()


def epochs(of_original: int, settings: Settings = SETTINGS) -> int:
    """How many epochs the method runs, at least one.

    >>> epochs(30), epochs(1)
    (10, 1)
    """
    return max(1, round(settings.share * of_original))


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Minimise the cross-entropy on the retained images, from the original's weights."""
    network = task.copy_original().train()
    optimiser = torch.optim.Adam(network.parameters(), settings.rate)
    batches = shuffled_epochs(
        task.retained,
        task.recipe,
        epochs(task.recipe.epochs, settings),
        generator=torch.Generator().manual_seed(task.seed),
    )
    for inputs, labels in batches:
        train_step(network, optimiser, inputs, labels, mixed=task.recipe.mixed)
    yield Result(network.eval())


METHOD = Method(
    "finetune",
    "retained",
    unlearn,
    lambda size: epochs(size.epochs) * size.retained,
    asdict(SETTINGS),
)
