"""The estimate of damage against the runs on file that it was calibrated on."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest

from pbu_cli.evaluation.accuracy_loss import OF_BOTH, OF_IMAGES, estimated
from tests.measure import gauge


def test_more_drift_is_more_damage():
    found = [estimated(d) for d in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0)]
    for less, more in itertools.pairwise(found):
        assert less.estimate < more.estimate
        assert less.low <= more.low
    assert all(one.low <= one.estimate <= one.high <= 100 for one in found)


def test_drift_that_rounding_left_below_0_is_none():
    assert estimated(-1e-9) == estimated(0.0)
    assert estimated(-1e-9, 0.002) == estimated(0.002, -1e-9) == estimated(0.0, 0.0)


@pytest.mark.parametrize(("both", "constants"), [(False, OF_IMAGES), (True, OF_BOTH)])
def test_the_constants_are_those_of_the_runs_on_file(both, constants):
    assert vars(constants) == pytest.approx(vars(gauge.fit(gauge.runs(), both)), rel=0.01)


@pytest.mark.parametrize(("both", "rank"), [(False, 0.87), (True, 0.92)])
def test_it_ranks_and_covers_the_runs_on_file(both, rank):
    runs = gauge.runs()
    assert len(runs) >= 100
    assert gauge.rank_correlation(runs, both) >= rank
    held = []
    for run in runs:
        found = estimated(run.on_images, run.on_anchors if both else None)
        held.append(found.low <= run.loss <= found.high)
    assert statistics.fmean(held) >= 0.94


@pytest.mark.parametrize("most", ["100", "0"])
def test_a_limit_on_damage_is_an_exit_code_and_loses_nothing(pbu, digits, tmp_path, most):
    output = tmp_path / "out.safetensors"
    done = pbu(
        "unlearn", digits.checkpoint, "--forget", digits.train / "8", "--fast", "-o", output,
        "--max-damage", most, "--json",
    )  # fmt: skip
    document = json.loads(done.out)
    assert output.exists()
    found = document["result"]["damage"]
    assert found == vars(estimated(document["result"]["drift"]))
    assert found["estimate"] > 0
    assert done.code == (5 if most == "0" else 0)
    if done.code:
        assert "A_Dr is estimated to have lost" in document["error"]["message"]
