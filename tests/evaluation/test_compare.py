"""What a comparison infers, from which network, and which networks it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.models.model_config import metadata_with
from tests.conftest import Ran


def test_the_normalisation_that_pbu_recorded_has_precedence_over_the_original(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    """An output of `unlearn --mean 0.48 --std 0.52` has to be evaluated with these values."""
    clean = tmp_path / "clean.safetensors"
    metadata = metadata_with({}, forgotten=[8], mean=[0.48], std=[0.52], input_size=[1, 8, 8])
    save_file(load_file(digits.checkpoint), clean, metadata)
    done = pbu("evaluate", clean, "--original", digits.checkpoint, "--forget", digits.test / "8",
               "--json", "-q")  # fmt: skip
    inferred = {entry["what"]: entry for entry in json.loads(done.out)["inferred"]}
    assert inferred["normalisation"]["value"] == "mean 0.48 std 0.52"
    assert inferred["normalisation"]["source"] == "metadata written by pbu"
    assert inferred["input size"]["source"] == "metadata written by pbu"


def test_a_folder_that_contradicts_the_metadata_is_an_error(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    clean = tmp_path / "clean.safetensors"
    metadata = metadata_with({}, forgotten=[8], mean=[0.5], std=[0.5])
    save_file(load_file(digits.checkpoint), clean, metadata)
    command = ["evaluate", clean, "--forget", digits.test / "3", "-q"]
    done = pbu(*command)
    assert done.code == 4
    assert "--label 3" in done.err
    assert "--original" in done.err
    for settled in (["--label", "3"], ["--original", digits.checkpoint]):
        assert pbu(*command, *settled).code == 0


@pytest.mark.parametrize("audit", [[], ["--audit"]])
@pytest.mark.parametrize("broken", ["checkpoint", "--original", "--retrained"])
def test_a_network_with_logits_that_are_not_finite_is_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, broken: str, audit: list[str]
) -> None:
    """The weights are finite but too large: the logits are NaN, whose argmax is class 0."""
    large = tmp_path / "large.safetensors"
    save_file({n: t * 1e30 if t.is_floating_point() else t
               for n, t in load_file(digits.checkpoint).items()}, large)  # fmt: skip
    named = {"checkpoint": digits.checkpoint, "--original": digits.checkpoint,
             "--retrained": digits.checkpoint, broken: large}  # fmt: skip
    done = pbu("evaluate", named.pop("checkpoint"), "--forget", digits.test / "8", "-q", *audit,
               "--retain", digits.test, *(word for pair in named.items() for word in pair),
               "--label", "8", "--require", "A_Df<=1")  # fmt: skip
    assert done.code == 3, done.err
    assert "NaN or infinity" in done.err
    assert "large.safetensors" in done.err


def test_a_network_with_other_classes_cannot_be_compared(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    network = resnet18(num_classes=7)
    network.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    other = tmp_path / "other.safetensors"
    save_file(network.state_dict(), other)
    done = pbu("evaluate", digits.checkpoint, "--retrained", other, "--forget", digits.test / "8",
               "-q")  # fmt: skip
    assert done.code == 3, done.err
    assert "--retrained: has 7 classes where the checkpoint has 10" in done.err
