"""JiT: the sensitivity to noise, and what lowering it does to the class."""

from __future__ import annotations

from dataclasses import replace

import torch

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.forget_images import jit
from pbu_cli.benchmark.methods.task import Task
from tests.benchmark.methods.noisy_patterns import UNIT, accuracies, seeded


def test_the_sensitivity_of_a_linear_map_is_its_gain() -> None:
    """The map x -> 3 x has the sensitivity 3 to any noise."""
    x, noise = (torch.randn(5, 1, 2, 2, generator=seeded(n)) for n in (0, 1))
    outputs, noisy_outputs = (3 * x).flatten(1), (3 * (x + noise)).flatten(1)
    found = jit.sensitivity(outputs, noisy_outputs, noise)
    assert torch.allclose(found, torch.full((5,), 3.0), rtol=1e-4)


def test_the_class_is_forgotten(task: Task) -> None:
    settings = replace(jit.SETTINGS, rate=3e-3, epochs=10)
    (result,) = jit.unlearn(task, settings)
    a_df, a_dr = accuracies(result.network)
    assert a_df < 5
    assert a_dr > 90


def test_every_noisy_copy_counts_as_an_image(task: Task) -> None:
    counts: list[int] = []
    forget = CountingLoader(
        task.forget.pixels, task.forget.labels, UNIT, count_images=counts.append
    )
    list(jit.unlearn(replace(task, forget=forget), replace(jit.SETTINGS, copies=3)))
    assert sum(counts) == 4 * len(task.forget)
