"""The grid: resumed after a kill, cached, fair, and rendered. Digits and a small network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pbu_cli.benchmark import grid
from pbu_cli.benchmark import result_store as cells
from pbu_cli.benchmark.datasets import Dataset, load
from pbu_cli.benchmark.demo_digits import DemoFiles, write_digits
from pbu_cli.benchmark.methods import NAMES, find
from pbu_cli.benchmark.methods.task import Method, Result
from pbu_cli.benchmark.networks import choose
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.benchmark.training import Recipe

NET = """
from torch import nn


def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("net") / "tiny.py"
    path.write_text(NET)
    return f"{path}:tiny"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """The demo's digits; no network is trained on them."""
    return write_digits(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def data(digits: DemoFiles) -> Dataset:
    return load("folder", digits.train.parent, per_class=40)


@pytest.fixture
def plan(data: Dataset, net: str, tmp_path: Path) -> BenchmarkPlan:
    candidate = choose("", net, 10, 1, data.preprocessing.size)
    return BenchmarkPlan(
        data, candidate, Recipe(8, rate=0.05, batch_size=32), (8,), ("head-mask", "pbu"), 1,
        tmp_path, torch.device("cpu"),
    )  # fmt: skip


def command(digits: DemoFiles, net: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "pbu_cli", "benchmark", "--dataset", "folder", "--data-root",
        str(digits.train.parent), "--images-per-class", "40", "--arch", net, "--epochs", "2",
        "--device", "cpu", "--out", str(out), "--json", *more,
    ]  # fmt: skip


def rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in document["rows"]]


