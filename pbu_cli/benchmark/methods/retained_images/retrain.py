"""Train a new network without the class: the bound that every method is measured against.

Source: every paper on unlearning compares with this bound. The recipe, the number of epochs and
the seed are the original's, so the initial weights are the original's too. Reads the retained
images.

Deviation from the authors' notebook: it trains the original with Adam at 1e-4 and retrains with
Adam at 1e-3; here both use one recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.training import train


def unlearn(task: Task) -> Iterator[Result]:
    """Train an untrained network by the recipe, on the retained images alone."""
    network = task.build_untrained(task.seed).to(task.retained.device)
    generator = torch.Generator().manual_seed(task.seed)
    train(network, task.retained, task.recipe, generator=generator)
    yield Result(network)


METHOD = Method(
    "retrain",
    "retained",
    unlearn,
    lambda size: size.epochs * size.retained,
    {},
)
