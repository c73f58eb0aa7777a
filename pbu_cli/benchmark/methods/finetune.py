"""Go on training the original without the class, and trust that it fades.

Source: the "finetune" of Panda, Sourav, Prathosh, AAAI 2025, arXiv 2403.16246; cross-entropy on
the retained images from theta*. Reads the retained images.

From the authors' notebook: Adam at 1e-3. Deviations: a third of the original's epochs, not as many
(with as many it costs what retraining does); batches, precision and variation of the images are
the recipe's.
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
    """At least one.

    >>> epochs(30), epochs(1)
    (10, 1)
    """
    return max(1, round(settings.share * of_original))


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Cross-entropy on what is left, from the original's weights."""
    network = task.copied().train()
    optimiser = torch.optim.Adam(network.parameters(), settings.rate)
    for inputs, labels in shuffled_epochs(
        task.retained, task.recipe, epochs(task.recipe.epochs, settings), task.seed
    ):
        train_step(network, optimiser, inputs, labels, mixed=task.recipe.mixed)
    yield Result(network.eval())


METHOD = Method(
    "finetune",
    "retained",
    unlearn,
    lambda size: epochs(size.epochs) * size.retained,
    asdict(SETTINGS),
)
