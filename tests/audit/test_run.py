"""The audit from the command line, on the digits: what is measured, what is unknown, what fails."""

import contextlib
import io
import json

import pytest
import torch

from pbu_cli.__main__ import run
from pbu_cli.evaluation.measures import MEASURES

NAMES = ["checkpoint", "original", "original, head mask", "original, row shift", "retrained"]


@pytest.fixture(scope="module")
def clean(digits, tmp_path_factory):
    """The digits' network after `pbu unlearn`."""
    place = tmp_path_factory.mktemp("clean") / "clean.safetensors"
    forget = str(digits.train / "8")
    assert (
        run(
            [
                "unlearn",
                "--fast",
                str(digits.checkpoint),
                "--forget",
                forget,
                "-o",
                str(place),
                "-q",
            ]
        )
        == 0
    )
    return place


def command(digits, clean, *more):
    return ["evaluate", clean, "--forget", digits.test / "8", "--audit", "--json", "-q", *more]


@pytest.fixture(scope="module")
def document(digits, clean):
    """One audit with everything given, held to two criteria of which one fails. With fewer
    attackers and resamples, since it is of what is joined, not of the figures."""
    from pbu_cli.audit import relearning_attack as relearning
    from pbu_cli.evaluation import statistics as roc

    out = io.StringIO()
    arguments = command(
        digits, clean, "--retain", digits.test, "--original", digits.checkpoint,
        "--retrained", digits.checkpoint, "--members", digits.train / "8",
        "--require", "odds_auc~1", "--require", "js<=0",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        fewer = {"attackers": relearning.ATTACKERS[:1], "steps": (0, 1, 4), "draws": 1}
        usual = relearning.relearn.__kwdefaults__
        patch.setattr(relearning.relearn, "__kwdefaults__", usual | fewer)
        usual = roc.bootstrap.__kwdefaults__
        patch.setattr(roc.bootstrap, "__kwdefaults__", usual | {"resamples": 50})
        code = run([str(argument) for argument in arguments])
    return json.loads(out.getvalue()) | {"code": code}


def test_every_measure_of_every_network_has_value_interval_and_definition(document):
    audit = document["audit"]
    assert set(audit["measures"]) == set(MEASURES)
    assert [network["name"] for network in audit["networks"]] == NAMES
    for network in audit["networks"]:
        for key, estimate in network["measures"].items():
            if network["name"] == "original, head mask" and key.startswith("log_p"):
                assert estimate["value"] is None  # minus infinity, which JSON lacks
                continue
            low, high = estimate["interval"]
            assert low <= estimate["value"] + 1e-6, (network["name"], key)
            assert estimate["value"] <= high + 1e-6, (network["name"], key)


def test_controls_forget_nothing_and_a_twin_is_alike_in_everything(document):
    by_name = {network["name"]: network for network in document["audit"]["networks"]}
    original = by_name["original"]["measures"]
    assert by_name["retrained"]["measures"] == original
    assert original["js"]["value"] == 0
    mask, shifted = (by_name[name]["measures"] for name in NAMES[2:4])
    for key in ("probe", "probe_recall"):
        assert mask[key] == shifted[key] == original[key]
    assert mask["odds_auc"] == original["odds_auc"]
    assert mask["js"]["value"] > 0.5
    assert mask["relearnt"]["value"] > 90
    assert by_name["checkpoint"]["likeness"]["layer1"]["original, forget"]["value"] > 0.99
    assert by_name["original"]["relearning"]["curve"].keys() == {"0", "1", "4"}
    assert set(by_name["checkpoint"]["membership"]) == {
        "entropy", "confidence", "modified entropy", "loss", "all four",
    }  # fmt: skip


def test_criteria_on_the_audit_decide_the_exit_code(document):
    assert document["code"] == 5
    assert "js is" in document["error"]["message"]
    assert "odds_auc" not in document["error"]["message"]


def test_the_same_seed_gives_the_same_audit(pbu, digits, clean):
    first, again, other = (
        json.loads(pbu(*command(digits, clean, "--seed", seed)).out)["audit"]["networks"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_from_forget_images_alone_the_rest_is_unknown_not_zero(pbu, digits, clean):
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


def test_members_that_are_the_forget_images_are_refused(pbu, digits, clean):
    done = pbu(*command(digits, clean, "--members", digits.test / "8"))
    assert done.code == 4
    assert "are --forget images too" in done.err


@pytest.mark.parametrize("flags", [["--require", "probe~2"], ["--members", "x"]])
def test_what_only_an_audit_measures_is_a_usage_error_without_it(pbu, digits, clean, flags):
    done = pbu("evaluate", clean, "--forget", digits.test / "8", *flags)
    assert done.code == 2
    assert "--audit" in done.err


def test_a_criterion_on_what_is_unknown_does_not_hold(pbu, digits, clean):
    done = pbu(*command(digits, clean, "--require", "probe<=100"))
    assert done.code == 5
    assert "unknown without --retain" in done.err


def test_the_row_shift_that_is_attacked_is_the_one_that_is_shown(digits):
    from pbu_cli.audit.run import _answers, _module
    from pbu_cli.evaluation.compare import ROW_SHIFT, compare
    from pbu_cli.settings import InputOptions

    comparison = compare(
        digits.checkpoint, [str(digits.test / "8")], InputOptions(), lambda *_: None,
        original=digits.checkpoint, inside=True,
    )  # fmt: skip
    before = {
        k: v.clone()
        for k, v in comparison.loaded_models["original"].network.module.state_dict().items()
    }
    pixels = comparison.prepared.images.pixels
    found = _answers(_module(comparison, ROW_SHIFT), pixels, comparison.prepared)
    assert torch.allclose(found, comparison.answers[ROW_SHIFT].forget, atol=1e-3)
    for name, value in comparison.loaded_models["original"].network.module.state_dict().items():
        assert torch.equal(value, before[name])
