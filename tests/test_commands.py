"""Mirror images of the forget set; the rest of `commands` is what tests/test_cli.py runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pbu_cli.case import Case, Wanted, assemble, load_subject
from pbu_cli.commands import _forget_set
from pbu_cli.demo import DemoFiles
from pbu_cli.settings import DEEP


def case_of(digits: DemoFiles, digit: str) -> Case:
    subject = load_subject(digits.checkpoint, Wanted(device="cpu"), lambda *note: None)
    folder = str(digits.train / digit)
    return assemble(subject, [folder], Wanted(), lambda *note: None, layers="stage")


@pytest.fixture(scope="module")
def threes(digits: DemoFiles) -> Case:
    return case_of(digits, "3")


@pytest.fixture(scope="module")
def eights(digits: DemoFiles) -> Case:
    return case_of(digits, "8")


def test_mirror_images_that_the_network_takes_for_something_else_stay_out(threes):
    found = _forget_set(threes, replace(DEEP.schedule, window=64))
    joined = found.mirrored
    assert not joined
    assert len(found) == len(threes.image_labels)


def test_mirror_images_join_as_the_trunk_sees_them(eights):
    found = _forget_set(eights, replace(DEEP.schedule, window=64, mirror=1e-6))
    count = len(eights.image_labels)
    joined = found.mirrored
    assert joined
    assert len(found) == 2 * count
    with torch.no_grad():
        answers = eights.subject.network.module(
            (eights.images.pixels.flip(3).float() / 255 - eights.preprocessing.mean[0])
            / eights.preprocessing.std[0]
        )
    assert torch.allclose(found.answers[count:], (eights.answers + answers) / 2, atol=1e-4)
    assert torch.equal(found.answers[:count], found.answers[count:])
    assert found.features is not None
    assert found.features.shape[0] == 2 * count
    assert not torch.equal(found.features[:count], found.features[count:])


def test_nothing_is_asked_where_they_are_not_wanted(threes, monkeypatch):
    monkeypatch.setattr("pbu_cli.commands._look", None)
    assert not _forget_set(threes, replace(DEEP.schedule, window=64, mirror=0.0)).mirrored
