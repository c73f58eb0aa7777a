"""Folders as timm and transformers save models: weights in one file or in shards, and other files.

A folder is read whole and written whole: a run reads all of its weights, and writes a folder of the
same files with other weights. A file that may hold the old weights once more is not copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pbu_cli.errors import CheckpointError, PbuError, printable
from pbu_cli.io import checkpoint as files
from pbu_cli.io.atomic_files import unfinished_folder
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.io.foreign.file_kinds import folder_kind
from pbu_cli.io.regular_files import read_whole
from pbu_cli.io.safetensors_format import Fingerprint, Tensors, digest, write
from pbu_cli.io.strict_json import from_json, to_json

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # what follows the name of weights that are in shards
LARGEST_INDEX, MOST_SHARDS, MOST_FILES = 1 << 26, 1000, 10_000
LARGEST_OTHER = 1 << 28  # bytes of a file that is copied
# Suffixes of files that hold weights, optimizer states, or anything else that knows the old ones.
HOLD_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt", ".tar", ".h5", ".hdf5", ".keras",
    ".msgpack", ".onnx", ".npz", ".npy", ".pb", ".tflite", ".gguf", ".ot", ".pkl", ".zip", ".gz",
)  # fmt: skip


def read(path: Path, state_dict: str | None = None) -> Checkpoint:
    """Read a checkpoint from a file, or from a folder as timm and transformers save models.

    Raises CheckpointError for what `checkpoint.read` refuses, for a folder without weights, and
    for shards that are missing or hold other tensors than their index says.
    """
    if not path.is_dir():
        return files.read(path, state_dict)
    names, index = _weight_files(path)
    shards = {name: files.read(path / name, state_dict, shard=len(names) > 1) for name in names}
    if index is not None:
        _check_index(path, index, shards)
    stored = {n: tensor for shard in shards.values() for n, tensor in shard.stored.items()}
    first = shards[names[0]]
    sums = "".join(f"{shards[name].sha256}  {name}\n" for name in sorted(shards))
    sha256 = first.sha256 if len(shards) == 1 else hashlib.sha256(sums.encode()).hexdigest()
    whole = files.with_prefix(replace(first, path=path, stored=stored, sha256=sha256))
    return replace(whole, files={name: tuple(shard.stored) for name, shard in shards.items()})


def fingerprint(path: Path, state_dict: str | None = None) -> Fingerprint:
    """The fingerprint of a checkpoint or Fisher file, or of the weights in a folder.

    Of several shards it is the sha256 of the lines that `sha256sum` prints for them.
    """
    if not path.is_dir():
        return files.fingerprint(path, state_dict)
    return read(path, state_dict).fingerprint


def write_folder(
    output: Path,
    checkpoint: Checkpoint,
    tensors: Tensors,
    metadata: Mapping[str, str],
    verify: Callable[[Tensors], None],
    before_it_appears: Callable[[Fingerprint], None],
) -> None:
    """Write a folder like the one that `checkpoint` was read from, with other weights.

    tensors: under their stored names. The folder appears whole or not at all, and only after
    `verify` was called with the tensors as they were read back, and `before_it_appears` with their
    fingerprint. Raises PbuError where the disk does not accept it.
    """
    copied, _ = other_files(checkpoint.path)
    with unfinished_folder(output) as folder:
        for name in copied:
            content = read_whole(checkpoint.path / name, LARGEST_OTHER)
            (folder / name).write_bytes(content)
            shutil.copymode(checkpoint.path / name, folder / name)
        for name, members in _new_files(checkpoint).items():
            write(folder / name, {n: tensors[n] for n in members}, metadata,
                  like=checkpoint.path / next(iter(checkpoint.files)))  # fmt: skip
        if len(checkpoint.files) > 1:
            _write_index(folder, checkpoint, tensors)
        written = read(folder)
        if digest(written.stored) != digest(tensors):
            raise PbuError(
                f"{printable(output)}: the disk returned other bytes than were written; nothing"
                " appeared: choose another output"
            )
        verify(written.stored)
        before_it_appears(written.fingerprint)


def other_files(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files beside the weights that an output has too, and of what it has not:
    files that may hold the old weights, subfolders, what is no regular file, and links out of the
    folder, since a stranger's folder could have a private file copied into what is published."""
    weights, _ = _weight_files(folder)
    copied, left_out = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)[:MOST_FILES]:
        name = entry.name
        if name in weights or name.endswith((f"{WEIGHTS}{INDEX}", f"{PICKLED}{INDEX}")):
            continue
        holds_weights = name.lower().endswith(HOLD_WEIGHTS)
        if entry.is_file() and not holds_weights and _is_inside(folder, folder / name):
            copied.append(name)
        else:
            left_out.append(f"{name}/" if entry.is_dir() else name)
    return copied, left_out


