"""Cells of the grid: what a method is handed, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pbu_cli.benchmark import grid, result_store
from pbu_cli.benchmark.methods import NAMES, find
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.benchmark.originals import stored_digest
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.errors import CheckpointError
from pbu_cli.io.safetensors_format import write


def test_a_method_is_handed_what_it_says_it_reads_and_nothing_else(plan: BenchmarkPlan) -> None:
    network = plan.network.build_untrained(0)
    for name in NAMES:
        method = find(name)
        task = grid.make_task(plan, network, method, 0, 8, lambda images: None)
        assert bool(len(task.forget)) == (method.reads in ("forget", "both"))
        assert bool(len(task.retained)) == (method.reads in ("retained", "both"))
        assert (task.forget.labels == 8).all()
        assert (task.retained.labels != 8).all()


def test_measuring_is_not_in_the_seconds_and_stages_add_up(
    plan: BenchmarkPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(network: object, dataset: object, label: int, unmasked: object) -> dict[str, float]:
        time.sleep(0.2)
        return {"a_df": 0.0, "a_dr": 0.0}

    def unlearn(task: Task) -> Iterator[Result]:
        for stage in ("one", "two"):
            list(task.forget.batches(100))
            yield Result(task.original, stage)

    monkeypatch.setattr(grid, "measure_network", slow)
    method = Method("m", "forget", unlearn, lambda size: 0, {})
    original = plan.network.build_untrained(0)
    cell = grid.run_method(plan, original, method, 0, 8, lambda images: None)
    assert [o.stage for o in cell.outcomes] == ["one", "two"]
    assert [o.images for o in cell.outcomes] == [40, 80]
    assert cell.outcomes[1].seconds < 0.2


def test_measures_are_of_the_test_split_by_class(plan: BenchmarkPlan) -> None:
    predictions = plan.dataset.test.labels.clone()
    predictions[plan.dataset.test.labels == 8] = 3

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.at = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.at += len(x)
            predicted = predictions[self.at - len(x) : self.at]
            return torch.nn.functional.one_hot(predicted, 10).float()

    found = grid.measure_network(Oracle(), plan.dataset, 8)
    assert (found["a_df"], found["a_dr"]) == (0.0, 100.0)
    eights, threes = (float((plan.dataset.test.labels == c).sum()) for c in (8, 3))
    others = len(plan.dataset.test.labels) - threes
    assert grid.measure_network(Oracle(), plan.dataset, 3) == {
        "a_df": 100.0,
        "a_dr": pytest.approx(100 * (1 - eights / others)),
        "odds_auc": pytest.approx(1 - eights / others / 2),  # ties count as a half
    }


def test_a_mask_hides_nothing_from_the_odds(plan: BenchmarkPlan) -> None:
    network = plan.network.build_untrained(0)
    task = grid.make_task(plan, network, find("head-mask"), 0, 8, lambda images: None)
    (result,) = find("head-mask").unlearn(task)
    before = grid.measure_network(network, plan.dataset, 8)
    after = grid.measure_network(result.network, plan.dataset, 8, result.unmasked)
    assert after["odds_auc"] == before["odds_auc"] != 0.5
    assert after["a_df"] == 0


def test_kept_networks_are_checkpoints(plan: BenchmarkPlan) -> None:
    kept = replace(plan, keep_networks=True, methods=("row-shift",))
    list(grid.run_grid(kept))
    path = plan.folder() / "seed0-class8-row-shift.safetensors"
    assert path.exists()
    settings = find("row-shift").settings
    digest = stored_digest(plan, 0)
    assert result_store.read(plan.folder(), "seed0-class8-row-shift", settings, digest)


def test_cells_of_a_replaced_original_are_not_shown(plan: BenchmarkPlan) -> None:
    some = replace(plan, methods=("head-mask",))
    assert [stored for _, stored in grid.run_grid(some)] == [False, False]
    assert [stored for _, stored in grid.run_grid(some)] == [True, True]
    path = plan.folder() / "original-seed0.safetensors"
    write(path, dict(plan.network.build_untrained(7).state_dict()), {})
    with pytest.raises(CheckpointError, match="original-seed0"):
        list(grid.run_grid(some))
    path.unlink()
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="from the original beside it"):
        list(grid.run_grid(some))
