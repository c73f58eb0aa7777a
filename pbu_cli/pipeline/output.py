"""The tensors of the output file, and the promises that they have to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from pbu_cli.errors import PbuError, printable
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.io.safetensors_format import Tensors


def names_in_file(loaded: LoadedModel, changed: list[str]) -> set[str]:
    """Every name that a changed parameter has in the file; a tied parameter has several."""
    module = loaded.network.module
    named = dict(module.named_parameters())
    memory = {named[name].data_ptr() for name in changed}
    state = module.state_dict()
    return {
        name
        for name in loaded.checkpoint.tensors
        if name in changed or (name in state and state[name].data_ptr() in memory)
    }


def output_tensors(loaded: LoadedModel, changed: list[str]) -> Tensors:
    """The checkpoint's tensors, the changed ones as the module has them now."""
    state = loaded.network.module.state_dict()
    names = names_in_file(loaded, changed)
    return {
        name: _in_stored_dtype(state[name].detach().cpu(), stored) if name in names else stored
        for name, stored in loaded.checkpoint.tensors.items()
    }


def check_promises(stored: Tensors, written: Tensors, changed: set[str]) -> None:
    """Raise PbuError unless names, shapes and dtypes are the input's, every tensor that was not to
    change is bit-identical, and every changed one is finite."""
    faults = sorted(stored.keys() ^ written.keys())
    for name in stored.keys() & written.keys():
        before, after = stored[name], written[name]
        same = before.shape == after.shape and before.dtype == after.dtype
        if not same or (name not in changed and not _same_bytes(before, after)):
            faults.append(name)
        elif name in changed and not bool(after.float().isfinite().all()):
            raise PbuError(
                f"{printable(name)} overflows {after.dtype} after unlearning; nothing was written:"
                " lower --alpha or start from a float32 checkpoint"
            )
    if faults:
        raise PbuError(
            f"{len(faults)} tensors would not have come out as promised, first"
            f" {printable(faults[0])}; nothing was written: please report this"
        )


def relative_distance(before: Tensors, after: Tensors, names: list[str]) -> float:
    """||after - before|| / ||before|| over the tensors of these names; 0 where those are all 0."""
    moved = sum((after[n].double() - before[n].double()).pow(2).sum().item() for n in names)
    length = sum(before[n].double().pow(2).sum().item() for n in names)
    return float((moved / length) ** 0.5) if length else 0.0


def _in_stored_dtype(now: Tensor, stored: Tensor) -> Tensor:
    """`now` in the stored dtype. A float64 number that did not move in float32 keeps its last
    digits."""
    return torch.where(now == stored.to(now.dtype), stored, now.to(stored.dtype)).contiguous()


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    first, second = (
        tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        for tensor in (one, other)
    )
    return torch.equal(first, second)
