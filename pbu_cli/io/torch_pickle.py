"""Read the tensors of a PyTorch pickle without running any code from it.

Since torch 2.10 there is no known way around `weights_only=True` (CVE-2025-32434, CVE-2026-24747),
which is why pbu requires that version. torch does not check how large an archive becomes when it is
unpacked, so this module does.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, printable

PICKLE_SUFFIXES = (".pt", ".pth", ".th")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")


def unpickle(path: Path, data: bytes) -> dict[str, Tensor]:
    """The state_dict in `data`, the bytes of the file at `path`, without the usual wrappers.

    Raises CheckpointError where the bytes cannot be read or hold anything but tensors.
    """
    try:
        _check_archive(data)
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{printable(path)}: holds more than tensors or is not a PyTorch file, and pbu runs no"
            " code from a checkpoint; expected a state_dict: torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:  # a damaged archive makes torch.load raise nearly anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{printable(path)}: cannot be read as a PyTorch file ({printable(reason)[:160]});"
            " it is truncated or damaged: copy it again"
        ) from None
    for _ in WRAPPERS:
        wrappers = [key for key in WRAPPERS if isinstance(content, dict) and key in content]
        if not wrappers or not isinstance(content[wrappers[0]], Mapping):
            break
        content = content[wrappers[0]]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{printable(path)}: holds a {type(content).__name__}; expected a state_dict"
        )
    tensors = {
        name: tensor.detach()
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    if not tensors or len(tensors) < len(content):
        other = next((key for key in content if key not in tensors), "nothing")
        raise CheckpointError(
            f"{printable(path)}: expected a state_dict (names to tensors), got"
            f" {printable(other)} among {len(content)} entries; save model.state_dict()"
        )
    return tensors


def _check_archive(data: bytes) -> None:
    """Raise ValueError for an archive that grows when unpacked; torch.save compresses nothing."""
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("the archive is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError("the entries of the archive overlap")
