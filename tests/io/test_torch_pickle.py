"""PyTorch pickles: tensors are read, code is never run, and archives must not grow."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError
from pbu_cli.io import checkpoint
from pbu_cli.io.torch_pickle import PICKLE_SUFFIXES, unpickle

TENSORS = {"conv1.weight": torch.randn(4, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
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


def saved(tensors: dict[str, Tensor]) -> bytes:
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
        unpickle(Path("m.pt"), packed.getvalue())


def test_an_archive_whose_entries_overlap_is_refused() -> None:
    """Its directory claims the largest entry five times, at one place in the file."""
    file = io.BytesIO(saved({"a": torch.zeros(1000)}))
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 5
        archive.writestr("last", b"")  # writes the directory again
    with pytest.raises(CheckpointError, match="entries of the archive overlap"):
        unpickle(Path("m.pt"), file.getvalue())
