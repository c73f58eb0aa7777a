"""Control: move one row of the head, just so far that the class is no longer answered.

No paper. With m the mean over the forget images of what the last linear layer is given, w_s becomes
w_s - t m, with the least t at which at most 0.5 % of the forget images are still answered with s
(`metrics.row_shift`). One row of one layer changes: a method that does no better on the other
measures has not forgotten more than this. Reads the forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.errors import PbuError
from pbu_cli.evaluation.metrics import row_shift
from pbu_cli.models.features import read_head
from pbu_cli.models.parameter_groups import head_module


@dataclass(frozen=True)
class Settings:
    batch_size: int = 256


SETTINGS = Settings()


@torch.no_grad()
def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """One look at the forget images, then the shift in closed form."""
    network = task.copied()
    path = head_module(network, (task.metadata or {}).get("architecture"))
    head = None if path is None else network.get_submodule(path)
    if path is None or not isinstance(head, nn.Linear):
        raise PbuError("row-shift: expected a network that ends in a linear layer: leave it out")
    rounds = (inputs for inputs, _ in task.forget.batches(settings.batch_size))
    features, answers = read_head(network, path, rounds)
    gone = torch.arange(answers.shape[1], device=answers.device) == task.label
    shift = row_shift(answers, features, gone)
    if shift is None:
        raise PbuError("row-shift: the features point away from their mean; no shift would do")
    head.weight[task.label] -= shift.to(head.weight)
    yield Result(network)


METHOD = Method(
    "row-shift",
    "forget",
    unlearn,
    lambda size: size.forget / 3,
    asdict(SETTINGS),
)
