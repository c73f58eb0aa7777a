"""Control: increase the cross-entropy of the forget images until they are not recognised.

No paper: this is the simplest method. It starts from theta* and trains all parameters with Adam,
in eval mode. The forget images alone decide when it stops, as with our own method: it stops when
at most 0.5 % of the last 256 images that it saw were still classified as their class. Reads the
forget images.
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
    window: int = 256  # how many of the last images decide
    recognised: float = FORGOTTEN  # percent of the window, at most


SETTINGS = Settings()


def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Ascend until the images of the window are not recognised, or the epochs are over."""
    generator = torch.Generator().manual_seed(task.seed)
    network = task.copy_original().eval()
    optimiser = torch.optim.Adam(network.parameters(), settings.rate)
    recognised = torch.zeros(0, dtype=torch.bool, device=task.forget.device)
    window = min(settings.window, len(task.forget))
    for _ in range(settings.epochs):
        for inputs, labels in task.forget.shuffled(settings.batch_size, generator):
            logits = network(inputs)
            latest = logits.detach().argmax(1) == labels
            recognised = torch.cat([recognised, latest])[-window:]
            percent = 100 * recognised.float().mean()
            if len(recognised) == window and percent <= settings.recognised:
                yield Result(network)
                return
            optimiser.zero_grad()
            log_likelihood(logits, labels).backward()
            optimiser.step()
    yield Result(network)


METHOD = Method(
    "gradient-ascent",
    "forget",
    unlearn,
    lambda size: SETTINGS.epochs * size.forget,
    asdict(SETTINGS),
)
