"""What the tensors of a checkpoint have to be, whatever file they come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, printable

PIECE = 1 << 22  # numbers
MAX_EXPANSION = 4  # tensors may be this many times as large as their file: tied weights share bytes


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], file_bytes: int, dtypes: Collection[torch.dtype]
) -> None:
    """Raise CheckpointError for tensors that cannot be written again or claim too much memory.

    dtypes: those that an output can have.
    """
    if not tensors:
        raise CheckpointError(f"{printable(path)}: holds no tensors; expected a classifier")
    unusable = [
        n for n, tensor in tensors.items() if not (_is_text(n) and _is_plain(tensor, dtypes))
    ]
    if unusable:
        raise CheckpointError(
            f"{printable(path)}: {printable(unusable[0])} is not a plain tensor of real numbers;"
            " expected the state_dict of a classifier: save model.state_dict()"
        )
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_EXPANSION * file_bytes:
        raise CheckpointError(
            f"{printable(path)}: the tensors take more than {MAX_EXPANSION} times the"
            f" {file_bytes:,} bytes of the file; expected each tensor stored once: save"
            " model.state_dict()"
        )


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; lone surrogates cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_plain(tensor: Tensor, dtypes: Collection[torch.dtype]) -> bool:
    """Whether a tensor holds real numbers in memory, each in a place of its own.

    An expanded tensor repeats its numbers and can claim any size.
    """
    return (
        tensor.layout == torch.strided
        and tensor.dtype in dtypes
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    # In pieces, because the check takes memory of its own. float8 has no isfinite. A sum in float32
    # would be faster, but it can overflow by itself.
    return all(
        bool(torch.isfinite(part.float() if part.element_size() == 1 else part).all())
        for part in tensor.reshape(-1).split(PIECE)
    )
