"""The estimated accuracy loss against the runs on file that it was calibrated on."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation.accuracy_loss import (
    FROM_IMAGES,
    FROM_IMAGES_AND_ANCHORS,
    estimate_accuracy_loss,
)
from tests.conftest import Ran
from tests.measure.accuracy_loss_fit import fit, rank_correlation, read_runs


def test_more_drift_is_more_accuracy_loss() -> None:
    found = [estimate_accuracy_loss(d) for d in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0)]
    for less, more in itertools.pairwise(found):
        assert less.estimate < more.estimate
        assert less.low <= more.low
    assert all(one.low <= one.estimate <= one.high <= 100 for one in found)


def test_a_drift_below_0_by_rounding_counts_as_0() -> None:
    assert estimate_accuracy_loss(-1e-9) == estimate_accuracy_loss(0.0)
    none = estimate_accuracy_loss(0.0, 0.0)
    assert estimate_accuracy_loss(-1e-9, 0.002) == estimate_accuracy_loss(0.002, -1e-9) == none


@pytest.mark.parametrize(
    ("both", "constants"), [(False, FROM_IMAGES), (True, FROM_IMAGES_AND_ANCHORS)]
)
def test_the_constants_are_the_fit_to_the_runs_on_file(both: bool, constants: Any) -> None:
    assert vars(constants) == pytest.approx(vars(fit(read_runs(), both)), rel=0.01)


@pytest.mark.parametrize(("both", "rank"), [(False, 0.87), (True, 0.92)])
def test_the_estimate_ranks_and_covers_the_runs_on_file(both: bool, rank: float) -> None:
    runs = read_runs()
    assert len(runs) >= 100
    assert rank_correlation(runs, both) >= rank
    held = []
    for run in runs:
        found = estimate_accuracy_loss(run.on_images, run.on_anchors if both else None)
        held.append(found.low <= run.loss <= found.high)
    assert statistics.fmean(held) >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize("most", ["100", "0"])
def test_a_loss_above_max_damage_is_exit_code_5_after_writing(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, most: str
) -> None:
    output = tmp_path / "out.safetensors"
    done = pbu(
        "unlearn", digits.checkpoint, "--forget", digits.train / "8", "--fast", "-o", output,
        "--max-damage", most, "--json",
    )  # fmt: skip
    document = json.loads(done.out)
    assert output.exists()
    found = document["result"]["damage"]
    assert found == vars(estimate_accuracy_loss(document["result"]["drift"]))
    assert found["estimate"] > 0
    assert done.code == (5 if most == "0" else 0)
    (requirement,) = document["requirements"]
    assert requirement["holds"] == (most == "100")
    assert "out.safetensors" in requirement["line"]
    assert "from those of digits.safetensors; no retained image was used" in requirement["line"]
    if done.code:
        assert "A_Dr is estimated to have lost" in document["error"]["message"]