def _is_inside(folder: Path, path: Path) -> bool:
    """Whether a file is in the folder after links were followed, or among the blobs of its model in
    Hugging Face's cache, where a snapshot is a folder of links."""
    root, target = folder.resolve(), path.resolve()
    blobs = root.parent.parent / "blobs"
    cached = root.parent.name == "snapshots" and target.is_relative_to(blobs)
    return cached or target.is_relative_to(root)


def _new_files(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The names of the output's weight files, with their tensors: pickled ones get a new suffix."""
    if len(checkpoint.files) == 1:
        (members,) = checkpoint.files.values()
        (name,) = checkpoint.files
        return {name if name.endswith(".safetensors") else WEIGHTS: members}
    return {
        name
        if name.endswith(".safetensors")
        else Path(name).stem.replace("pytorch_model", "model") + ".safetensors": members
        for name, members in checkpoint.files.items()
    }


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The files of weights in a folder, and the file of each tensor where an index has it."""
    for name in (WEIGHTS, PICKLED):
        if (folder / (name + INDEX)).is_file():
            index = _read_index(folder / (name + INDEX))
            return sorted(set(index.values())), index
        if (folder / name).is_file():
            return [name], None
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return found, None
    if (kind := folder_kind(folder)) is not None:
        raise CheckpointError(f"{printable(folder)}: is {kind}")
    raise CheckpointError(
        f"{printable(folder)}: a folder with {len(found)} .safetensors files; expected"
        f" {WEIGHTS}, {PICKLED} or an index of shards, as timm and transformers save them: pass"
        " the file"
    )


def _read_index(path: Path) -> dict[str, str]:
    """The file of each tensor. Raises CheckpointError for an index that names anything else."""
    try:
        index = from_json(read_whole(path, LARGEST_INDEX))["weight_map"]
        plain = all(isinstance(v, str) and Path(v).name == v for v in index.values())
        if not index or not plain or len(set(index.values())) > MOST_SHARDS:
            raise ValueError("names no files of its own folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            f"{printable(path)}: not a readable index ({printable(reason)}); expected a weight_map"
            " of tensors to files of its folder: restore it"
        ) from None
    missing = sorted({name for name in index.values() if not (path.parent / name).is_file()})
    if missing:
        raise CheckpointError(
            f"{printable(path)}: {len(missing)} of {len(set(index.values()))} shards are missing,"
            f" first {printable(missing[0])}; expected all of them in the folder"
        )
    return dict(index)


def _check_index(folder: Path, index: Mapping[str, str], shards: Mapping[str, Checkpoint]) -> None:
    found = {name: file for file, shard in shards.items() for name in shard.stored}
    held = sum(len(shard.stored) for shard in shards.values())
    wrong = [name for name in index.keys() | found.keys() if index.get(name) != found.get(name)]
    if wrong or held != len(found):
        first = min(wrong, default="a tensor that is in two shards")
        raise CheckpointError(
            f"{printable(folder)}: the shards do not hold what their index says, first"
            f" {printable(first)}; expected each tensor in its own shard: copy the folder again"
        )


def _write_index(folder: Path, checkpoint: Checkpoint, tensors: Tensors) -> None:
    total = sum(tensor.nbytes for tensor in tensors.values())
    places = {n: name for name, members in _new_files(checkpoint).items() for n in members}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / (WEIGHTS + INDEX)).write_text(to_json(index), encoding="utf-8")
