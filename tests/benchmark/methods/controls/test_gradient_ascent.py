"""Gradient ascent and when it stops."""

from __future__ import annotations

from dataclasses import replace

import torch

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.controls import gradient_ascent
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import UNIT, accuracies, results_of, running_mean_of


def test_it_stops_once_nothing_is_recognised(task: Task) -> None:
    settings = replace(gradient_ascent.SETTINGS, rate=3e-3, batch_size=10, epochs=50)
    counts: list[int] = []
    forget = CountingLoader(
        task.forget.pixels, task.forget.labels, UNIT, count_images=counts.append
    )
    (result,) = gradient_ascent.unlearn(replace(task, forget=forget), settings)
    assert accuracies(result.network)[0] < 5
    assert len(task.forget) < sum(counts) < 50 * len(task.forget)


def test_it_changes_no_statistics_of_batchnorm(task: Task) -> None:
    (result,) = results_of(task, "gradient-ascent")
    assert torch.equal(running_mean_of(result.network), running_mean_of(task.original))
