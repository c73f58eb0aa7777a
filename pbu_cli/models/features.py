"""Features inside a network: the input of its head and the outputs of its stages.

Both are captured by hooks in one pass over the images; the network is not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.models.hooks import averaged, capture_input, capture_output
from pbu_cli.models.inference import predict
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry

NEEDED = 8  # equations for each layer that may have a share in the logits
SHARE = 1e-3  # of a layer's output in the logits; a smaller one is none
MAX_SIDE = 8  # outputs of stages are averaged to at most this many positions in height and width


def read_head(
    model: nn.Module,
    head: str,
    batches: Iterable[Tensor],
    *,
    may_split: bool = True,
    retry: BatchSizeRetry | None = None,
) -> tuple[Tensor, Tensor]:
    """The input of the module `head`, [n, d], and the logits, [n, c]: float32 on the CPU.

    `batches` are inputs as the model takes them; may_split, retry: as for `predict`. Feature maps
    are averaged over their positions.
    Raises CheckpointError where the model does not call the module exactly once per forward pass.

    >>> import torch
    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> read_head(model, "1", [torch.tensor([[-1.0, 2.0]])])[0]
    tensor([[0., 2.]])
    """
    with capture_input(model, head) as captured:
        found = predict(
            model,
            batches,
            captured={head: captured},
            device="cpu",
            may_split=may_split,
            retry=retry,
        )
    if head in found.other_counts:
        raise CheckpointError(
            f"{printable(head)} is called {found.other_counts[head]} times in a forward pass;"
            " expected one call, by the layer that gives the logits: call that layer itself, last"
            " in forward, or unlearn with --fast"
        )
    return found.captured[head], found.logits


def layers_of_logits(model: nn.Module, head: str, inputs: Tensor) -> tuple[str, ...]:
    """The layers whose outputs, added with one factor each, are the logits up to a shift of all
    logits of an input, which softmax ignores.

    That is `head` alone in most networks, and otherwise another layer, several (the two heads of a
    distilled DeiT, a layer and its LoRA), or none that is found where something else comes after
    them. Feature maps are averaged over their positions. inputs: as the model takes them.

    >>> model, x = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(9, 2)
    >>> layers_of_logits(model, "2", x), layers_of_logits(model[:2], "0", x)
    (('2',), ())
    """
    paths = [p for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with ExitStack() as hooks:
        captured = {
            path: hooks.enter_context(capture_output(model, path, lambda x: averaged(x.float(), 1)))
            for path in paths
        }
        found = predict(model, [inputs], captured=captured, device="cpu")
    logits = found.logits
    outputs = {
        path: output
        for path, output in found.captured.items()
        if path not in found.other_counts and output.shape == logits.shape and _finite(output)
    }
    if not _finite(logits):
        return ()
    for path in (head, *outputs):
        if path in outputs and equal_up_to_shift(outputs[path], logits):
            return (path,)
    if not outputs or len(outputs) * NEEDED > len(logits) * (logits.shape[1] - 1):
        return ()
    centred = torch.stack([_centred(output).flatten() for output in outputs.values()], dim=1)
    factors = torch.linalg.lstsq(centred.double(), _centred(logits).double().flatten()[:, None])
    computed = (centred.double() @ factors.solution).view(logits.shape).float()
    if not equal_up_to_shift(computed, logits):
        return ()
    shares = factors.solution.flatten().abs().tolist()
    return tuple(path for path, share in zip(outputs, shares, strict=True) if share > SHARE)


def equal_up_to_shift(computed: Tensor, logits: Tensor) -> bool:
    """Whether two [n, c] are equal, but for a number that is added to all logits of an input."""
    one, other = _centred(computed), _centred(logits)
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)


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