def written(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/seed*.json")}


def test_a_run_that_was_killed_goes_on_and_ends_as_an_unbroken_one(digits, net, tmp_path):
    grid = ("--classes", "8,3", "--methods", "all")
    unbroken = subprocess.run(
        command(digits, net, tmp_path / "a", *grid), capture_output=True, text=True, check=True
    )
    whole = json.loads(unbroken.stdout)
    cells_of_all = 2 * (len(NAMES) + 1)
    assert len(whole["cells"]) == cells_of_all

    killed = subprocess.Popen(
        command(digits, net, tmp_path / "b", *grid),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(written(tmp_path / "b")) < 7 and time.monotonic() < deadline:
            assert killed.poll() is None
            time.sleep(0.005)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    before = written(tmp_path / "b")
    assert 7 <= len(before) < cells_of_all
    assert all(json.loads(path.read_text())["outcomes"] for path in before)

    again = subprocess.run(
        command(digits, net, tmp_path / "b", *grid), capture_output=True, text=True, check=True
    )
    after = written(tmp_path / "b")
    assert before.items() <= after.items()  # none of them was written again
    assert len(after) == cells_of_all
    assert again.stderr.count("A_Df") == cells_of_all - len(before)  # a line for each computed
    assert rows(json.loads(again.stdout)) == rows(whole)


def test_originals_are_trained_once_and_come_back_bit_by_bit(plan, monkeypatch):
    first, cost = grid.original(plan, 0, lambda images: None)
    assert cost.images == 8 * (400 - 400 % 32)  # full batches

    def fail(*args: object, **named: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(grid, "train", fail)
    again, same = grid.original(plan, 0, lambda images: None)
    assert (same.seconds, same.images) == (cost.seconds, cost.images)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not again.training


def test_another_recipe_or_another_pixel_is_another_folder(plan):
    from dataclasses import replace

    other = replace(plan, recipe=replace(plan.recipe, rate=0.01))
    pixels = plan.dataset.test.pixels.clone()
    pixels[0, 0, 0, 0] ^= 1
    moved = replace(plan, dataset=replace(plan.dataset, test=replace(plan.dataset.test,
                                                                     pixels=pixels)))  # fmt: skip
    assert len({p.folder() for p in (plan, other, moved)}) == 3


def test_pbu_in_the_benchmark_is_pbu_on_the_command_line(plan, pbu, digits, net, tmp_path):
    """Same checkpoint, same images: the same weights, whoever calls."""
    network, _ = grid.original(plan, 0, lambda images: None)
    task = grid._task(plan, network, find("pbu"), 0, 8, lambda images: None)
    (result,) = find("pbu").unlearn(task)
    folder = tmp_path / "class8"
    folder.mkdir()
    for path in sorted((digits.train / "8").iterdir())[:40]:
        (folder / path.name).symlink_to(path)
    original, output = plan.folder() / "original-seed0.safetensors", tmp_path / "o.safetensors"
    done = pbu("unlearn", original, "--forget", folder, "-o", output, "--arch", net,
               "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    from pbu_cli.io.checkpoint import read

    for name, value in read(output).tensors.items():
        assert torch.equal(value, result.network.state_dict()[name]), name


def test_a_method_is_handed_what_it_says_it_reads_and_nothing_else(plan):
    network = plan.candidate.fresh(0)
    for name in NAMES:
        method = find(name)
        task = grid._task(plan, network, method, 0, 8, lambda images: None)
        assert bool(len(task.forget)) == (method.reads in ("forget", "both"))
        assert bool(len(task.retained)) == (method.reads in ("retained", "both"))
        assert (task.forget.labels == 8).all()
        assert (task.retained.labels != 8).all()


def test_measuring_is_not_in_the_seconds_and_stages_add_up(plan, monkeypatch):
    def slow(network: object, dataset: object, label: int, inside: object) -> dict[str, float]:
        time.sleep(0.2)
        return {"a_df": 0.0, "a_dr": 0.0}

    def unlearn(task: Any) -> Any:
        for stage in ("one", "two"):
            list(task.forget.batches(100))
            yield Result(task.original, stage)

    monkeypatch.setattr(grid, "measures", slow)
    method = Method("m", "forget", unlearn, lambda size: 0, {})
    cell = grid.work(plan, plan.candidate.fresh(0), method, 0, 8, lambda images: None)
    assert [o.stage for o in cell.outcomes] == ["one", "two"]
    assert [o.images for o in cell.outcomes] == [40, 80]
    assert cell.outcomes[1].seconds < 0.2


def test_a_measure_is_of_the_test_split_by_class(plan):
    answers = plan.dataset.test.labels.clone()
    answers[plan.dataset.test.labels == 8] = 3

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.at = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.at += len(x)
            return torch.nn.functional.one_hot(answers[self.at - len(x) : self.at], 10).float()

    found = grid.measures(Oracle(), plan.dataset, 8)
    assert (found["a_df"], found["a_dr"]) == (0.0, 100.0)
    gone, others = (float((plan.dataset.test.labels == c).sum()) for c in (8, 3))
    kept = len(plan.dataset.test.labels) - others
    assert grid.measures(Oracle(), plan.dataset, 3) == {
        "a_df": 100.0,
        "a_dr": pytest.approx(100 * (1 - gone / kept)),
        "odds_auc": pytest.approx(1 - gone / kept / 2),  # ties, which count as a half
    }


def test_a_mask_hides_nothing_from_the_odds(plan):
    network = plan.candidate.fresh(0)
    task = grid._task(plan, network, find("head-mask"), 0, 8, lambda images: None)
    (result,) = find("head-mask").unlearn(task)
    before = grid.measures(network, plan.dataset, 8)
    after = grid.measures(result.network, plan.dataset, 8, result.inside)
    assert after["odds_auc"] == before["odds_auc"] != 0.5
    assert after["a_df"] == 0


def test_kept_networks_are_checkpoints(plan, pbu):
    from dataclasses import replace

    kept = replace(plan, keep=True, methods=("row-shift",))
    list(grid.run(kept))
    path = plan.folder() / "seed0-class8-row-shift.safetensors"
    assert path.exists()
    assert cells.read(plan.folder(), "seed0-class8-row-shift", find("row-shift").settings)


def test_the_table_stands_beside_the_papers(digits, net, tmp_path, pbu):
    named = tmp_path / "mnist"
    named.symlink_to(digits.train.parent)
    arguments = (
        "benchmark", "--dataset", "folder", "--data-root", named, "--images-per-class", "10",
        "--model", "resnet34", "--epochs", "1", "--classes", "8", "--methods", "row-shift",
        "--device", "cpu", "--out", tmp_path / "out", "--plot", tmp_path / "p.svg",
    )  # fmt: skip
    done = pbu(*arguments)
    assert done.code == 0, done.err
    assert "99.73 ± 0.21" in done.out  # of the original
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    again = pbu(*arguments)
    assert "of 2" not in again.err
    assert again.out == done.out


@pytest.mark.parametrize(
    ("flags", "expected", "code"),
    [
        (("--methods", "pbu,magic"), "--methods magic: expected all, or some of retrain", 2),
        (("--classes", "ten"), "--classes ten: expected a class from 0 to 9", 2),
        (("--plot", "a.png"), "expected a name ending in .svg", 2),
        (("--plot", "gone/a.svg"), "gone: no such folder for the output", 2),
        (("--dataset", "mnist"), "--data-root, or --download", 4),
        (("--arch", "resnet0"), "expected a torchvision classifier", 2),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    digits, net, tmp_path, pbu, flags, expected, code
):
    given = {
        "--dataset": "folder", "--data-root": digits.train.parent, "--arch": net,
        "--images-per-class": 5, "--out": tmp_path / "out",
    }  # fmt: skip
    given |= {flags[0]: flags[1]}
    done = pbu("benchmark", *(part for pair in given.items() for part in pair))
    assert (done.code, done.err.count("error: ")) == (code, 1)
    assert expected in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_downloads_nothing(tmp_path, pbu):
    done = pbu("benchmark", "--dataset", "mnist", "--data-root", tmp_path, "--download",
               "--dry-run", "--classes", "8", "--model", "resnet18")  # fmt: skip
    assert done.code == 4
    assert not list(tmp_path.iterdir())


def test_a_dry_run_trains_nothing(digits, net, tmp_path, pbu):
    done = pbu(*command(digits, net, tmp_path / "out", "--dry-run", "--classes", "8,3,8")[3:])
    document = json.loads(done.out)
    assert done.code == 0
    assert document["dry_run"] is True
    assert document["protocol"]["classes"] == [8, 3]
    assert "passes of an image" in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_where_nothing_can_be_written(digits, net, tmp_path, pbu):
    (tmp_path / "file").write_text("")
    done = pbu(*command(digits, net, tmp_path / "file" / "out", "--dry-run")[3:])
    assert done.code == 1
    assert "--out" in done.err
