"""An evaluation from the command line: the estimated accuracy loss, counts and warnings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import PREPROCESSING, DemoFiles
from pbu_cli.data.preprocessing import image_logits
from pbu_cli.evaluation.accuracy_loss import estimate_accuracy_loss
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.settings import InputOptions
from tests.conftest import Ran


def test_the_accuracy_loss_is_estimated_from_the_drift(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    """By the definition: KL of the distribution over nine classes, image by image."""
    tensors = load_file(digits.checkpoint)
    tensors["fc.bias"] += torch.linspace(-2, 2, 10)
    worse = tmp_path / "worse.safetensors"
    save_file(tensors, worse)
    given = ("--forget", digits.test / "8", "--original", digits.checkpoint, "--json")
    done = pbu("evaluate", worse, *given, "--require", "damage<=1")
    assert done.code == 5
    assert "required damage<=1" in done.err
    found = json.loads(done.out)["damage"]
    shown = " ".join(pbu("evaluate", worse, *given[:-1]).out.split())
    estimate = f"loss of A_Dr, estimated from the forget images alone: {found['estimate']:.1f} ["
    assert estimate in shown

    model = load_model(digits.checkpoint, InputOptions(), InferenceLog()).network.module
    images = decode(list_groups([str(digits.test / "8")]), channels=1, size=(8, 8)).pixels
    z = image_logits(model, images, PREPROCESSING, 256).double()
    retained, drifts = [k for k in range(10) if k != 8], []
    for row in z:
        p = row[retained].softmax(0)
        q = (row + torch.linspace(-2, 2, 10).double())[retained].softmax(0)
        drifts.append((p * (p / q).log()).sum().item())
    expected = estimate_accuracy_loss(sum(drifts) / len(drifts))
    assert found["estimate"] == pytest.approx(expected.estimate, rel=1e-3)
    assert found["high"] == pytest.approx(expected.high, rel=1e-3)

    unchanged = json.loads(pbu("evaluate", digits.checkpoint, *given).out)
    assert unchanged["damage"]["estimate"] == 0
    alone = pbu("evaluate", worse, *given[:2], "--json", "--require", "damage<=1")
    assert alone.code == 5
    assert "damage is unknown without --original" in alone.err
    assert json.loads(alone.out)["damage"] is None


def test_unreadable_forget_and_retained_images_are_counted_and_give_warnings(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    forget, retain = tmp_path / "8", tmp_path / "retain"
    shutil.copytree(digits.test / "8", forget)
    shutil.copytree(digits.test / "3", retain / "3")
    for folder in (forget, retain / "3"):
        (folder / "broken.png").write_bytes(b"\x89PNG")
    done = pbu("evaluate", digits.checkpoint, "--forget", forget, "--retain", retain, "--skip-bad",
               "--json", "-q")  # fmt: skip
    document = json.loads(done.out)
    assert document["skipped"] == {"forget": 1, "retain": 1}
    assert len(document["warnings"]) == 2
    assert "1 unreadable forget images" in done.err
    assert "1 unreadable retained images" in done.err
