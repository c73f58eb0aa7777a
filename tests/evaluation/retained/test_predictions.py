"""Retained images batch by batch against all of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pbu_cli.data.preprocessing import image_logits, model_inputs
from pbu_cli.evaluation.compare import Comparison, ComparisonRequest, compare
from pbu_cli.evaluation.metrics import head_mask, shift_rows
from pbu_cli.evaluation.outputs import HEAD_MASK, ROW_SHIFT
from pbu_cli.evaluation.retained import audit_sample
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.models.features import read_head
from pbu_cli.settings import InputOptions
from tests.conftest import Ran
from tests.networks import grey_levels

FORGET, BATCH = 4, 5
OPTIONS = InputOptions(
    arch=f"{grey_levels.__file__}:grey_levels", mean=(0.0,), std=(1.0,), labels=(str(FORGET),),
    batch_size=BATCH, skip_bad=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve classes of seven images, of which one is broken."""
    images = grey_levels.write_grey_levels(tmp_path, [f"{c:02}" for c in range(12)], count=7)
    (images / "06" / "3.png").write_bytes(b"\x89PNG")
    return tmp_path


def compared(folder: Path, audit_seed: int | None) -> Comparison:
    checkpoint = folder / "grey.safetensors"
    request = ComparisonRequest(
        checkpoint,
        [str(folder / "images" / f"{FORGET:02}")],
        str(folder / "images"),
        original=checkpoint,
    )
    return compare(request, OPTIONS, InferenceLog(), audit_seed=audit_seed)


def all_in_memory(folder: Path, found: Comparison) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pixels and labels of all retained images, at once."""
    groups = split_by_subfolder(list_groups([str(folder / "images")])[0])
    kept = [(label, group) for label, group in enumerate(groups) if label != FORGET]
    images = decode([group for _, group in kept], channels=1, size=(8, 8), skip_bad=True)
    return images.pixels, torch.tensor([label for label, _ in kept])[images.group]


def test_predictions_are_those_of_all_images_in_memory(folder: Path) -> None:
    found = compared(folder, None)
    pixels, labels = all_in_memory(folder, found)
    model = found.loaded_models["original"].network.module
    logits = image_logits(model, pixels, found.prepared.preprocessing, BATCH)
    assert found.retained is not None
    assert torch.equal(found.retained.labels, labels)
    assert len(found.retained.files.bad) == 1
    for name in ("checkpoint", "original"):
        predictions = found.outputs[name].retain_predictions
        assert predictions is not None
        assert torch.equal(predictions, logits.argmax(dim=1))
        assert found.outputs[name].retain_logits is None
    masked = head_mask(logits, found.prepared.forgotten).argmax(dim=1)
    of_mask = found.outputs[HEAD_MASK].retain_predictions
    assert of_mask is not None
    assert torch.equal(of_mask, masked)
    assert found.sample is None


@pytest.mark.parametrize("most", [1000, 20])
def test_an_audit_reads_a_sample_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(audit_sample, "MAX_IMAGES", most)
    found = compared(folder, 0)
    pixels, labels = all_in_memory(folder, found)
    network, prepared = found.loaded_models["original"].network, found.prepared
    batches = [
        model_inputs(part, prepared.preprocessing, torch.device("cpu"))
        for part in pixels.split(BATCH)
    ]
    features, logits = read_head(network.module, network.layout.head_layer or "", batches)
    sample, outputs = found.sample, found.outputs["original"]
    assert sample is not None
    assert len(sample.index) == min(most, len(labels)) or most == 20  # the broken one may be drawn
    assert torch.equal(sample.pixels, pixels[sample.index])
    assert torch.equal(sample.labels, labels[sample.index])
    assert outputs.retain_logits is not None
    assert outputs.retain_features is not None
    assert torch.equal(outputs.retain_logits, logits[sample.index])
    assert torch.equal(outputs.retain_features, features[sample.index])
    assert outputs.retain_predictions is not None
    assert torch.equal(outputs.retain_predictions, logits.argmax(dim=1))
    assert found.shift is not None
    shifted = shift_rows(logits, features, prepared.forgotten, found.shift)
    of_shift = found.outputs[ROW_SHIFT]
    assert of_shift.retain_logits is not None
    assert of_shift.retain_predictions is not None
    assert torch.allclose(of_shift.retain_logits, shifted[sample.index], rtol=1e-5)
    assert torch.equal(of_shift.retain_predictions, shifted.argmax(dim=1))
    count = len(sample.index)
    assert found.sampled == ("" if most == 1000 else f"{count} of {len(labels)} retained images")


def test_leaving_classes_out_keeps_sample_and_images_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_sample, "MAX_IMAGES", 30)
    retained = compared(folder, 0).retained
    assert retained is not None
    known = retained.labels % 2 == 0
    only = retained.only(known)
    assert only.sample is not None
    assert retained.sample is not None
    assert torch.equal(only.labels[only.sample.index], only.sample.labels)
    assert (only.sample.labels % 2 == 0).all()
    mine = retained.sample.labels % 2 == 0
    assert torch.equal(only.sample.pixels, retained.sample.pixels[mine])
    assert torch.equal(only.index[only.sample.index], retained.index[retained.sample.index[mine]])


def test_the_audit_states_its_sample(
    pbu: Callable[..., Ran], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "images" / "06" / "3.png").unlink()
    command = ["evaluate", folder / "grey.safetensors", "--arch", OPTIONS.arch, "--mean", "0",
               "--std", "1", "--label", FORGET, "--forget", folder / "images" / f"{FORGET:02}",
               "--retain", folder / "images", "--audit",
               "--require", "log_p_retain<=0"]  # fmt: skip
    whole = json.loads(pbu(*command, "--json").out)
    assert whole["audit"]["retained_images"] == 76
    assert "audit sample" not in {entry["what"] for entry in whole["inferred"]}
    monkeypatch.setattr(audit_sample, "MAX_IMAGES", 20)
    done = pbu(*command, "--json", "--seed", "5")
    document = json.loads(done.out)
    assert document["audit"]["retained_images"] == 20
    assert document["images"]["retain"] == 76
    assert document["scores"] == whole["scores"]
    (entry,) = (entry for entry in document["inferred"] if entry["what"] == "audit sample")
    assert entry["value"] == "20 of 76 retained images"
    assert "--seed 5" in entry["source"]
    assert "and 20 retained images" in document["requirements"][0]["basis"]
    assert "on 20 of 76 retained images, drawn by class" in pbu(*command).out
