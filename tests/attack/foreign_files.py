"""Files that people have and call a checkpoint: what pbu says to each, here and in older code.

    git worktree add --detach ../before f14c514
    python -m tests.attack.foreign_files --before ../before [--only NAME] [--csv FILE]

Each file is made with the library that people make it with, as far as it is installed, else of its
first bytes. The command is `pbu fisher FILE --forget 8 --label 8 --dry-run`. The files that are
read hold one small network, so that the code is 0; the others give code 3 and one line.
"""

from __future__ import annotations

import argparse
import collections
import csv
import datetime
import enum
import gzip
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import shufflenet_v2_x0_5

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds
FLAGS = ("--forget", "8", "--label", "8", "--dry-run", "--quiet")


class Colour(enum.Enum):
    RED = "red"


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


class Stub:
    """Pickled in place of an object of a library that is not installed."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


Stub.__module__, Stub.__qualname__ = "omegaconf.dictconfig", "DictConfig"


@dataclass(frozen=True)
class Foreign:
    """name: of the file. make: writes it at this path. code, says: what is right."""

    what: str
    name: str
    make: Callable[[Path], object]
    code: int = 3
    says: str = ""
    flags: tuple[str, ...] = ()


def network() -> nn.Module:
    torch.manual_seed(0)
    return shufflenet_v2_x0_5(num_classes=10).eval()


NETWORK = network()
STATE: dict[str, Tensor] = dict(NETWORK.state_dict())


def prefixed(prefix: str, **beside: Tensor) -> dict[str, Tensor]:
    return {**{prefix + name: tensor for name, tensor in STATE.items()}, **beside}


def torch_save(content: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


def safetensors(content: dict[str, Tensor]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(save(content))


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def namespaces(path: Path) -> None:
    """A file with an omegaconf object, which is pickled by its name alone."""
    import types

    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = Stub  # type: ignore[attr-defined]
    sys.modules["omegaconf.dictconfig"] = module
    sys.modules.setdefault("omegaconf", types.ModuleType("omegaconf"))
    Stub.__name__ = "DictConfig"
    try:
        config = Stub(_content={"lr": 0.1}, _parent=None)
        torch.save({"state_dict": STATE, "hyper_parameters": config}, path)
    finally:
        del sys.modules["omegaconf.dictconfig"], sys.modules["omegaconf"]


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(NETWORK, torch.zeros(1, 3, 64, 64)).save(str(path))


def exported(path: Path) -> None:
    layer = nn.Linear(2, 2)
    torch.export.save(torch.export.export(layer, (torch.zeros(1, 2),)), path)


def archived(path: Path) -> None:
    data = io.BytesIO()
    torch.save(STATE, data)
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("model.pth")
        entry.size = len(data.getvalue())
        tar.addfile(entry, io.BytesIO(data.getvalue()))


def gzipped(path: Path) -> None:
    data = io.BytesIO()
    torch.save(STATE, data)
    path.write_bytes(gzip.compress(data.getvalue()))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("model.pth", b"x" * 100)


def keras_v3(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def saved_model(path: Path) -> None:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


def arrays(path: Path) -> None:
    np.savez(path.open("wb"), **{name: tensor.numpy() for name, tensor in STATE.items()})  # type: ignore[arg-type]


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(STATE))


def old_format(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


SETTINGS = {
    "args": argparse.Namespace(lr=0.1, output_dir=pathlib.Path("/runs/1"), colour=Colour.RED),
    "counts": collections.defaultdict(list),
    "best": np.float64(76.1),
    "curve": np.arange(3),
    "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "optimizer": torch.optim.SGD(NETWORK.parameters(), 0.1, momentum=0.9).state_dict(),
}
LIGHTNING = {
    "state_dict": prefixed("model.", **{"criterion.weight": torch.ones(10)}),
    "hyper_parameters": argparse.Namespace(lr=0.1), "epoch": 3, "global_step": 100,
    "pytorch-lightning_version": "2.4.0", "callbacks": {"Checkpoint": {"best": torch.ones(())}},
    "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [], "lr_schedulers": [],
}  # fmt: skip
DOUBLED = {name: tensor * 2 for name, tensor in STATE.items()}
EMA = {"state_dict": STATE, "state_dict_ema": DOUBLED}
LORA = {f"base_model.model.{n}.lora_{side}.weight": torch.ones(2, 2) for n in "qv" for side in "AB"}
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
INDEX = json.dumps(
    {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
).encode()
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:" + bytes(90)

FILES = [
    Foreign("state dict, suffix .pth.tar", "best.pth.tar", torch_save({"state_dict": STATE}), 0),
    Foreign("state dict, suffix .ckpt", "m.ckpt", torch_save(STATE), 0),
    Foreign("state dict, suffix .bin", "pytorch_model.bin", torch_save(STATE), 0),
    Foreign("state dict, suffix .PTH", "M.PTH", torch_save(STATE), 0),
    Foreign("state dict, no suffix", "checkpoint", torch_save(STATE), 0),
    Foreign("safetensors, suffix .SafeTensors", "m.SafeTensors", safetensors(STATE), 0),
    Foreign("safetensors, suffix .pt", "s.pt", safetensors(STATE), 0),
    Foreign("PyTorch, suffix .safetensors", "p.safetensors", torch_save(STATE), 0),
    Foreign("format of before torch 1.6", "old.pth", old_format, 0),
    *(Foreign(f"prefix {prefix}", "m.pt", torch_save(prefixed(prefix)), 0) for prefix in
      ("module.", "backbone.", "net.", "encoder.", "student.", "timm_model.", "module.model.")),
    *(Foreign(f"wrapper {key}", "m.pt", torch_save({"epoch": 3, key: STATE}), 0) for key in
      ("state_dict", "weights", "params", "model_state", "ema", "network", "state_dict_ema",
       "model_ema", "teacher", "student")),
    Foreign("Lightning, criterion.weight beside model.*", "last.ckpt", torch_save(LIGHTNING), 0),
    Foreign("AveragedModel, n_averaged beside module.*", "swa.pt",
            torch_save(dict(AveragedModel(NETWORK).state_dict())), 0),
    *(Foreign(f"{type(value).__name__} beside the state dict: {key}", "m.pth",
              torch_save({"model": STATE, key: value}), 0) for key, value in SETTINGS.items()),
    Foreign("omegaconf DictConfig beside it", "m.ckpt", namespaces, 0),
    Foreign("state dict and its EMA", "m.pth.tar", torch_save(EMA), 3, "--state-dict KEY"),
    Foreign("the same with --state-dict", "m.pth.tar", torch_save(EMA), 0, "",
            ("--state-dict", "state_dict_ema")),
    Foreign("the same with a wrong --state-dict", "m.pth", torch_save(EMA), 2, "expected one of",
            ("--state-dict", "ema")),
    Foreign("os.system", "evil.pt", torch_save({"a": STATE, "b": Attack()}), 3, "run code"),
    Foreign("whole nn.Module", "model.pt", torch_save(NETWORK), 3, "model.state_dict()"),
    Foreign("whole nn.Module in a wrapper", "best.pt", torch_save({"model": NETWORK, "ema": None}),
            3, "model.state_dict()"),
    Foreign("TorchScript", "traced.pt", scripted, 3, "TorchScript"),
    Foreign("torch.export", "m.pt2", exported, 3, "torch.export"),
    Foreign("pickle.dump of a state dict", "m.pkl", pickled, 3, "torch.save"),
    Foreign("state dict of NumPy arrays", "m.pt",
            torch_save({name: tensor.numpy() for name, tensor in STATE.items()}), 3, "numpy"),
    Foreign("ONNX", "m.onnx", raw(ONNX), 3, "ONNX"),
    Foreign("ONNX, suffix .pt", "m.pt", raw(ONNX), 3, "ONNX"),
    Foreign("Keras, HDF5", "m.h5", raw(b"\x89HDF\r\n\x1a\n" + bytes(90)), 3, "Keras"),
    Foreign("Keras 3", "m.keras", keras_v3, 3, "Keras"),
    Foreign("TensorFlow SavedModel", "saved", saved_model, 3, "SavedModel"),
    Foreign("TensorFlow Lite", "m.tflite", raw(b"\x1c\0\0\0TFL3" + bytes(90)), 3, "Lite"),
    Foreign("GGUF", "m.gguf", raw(b"GGUF\x03\0\0\0" + bytes(90)), 3, "GGUF"),
    Foreign("NumPy .npz", "m.npz", arrays, 3, "NumPy"),
    Foreign("Git LFS pointer", "m.safetensors", raw(POINTER), 3, "git lfs pull"),
    Foreign("HTML page", "m.pth", raw(PAGE), 3, "download it again"),
    Foreign("JSON index of shards", "model.safetensors.index.json", raw(INDEX), 3, "folder"),
    Foreign("JSON error of a server", "m.pt", raw(b'{"error": "not found"}'), 3, "JSON"),
    Foreign("one shard", "model-00001-of-00002.safetensors", safetensors(STATE), 3, "shard 1 of 2"),
    Foreign("LoRA adapter", "adapter_model.safetensors", safetensors(LORA), 3, "merge"),
    Foreign("gzip", "m.pth.gz", gzipped, 3, "unpack"),
    Foreign("tar", "m.tar", archived, 3, "unpack"),
    Foreign("zip of other files", "m.zip", zipped, 3, "unpack"),
    Foreign("noise", "m.bin", raw(bytes(range(200))), 3, "of another format"),
]  # fmt: skip


def attempt(foreign: Foreign, package: Path, folder: Path) -> tuple[str, str]:
    """The exit code, and what stands in stderr."""
    path = folder / foreign.name
    foreign.make(path)
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "fisher", foreign.name, *FLAGS, *foreign.flags],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(package), "COLUMNS": "500"},
        timeout=PATIENCE, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert not (folder / "PWNED").exists()
    return str(done.returncode), " | ".join(done.stderr.strip().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of f14c514")
    parser.add_argument("--only", default="", help="a part of what the file is")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    checkouts = {"before": given.before.resolve()} if given.before else {}
    checkouts["after"] = CHECKOUT
    rows, wrong = [], 0
    for foreign in FILES:
        if given.only not in foreign.what:
            continue
        row = {"file": foreign.what, "name": foreign.name, "flags": " ".join(foreign.flags)}
        for which, package in checkouts.items():
            with tempfile.TemporaryDirectory() as place:
                images = Path(place) / "8"
                images.mkdir()
                for seed in range(2):
                    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
                    Image.fromarray(pixels).save(images / f"{seed}.png")
                row[f"{which}_code"], row[f"{which}_says"] = attempt(foreign, package, Path(place))
        right = row["after_code"] == str(foreign.code) and foreign.says in row["after_says"]
        wrong += not right
        rows.append(row)
        print("" if right else f"WRONG, {foreign.code} {foreign.says!r}:", row, flush=True)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} files, {wrong} of them wrong in this checkout")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
