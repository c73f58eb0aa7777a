"""The plan of a benchmark, and the estimate of how far it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pbu_cli.benchmark.protocol import BenchmarkPlan, GridProgress, parse_classes
from pbu_cli.errors import InvalidUsage


def test_another_recipe_or_another_pixel_is_another_folder(plan: BenchmarkPlan) -> None:
    other = replace(plan, recipe=replace(plan.recipe, rate=0.01))
    pixels = plan.dataset.test.pixels.clone()
    pixels[0, 0, 0, 0] ^= 1
    test = replace(plan.dataset.test, pixels=pixels)
    moved = replace(plan, dataset=replace(plan.dataset, test=test))
    assert len({p.folder() for p in (plan, other, moved)}) == 3


def test_classes_are_given_by_number_or_name_and_each_counts_once(plan: BenchmarkPlan) -> None:
    data = replace(plan.dataset, classes=("cat", "dog"))
    assert parse_classes("1, cat,dog", data) == (1, 0)
    with pytest.raises(InvalidUsage, match="--classes 2"):
        parse_classes("2", data)


def test_stored_cells_count_as_done_but_not_for_the_pace(
    plan: BenchmarkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("pbu_cli.benchmark.protocol.time.perf_counter", lambda: next(seconds))
    progress = GridProgress(plan)  # original, head-mask, pbu
    costs = [plan.image_passes(*cell) for cell in plan.grid()]
    progress.finish_cell(stored=True)
    progress.advance(5)
    assert (progress.done, progress.total) == (costs[0] + 5, sum(costs))
    progress.finish_cell(stored=False)
    assert progress.done == costs[0] + costs[1]
    assert progress.seconds_left() == pytest.approx(10.0 / costs[1] * costs[2])
    progress.advance(10**9)
    assert progress.done == progress.total
