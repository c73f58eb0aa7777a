"""Files that are no checkpoint: what they are, and what to do with them, in a few words.

A file is judged by its first bytes, an archive by the names in it. Its suffix says nothing: people
call the same file `.pth.tar`, `.ckpt`, `.bin` or nothing at all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from pbu_cli.errors import printable
from pbu_cli.io.strict_json import from_json

SAVE = "save model.state_dict() with torch.save or safetensors, where the network's code is"
STARTS: tuple[tuple[bytes, str, str], ...] = (  # the first bytes -> what it is, what to do
    (b"version https://git-lfs", "a Git LFS pointer and not yet the file", "run git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it",
     "load it into a PyTorch network and save model.state_dict()"),
    (b"GGUF", "a GGUF file, whose weights are those of a language model",
     "pass the state_dict of an image classifier"),
    (b"\x93NUMPY", "a NumPy array", "load it into a PyTorch network and save model.state_dict()"),
    (b"\x1f\x8b", "a gzip archive", "unpack it (gunzip, tar xf) and pass the file inside"),
    (b"BZh", "a bzip2 archive", "unpack it (bunzip2, tar xf) and pass the file inside"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it (unxz, tar xf) and pass the file inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it (unzstd) and pass the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and pass the file inside"),
    (b"Rar!", "a RAR archive", "unpack it and pass the file inside"),
)  # fmt: skip
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")
TAR, TFLITE = 257, 4  # where in the file the words `ustar` and `TFL3` stand
DIRECTORY, CENTRAL, END, END_64 = 1 << 24, b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"
MAX_JSON = 1 << 24  # bytes
SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.\w+)", re.DOTALL)
ADAPTER = re.compile(r"\.?(lora|hada|lokr|oft|vera)_\w+")
PICKLE, ZIP = b"\x80", b"PK\x03\x04"


def foreign_kind(path: Path, content: bytearray) -> str | None:
    """What the file is and what to do, if its bytes are those of something else than tensors.

    >>> foreign_kind(Path("m.pt"), bytearray(b"GGUF...")).partition(",")[0]
    'a GGUF file'
    """
    start = bytes(content[:512])
    for first, what, advice in STARTS:
        if start.startswith(first):
            return f"{what}; {advice}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith(PAGES):
        return (
            "a page for a browser and not the file that was asked for; download it again, and log"
            " in first if the page asks for it"
        )
    if text.startswith((b"{", b"[")):
        return _json_kind(content)
    if start[TAR : TAR + 5] == b"ustar":
        return "a tar archive; unpack it (tar xf) and pass the file inside"
    if start[TFLITE : TFLITE + 4] == b"TFL3":
        return "a TensorFlow Lite model; pass the PyTorch checkpoint that it was made from"
    if start.startswith(ZIP):
        return _archive_kind(set(_entry_names(content)))
    if path.suffix.lower() == ".onnx" or _is_onnx(start):
        return f"an ONNX model; pass the PyTorch checkpoint that it was made from, or {SAVE}"
    return None


def folder_kind(path: Path) -> str | None:
    """What a folder is that is no model as libraries save it, and what to do; None if unknown."""
    if (path / "saved_model.pb").is_file() or (path / "keras_metadata.pb").is_file():
        return "a TensorFlow SavedModel; load it into a PyTorch network and save model.state_dict()"
    if (path / "data.pkl").is_file() or (path / "archive" / "data.pkl").is_file():
        return "an unpacked PyTorch file; pass the file that it was unpacked from"
    return None


def shard_kind(path: Path) -> str | None:
    """What to do where the file's name says that it is one of several with parts of a network."""
    found = SHARD.fullmatch(path.name)
    if found is None or int(found[3]) < 2:
        return None
    others = f"{found[1]}*-of-{found[3]}{found[4]}"
    return (
        f"shard {int(found[2])} of {int(found[3])} of a checkpoint, and holds only a part of the"
        f" network; pass the folder {printable(path.parent)} with all of {printable(others)}, or"
        " save the network in one file"
    )


def adapter_kind(path: Path, names: Collection[str]) -> str | None:
    """What to do where the tensors are an adapter, which is no network without its base."""
    parts = sum(ADAPTER.search(name) is not None for name in names)
    of_peft = path.name.startswith("adapter_model.") or any(
        n.startswith("base_model.") for n in names
    )
    if not parts or (parts < len(names) and not (of_peft and 2 * parts >= len(names))):
        return None
    return (
        "a LoRA adapter, which holds changes to a network and not the network; merge it into its"
        " network (peft: model.merge_and_unload()) and save model.state_dict()"
    )


def is_safetensors(content: bytearray) -> bool:
    """Whether the file begins like a safetensors file: the length of its header, and a brace."""
    return content[8:9] == b"{" and content[4:8] == bytes(4)


def _json_kind(content: bytearray) -> str:
    try:
        found = from_json(bytes(content)) if len(content) <= MAX_JSON else None
    except ValueError:
        found = None
    if isinstance(found, dict) and "weight_map" in found:
        return "the index of a checkpoint in several files; pass the folder that holds them all"
    return "a JSON text without tensors; pass the file with the weights"


def _archive_kind(names: set[str]) -> str | None:
    inside = {name.partition("/")[2] for name in names}
    if inside & {"archive_format", "models/model.json"} or any(
        name.startswith("serialized_exported_program") for name in names
    ):
        return f"a program that torch.export saved; {SAVE}"
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return (
            "a TorchScript program; load it with torch.jit.load and save model.state_dict() with"
            " torch.save"
        )
    if "model.weights.h5" in names:
        return "a Keras model; load it into a PyTorch network and save model.state_dict()"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays; load them into a network and save model.state_dict()"
    if names and "data.pkl" not in inside:
        return "a zip archive without a PyTorch pickle; unpack it and pass the file inside"
    return None


def _entry_names(content: bytearray) -> Iterator[str]:
    """The names in the directory of a zip file, as far as it can be read: for messages alone."""
    end = content.rfind(END, max(0, len(content) - (1 << 16)))
    if end < 0 or end + 22 > len(content):
        return
    position, wide = struct.unpack_from("<L", content, end + 16)[0], content.rfind(END_64, 0, end)
    if wide >= 0 and wide + 76 == end:
        position = struct.unpack_from("<Q", content, wide + 48)[0]
    stop = min(end, position + DIRECTORY)
    while position + 46 <= stop and content[position : position + 4] == CENTRAL:
        lengths = struct.unpack_from("<3H", content, position + 28)
        name = content[position + 46 : position + 46 + lengths[0]]
        yield bytes(name).decode("utf-8", "replace")
        position += 46 + sum(lengths)


def _is_onnx(start: bytes) -> bool:
    """Whether the first field is a small version and the second a producer's name, as in ONNX."""
    return (
        len(start) > 4
        and start[0] == 8
        and 1 <= start[1] < 32
        and start[2] == 0x12
        and start[4 : 4 + start[3]].decode("ascii", "replace").isprintable()
    )
