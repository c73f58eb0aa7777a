"""The head mask."""

from __future__ import annotations

import torch

from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import (
    CLASSES,
    FORGET_CLASS,
    accuracies,
    logits_of,
    results_of,
)


def test_the_mask_hides_the_class_and_changes_no_other_logit(task: Task) -> None:
    (result,) = results_of(task, "head-mask")
    before, after = logits_of(task.original), logits_of(result.network)
    others = torch.arange(CLASSES) != FORGET_CLASS
    assert torch.equal(before[:, others], after[:, others])
    assert accuracies(result.network)[0] == 0
