"""What a network may ask of the machine: sizes that files state, and the memory of a batch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.models.model_config import metadata_with
from tests.conftest import Ran


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", [1, 4096, 4096]),
        ("input_size", [1, 8, 1025]),
        ("input_size", [1, 1 << 62, 8]),
        ("input_size", [1, 224.5, 224.5]),
        ("input_size", "888"),
        ("num_classes", 10**9),
        ("num_classes", 0),
        ("num_classes", -(2**70)),
        ("label_names", ["a"] * 200_000),
        ("mean", "123"),
        ("mean", [0.5] * 65),
    ],
)
@pytest.mark.parametrize("where", ["config", "metadata"])
def test_absurd_values_of_a_description_end_in_one_line_at_once(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, key: str, value: object, where: str
) -> None:
    checkpoint = tmp_path / "net.safetensors"
    if where == "config":
        shutil.copy(digits.checkpoint, checkpoint)
        (tmp_path / "config.json").write_text(json.dumps({key: value}))
    else:
        save_file(load_file(digits.checkpoint), checkpoint, {key: json.dumps(value)})
    start = time.perf_counter()
    done = pbu("unlearn", checkpoint, "--forget", digits.train / "8", "--dry-run", "-q")
    assert done.code == 3, done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 600
    assert time.perf_counter() - start < 5


def test_a_size_that_a_file_may_not_ask_for_may_be_asked_for_by_the_flag(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "net.safetensors"
    written = {"mean": [0.5], "std": [0.5], "input_size": [1, 4096, 4096]}
    save_file(load_file(digits.checkpoint), checkpoint, metadata_with({}, forgotten=[], **written))
    command = ["fisher", checkpoint, "--forget", digits.train / "8", "--dry-run", "-q"]
    done = pbu(*command)
    assert done.code == 3
    assert "pass --size 4096x4096 if it is meant" in done.err
    assert pbu(*command, "--size", "8").code == 0


def test_metadata_longer_than_a_config_may_be_are_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "net.safetensors"
    save_file(load_file(digits.checkpoint), checkpoint, {"label_names": json.dumps(["a"] * 10**6)})
    done = pbu("fisher", checkpoint, "--forget", digits.train / "8", "--dry-run", "-q")
    assert done.code == 3
    assert "label_names has 5,000,000 characters" in done.err


def test_a_batch_that_memory_cannot_hold_is_refused_before_it_is_made(
    pbu: Callable[..., Ran], digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "--dry-run", "-q"]
    # One layer takes 64 channels of 64x64 pixels in float32, twice: 2 MB an image, of 130.
    monkeypatch.setattr("pbu_cli.inputs.loaded_model.memory", lambda: 100e6)
    done = pbu(*command, "--size", "64")
    assert done.code == 1
    assert "out of memory: one layer needs" in done.err
    assert "for 130 images of 1x64x64" in done.err
    assert "--batch-size 11" in done.err
    assert pbu(*command, "--size", "64", "--batch-size", "11").code == 0
    assert pbu(*command).code == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch-size", "9223372036854775808"),
        ("--batch-size", "65537"),
        ("--draws", "10001"),
        ("--steps", "1000001"),
        ("--anchors", "100001"),
        ("--channels", "5"),
        ("--seed", "9223372036854775808"),
        ("--size", "4097"),
        ("--size", "8x" + "9" * 5000),
        ("--max-damage", "101"),
        ("--max-damage", "nan"),
        ("--alpha", "1e7"),
        ("--alpha", "nan"),
        ("--beta", "inf"),
        ("--mean", "1e400"),
        ("--device", "cuda:99999999999999999999"),
    ],
)
def test_a_number_out_of_bounds_is_a_usage_error_of_one_line(
    pbu: Callable[..., Ran], digits: DemoFiles, flag: str, value: str
) -> None:
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", flag, value,
               "--dry-run", "-q")  # fmt: skip
    assert done.code == 2, done.err
    assert flag in done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 400
