"""Control: move one row of the head, just so far that the class is no longer answered.

No paper. With x the features that the last linear layer is given and m their mean over the forget
images, w_s becomes w_s - t m / |m|, with the smallest t at which at most 0.5 % of the forget images
are still answered with s. One row of one layer changes: a method that does no better on the other
measures has not forgotten more than this. Reads the forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pbu_cli.baselines.task import Method, Result, Task
from pbu_cli.errors import PbuError
from pbu_cli.settings import FORGOTTEN


@dataclass(frozen=True)
class Settings:
    recognised: float = FORGOTTEN  # percent
    batch_size: int = 256


SETTINGS = Settings()


@torch.no_grad()
def unlearn(task: Task, settings: Settings = SETTINGS) -> Iterator[Result]:
    """One look at the forget images, then the shift in closed form."""
    network = task.copied()
    head = _head(network, task.num_classes)
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, given: features.append(given[0].clone()))
    answers = [network(inputs) for inputs, _ in task.forget.batches(settings.batch_size)]
    hook.remove()
    mean, step = shift(torch.cat(features), torch.cat(answers), task.label, settings.recognised)
    head.weight[task.label] -= step * mean
    yield Result(network)


def shift(features: Tensor, logits: Tensor, label: int, recognised: float) -> tuple[Tensor, float]:
    """(m / |m|, t). features [n, d], logits [n, c]; recognised: percent that may stay.

    Image n changes its answer at t_n = (z_ns - max of the others) / (x_n m / |m|).

    >>> x, z = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0], [2.0, 0.0]])
    >>> direction, t = shift(x, z, label=0, recognised=0)
    >>> direction, round(t, 4)
    (tensor([1.]), 3.0003)
    """
    mean = features.mean(0)
    direction = mean / mean.norm()
    others = logits.clone()
    others[:, label] = -torch.inf
    margin = logits[:, label] - others.amax(1)
    along = features @ direction
    needed = torch.where(along > 0, margin / along, torch.where(margin > 0, torch.inf, -torch.inf))
    allowed = int(len(needed) * recognised / 100)
    farthest = float(needed.sort(descending=True).values[allowed])
    if farthest == torch.inf:
        raise PbuError("row-shift: the features point away from their mean; no shift would do")
    return direction, max(0.0, farthest) * 1.0001  # past the tie


def _head(network: nn.Module, num_classes: int) -> nn.Linear:
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1].out_features != num_classes:
        raise PbuError("row-shift: expected a network that ends in a linear layer: leave it out")
    return linear[-1]


METHOD = Method(
    "row-shift",
    "forget",
    unlearn,
    lambda size: size.forget / 3,
    vars(SETTINGS),
)
