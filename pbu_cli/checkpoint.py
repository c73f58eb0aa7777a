"""Checkpoints and Fisher files on disk: read, digest, write.

Reading trusts nothing: tensors come through safetensors or `torch.load(weights_only=True)`, and
names and metadata are data, never code. Writing never replaces a file by half: a
temporary sibling is written, synced, verified and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pbu_cli.errors import CheckpointError, InvalidUsage, PbuError, printable

Tensors = dict[str, Tensor]

PICKLE_SUFFIXES = (".pt", ".pth", ".th")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it stands on disk.

    `tensors` are in the file's own dtypes, under their names less `prefix` (`module.` of a
    DataParallel checkpoint, `_orig_mod.` of a compiled one); `write` puts the prefix back.
    """

    path: Path
    tensors: Tensors
    prefix: str
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes: what architecture inference works on."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def stored_names(self, tensors: Tensors) -> Tensors:
        """The same tensors under the names that the file itself uses."""
        return {self.prefix + name: tensor for name, tensor in tensors.items()}

    def under(self, prefix: str) -> Checkpoint:
        """The same with `prefix`, a part of its own, taken off the stored names and no more."""
        stored = self.stored_names(self.tensors)
        return replace(
            self, tensors={n.removeprefix(prefix): t for n, t in stored.items()}, prefix=prefix
        )


def read(path: Path) -> Checkpoint:
    """Read a checkpoint: `.safetensors`, or `.pt/.pth/.th` as tensors only.

    Raises CheckpointError where the file is missing, empty, truncated, of another format, holds
    anything but tensors, or holds a NaN or an infinity.
    """
    tensors, metadata = read_tensors(path)
    prefix = _common_prefix(tensors)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not _all_finite(t)]
    if broken:
        raise CheckpointError(
            f"{printable(path)}: NaN or infinity in {len(broken)} of {len(tensors)} tensors, first"
            f" {printable(broken[0])}; expected finite weights: restore an earlier checkpoint"
        )
    return Checkpoint(path, tensors, prefix, metadata)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """All tensors and the string metadata of a file, names and dtypes as stored."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{printable(path)}: cannot read the checkpoint: {error.strerror}; expected a"
            " .safetensors, .pt, .pth or .th file"
        ) from None
    if not head:
        raise CheckpointError(f"{printable(path)}: empty file (0 bytes); expected a checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, head)
    if path.suffix in PICKLE_SUFFIXES:
        return _read_pickle(path), {}
    raise CheckpointError(
        f"{printable(path)}: unknown suffix {printable(path.suffix) or '(none)'}; expected"
        " .safetensors, .pt, .pth or .th: rename the file to what it is"
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names.

    Independent of the file format, of metadata and of how the tensors are laid out in the file.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="replace"))
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_output(output: Path, *, force: bool, sources: tuple[Path, ...], size: int) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    `size` is what will be written, in bytes. Raises InvalidUsage where the output exists without
    `--force`, is one of `sources`, or is no place for a file; PbuError where it does not fit.
    """
    shown = printable(output)
    if output.suffix != ".safetensors":
        raise InvalidUsage(
            f"{shown}: output is always safetensors; expected a name ending in .safetensors"
        )
    if any(source.exists() and output.exists() and source.samefile(output) for source in sources):
        raise InvalidUsage(f"{shown}: output equal to input; name another file with -o")
    if output.is_dir():
        raise InvalidUsage(f"{shown}: is a folder; expected a file name for -o")
    if output.exists() and not force:
        raise InvalidUsage(f"{shown}: output exists; pass --force to replace it, or -o another")
    folder = output.parent
    if not folder.is_dir():
        raise InvalidUsage(f"{printable(folder)}: no such folder for the output; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PbuError(f"{printable(folder)}: no permission to write there; choose another -o")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PbuError(
            f"{printable(folder)}: no space: {size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free;"
            " free some or choose another -o"
        )


def write(
    output: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    verify: Callable[[Tensors], None] | None = None,
) -> None:
    """Write tensors so that `output` is at every instant the old file or the whole new one.

    `verify` is given what was read back from the disk and raises to keep the file from
    appearing under its name. The same tensors and metadata give the same bytes.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Tied weights share memory, which safetensors refuses; the file stores each name whole.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(own, temporary, dict(metadata) or None)
        _sort_metadata(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        written, _ = read_tensors_back(temporary)
        if digest(written) != digest(own):
            raise PbuError(f"{printable(output)}: the disk did not give back what was written")
        if verify is not None:
            verify(written)
        temporary.replace(output)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PbuError(
            f"{printable(output)}: cannot write: {printable(reason or error)}; nothing was left"
            " behind: free space or choose another -o"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    try:
        _sync_folder(output.parent)
    except OSError as error:
        raise PbuError(
            f"{printable(output)}: written, but its folder could not be synced"
            f" ({printable(error.strerror or error)}): a power cut may undo it"
        ) from None


def _sync_folder(path: Path) -> None:
    """Make the new name last. Where folders cannot be synced at all, or not read, nothing can."""
    folder = -1
    try:
        folder = os.open(path, os.O_RDONLY)
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        if folder >= 0:
            os.close(folder)


def read_tensors_back(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file of any name."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def _read_safetensors(path: Path, head: bytes) -> tuple[Tensors, dict[str, str]]:
    try:
        tensors, metadata = read_tensors_back(path)
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        hint = "the file is truncated or damaged: copy it again"
        if head.startswith((b"PK\x03\x04", b"\x80")):
            hint = "it looks like a PyTorch pickle: rename it to .pt"
        raise CheckpointError(
            f"{printable(path)}: not a safetensors file ({printable(error)}); {hint}"
        ) from None
    if not tensors:
        raise CheckpointError(f"{printable(path)}: holds no tensors; expected a classifier")
    return tensors, metadata


def _read_pickle(path: Path) -> Tensors:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
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


def _common_prefix(tensors: Tensors) -> str:
    prefix = ""
    while True:
        found = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in tensors)]
        if not found:
            return prefix
        prefix += found[0]


def _all_finite(tensor: Tensor) -> bool:
    # float8 has no isfinite; a sum in float32 would be quicker but can overflow on its own.
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order: safetensors writes it in an order drawn at random."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(ordered) <= length, "reordering a header cannot lengthen it"
        file.seek(8)
        file.write(ordered.ljust(length))
