"""Train a new network without the class: what every method is measured against.

Source: the bound of every paper on unlearning. The recipe, the number of epochs and the seed are
the original's, so the initial weights are too. Reads the retained images.

Deviation from the authors' notebook: it trains the original with Adam 1e-4 and retrains with Adam
1e-3; here both have one recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.training import train


def unlearn(task: Task) -> Iterator[Result]:
    """The recipe on what is left."""
    network = task.fresh(task.seed).to(task.retained.device)
    train(network, task.retained, task.recipe, seed=task.seed)
    yield Result(network)


METHOD = Method(
    "retrain",
    "retained",
    unlearn,
    lambda size: size.epochs * size.retained,
    {},
)
