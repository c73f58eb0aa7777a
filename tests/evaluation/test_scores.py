"""The scores of a network against counts by hand."""

from __future__ import annotations

import pytest
import torch

from pbu_cli.evaluation.outputs import NetworkOutputs
from pbu_cli.evaluation.scores import score


def test_scores_are_counts_over_the_images() -> None:
    forget = torch.tensor([[0.0, 9, 1], [9, 0, 1], [9, 0, 1], [0, 0, 9]])
    retain = torch.tensor([0, 2, 1])
    retain_labels = torch.tensor([0, 2, 2])
    scores = score(
        "x", NetworkOutputs(forget, retain_predictions=retain), torch.full((4,), 1), retain_labels
    )
    assert scores.a_df == 25.0
    assert scores.answers == {0: 50.0, 1: 25.0, 2: 25.0}
    assert scores.a_dr == pytest.approx(200 / 3)
    assert scores.per_class == {0: 100.0, 1: 25.0, 2: 50.0}


def test_without_retained_images_their_accuracy_is_unknown() -> None:
    scores = score("x", NetworkOutputs(torch.eye(3)), torch.tensor([0, 1, 2]), None)
    assert scores.a_dr is None
    assert scores.a_dr_interval is None
