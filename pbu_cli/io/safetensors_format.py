"""The safetensors format: parse a file, digest its tensors, write one whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pbu_cli.errors import PbuError, printable
from pbu_cli.io.atomic_files import atomic_write
from pbu_cli.io.strict_json import from_json

Tensors = dict[str, Tensor]
DTYPES = {  # the dtypes of the safetensors format that hold real numbers of whole bytes
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


def parse_safetensors(content: bytes) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    The safetensors library rejects false lengths, offsets and shapes. Of a repeated key it would
    silently use the last value, so repeated keys are rejected here. Raises SafetensorError,
    ValueError or whatever torch raises.
    """
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    header = from_json(content[8 : 8 + length])
    return tensors, header.get("__metadata__") or {}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, dtypes, shapes and bytes, in the order of the names.

    The digest does not depend on the file format, on metadata or on the order in the file.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="replace"))
        found.update(_raw_bytes(tensor))
    return found.hexdigest()


def write(
    output: Path,
    tensors: Tensors,
    metadata: Mapping[str, str],
    verify: Callable[[Tensors], None] | None = None,
) -> None:
    """Write a safetensors file whole or not at all.

    verify: called with the tensors as they were read back from the disk. If it raises, the file
    does not appear and an old one stays. The same tensors and metadata give the same bytes. Raises
    PbuError where the disk does not accept the file or returns other bytes.
    """
    header = _header(tensors, metadata)
    expected = digest(tensors)
    with atomic_write(output) as temporary:
        # Not written by safetensors: its own temporary file would outlive a killed run.
        with temporary.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in _file_order(tensors):
                file.write(_raw_bytes(tensors[name]))
        written, _ = parse_safetensors(temporary.read_bytes())
        if digest(written) != expected:
            raise PbuError(
                f"{printable(output)}: the disk returned other bytes than were written; nothing was"
                " replaced: choose another output"
            )
        if verify is not None:
            verify(written)


def _header(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file: sorted metadata, then each tensor's dtype, shape and place.

    Spaces fill it up to a multiple of eight bytes, so that the first tensor is aligned.
    """
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
    """The names, widest dtype first so that every tensor is aligned, then in alphabetical order."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor. They are little-endian, as on every machine that torch runs on."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
