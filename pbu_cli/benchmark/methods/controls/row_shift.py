"""Control: move one row of the head, just far enough that the class is not predicted.

No paper. Let m be the mean, over the forget images, of the input of the last linear layer. The
class's row w_s becomes w_s - t m, with the least t at which at most 0.5 % of the forget images are
still predicted as s (`metrics.row_shift`). One row of one layer changes: a method that does no
better than this on the other measures has not forgotten more than this. Reads the forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from pbu_cli.benchmark.methods.linear_head import find_linear_head
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.errors import PbuError
from pbu_cli.evaluation.metrics import row_shift
from pbu_cli.models.features import read_head


@dataclass(frozen=True)
class Settings:
    batch_size: int = 256


SETTINGS = Settings()


@torch.no_grad()
def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """Pass the forget images once, then compute the shift in closed form.

    Raises PbuError where the network has no linear head, or no shift achieves the aim.
    """
    network = task.copy_original()
    path, head = find_linear_head(network, task, METHOD.name)
    batches = (inputs for inputs, _ in task.forget.batches(settings.batch_size))
    features, logits = read_head(network, path, batches)
    forgotten = torch.arange(logits.shape[1], device=logits.device) == task.label
    shift = row_shift(logits, features, forgotten)
    if shift is None:
        raise PbuError(
            "row-shift: no shift works, because some images' features point away from the mean"
            " feature; leave the method out"
        )
    head.weight[task.label] -= shift.to(head.weight)
    yield Result(network)


METHOD = Method(
    "row-shift",
    "forget",
    unlearn,
    lambda size: size.forget / 3,
    asdict(SETTINGS),
)
