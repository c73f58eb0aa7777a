"""The audit from the command line on the digits: what is measured, unknown, or refused."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from pbu_cli.__main__ import run
from pbu_cli.audit.relearning_attack import ATTACKERS, RelearningSettings
from pbu_cli.audit.run import _attacked_model, _logits
from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.evaluation import statistics
from pbu_cli.evaluation.compare import ComparisonRequest, compare
from pbu_cli.evaluation.measures import MEASURES
from pbu_cli.evaluation.outputs import ROW_SHIFT
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.settings import InputOptions
from tests.conftest import Ran

NAMES = ["checkpoint", "original", "original, head mask", "original, row shift", "retrained"]


@pytest.fixture(scope="module")
def clean(digits: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The digits' network after `pbu unlearn`."""
    output = tmp_path_factory.mktemp("clean") / "clean.safetensors"
    arguments = ["unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8",
                 "-o", output, "-q"]  # fmt: skip
    assert run([str(argument) for argument in arguments]) == 0
    return output


def command(digits: DemoFiles, clean: Any, *more: Any) -> Any:
    return ["evaluate", clean, "--forget", digits.test / "8", "--audit", "--json", "-q", *more]


@pytest.fixture(scope="module")
def document(digits: DemoFiles, clean: Any) -> Any:
    """One audit with everything given and two criteria, of which one fails.

    It has fewer attackers and resamples than a real audit, because these tests are not about the
    figures.
    """
    out = io.StringIO()
    arguments = command(
        digits, clean, "--retain", digits.test, "--original", digits.checkpoint,
        "--retrained", digits.checkpoint, "--members", digits.train / "8",
        "--require", "odds_auc~1", "--require", "js<=0",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        fewer = partial(RelearningSettings, draws=1, attackers=ATTACKERS[:1], steps=(0, 1, 4))
        patch.setattr("pbu_cli.audit.run.RelearningSettings", fewer)
        usual = statistics.bootstrap.__kwdefaults__
        patch.setattr(statistics.bootstrap, "__kwdefaults__", usual | {"resamples": 50})
        code = run([str(argument) for argument in arguments])
    return json.loads(out.getvalue()) | {"code": code}


def test_every_measure_of_every_network_has_value_interval_and_definition(document: Any) -> None:
    audit = document["audit"]
    assert set(audit["measures"]) == set(MEASURES)
    assert [network["name"] for network in audit["networks"]] == NAMES
    for network in audit["networks"]:
        for key, estimate in network["measures"].items():
            if network["name"] == "original, head mask" and key.startswith("log_p"):
                assert estimate["value"] is None  # minus infinity, which JSON cannot hold
                continue
            low, high = estimate["interval"]
            assert low <= estimate["value"] + 1e-6, (network["name"], key)
            assert estimate["value"] <= high + 1e-6, (network["name"], key)


def test_controls_forget_nothing_and_equal_networks_have_equal_measures(document: Any) -> None:
    by_name = {network["name"]: network for network in document["audit"]["networks"]}
    original = by_name["original"]["measures"]
    assert by_name["retrained"]["measures"] == original
    assert original["js"]["value"] == 0
    masked, shifted = (by_name[name]["measures"] for name in NAMES[2:4])
    for key in ("probe", "probe_recall"):
        assert masked[key] == shifted[key] == original[key]
    assert masked["odds_auc"] == original["odds_auc"]
    assert masked["js"]["value"] > 0.5
    assert masked["relearnt"]["value"] > 90
    assert by_name["checkpoint"]["likeness"]["layer1"]["original, forget"]["value"] > 0.99
    assert by_name["original"]["relearning"]["curve"].keys() == {"0", "1", "4"}
    assert set(by_name["checkpoint"]["membership"]) == {
        "entropy", "confidence", "modified entropy", "loss", "all four",
    }  # fmt: skip


def test_criteria_on_the_audit_decide_the_exit_code(document: Any) -> None:
    assert document["code"] == 5
    assert "js is" in document["error"]["message"]
    # The retrained network of this document is the original itself.
    assert "odds_auc of a retrained network is unknown" in document["error"]["message"]


def test_the_same_seed_gives_the_same_audit(
    pbu: Callable[..., Ran], digits: DemoFiles, clean: Any
) -> None:
    first, again, other = (
        json.loads(pbu(*command(digits, clean, "--seed", seed)).out)["audit"]["networks"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_what_forget_images_alone_do_not_tell_is_unknown_and_not_zero(
    pbu: Callable[..., Ran], digits: DemoFiles, clean: Any
) -> None:
    done = pbu(*command(digits, clean))
    assert done.code == 0, done.err
    (network,) = json.loads(done.out)["audit"]["networks"]
    known = {key for key, estimate in network["measures"].items() if estimate is not None}
    assert known == {key for key, one in MEASURES.items() if not one.needs}
    assert network["relearning"] is None
    shown = pbu(*(part for part in command(digits, clean) if part != "--json")).out
    (line,) = (line for line in shown.splitlines() if line.startswith("odds AUC  "))
    assert line.split()[-1] == "unknown"
    assert "needs --members or --retain or --retrained" in shown


def test_members_that_are_the_forget_images_are_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, clean: Any
) -> None:
    done = pbu(*command(digits, clean, "--members", digits.test / "8"))
    assert done.code == 4
    assert "are --forget images too" in done.err


@pytest.mark.parametrize("flags", [["--require", "probe~2"], ["--members", "x"]])
def test_flags_of_the_audit_without_it_are_a_usage_error(
    pbu: Callable[..., Ran], digits: DemoFiles, clean: Any, flags: list[str]
) -> None:
    done = pbu("evaluate", clean, "--forget", digits.test / "8", *flags)
    assert done.code == 2
    assert "--audit" in done.err


def test_a_criterion_on_an_unknown_measure_does_not_hold(
    pbu: Callable[..., Ran], digits: DemoFiles, clean: Any
) -> None:
    done = pbu(*command(digits, clean, "--require", "probe<=100"))
    assert done.code == 5
    assert "unknown without --retain" in done.err


def test_the_attacked_row_shift_is_the_one_whose_logits_are_scored(digits: DemoFiles) -> None:
    request = ComparisonRequest(
        digits.checkpoint, [str(digits.test / "8")], original=digits.checkpoint
    )
    comparison = compare(request, InputOptions(), InferenceLog(), audit_seed=0)
    original = comparison.loaded_models["original"].network.module
    before = {name: value.clone() for name, value in original.state_dict().items()}
    prepared = comparison.prepared
    logits = _logits(_attacked_model(comparison, ROW_SHIFT), prepared.images.pixels, prepared)
    assert torch.allclose(logits, comparison.outputs[ROW_SHIFT].forget_logits, atol=1e-3)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])
