"""Control: climb the cross-entropy of the forget images, and stop once they are not recognised.

No paper: the plainest idea of all, here from theta*, over all parameters, with Adam and in eval
mode. It is stopped by the forget images alone, as our own method is: as soon as at most 0.5 % of
the last 256 that it saw were still answered with their class. Reads the forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.settings import FORGOTTEN
from pbu_cli.unlearning.objective import log_likelihood


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-5
    batch_size: int = 64
    epochs: int = 10  # at most
    window: int = 256
    recognised: float = FORGOTTEN  # percent


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Ascend until the newest images are not recognised."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copied().eval()
    optimiser = torch.optim.Adam(network.parameters(), settings.rate)
    right = torch.zeros(0, dtype=torch.bool, device=task.forget.device)
    window = min(settings.window, len(task.forget))
    for _ in range(settings.epochs):
        for inputs, labels in task.forget.shuffled(settings.batch_size, generator):
            answers = network(inputs)
            right = torch.cat([right, answers.detach().argmax(1) == labels])[-window:]
            if len(right) == window and 100 * right.float().mean() <= settings.recognised:
                yield Result(network)
                return
            optimiser.zero_grad()
            log_likelihood(answers, labels).backward()
            optimiser.step()
    yield Result(network)


METHOD = Method(
    "gradient-ascent",
    "forget",
    unlearn,
    lambda size: SETTINGS.epochs * size.forget,
    asdict(SETTINGS),
)
