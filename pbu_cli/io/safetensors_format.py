"""The safetensors format: parse bytes, digest tensors, write a file whole or not at all."""

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
    with atomic_write(output) as temporary:
        # Not by safetensors, whose own temporary file would outlive a killed run.
        with temporary.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in _file_order(tensors):
                file.write(_raw(tensors[name]))
        written, _ = parse_safetensors(temporary.read_bytes())
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


def parse_safetensors(content: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. safetensors itself finds lengths, offsets and
    shapes that lie; of keys that stand twice it would take the last."""
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    header = from_json(content[8 : 8 + length])
    return tensors, header.get("__metadata__") or {}
