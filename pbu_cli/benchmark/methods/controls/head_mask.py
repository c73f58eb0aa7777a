"""Control: the original with the logit of the forgotten class set to minus infinity.

No paper, no training, no data: the network still knows everything about the class. The mask gets
A_Df = 0 and an A_Dr of at least the original's, so accuracy alone proves no forgetting. Reads
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.evaluation.metrics import head_mask


class Masked(nn.Module):
    """A network that never predicts one class.

    >>> Masked(nn.Identity(), label=0, num_classes=2)(torch.tensor([[5.0, 1.0]]))
    tensor([[-inf, 1.]])
    """

    def __init__(self, network: nn.Module, label: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.forgotten: Tensor
        self.register_buffer("forgotten", torch.arange(num_classes) == label)

    def forward(self, x: Tensor) -> Tensor:
        return head_mask(self.network(x), self.forgotten)


def unlearn(task: Task) -> Iterator[Result]:
    """Put the mask on the original."""
    device = next(task.original.parameters()).device
    masked = Masked(task.original, task.label, task.num_classes).to(device).eval()
    yield Result(masked, unmasked=task.original)


METHOD = Method("head-mask", "nothing", unlearn, lambda size: 0, {})
