"""Checkpoints and Fisher files on disk: read them and compute their digests.

The files are not trusted. Tensors come from safetensors or from `torch.load(weights_only=True)`,
and names and metadata are data, never code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.safetensors_format import DTYPES, Tensors, digest, parse_safetensors
from pbu_cli.io.torch_pickle import PICKLE_SUFFIXES, unpickle
from pbu_cli.runtime.device import memory

PREFIXES = ("module.", "_orig_mod.", "model.")
MAX_EXPANSION = 4  # tensors may be this many times as large as their file: tied weights share bytes


@dataclass(frozen=True)
class Fingerprint:
    """The sha256 of a file's bytes, and the `digest` of its tensors under their stored names."""

    sha256: str
    tensors: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read from disk.

    stored: the tensors under the names and in the dtypes of the file. prefix: what all stored
    names have before the module's own names, such as `module.` of a DataParallel checkpoint or
    `_orig_mod.` of a compiled one. sha256: of the bytes that the tensors were read from.
    """

    path: Path
    stored: Tensors
    prefix: str
    metadata: dict[str, str]
    sha256: str = ""

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors under the module's names: the stored names without the prefix."""
        return {name.removeprefix(self.prefix): tensor for name, tensor in self.stored.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes by the module's names, which the architecture is inferred from."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the file as it was read; the file on disk may have changed since."""
        return Fingerprint(self.sha256, digest(self.stored))

    def stored_names(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Tensors under the module's names -> the same tensors under the stored names."""
        return {self.prefix + name: tensor for name, tensor in tensors.items()}

    def under(self, prefix: str) -> Checkpoint:
        """The same checkpoint with another prefix, which all stored names have to begin with."""
        return self if prefix == self.prefix else replace(self, prefix=prefix)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint: `.safetensors`, or `.pt/.pth/.th` as tensors only.

    Raises CheckpointError where the file is missing, empty, truncated or of another format, and
    where it holds anything but tensors, a NaN or an infinity.
    """
    content = _read_content(path)
    stored, metadata = _parse(path, content)
    broken = [n for n, t in stored.items() if t.is_floating_point() and not _all_finite(t)]
    if broken:
        raise CheckpointError(
            f"{printable(path)}: NaN or infinity in {len(broken)} of {len(stored)} tensors, first"
            f" {printable(broken[0])}; expected finite weights: restore an earlier checkpoint"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return Checkpoint(path, stored, _common_prefix(stored), metadata, sha256)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file, names and dtypes as stored, and its metadata; NaN is not an error."""
    return _parse(path, _read_content(path))


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a checkpoint or Fisher file on disk. Raises CheckpointError."""
    content = _read_content(path)
    return Fingerprint(hashlib.sha256(content).hexdigest(), digest(_parse(path, content)[0]))


def _read_content(path: Path) -> bytes:
    """The file's bytes. At most half of the memory, because its tensors need as much again."""
    try:
        content = read_whole(path, memory() / 2)
    except OSError as error:
        raise CheckpointError(
            f"{printable(path)}: cannot read the checkpoint: {error.strerror}; expected a"
            " .safetensors, .pt, .pth or .th file"
        ) from None
    if not content:
        raise CheckpointError(f"{printable(path)}: empty file (0 bytes); expected a checkpoint")
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise CheckpointError(
            f"{printable(path)}: unknown suffix {printable(path.suffix) or '(none)'}; expected"
            " .safetensors, .pt, .pth or .th: rename the file according to its format"
        )
    return content


def _parse(path: Path, content: bytes) -> tuple[Tensors, dict[str, str]]:
    if path.suffix in PICKLE_SUFFIXES:
        tensors, metadata = unpickle(path, content), dict[str, str]()
    else:
        try:
            tensors, metadata = parse_safetensors(content)
        except Exception as error:  # torch's own errors too, for what safetensors lets through
            hint = "the file is truncated or damaged: copy it again"
            if content.startswith((b"PK\x03\x04", b"\x80")):
                hint = "it looks like a PyTorch pickle: rename it to .pt"
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{printable(path)}: not a safetensors file ({printable(reason)}); {hint}"
            ) from None
    _check_tensors(path, tensors, len(content))
    return tensors, metadata


def _check_tensors(path: Path, tensors: Tensors, file_bytes: int) -> None:
    """Raise CheckpointError for tensors that cannot be written again or claim too much memory."""
    if not tensors:
        raise CheckpointError(f"{printable(path)}: holds no tensors; expected a classifier")
    unusable = [n for n, tensor in tensors.items() if not (_is_text(n) and _is_plain(tensor))]
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


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers in memory, each in a place of its own.

    An expanded tensor repeats its numbers and can claim any size.
    """
    return (
        tensor.layout == torch.strided
        and tensor.dtype in DTYPES
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def _common_prefix(tensors: Tensors) -> str:
    """The longest chain of PREFIXES that all names begin with."""
    prefix = ""
    while True:
        found = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in tensors)]
        if not found:
            return prefix
        prefix += found[0]


def _all_finite(tensor: Tensor) -> bool:
    # float8 has no isfinite. A sum in float32 would be faster, but it can overflow by itself.
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())
