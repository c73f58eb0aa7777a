"""Read the tensors of a PyTorch file without torch.load.

The pickle inside is interpreted by `pickle_machine`, which only builds descriptions of tensors. The
tensors are then views of the file's bytes, so that nothing is copied. Every storage that the pickle
describes has to be in the file with its full size: a reader that makes room for a missing one hands
out whatever stood in the memory before.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, InvalidUsage, is_out_of_memory, printable
from pbu_cli.io.foreign.state_dicts import NotAStateDict, find_state_dict
from pbu_cli.io.pickle_globals import HostileName, NoTorchFile, StorageRecord, TensorRecord
from pbu_cli.io.pickle_machine import Machine
from pbu_cli.io.torch_archive import entries_of

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6
MAGIC_BYTES = MAGIC.to_bytes(10, "little")

Spans = Mapping[str, tuple[int, int]]  # start and end of each storage in the file, by its key


@dataclass(frozen=True)
class Unpickled:
    """The state dict of a PyTorch file. key, others: as in `FoundStateDict`."""

    tensors: dict[str, Tensor]
    key: str
    others: tuple[str, ...]


def unpickle(path: Path, data: bytearray, state_dict: str | None = None) -> Unpickled:
    """The state dict in `data`, the bytes of the file at `path`.

    state_dict: its key, where the file holds several. The tensors are views of `data`. Raises
    CheckpointError where the bytes cannot be read or hold no state dict, and InvalidUsage where
    they hold none under this key.
    """
    try:
        content, spans = _read(memoryview(data))
        found = find_state_dict(content, state_dict)
        bases: dict[tuple[str, torch.dtype], Tensor] = {}  # tied tensors share one
        tensors = {n: _tensor(record, data, spans, bases) for n, record in found.records.items()}
    except HostileName as error:
        raise CheckpointError(
            f"{printable(path)}: names {printable(error, 100)}, by which the file tries to run code"
            " when it is loaded; pbu runs no code from a checkpoint: do not load this file, and get"
            " the network from a source you trust"
        ) from None
    except NotAStateDict as error:
        raise CheckpointError(f"{printable(path)}: {error}") from None
    except NoTorchFile:
        raise CheckpointError(
            f"{printable(path)}: is a pickle that torch.save did not write; expected a PyTorch"
            " file: load it where it was written, and torch.save(model.state_dict(), ...)"
        ) from None
    except InvalidUsage:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{printable(path)}: cannot be read as a PyTorch file ({printable(error)[:160]});"
            " it is truncated or damaged: copy it again"
        ) from None
    return Unpickled(tensors, found.key, found.others)


def _read(data: memoryview) -> tuple[Any, Spans]:
    """The content of the file, and where its storages are."""
    if bytes(data[:2]) == b"PK":
        return _read_archive(data)
    return _read_stream(data)


def _read_archive(data: memoryview) -> tuple[Any, Spans]:
    entries = entries_of(data)
    if "data.pkl" not in entries:
        raise ValueError("the archive has no data.pkl")
    order = entries.get("byteorder")
    if order is not None and bytes(data[slice(*order)]) != b"little":
        raise ValueError("written on a machine with another order of bytes")
    start, end = entries["data.pkl"]
    machine = Machine(data[start:end])
    content = machine.read()
    spans = {key: entries.get(f"data/{key}", (0, 0)) for key in machine.storages}
    missing = [key for key in spans if f"data/{key}" not in entries]
    if missing:
        raise ValueError(f"the storage {missing[0]} is missing")
    for key, storage in machine.storages.items():
        begin, finish = spans[key]
        if finish - begin != _size(storage):
            raise ValueError(f"the storage {key} has another size than the file says")
    return content, spans


def _read_stream(data: memoryview) -> tuple[Any, Spans]:
    """The format of before torch 1.6: five pickles, then each storage behind its length."""
    machine = Machine(data)
    if MAGIC_BYTES not in bytes(data[:32]):
        machine.read()  # which says so where the pickle is hostile
        raise NoTorchFile("a pickle without torch's number at its begin")
    if machine.read() != MAGIC or machine.read() != PROTOCOL:
        raise ValueError("not a PyTorch file")
    system = machine.read()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("written on a machine with another order of bytes")
    content, keys = machine.read(), machine.read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the storages have no names")
    if sorted(keys) != sorted(machine.storages):
        raise ValueError("other storages are in the file than its tensors need")
    position, spans = machine.position, {}
    for key in keys:
        storage = machine.storages[key]
        if data[position : position + 8] != struct.pack("<q", storage.numel):
            raise ValueError(f"the storage {key} has another size than the file says")
        spans[key] = (position + 8, position + 8 + _size(storage))
        position += 8 + _size(storage)
    if position != len(data):
        raise ValueError("the file is shorter or longer than its storages")
    return content, spans


def _size(storage: StorageRecord) -> int:
    """In bytes."""
    return storage.numel * (1 if storage.dtype is None else storage.dtype.itemsize)


def _tensor(
    record: TensorRecord,
    data: bytearray,
    spans: Spans,
    bases: dict[tuple[str, torch.dtype], Tensor],
) -> Tensor:
    """The view of the file's bytes that the record describes."""
    start, end = spans[record.storage.key]
    count = (end - start) // record.dtype.itemsize
    if 0 in record.size:
        return torch.empty(record.size, dtype=record.dtype)
    last = sum((n - 1) * step for n, step in zip(record.size, record.stride, strict=True))
    if record.offset + last >= count:
        raise ValueError("a tensor reaches beyond its storage")
    key = (record.storage.key, record.dtype)
    if key not in bases:
        bases[key] = view_of(data, record.dtype, start, count)
    return bases[key].as_strided(record.size, record.stride, record.offset)


def view_of(data: bytearray, dtype: torch.dtype, start: int, count: int) -> Tensor:
    """`count` numbers of the bytes from `start` on, as a tensor [count] that shares their memory.

    Where they are not aligned, which some machines cannot read, they are copied.
    """
    if not count:
        return torch.empty(0, dtype=dtype)
    view = torch.frombuffer(data, dtype=dtype, count=count, offset=start)
    if view.data_ptr() % dtype.itemsize == 0:
        return view
    part = bytearray(memoryview(data)[start : start + count * dtype.itemsize])
    return torch.frombuffer(part, dtype=dtype)
