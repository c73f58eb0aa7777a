"""Checkpoints on disk: names, prefix and digests of good files, and the errors of bad ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pbu_cli.errors import CheckpointError
from pbu_cli.io import checkpoint
from pbu_cli.io.safetensors_format import Fingerprint, digest

TENSORS = {"conv1.weight": torch.randn(4, 3), "bn.num_batches_tracked": torch.tensor(7)}


def test_the_fingerprint_is_of_the_file_that_was_read_under_its_stored_names(
    tmp_path: Path,
) -> None:
    """The same for every prefix taken off, and also after the file on disk has changed."""
    path = tmp_path / "m.safetensors"
    content = {f"module.{name}": tensor for name, tensor in TENSORS.items()}
    save_file(content, path)
    expected = Fingerprint(hashlib.sha256(path.read_bytes()).hexdigest(), digest(content))
    assert checkpoint.fingerprint(path) == expected
    read = checkpoint.read(path)
    path.unlink()
    assert read.fingerprint == read.under("").fingerprint == expected
    assert read.fingerprint is read.fingerprint


def test_a_prefix_is_taken_off_all_names_and_can_be_put_back() -> None:
    names = ["module.model.a", "module.model.b"]
    read = checkpoint.Checkpoint(Path("m"), dict.fromkeys(names, torch.zeros(2)), "module.", {})
    for prefix, short in (("", "module.model.a"), ("module.", "model.a"), ("module.model.", "a")):
        under = read.under(prefix)
        assert under.prefix == prefix
        assert next(iter(under.tensors)) == short
        assert under.shapes[short] == (2,)
        assert list(under.stored_names(under.tensors)) == list(under.stored) == names


def bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.safetensors"
    save_file(TENSORS, good)
    content = good.read_bytes()
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


def test_a_bad_file_gives_one_line_that_names_it(tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    assert len(bad) == 14
    for name, path in bad.items():
        with pytest.raises(CheckpointError) as caught:
            checkpoint.read(path)
        message = str(caught.value)
        assert name in message
        assert "\n" not in message, name
        assert len(message) < 600, name


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3, dtype=torch.complex64), "not a plain tensor"),
        (torch.eye(3).to_sparse(), "not a plain tensor"),
        (torch.zeros(1).expand(10**9), "not a plain tensor"),
        (torch.zeros(1, device="meta"), "not a plain tensor"),
    ],
)
def test_tensors_that_are_not_real_numbers_in_memory_are_refused(
    tmp_path: Path, tensor: torch.Tensor, says: str
) -> None:
    torch.save({"a": torch.zeros(2), "b": tensor}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=says):
        checkpoint.read(tmp_path / "m.pt")


def test_tensors_that_share_bytes_may_not_be_much_larger_than_their_file(tmp_path: Path) -> None:
    shared = torch.zeros(100_000)
    torch.save(dict.fromkeys("abc", shared), tmp_path / "tied.pt")
    assert checkpoint.read(tmp_path / "tied.pt").tensors.keys() == set("abc")
    torch.save(dict.fromkeys("abcdef", shared), tmp_path / "large.pt")
    with pytest.raises(CheckpointError, match="more than 4 times"):
        checkpoint.read(tmp_path / "large.pt")
