"""The anchors of a run: what memory does not hold is refused before it is made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pbu_cli.errors import PbuError
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.pipeline.anchors import make_anchors
from pbu_cli.pipeline.forget_set import build_forget_set
from pbu_cli.settings import DEFAULT


def test_anchors_that_memory_does_not_hold_are_refused_with_what_they_take(
    eights: UnlearningInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.pipeline.anchors.affordable", lambda needed, device: needed < 1000)
    images, _ = build_forget_set(eights, replace(DEFAULT.schedule, mirror=0.0))
    with pytest.raises(PbuError, match=r"2048 anchors: take 0\.\d GiB.*--anchors"):
        make_anchors(eights, images, DEFAULT, lambda count: None)
