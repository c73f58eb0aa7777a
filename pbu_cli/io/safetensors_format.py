"""The safetensors format: parse a file, digest its tensors, write one whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbu_cli.errors import PbuError, printable
from pbu_cli.io.atomic_files import atomic_write
from pbu_cli.io.pickle_globals import MAX_DIMENSIONS, MAX_TENSORS
from pbu_cli.io.regular_files import read_buffer
from pbu_cli.io.strict_json import from_json
from pbu_cli.io.torch_pickle import view_of

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Fingerprint:
    """The sha256 of a file's bytes, and the `digest` of its tensors under their stored names.

    state_dict: the key that was read, where the file holds several state dicts.
    """

    sha256: str
    tensors: str
    state_dict: str | None = None


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
NAMED_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
MAX_HEADER = 1 << 24  # bytes; the header of a classifier has some hundred kilobytes


def parse_safetensors(content: bytearray) -> tuple[Tensors, dict[str, str]]:
    """The tensors, which are views of `content`, and the metadata of a safetensors file.

    The header is read here and not by the safetensors library: under a limit of memory that library
    panics while it holds a lock, and the process can then not be ended any more. The header has to
    be strict JSON, and the tensors have to fill the file without holes and overlaps. Raises
    ValueError.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER, len(content) - 8):
        raise ValueError("the header is longer than the file, or than any")
    header = from_json(bytes(memoryview(content)[8 : 8 + length]))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{len(header):,} tensors, more than any classifier has")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("the metadata are not texts")
    spans = {name: _span(name, entry) for name, entry in header.items()}
    position = 0
    for start, end, _, _ in sorted(spans.values(), key=lambda span: span[:2]):
        if start != position:
            raise ValueError("the tensors overlap, or leave bytes between them")
        position = end
    if 8 + length + position != len(content):
        raise ValueError("the file is shorter or longer than its tensors")
    tensors = {
        name: view_of(content, dtype, 8 + length + start, (end - start) // dtype.itemsize).reshape(
            shape
        )
        for name, (start, end, dtype, shape) in spans.items()
    }
    return tensors, metadata


def _span(name: str, entry: Any) -> tuple[int, int, torch.dtype, tuple[int, ...]]:
    """Start and end among the tensors' bytes, dtype and shape, from one field of the header."""
    shown = printable(name, 80)
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            len(entry) == 3 and len(shape) <= MAX_DIMENSIONS
        ):
            pass
        case _:
            raise ValueError(f"{shown} has no dtype, shape and data_offsets of a tensor")
    dtype = NAMED_DTYPES.get(kind)
    if dtype is None:
        raise ValueError(f"{shown} has the dtype {printable(kind, 20)}")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, start, end)):
        raise ValueError(f"{shown} has a false shape or place")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{shown} has another size than its shape")
    return start, end, dtype, tuple(shape)


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
    *,
    like: Path | None = None,
    before_it_appears: Callable[[Fingerprint], None] = lambda fingerprint: None,
) -> None:
    """Write a safetensors file whole or not at all.

    verify: called with the tensors as they were read back from the disk. before_it_appears: called
    with the fingerprint of the file once all of it is on the disk, before it gets its name. If one
    of them raises, the file does not appear and an old one stays. like: as in `atomic_write`. The
    same tensors and metadata give the same bytes. Raises PbuError where the disk does not accept
    the file or returns other bytes.
    """
    header = _header(tensors, metadata)
    expected = digest(tensors)
    with atomic_write(output, like=like) as temporary:
        # Not written by safetensors: its own temporary file would outlive a killed run.
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in _file_order(tensors):
                file.write(_raw_bytes(tensors[name]))
        content = read_buffer(temporary)
        written, _ = parse_safetensors(content)
        if digest(written) != expected:
            raise PbuError(
                f"{printable(output)}: the disk returned other bytes than were written; nothing was"
                " replaced: choose another output"
            )
        if verify is not None:
            verify(written)
        before_it_appears(Fingerprint(hashlib.sha256(content).hexdigest(), expected))


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
    whole = tensor.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # one number may have any stride
    return flat.view(torch.uint8).numpy().data
