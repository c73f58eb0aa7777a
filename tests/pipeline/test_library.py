"""The three functions of the library do what the commands do, and return what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import pbu_cli
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import CheckpointError, InvalidUsage
from tests.conftest import Ran

pytestmark = pytest.mark.slow  # runs commands from start to end


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_library_writes_the_bytes_that_the_commands_write(
    digits: DemoFiles, tmp_path: Path, pbu: Callable[..., Ran]
) -> None:
    forget = digits.train / "8"
    measured = pbu_cli.fisher_of_checkpoint(
        digits.checkpoint,
        forget,
        tmp_path / "fisher.safetensors",
        settings=pbu_cli.FisherSettings(layers="last"),
    )
    done = pbu_cli.unlearn_checkpoint(
        digits.checkpoint, forget, tmp_path / "clean.safetensors", settings=pbu_cli.FAST
    )
    ran = pbu("fisher", digits.checkpoint, "--forget", forget, "--layers", "last",
              "-o", tmp_path / "f.safetensors")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = pbu("unlearn", digits.checkpoint, "--forget", forget, "--fast",
              "-o", tmp_path / "u.safetensors")  # fmt: skip
    assert ran.code == 0, ran.err
    assert sha256(measured.output) == sha256(tmp_path / "f.safetensors")
    assert sha256(done.output) == sha256(tmp_path / "u.safetensors")
    assert measured.trace == pytest.approx(
        sum(float(value.double().sum()) for value in measured.diagonal.values())
    )
    assert done.unlearned.forgotten
    start = pbu_cli.FAST.weights.alpha
    assert start <= done.unlearned.alpha <= 30 * start
    assert done.document["result"]["alpha"] == done.unlearned.alpha


def test_an_evaluation_tells_what_is_forgotten_and_what_is_kept(
    digits: DemoFiles, tmp_path: Path
) -> None:
    output = tmp_path / "clean.safetensors"
    pbu_cli.unlearn_checkpoint(digits.checkpoint, digits.train / "8", output, settings=pbu_cli.FAST)
    result = pbu_cli.evaluate_checkpoint(
        output, digits.test / "8", digits.test, original=digits.checkpoint
    )
    by_name = {scores.name: scores for scores in result.evaluation.scores}
    assert by_name["checkpoint"].a_df <= 1 < 90 <= by_name["original"].a_df
    assert by_name["checkpoint"].a_dr is not None
    assert by_name["checkpoint"].a_dr > 90
    assert result.unmet == ()


def test_what_was_inferred_is_a_value_with_its_source(digits: DemoFiles, tmp_path: Path) -> None:
    result = pbu_cli.fisher_of_checkpoint(
        digits.checkpoint,
        digits.train / "8",
        tmp_path / "f.safetensors",
        settings=pbu_cli.FisherSettings(layers="head"),
    )
    inferred = {one.what: one for one in result.inferred}
    assert inferred["input size"].value == (8, 8)
    assert inferred["input size"].source == "the images' own size, the same for all"
    assert inferred["label"].value == 8
    assert isinstance(inferred["normalisation"].value, pbu_cli.Preprocessing)
    assert inferred["images"].value == result.images


def test_the_library_raises_the_errors_of_the_commands(digits: DemoFiles, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        pbu_cli.unlearn_checkpoint(tmp_path / "no.safetensors", digits.train / "8")
    with pytest.raises(InvalidUsage, match="output equal to input"):
        pbu_cli.fisher_of_checkpoint(
            digits.checkpoint, digits.train / "8", digits.checkpoint, force=True
        )
