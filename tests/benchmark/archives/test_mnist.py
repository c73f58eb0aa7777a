"""MNIST's files: read as they are published, refused where they are anything else."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from pbu_cli.benchmark.datasets import load_dataset
from pbu_cli.errors import ImageError


def idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


IMAGES = np.arange(3 * 784, dtype=np.uint64).reshape(3, 28, 28) % 256


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for which in ("train", "t10k"):
        idx(folder / f"{which}-images-idx3-ubyte", IMAGES)
        idx(folder / f"{which}-labels-idx1-ubyte", np.array([7, 0, 7]))
    return folder


def test_it_is_read_as_torchvision_lays_it_out(tmp_path: Path, raw: Path) -> None:
    data = load_dataset("mnist", tmp_path, per_class=1)
    assert data.train.labels.tolist() == [7, 0]
    assert data.train.pixels[1, 0].numpy().tolist() == IMAGES[1].tolist()
    assert data.preprocessing.mean == (0.1307,)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0" * 100, b"x" * 100])
def test_other_content_is_one_line(tmp_path: Path, raw: Path, content: bytes) -> None:
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ImageError, match="not an IDX file"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("shape", [(2, 28, 28), (4, 28, 28), (1 << 31, 1 << 31, 4), (0, 28, 28)])
def test_a_false_header_is_one_line(tmp_path: Path, raw: Path, shape: tuple[int, int, int]) -> None:
    path = raw / "train-images-idx3-ubyte"
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack(">3I", *shape) + data[16:])
    with pytest.raises(ImageError, match="not an IDX file"):
        load_dataset("mnist", tmp_path)


def test_a_label_for_each_image_and_none_above_nine(tmp_path: Path, raw: Path) -> None:
    for labels in ([1, 2], [1, 2, 10]):
        idx(raw / "t10k-labels-idx1-ubyte", np.array(labels))
        with pytest.raises(ImageError, match="expected a label from 0 to 9 for each"):
            load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "zero", "large"])
def test_what_is_no_file_of_bounded_size_is_one_line_at_once(
    tmp_path: Path, raw: Path, kind: str
) -> None:
    path = raw / "train-images-idx3-ubyte"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ImageError, match="in the layout of torchvision"):
        load_dataset("mnist", tmp_path)
