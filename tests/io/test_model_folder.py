"""Folders of models: read whole, written whole, and without what may hold the old weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.io.model_folder import fingerprint, other_files, read, write_folder

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)}
SHARDS = {"a.weight": "model-00001-of-00002.safetensors",
          "b.weight": "model-00002-of-00002.safetensors"}  # fmt: skip


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "net"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "README.md", ".gitattributes"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for tensor, file in SHARDS.items():
        save_file({tensor: TENSORS[tensor]}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 40}, "weight_map": SHARDS}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def written(folder: Path, output: Path) -> Path:
    checkpoint = read(folder)
    tensors = {name: tensor + 1 for name, tensor in checkpoint.stored.items()}
    seen: list[object] = []
    write_folder(output, checkpoint, tensors, {"format": "pt"}, seen.append, seen.append)
    assert seen[1] == fingerprint(output)
    return output


def test_a_folder_comes_out_as_a_folder(whole: Path, tmp_path: Path) -> None:
    output = written(whole, tmp_path / "out")
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in whole.iterdir())
    for name in ("config.json", "README.md", ".gitattributes"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert torch.equal(read(output).stored["b.weight"], TENSORS["b.weight"] + 1)
    assert not list(tmp_path.glob(".out*"))


def test_shards_stay_shards(sharded: Path, tmp_path: Path) -> None:
    output = written(sharded, tmp_path / "out")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == SHARDS
    for tensor, file in SHARDS.items():
        with safe_open(output / file, "pt") as found:
            assert list(found.keys()) == [tensor]
            assert found.metadata() == {"format": "pt"}


def test_pickled_weights_become_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save(TENSORS, folder / "pytorch_model.bin")
    output = written(folder, tmp_path / "out")
    assert [p.name for p in output.iterdir()] == ["model.safetensors"]


def test_what_may_hold_the_old_weights_is_not_copied(whole: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "tf_model.h5", "model.onnx"):
        (whole / name).write_bytes(b"x")
    (whole / "checkpoint-500").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("private")
    (whole / "notes.txt").symlink_to(secret)
    copied, left_out = other_files(whole)
    assert copied == [".gitattributes", "README.md", "config.json"]
    assert left_out == ["checkpoint-500/", "model.onnx", "notes.txt", "optimizer.pt",
                        "pytorch_model.bin", "tf_model.h5"]  # fmt: skip


def test_links_of_hugging_faces_cache_are_followed(whole: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--x" / "blobs"
    whole.rename(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert other_files(snapshot)[0] == [".gitattributes", "README.md", "config.json"]
    assert read(snapshot).stored.keys() == TENSORS.keys()


def test_a_write_that_fails_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    def refuse(found: object) -> None:
        raise PbuError("no")

    with pytest.raises(PbuError, match="no"):
        write_folder(tmp_path / "out", read(whole), TENSORS, {}, refuse, lambda found: None)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "not a readable index"),
        ('{"weight_map": {"a.weight": "../../etc/passwd"}}', "no files of its own folder"),
        (json.dumps({"weight_map": {**SHARDS, "c": SHARDS["a.weight"]}}), "first c"),
        (json.dumps({"weight_map": {"a.weight": SHARDS["a.weight"], "b.weight": "gone"}}), "gone"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(sharded: Path, index: str, said: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=said) as caught:
        read(sharded)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0 \.safetensors files"):
        read(tmp_path)
