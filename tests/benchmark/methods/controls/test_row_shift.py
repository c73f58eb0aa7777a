"""The shift of one row of the head."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from pbu_cli.benchmark.methods.task import Task
from pbu_cli.errors import PbuError
from tests.benchmark.methods.noisy_patterns import (
    CLASSES,
    FORGET_CLASS,
    accuracies,
    head_of,
    results_of,
)


def test_one_row_changes_and_just_enough(task: Task) -> None:
    (result,) = results_of(task, "row-shift")
    before, after = task.original.state_dict(), result.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"4.weight"}
    rows = (before["4.weight"] != after["4.weight"]).any(dim=1)
    assert rows.tolist() == [label == FORGET_CLASS for label in range(CLASSES)]
    assert accuracies(result.network)[0] == 0  # 0.5 % of 100 images is less than one image
    weaker = copy.deepcopy(result.network)
    with torch.no_grad():
        head_of(weaker).weight.lerp_(before["4.weight"], 0.01)
    assert accuracies(weaker)[0] > 0


def test_a_network_without_a_linear_head_is_refused(task: Task) -> None:
    headless = replace(task, original=nn.Sequential(nn.Conv2d(1, CLASSES, 6), nn.Flatten()))
    with pytest.raises(PbuError, match="linear layer"):
        results_of(headless, "row-shift")
