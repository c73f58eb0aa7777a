"""PyTorch pickles: tensors are read, code is never run, and archives must not grow."""

from __future__ import annotations

import argparse
import io
import os
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor

from pbu_cli.errors import CheckpointError
from pbu_cli.io import checkpoint
from pbu_cli.io.torch_pickle import unpickle

TENSORS = {"conv1.weight": torch.randn(4, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".ckpt", ".bin", ".PTH", ".safetensors", ""])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_pickles_are_read_without_wrapper_and_prefix(
    tmp_path: Path, suffix: str, wrapper: str | None, prefix: str
) -> None:
    content = {prefix + name: tensor for name, tensor in TENSORS.items()}
    path = tmp_path / f"model{suffix}"
    torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, path)
    read = checkpoint.read(path)
    assert read.prefix == prefix
    assert read.tensors.keys() == TENSORS.keys()
    assert torch.equal(read.tensors["conv1.weight"], TENSORS["conv1.weight"])
    assert read.stored.keys() == content.keys()
    assert read.stored_names(read.tensors).keys() == content.keys()


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="runs no code"):
        checkpoint.read(tmp_path / "evil.pt")
    assert not Path("PWNED").exists()


def saved(tensors: Mapping[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def test_a_compressed_archive_is_refused_before_it_is_unpacked() -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(1000)}))) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="the archive is compressed"):
        unpickle(Path("m.pt"), bytearray(packed.getvalue()))


def test_an_archive_whose_entries_overlap_is_refused() -> None:
    """Its directory claims the largest entry five times, at one place in the file."""
    file = io.BytesIO(saved({"a": torch.zeros(1000)}))
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 5
        archive.writestr("last", b"")  # writes the directory again
    with pytest.raises(CheckpointError, match="two entries of one name"):
        unpickle(Path("m.pt"), bytearray(file.getvalue()))


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


def a_tensor(draw: Callable[..., Any]) -> Tensor:
    """A tensor of any dtype, whole or a view of a larger one, as a Parameter or not."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    wide = torch.randint(0, 2, [n + 1 for n in shape]).to(dtype)
    view = wide[tuple(slice(draw(st.integers(0, 1)), None) for _ in shape)]
    if draw(st.booleans()):
        view = view.mT if view.dim() > 1 else view
    if view.is_floating_point() and draw(st.booleans()):
        return torch.nn.Parameter(view)
    return view if draw(st.booleans()) else view.clone()


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_the_tensors_are_those_of_torch_load(data: st.DataObject) -> None:
    tensors = {f"t{k}": a_tensor(data.draw) for k in range(data.draw(st.integers(1, 4)))}
    tensors["tied"] = tensors["t0"]
    content: Any = tensors
    if data.draw(st.booleans()):
        content = {"state_dict": OrderedDict(tensors), "epoch": 3, "loss": [1.5, None],
                   "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}}  # fmt: skip
    file = io.BytesIO()
    new = data.draw(st.booleans())
    protocol = data.draw(st.sampled_from([2, 2, 3, 4, 5]))
    torch.save(content, file, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    try:
        expected = torch.load(io.BytesIO(file.getvalue()), weights_only=protocol == 2)
    except AttributeError:  # torch cannot read back some dtypes in its own old format
        reject()
    expected = expected.get("state_dict", expected)
    found = unpickle(Path("m.pt"), bytearray(file.getvalue())).tensors
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].stride() == tensor.stride() or 0 in tensor.shape
        assert found[name].tolist() == tensor.tolist()
    if found["t0"].numel():
        assert found["tied"].data_ptr() == found["t0"].data_ptr()


def test_the_modules_versions_that_a_state_dict_carries_are_no_obstacle() -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert hasattr(state, "_metadata")
    assert unpickle(Path("m.pt"), bytearray(saved(state))).tensors.keys() == state.keys()


@pytest.mark.parametrize("new", [True, False])
def test_a_storage_that_is_missing_or_too_short_is_refused(new: bool) -> None:
    """Old readers filled it with whatever the memory held before."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(4), "b": torch.ones(5)}, file, _use_new_zipfile_serialization=new)
    whole = file.getvalue()
    if new:
        packed = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(whole)) as old,
            zipfile.ZipFile(packed, "w") as archive,
        ):
            for name in old.namelist():
                if not name.endswith("data/1"):
                    archive.writestr(name, old.read(name))
        broken = [packed.getvalue()]
    else:
        key = whole.rindex(b"X", 0, whole.rindex(b"e."))
        broken = [whole[:-1], whole[:-28], whole + b"x", whole[:key] + whole[key + 13 :]]
    for data in broken:
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            unpickle(Path("m.pt"), bytearray(data))


class Odd:
    """What it says stands in the pickle as a call."""

    def __init__(self, *said: Any) -> None:
        self.said = said

    def __reduce__(self) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"a": torch.zeros(2), "args": argparse.Namespace(lr=1)},
            "no tensor but argparse.Namespace",
        ),
        (
            {"a": torch.zeros(2), "n": np.float64(1)},
            r"no tensor but numpy.*\.scalar",
        ),
        (torch.nn.Linear(2, 2), r"an object of torch\.nn\.modules\.linear\.Linear"),
        (torch.zeros(2), "holds a tensor; expected a state_dict"),
        ([torch.zeros(2)], "holds a list; expected a state_dict"),
        ({"a": torch.zeros(2), "b": 3}, "got b among 2 entries"),
        ({"a": torch.zeros(2), 5: torch.zeros(2)}, "got 5 among 2 entries"),
        ({"a": torch.eye(3).to_sparse()}, "a is not a plain tensor"),
        ({"a": Odd(torch.Size, ((1, 2),))}, "got a among 1 entries"),
        ({"a": Odd(bytearray, (2 * 10**8,))}, "got a among 1 entries"),
        ({"a": Odd(torch.Size, (Odd(bytearray, (2 * 10**8,)),))}, "got a among 1 entries"),
    ],
)
def test_what_is_no_state_dict_is_named(content: Any, says: str) -> None:
    file = io.BytesIO()
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=says):
        unpickle(Path("m.pt"), bytearray(file.getvalue()))


@pytest.mark.parametrize("name", ["hash_bomb_60", "size_of_bytearray_2e8", "zip_differential_64"])
def test_the_trials_are_refused_at_once(shared: Path, name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        checkpoint.read(shared / "trials" / f"{name}.pt")
    assert time.perf_counter() - start < 2
