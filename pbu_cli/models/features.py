"""What a network computes on its way: the input of its head, and what its stages give.

Read by hooks in one pass over the images; the network stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.models.hooks import averaged, capture_input

SIDE = 8  # stage outputs are averaged to at most so many places a side


@torch.no_grad()
def read_head(model: nn.Module, head: str, rounds: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The features that go into the module `head`, and the logits: [n, d] and [n, c], on the CPU.

    `rounds` are batches as the model takes them. Feature maps are averaged over their places.
    Raises CheckpointError where the model does not call the module once for an answer.

    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> read_head(model, "1", [torch.tensor([[-1.0, 2.0]])])[0]
    tensor([[0., 2.]])
    """
    seen, logits = [], []
    with capture_input(model, head) as heard:
        for x in rounds:
            logits.append(model(x).float().cpu())
            if len(heard) != 1:
                raise CheckpointError(
                    f"{printable(head)} is called {len(heard)} times for an answer; expected once,"
                    " by the layer that gives the logits: define that one last in the module, or"
                    " unlearn with --fast"
                )
            seen.append(heard.pop().cpu())
    return torch.cat(seen), torch.cat(logits)


@torch.no_grad()
def read_stages(
    model: nn.Module, paths: Sequence[str], rounds: Iterable[Tensor]
) -> dict[str, Tensor]:
    """What each module at `paths` gives, by path, [n, d] float32 on the CPU.

    Feature maps [n, k, h, w] are averaged to at most 8 x 8 places, tokens [n, t, d] over all, and
    flattened. A module called more than once, or whose output is no such tensor, is left out.
    """
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[path].append(averaged(output.float(), SIDE).cpu())

        return hook

    count = 0
    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(keep(path)))
        for x in rounds:
            model(x)
            count += len(x)
    return {
        path: torch.cat(parts)
        for path, parts in seen.items()
        if parts and sum(map(len, parts)) == count
    }
