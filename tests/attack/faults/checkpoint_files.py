"""Checkpoints that take the machine's time or memory, or say two things to two readers."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from tests.attack.faults.fault import TRIALS, Fault, Place

FORGET = ("--forget", "images")
ARCH = Path(__file__).resolve().parents[2] / "networks" / "cifar_resnet.py"


def with_images(place: Place) -> None:
    (place.folder / "images").mkdir()
    source = place.data / "test" / "ship"
    for path in sorted(source.iterdir())[:8]:
        shutil.copy(path, place.folder / "images")


def trial(name: str) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        with_images(place)
        shutil.copy(TRIALS / name, place.folder)

    return prepare


def written(name: str, make: Callable[[], bytes]) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        with_images(place)
        (place.folder / name).write_bytes(make())

    return prepare


def nested_lists() -> bytes:
    """An archive whose pickle nests 200,000 lists."""
    file, packed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
            new.writestr(name, deep if name.endswith("data.pkl") else old.read(name))
    return packed.getvalue()


def without_a_storage() -> bytes:
    """A file of the old format that leaves out the storage of `fc.weight`, which is last."""
    file = io.BytesIO()
    state = {**resnet18(num_classes=10).state_dict()}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    reading = io.BytesIO(data)
    for _ in range(3):
        pickle.load(reading)
    start = data.rindex(b"\x80\x02]q\x00(")  # the list of the storages that follow
    reading.seek(start)
    keys = pickle.load(reading)
    return data[:start] + pickle.dumps(keys[:-1], 2) + data[reading.tell() :]


def integer_weights(place: Place) -> None:
    with_images(place)
    state = resnet18(num_classes=10).state_dict()
    state["fc.weight"] = (state["fc.weight"] * 100).round().to(torch.int8)
    save_file(state, place.folder / "net.safetensors")


def a_record(name: str) -> Callable[[Place], None]:
    """A record that names a hostile file."""

    def prepare(place: Place) -> None:
        from pbu_cli.records.statement import statement

        shutil.copy(TRIALS / name, place.folder)
        entry: dict[str, Any] = {"role": "output", "path": name, "sha256": "0" * 64}
        record = statement([{**entry, "tensors": "0" * 64}])
        (place.folder / "run.json").write_text(json.dumps(record))

    return prepare


def unlearn(name: str) -> tuple[object, ...]:
    return ("unlearn", name, *FORGET, "--label", 1, "--dry-run")


FAULTS = [
    Fault(4, "a tuple as a key, whose hash takes for ever", unlearn("hash_bomb_60.pt"), 3,
          "a tuple as a key", trial("hash_bomb_60.pt")),
    Fault(4, "the same through the name in a record", ("verify", "run.json"), 5,
          "a tuple as a key", a_record("hash_bomb_60.pt")),
    Fault(4, "torch.Size of a large bytearray", unlearn("size_of_bytearray_2e8.pt"), 3,
          "expected a state_dict", trial("size_of_bytearray_2e8.pt")),
    Fault(4, "an archive with two directories", unlearn("zip_differential_64.pt"), 3,
          "archive", trial("zip_differential_64.pt")),
    Fault(4, "200,000 nested lists", unlearn("deep.pt"), 3, "expected a state_dict",
          written("deep.pt", nested_lists)),
    Fault(4, "an old file that leaves a storage out", unlearn("old.pt"), 3,
          "other storages are in the file", written("old.pt", without_a_storage)),
    Fault(8, "a prefix that is repeated 20,000 times", unlearn("prefix_20000.safetensors"), 3,
          "not recognised", trial("prefix_20000.safetensors")),
    Fault(8, "a tensor of rank 65", unlearn("rank_65.safetensors"), 3, "not a safetensors file",
          trial("rank_65.safetensors")),
    Fault(8, "an attribute `items` that is no method", unlearn("items_is_complex.pt"), 3,
          "expected a state_dict", trial("items_is_complex.pt")),
    Fault(14, "a checkpoint that does not exist", unlearn("none.safetensors"), 3,
          "cannot read the checkpoint", with_images),
    Fault(16, "weights stored as whole numbers", unlearn("net.safetensors"), 3,
          "whole numbers", integer_weights),
]  # fmt: skip
