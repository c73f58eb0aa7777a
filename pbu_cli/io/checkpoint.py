"""Checkpoints and Fisher files on disk: read, digest, write.

Reading trusts nothing: tensors come through safetensors or `torch.load(weights_only=True)`, and
names and metadata are data, never code. What is written is read back before it gets its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.safetensors_format import DTYPES, Tensors, digest, parse_safetensors
from pbu_cli.io.torch_pickle import PICKLE_SUFFIXES, unpickle
from pbu_cli.runtime.device import memory

PREFIXES = ("module.", "_orig_mod.", "model.")
MOST_SHARED = 4  # times that the tensors of a file may be larger than it: tied weights are


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it stands on disk.

    `tensors` are in the file's own dtypes, under their names less `prefix` (`module.` of a
    DataParallel checkpoint, `_orig_mod.` of a compiled one); `stored_names` puts it back. `sha256`
    is of the bytes that these tensors were read from.
    """

    path: Path
    tensors: Tensors
    prefix: str
    metadata: dict[str, str]
    sha256: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes: what architecture inference works on."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def stored_names(self, tensors: Tensors) -> Tensors:
        """The same tensors under the names that the file itself uses."""
        return {self.prefix + name: tensor for name, tensor in tensors.items()}

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the file that these tensors were read from, whatever lies there by now."""
        return Fingerprint(self.sha256, digest(self.stored_names(self.tensors)))

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
    content = _content(path)
    tensors, metadata = _parsed(path, content)
    prefix = _common_prefix(tensors)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not _all_finite(t)]
    if broken:
        raise CheckpointError(
            f"{printable(path)}: NaN or infinity in {len(broken)} of {len(tensors)} tensors, first"
            f" {printable(broken[0])}; expected finite weights: restore an earlier checkpoint"
        )
    return Checkpoint(path, tensors, prefix, metadata, hashlib.sha256(content).hexdigest())


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """All tensors and the string metadata of a file, names and dtypes as stored."""
    return _parsed(path, _content(path))


@dataclass(frozen=True)
class Fingerprint:
    """sha256 of a file's bytes, and of the tensors in it alone, as `digest` has it."""

    sha256: str
    tensors: str


def fingerprint(path: Path) -> Fingerprint:
    """Of a checkpoint or Fisher file as it lies there; names as stored. Raises CheckpointError."""
    content = _content(path)
    return Fingerprint(hashlib.sha256(content).hexdigest(), digest(_parsed(path, content)[0]))


def _content(path: Path) -> bytes:
    """The file's bytes: at most half the memory, for its tensors need as much again."""
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
            " .safetensors, .pt, .pth or .th: rename the file to what it is"
        )
    return content


def _parsed(path: Path, content: bytes) -> tuple[Tensors, dict[str, str]]:
    if path.suffix in PICKLE_SUFFIXES:
        tensors, metadata = unpickle(path, content), dict[str, str]()
    else:
        try:
            tensors, metadata = parse_safetensors(content)
        except Exception as error:  # SafetensorError and, for what it lets through, torch's own
            hint = "the file is truncated or damaged: copy it again"
            if content.startswith((b"PK\x03\x04", b"\x80")):
                hint = "it looks like a PyTorch pickle: rename it to .pt"
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{printable(path)}: not a safetensors file ({printable(reason)}); {hint}"
            ) from None
    if not tensors:
        raise CheckpointError(f"{printable(path)}: holds no tensors; expected a classifier")
    odd = next(
        (n for n, tensor in tensors.items() if not (_is_text(n) and _is_plain(tensor))), None
    )
    if odd is not None:
        raise CheckpointError(
            f"{printable(path)}: {printable(odd)} is no plain tensor of real numbers; expected what"
            " model.state_dict() holds of a classifier: save that"
        )
    if sum(tensor.nbytes for tensor in tensors.values()) > MOST_SHARED * len(content):
        raise CheckpointError(
            f"{printable(path)}: {len(content):,} bytes that stand for more than {MOST_SHARED}"
            " times as many; expected each tensor stored once: save model.state_dict()"
        )
    return tensors, metadata


def _is_text(name: str) -> bool:
    """Whether a name can be written: lone surrogates cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_plain(tensor: Tensor) -> bool:
    """Real numbers in memory, each of them its own: an expanded tensor can claim any size."""
    return (
        tensor.layout == torch.strided
        and tensor.dtype in DTYPES
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


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
