"""A Fisher file is bound to its checkpoint, forget set and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import CheckpointError
from pbu_cli.fisher.fisher_file import FisherSource, doubts_about, read_fisher, write_fisher
from pbu_cli.io.checkpoint import read_tensors
from pbu_cli.settings import Preprocessing

SOURCE = FisherSource(
    checkpoint="0" * 64,
    preprocessing=Preprocessing((2, 3), (0.5,), (0.5,)),
    pixels=torch.arange(12, dtype=torch.uint8).view(2, 1, 2, 3),
    labels=torch.tensor([8, 8]),
)
DIAGONAL = {"fc.weight": torch.rand(4, 3), "fc.bias": torch.rand(4)}
SHAPES = {name: tuple(value.shape) for name, value in DIAGONAL.items()}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.safetensors"
    write_fisher(path, DIAGONAL, SOURCE, estimator="mc", draws=3, seed=1)
    return path


def test_what_is_written_is_read(file: Path) -> None:
    diagonal, estimator, draws = read_fisher(file, SOURCE, SHAPES, torch.device("cpu"))
    assert (estimator, draws) == ("mc", 3)
    assert list(diagonal) == list(SHAPES)
    assert all(torch.equal(diagonal[name], DIAGONAL[name]) for name in SHAPES)


def test_only_the_parameters_that_train_are_read(file: Path) -> None:
    shapes = {"fc.bias": SHAPES["fc.bias"]}
    assert list(read_fisher(file, SOURCE, shapes, torch.device("cpu"))[0]) == ["fc.bias"]


@pytest.mark.parametrize(
    ("problem", "source"),
    [
        ("another checkpoint", replace(SOURCE, checkpoint="1" * 64)),
        ("another preprocessing", replace(SOURCE, preprocessing=Preprocessing((2, 3), (0,), (1,)))),
        ("another number of images", replace(SOURCE, pixels=SOURCE.pixels[:1])),
        ("other labels", replace(SOURCE, labels=torch.tensor([8, 3]))),
    ],
)
def test_another_source_is_refused(file: Path, problem: str, source: FisherSource) -> None:
    with pytest.raises(CheckpointError, match=f"measured on {problem}"):
        read_fisher(file, source, SHAPES, torch.device("cpu"))


@pytest.mark.parametrize("shapes", [{"conv.weight": (4, 3)}, {"fc.weight": (3, 4)}])
def test_a_parameter_that_is_missing_or_of_another_shape_is_named(
    file: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(CheckpointError, match=f"lacks {next(iter(shapes))}"):
        read_fisher(file, SOURCE, shapes, torch.device("cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "other"), ("version", "0"), ("estimator", "other"), ("draws", "-1"), ("draws", "x")],
)
def test_another_kind_of_file_is_refused(file: Path, key: str, value: str) -> None:
    save_file(load_file(file), file, {**metadata_of(file), key: value})
    with pytest.raises(CheckpointError, match="not a Fisher file of this version"):
        read_fisher(file, SOURCE, SHAPES, torch.device("cpu"))


@pytest.mark.parametrize("value", [-1.0, torch.nan, torch.inf])
def test_values_that_no_diagonal_has_are_refused(file: Path, value: float) -> None:
    tensors = load_file(file)
    tensors["fc.bias"][0] = value
    save_file(tensors, file, metadata_of(file))
    with pytest.raises(CheckpointError, match=r"fc\.bias is negative or not finite"):
        read_fisher(file, SOURCE, SHAPES, torch.device("cpu"))


def test_a_fisher_file_and_a_record_name_a_prefixed_checkpoint_by_the_same_digest(
    pbu: Callable[..., Any], digits: DemoFiles, tmp_path: Path
) -> None:
    """A `module.` checkpoint is digested under its stored names everywhere."""
    checkpoint, fisher = tmp_path / "model.safetensors", tmp_path / "f.safetensors"
    tensors = {f"module.{name}": tensor for name, tensor in load_file(digits.checkpoint).items()}
    save_file(tensors, checkpoint, metadata_of(digits.checkpoint))
    inputs = [checkpoint, "--forget", digits.train / "8", "--layers", "last", "-q"]
    measured = pbu("fisher", *inputs, "-o", fisher)
    assert measured.code == 0, measured.err
    record = tmp_path / "record.json"
    unlearnt = pbu("unlearn", *inputs, "--fast", "--steps", "1", "--fisher", fisher,
                   "-o", tmp_path / "out.safetensors", "--record", record)  # fmt: skip
    assert unlearnt.code in (0, 5), unlearnt.err
    files = json.loads(record.read_text())["predicate"]["files"]
    (recorded,) = (entry["tensors"] for entry in files if entry["role"] == "input")
    assert metadata_of(fisher)["checkpoint"] == recorded


@pytest.mark.parametrize("value", [3e38, 1e31, 1e-38])
def test_values_that_no_gradients_give_are_refused(tmp_path: Path, value: float) -> None:
    """3e38 divided by the mean would leave nothing of all other numbers, 1e-38 would overflow."""
    path = tmp_path / "f.safetensors"
    diagonal = {"fc.weight": torch.full((4, 3), value), "fc.bias": torch.full((4,), value)}
    write_fisher(path, diagonal, SOURCE, estimator="empirical", draws=1, seed=0)
    with pytest.raises(CheckpointError, match="measure it again"):
        read_fisher(path, SOURCE, SHAPES, torch.device("cpu"))


def test_a_diagonal_that_weighs_nothing_or_one_number_alone_gives_a_warning() -> None:
    usual = {"w": torch.rand(1000), "v": torch.rand(10)}
    assert doubts_about(usual) == []
    (warning,) = doubts_about({**usual, "v": torch.tensor([1e12, 0, 0])})
    assert warning.startswith("one number of v holds 100.0 %")
    (warning,) = doubts_about({name: value * 0 for name, value in usual.items()})
    assert "zero everywhere" in warning


def test_no_digest_of_the_images_is_in_the_file(file: Path) -> None:
    """Whoever has the file could find an image with it among candidates."""
    _, metadata = read_tensors(file)
    assert "forget_set" not in metadata
    other = replace(SOURCE, pixels=SOURCE.pixels.flip(0))
    assert read_fisher(file, other, SHAPES, torch.device("cpu"))[1] == "mc"
