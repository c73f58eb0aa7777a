"""Checkpoints and Fisher files on disk: read, digest, write.

Reading trusts nothing: tensors come through safetensors or `torch.load(weights_only=True)`, and
names and metadata are data, never code. What is written is read back before it gets its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, PbuError, printable
from pbu_cli.files import read_whole, replacing
from pbu_cli.json_text import from_json
from pbu_cli.machine import memory
from pbu_cli.pickles import PICKLE_SUFFIXES, unpickle

Tensors = dict[str, Tensor]

PREFIXES = ("module.", "_orig_mod.", "model.")
DTYPES = {  # those of the safetensors format that hold real numbers, one or more bytes each
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names.

    Independent of the file format, of metadata and of how the tensors are laid out in the file.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="replace"))
        total.update(_raw(tensor))
    return total.hexdigest()


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
    header = _header(tensors, metadata)
    expected = digest(tensors)
    with replacing(output) as temporary:
        # Not by safetensors, whose own temporary file would outlive a killed run.
        with temporary.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in _file_order(tensors):
                file.write(_raw(tensors[name]))
        written, _ = _parse(temporary.read_bytes())
        if digest(written) != expected:
            raise PbuError(f"{printable(output)}: the disk did not give back what was written")
        if verify is not None:
            verify(written)


def _header(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file: metadata in order, tensors with what they are and where
    they stand; filled up with spaces so that the first of them is aligned."""
    fields: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in _file_order(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        fields[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // 8) * 8)


def _file_order(tensors: Tensors) -> list[str]:
    """Widest dtypes first, so that each tensor is aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, little-endian as on every machine that torch runs on."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


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
            tensors, metadata = _parse(content)
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


def _parse(content: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. safetensors itself finds lengths, offsets and
    shapes that lie; of keys that stand twice it would take the last."""
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    header = from_json(content[8 : 8 + length])
    return tensors, header.get("__metadata__") or {}


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
