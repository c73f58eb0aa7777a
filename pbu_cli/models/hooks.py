"""Forward hooks that are always removed, and the choice of parameters that get gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def capture_input(model: nn.Module, head: str) -> Iterator[list[Tensor]]:
    """While it lasts, the list takes what goes into the module `head`, [n, d] a pass, for backward
    to go through."""
    heard: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(
        lambda module, args, named: heard.append(averaged(first_argument(args, named).float(), 1)),
        with_kwargs=True,
    )
    try:
        yield heard
    finally:
        handle.remove()


def first_argument(args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The first argument of a call, whether it was given by place or by name.

    >>> first_argument((1, 2), {}), first_argument((), {"input": 3})
    (1, 3)
    """
    return args[0] if args else next(iter(named.values()))


def averaged(x: Tensor, side: int) -> Tensor:
    """[n, k, h, w], averaged to at most `side` places a side, or [n, t, d] over t, or [n, d]
    -> [n, d]."""
    if x.dim() == 4:
        x = F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))
    elif x.dim() == 3:
        x = x.mean(dim=1)
    return x.flatten(1).clone()  # a layer behind may work in place


@contextmanager
def gradients_for(model: nn.Module, theta: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for `theta` alone, so that autograd never enters the frozen layers before it."""
    chosen = {id(parameter) for parameter in theta}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
