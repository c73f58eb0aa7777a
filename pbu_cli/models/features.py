"""Features inside a network: the input of its head and the outputs of its stages.

Both are captured by hooks in one pass over the images; the network is not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.models.hooks import averaged, capture_input, capture_output
from pbu_cli.models.inference import predict

MAX_SIDE = 8  # outputs of stages are averaged to at most this many positions in height and width


def read_head(
    model: nn.Module, head: str, batches: Iterable[Tensor], *, may_split: bool = True
) -> tuple[Tensor, Tensor]:
    """The input of the module `head`, [n, d], and the logits, [n, c]: float32 on the CPU.

    `batches` are inputs as the model takes them; may_split: as for `predict`. Feature maps are
    averaged over their positions.
    Raises CheckpointError where the model does not call the module exactly once per forward pass.

    >>> import torch
    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> read_head(model, "1", [torch.tensor([[-1.0, 2.0]])])[0]
    tensor([[0., 2.]])
    """
    with capture_input(model, head) as captured:
        found = predict(
            model, batches, captured={head: captured}, device="cpu", may_split=may_split
        )
    if head in found.other_counts:
        raise CheckpointError(
            f"{printable(head)} is called {found.other_counts[head]} times in a forward pass;"
            " expected one call, by the layer that gives the logits: define that layer last in the"
            " module, or unlearn with --fast"
        )
    return found.captured[head], found.logits


def read_stages(
    model: nn.Module, paths: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """The output of each module in `paths`, by path: [n, d], float32 on the CPU.

    Feature maps [n, k, h, w] are averaged to at most 8 x 8 positions, tokens [n, t, d] over all t,
    and then flattened. A module is left out if it is not called exactly once per forward pass or
    if its output is not a tensor with one entry per image.
    """
    with ExitStack() as hooks:
        captured = {
            path: hooks.enter_context(capture_output(model, path, _averaged_stage))
            for path in paths
        }
        found = predict(model, batches, captured=captured, device="cpu")
    return {
        path: outputs
        for path, outputs in found.captured.items()
        if path not in found.other_counts and len(outputs) == len(found.logits)
    }


def _averaged_stage(output: Tensor) -> Tensor:
    return averaged(output.float(), MAX_SIDE)
