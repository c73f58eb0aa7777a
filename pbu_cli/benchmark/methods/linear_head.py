"""The linear layer that gives a network's logits, for the methods that change it."""

from __future__ import annotations

import torch
from torch import nn

from pbu_cli.benchmark.methods.task import Task
from pbu_cli.errors import PbuError
from pbu_cli.models.parameter_groups import layout_of


def find_linear_head(network: nn.Module, task: Task, method: str) -> tuple[str, nn.Linear]:
    """The path and the module of the layer that gives the logits of `network`.

    Raises PbuError, which names the method, where that is no linear layer.
    """
    black = torch.zeros(2, *task.forget.pixels.shape[1:], device=task.forget.device)
    path = layout_of(network, (task.metadata or {}).get("architecture"), black).head_layer
    head = None if path is None else network.get_submodule(path)
    if path is None or not isinstance(head, nn.Linear):
        raise PbuError(
            f"{method}: the network does not end in a linear layer; leave the method out"
        )
    return path, head
