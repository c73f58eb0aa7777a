"""Checkpoints on disk: real files of every kind, and what happens to bad ones."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.io import checkpoint, safetensors_format
from pbu_cli.io.torch_pickle import PICKLE_SUFFIXES

TENSORS = {"conv1.weight": torch.randn(4, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_pickles_are_read_without_wrapper_and_prefix(tmp_path, suffix, wrapper, prefix):
    content = {prefix + name: tensor for name, tensor in TENSORS.items()}
    path = tmp_path / f"model{suffix}"
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, path)
    read = checkpoint.read(path)
    assert read.prefix == prefix
    assert read.tensors.keys() == TENSORS.keys()
    assert torch.equal(read.tensors["conv1.weight"], TENSORS["conv1.weight"])
    assert read.stored_names(read.tensors).keys() == content.keys()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_dtype_survives_the_disk(tmp_path, dtype):
    tensors = {"a": torch.randn(5, 3).to(dtype), "b": torch.tensor(3)}
    safetensors_format.write(tmp_path / "a.safetensors", tensors, {"format": "pt", "author": "x"})
    read = checkpoint.read(tmp_path / "a.safetensors")
    assert read.tensors["a"].dtype == dtype
    assert safetensors_format.digest(read.tensors) == safetensors_format.digest(tensors)
    assert read.metadata == {"format": "pt", "author": "x"}


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    """safetensors alone writes metadata in an order drawn anew each time."""
    metadata = {str(key): str(key) for key in range(12)} | {"é\n\x01": '"\\'}
    digests = set()
    for number in range(6):
        path = tmp_path / f"{number}.safetensors"
        safetensors_format.write(path, TENSORS, metadata)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        with safe_open(path, "pt") as file:
            assert file.metadata() == metadata
    assert len(digests) == 1


def test_digest_sees_name_dtype_shape_and_bytes_but_not_order():
    a, b = torch.zeros(2, 3), torch.ones(4)
    base = safetensors_format.digest({"a": a, "b": b})
    assert base == safetensors_format.digest({"b": b, "a": a})
    others = [
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.int(), "b": b},
        {"a": a, "b": -b},
        {"a": a},
    ]
    assert len({base, *map(safetensors_format.digest, others)}) == len(others) + 1


def test_tied_weights_are_written_under_each_name(tmp_path):
    tied = torch.randn(3)
    safetensors_format.write(tmp_path / "a.safetensors", {"x": tied, "y": tied}, {})
    read = checkpoint.read(tmp_path / "a.safetensors").tensors
    assert torch.equal(read["x"], tied)
    assert torch.equal(read["y"], tied)


class Attack:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="runs no code"):
        checkpoint.read(tmp_path / "evil.pt")
    assert not Path("PWNED").exists()


def _bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.safetensors"
    save_file(TENSORS, good)
    content = good.read_bytes()
    torch.save(TENSORS, folder / "pickle.safetensors")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": {"a": torch.zeros(1), "b": "text"}}, folder / "text.pth")
    save_file({"a": torch.tensor([1.0, float("nan")])}, folder / "nan.safetensors")
    save_file({"a": torch.tensor([float("inf")])}, folder / "inf.safetensors")
    save_file({}, folder / "none.safetensors")
    for name, data in {
        "empty.safetensors": b"",
        "truncated.safetensors": content[:-5],
        "header.safetensors": (2**60).to_bytes(8, "little") + content[8:],
        "noise.safetensors": bytes(range(256)),
        "noise.pt": bytes(range(256)),
        "text.txt": b"hello",
    }.items():
        (folder / name).write_bytes(data)
    (folder / "folder.safetensors").mkdir()
    return {path.name: path for path in folder.iterdir() if path != good} | {
        "missing.safetensors": folder / "missing.safetensors"
    }


def test_bad_files_are_one_line_of_what_and_what_next(tmp_path):
    bad = _bad_files(tmp_path)
    assert len(bad) == 15
    for name, path in bad.items():
        with pytest.raises(CheckpointError) as caught:
            checkpoint.read(path)
        message = str(caught.value)
        assert name in message
        assert "\n" not in message, name
        assert len(message) < 600, name


@pytest.mark.parametrize("failure", [PbuError("no"), KeyboardInterrupt("no"), SystemExit("no")])
def test_a_write_that_is_not_finished_leaves_everything_as_it_was(tmp_path, failure):
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"old")

    def refuse(written: dict[str, torch.Tensor]) -> None:
        assert written.keys() == TENSORS.keys()
        raise failure

    with pytest.raises(type(failure), match="no"):
        safetensors_format.write(output, TENSORS, {}, refuse)
    assert output.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize(("number", "says"), [(errno.EIO, "written, but"), (errno.EINVAL, None)])
def test_a_folder_that_cannot_be_synced_is_not_said_to_hold_nothing(
    tmp_path, monkeypatch, number, says
):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    output = tmp_path / "out.safetensors"
    if says is None:
        safetensors_format.write(output, TENSORS, {})
    else:
        with pytest.raises(PbuError, match=says):
            safetensors_format.write(output, TENSORS, {})
    assert checkpoint.read(output).tensors.keys() == TENSORS.keys()
