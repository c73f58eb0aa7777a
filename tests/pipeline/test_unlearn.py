"""Mirror images of the forget set; the rest of `commands` is what tests/test_cli.py runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import PbuError
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, assemble
from pbu_cli.models.frozen_backbone import bytes_held
from pbu_cli.pipeline.anchors import anchors_for
from pbu_cli.pipeline.forget_set import forget_set
from pbu_cli.pipeline.output import _stored_as
from pbu_cli.settings import DEEP, InputOptions


def prepare_inputs(digits: DemoFiles, digit: str) -> UnlearningInputs:
    loaded = load_model(digits.checkpoint, InputOptions(device="cpu"), lambda *note: None)
    folder = str(digits.train / digit)
    return assemble(loaded, [folder], InputOptions(), lambda *note: None, layers="stage")


@pytest.fixture(scope="module")
def threes(digits: DemoFiles) -> UnlearningInputs:
    return prepare_inputs(digits, "3")


@pytest.fixture(scope="module")
def eights(digits: DemoFiles) -> UnlearningInputs:
    return prepare_inputs(digits, "8")


def test_mirror_images_that_the_network_takes_for_something_else_stay_out(threes):
    found, mirrored = forget_set(threes, replace(DEEP.schedule, window=64))
    assert mirrored is not None
    assert not mirrored.joined
    assert mirrored.images == 64
    assert len(found) == len(threes.image_labels)


def test_mirror_images_join_as_the_trunk_sees_them(eights):
    found, mirrored = forget_set(eights, replace(DEEP.schedule, window=64, mirror=1e-6))
    count = len(eights.image_labels)
    assert mirrored is not None
    assert mirrored.joined
    assert len(found) == 2 * count
    with torch.no_grad():
        answers = eights.loaded.network.module(
            (eights.images.pixels.flip(3).float() / 255 - eights.preprocessing.mean[0])
            / eights.preprocessing.std[0]
        )
    assert torch.allclose(found.answers[count:], (eights.answers + answers) / 2, atol=1e-4)
    assert torch.equal(found.answers[:count], found.answers[count:])
    assert found.features is not None
    assert found.features.shape[0] == 2 * count
    assert not torch.equal(found.features[:count], found.features[count:])


def test_nothing_is_asked_where_they_are_not_wanted(threes, monkeypatch):
    monkeypatch.setattr("pbu_cli.pipeline.forget_set._look", None)
    assert forget_set(threes, replace(DEEP.schedule, window=64, mirror=0.0))[1] is None


def test_they_stay_out_where_memory_does_not_hold_them(eights, monkeypatch):
    monkeypatch.setattr("pbu_cli.pipeline.forget_set.affordable", lambda needed, device: False)
    count = len(eights.image_labels)
    found, mirrored = forget_set(eights, replace(DEEP.schedule, window=64, mirror=1e-6))
    assert (len(found), mirrored) == (count, None)


def test_of_a_few_images_so_many_copies_are_made_as_memory_holds(eights, monkeypatch):
    count, split_point = len(eights.image_labels), eights.split_point
    once = eights.images.pixels.nbytes + bytes_held(split_point, count)
    monkeypatch.setattr(
        "pbu_cli.pipeline.forget_set.affordable", lambda needed, device: needed < 9 * once
    )
    images, _ = forget_set(eights, replace(DEEP.schedule, window=16 * count, mirror=0.0))
    assert len(images) == 4 * count


def test_anchors_that_memory_does_not_hold_are_refused_with_what_they_take(eights, monkeypatch):
    monkeypatch.setattr(
        "pbu_cli.pipeline.forget_set.affordable", lambda needed, device: needed < 1000
    )
    images, _ = forget_set(eights, replace(DEEP.schedule, mirror=0.0))
    with pytest.raises(PbuError, match=r"2048 anchors: take 0\.\d GiB.*--anchors"):
        anchors_for(eights, images, 2048, DEEP.weights, DEEP.schedule, lambda count: None)


def test_what_did_not_move_keeps_the_digits_that_float32_has_not():
    stored = torch.tensor([0.1, 0.2, 1 / 3], dtype=torch.float64)
    now = stored.float()
    now[1] = 0.5
    found = _stored_as(now, stored)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.1, 0.5, 1 / 3]
