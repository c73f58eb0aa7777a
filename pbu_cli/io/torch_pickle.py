"""PyTorch pickles -> tensors, without running a word of them.

`weights_only=True` has no known way past it since torch 2.10 (CVE-2025-32434, CVE-2026-24747),
which is why pbu asks for that. What it does not look at is how much an archive unpacks to; that is
done here.
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
    """The state_dict in the bytes of the file at `path`, the usual wrappers taken off.

    Raises CheckpointError where they hold anything but tensors, or cannot be read.
    """
    try:
        _check_archive(data)
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{printable(path)}: holds more than tensors, or is no PyTorch file, and pbu runs no"
            " code from a checkpoint; expected torch.save(model.state_dict()): save that"
        ) from None
    except Exception as error:  # torch.load raises whatever a damaged archive makes it raise
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{printable(path)}: cannot be read as a PyTorch file ({printable(reason)[:160]}); the"
            " file is truncated or damaged: copy it again"
        ) from None
    for _ in WRAPPERS:
        inner = [key for key in WRAPPERS if isinstance(content, dict) and key in content]
        if not inner or not isinstance(content[inner[0]], Mapping):
            break
        content = content[inner[0]]
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
        found = next((key for key in content if key not in tensors), "nothing")
        raise CheckpointError(
            f"{printable(path)}: expected a state_dict (names to tensors), got"
            f" {printable(found)} among {len(content)} entries; save model.state_dict()"
        )
    return tensors


def _check_archive(data: bytes) -> None:
    """ValueError for an archive that would unpack to more than it is; torch.save packs nothing."""
    if not data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("a compressed archive, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError("an archive whose entries overlap")
