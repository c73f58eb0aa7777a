"""The forget set of a run: which mirrored images join, and how many copies of a few are made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.frozen_backbone import bytes_held
from pbu_cli.pipeline.forget_set import build_forget_set
from pbu_cli.settings import DEFAULT


def test_mirrored_images_stay_out_where_the_network_does_not_recognise_them(
    threes: UnlearningInputs,
) -> None:
    images, mirrored = build_forget_set(threes, replace(DEFAULT.schedule, window=64))
    assert mirrored is not None
    assert not mirrored.joined
    assert mirrored.images == 64
    assert len(images) == len(threes.image_labels)


def test_mirrored_images_join_as_the_frozen_backbone_sees_them(eights: UnlearningInputs) -> None:
    images, mirrored = build_forget_set(eights, replace(DEFAULT.schedule, window=64, mirror=1e-6))
    count = len(eights.image_labels)
    assert mirrored is not None
    assert mirrored.joined
    assert len(images) == 2 * count
    with torch.no_grad():
        logits = eights.loaded.network.module(
            (eights.images.pixels.flip(3).float() / 255 - eights.preprocessing.mean[0])
            / eights.preprocessing.std[0]
        )
    assert torch.allclose(images.logits[count:], (eights.logits + logits) / 2, atol=1e-4)
    assert torch.equal(images.logits[:count], images.logits[count:])
    assert images.features is not None
    assert images.features.shape[0] == 2 * count
    assert not torch.equal(images.features[:count], images.features[count:])


def test_mirrored_images_are_not_tried_where_they_are_not_wanted(
    threes: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.pipeline.forget_set._extract", None)
    assert build_forget_set(threes, replace(DEFAULT.schedule, window=64, mirror=0.0))[1] is None


def test_mirrored_images_stay_out_where_memory_does_not_hold_them(
    eights: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.pipeline.forget_set.affordable", lambda needed, device: False)
    count = len(eights.image_labels)
    images, mirrored = build_forget_set(eights, replace(DEFAULT.schedule, window=64, mirror=1e-6))
    assert (len(images), mirrored) == (count, None)


def test_a_few_images_get_as_many_copies_as_memory_holds(
    eights: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, split_point = len(eights.image_labels), eights.split_point
    assert split_point is not None
    once = eights.images.pixels.nbytes + bytes_held(split_point, count)
    monkeypatch.setattr(
        "pbu_cli.pipeline.forget_set.affordable", lambda needed, device: needed < 9 * once
    )
    schedule = replace(DEFAULT.schedule, window=16 * count, mirror=0.0)
    assert len(build_forget_set(eights, schedule)[0]) == 4 * count
