"""What may be compared with what: classes that count in A_Dr, originals and retrained networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet34

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.models.model_config import metadata_with
from tests.conftest import Ran

WRITTEN = {"mean": [0.5], "std": [0.5], "input_size": [1, 8, 8]}


@pytest.fixture
def without(digits: DemoFiles, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the digits' network that never predicts some classes, and what its metadata say."""

    def make(name: str, classes: Sequence[int], metadata: Mapping[str, str] | None = None) -> Path:
        tensors = load_file(digits.checkpoint)
        for index in classes:
            tensors["fc.bias"][index] = -1e4
        path = tmp_path / name
        save_file(tensors, path, dict(metadata or {}))
        return path

    return make


@pytest.fixture
def evaluate(pbu: Callable[..., Ran], digits: DemoFiles) -> Callable[..., tuple[Any, str]]:
    """The JSON document and stderr of `pbu evaluate` on eights against all digits."""

    def call(*arguments: object, code: int = 0) -> tuple[Any, str]:
        done = pbu("evaluate", *arguments, "--forget", digits.test / "8", "--json", "-q",
                   "--label", "8")  # fmt: skip
        assert done.code == code, done.err
        return json.loads(done.out), done.err

    return call


def accuracies(document: Any) -> dict[str, Any]:
    return {scores["name"]: scores for scores in document["scores"]}


def test_a_class_that_only_the_checkpoint_calls_forgotten_counts_in_a_dr(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    """As after a second run on the wrong class: eights were to go, threes went too."""
    broken = without("broken.safetensors", [8, 3], metadata_with({}, forgotten=[3, 8], **WRITTEN))
    for reference in (["--original", digits.checkpoint], []):
        command = [broken, "--retain", digits.test, *reference]
        document, errors = evaluate(*command)
        checkpoint = accuracies(document)["checkpoint"]
        assert checkpoint["per_class"]["3"] == 0
        assert checkpoint["a_dr"] < 92
        assert document["images"]["retain"] == 406
        (warning,) = document["warnings"]
        assert "class 3 counts in A_Dr" in warning
        assert "--forgotten 3" in warning
        assert errors.count("warning:") == 1

        document, errors = evaluate(*command, "--forgotten", "3")  # the user states it
        assert "3" not in accuracies(document)["checkpoint"]["per_class"]
        assert accuracies(document)["checkpoint"]["a_dr"] > 95
        assert errors == ""


def test_a_lost_class_is_named_whatever_the_metadata_say(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    _, errors = evaluate(
        without("lost.pt.safetensors", [8, 5]),
        "--retain",
        digits.test,
        "--original",
        digits.checkpoint,
    )
    assert "class 5 counts in A_Dr, and it has lost it" in errors
    assert "recognises 0.00 % of its images" in errors


def test_a_class_that_the_original_had_forgotten_before_is_left_out(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    """Three was forgotten on purpose, then eight: A_Dr compares what the original knew."""
    before = without("no3.safetensors", [3], metadata_with({}, forgotten=[3], **WRITTEN))
    after = without("no38.safetensors", [3, 8], metadata_with({}, forgotten=[3, 8], **WRITTEN))
    document, errors = evaluate(after, "--original", before, "--retain", digits.test)
    assert errors == ""
    assert all("3" not in scores["per_class"] for scores in document["scores"])
    (left_out,) = (e for e in document["inferred"] if e["what"] == "not retained")
    assert left_out["value"] == "3"
    liar = without("liar.safetensors", [], metadata_with({}, forgotten=[3], **WRITTEN))
    document, _ = evaluate(after, "--original", liar, "--retain", digits.test)
    assert accuracies(document)["original"]["per_class"]["3"] > 90  # it knows the class


def test_a_class_that_is_none_is_a_usage_error(
    evaluate: Callable[..., tuple[Any, str]], digits: DemoFiles
) -> None:
    _, errors = evaluate(digits.checkpoint, "--retain", digits.test, "--forgotten", "ten", code=2)
    assert "--forgotten ten" in errors
    _, errors = evaluate(digits.checkpoint, "--forgotten", "3", code=2)
    assert "it needs --retain" in errors


def test_a_network_that_is_compared_with_itself_is_named(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    clean = without("clean.safetensors", [8])
    given = ["--original", digits.checkpoint, "--retrained", digits.checkpoint]
    document, errors = evaluate(clean, *given, "--require", "A_Df~1", code=5)
    assert "--retrained has the same weights as the original" in errors
    assert "not trained without their class" in errors
    assert "A_Df of a retrained network is unknown" in document["error"]["message"]
    _, errors = evaluate(clean, "--retrained", clean)
    assert "--retrained has the same weights as the checkpoint" in errors
    _, errors = evaluate(clean, "--original", clean)
    assert "--original has the same weights as the checkpoint" in errors
    assert "--original recognises only 0.0 %" in errors


def test_a_retrained_network_without_the_class_gives_no_warning(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    clean, retrained = without("clean.safetensors", [8]), without("other.safetensors", [8, 9])
    _, errors = evaluate(clean, "--original", digits.checkpoint, "--retrained", retrained)
    assert errors == ""


def test_an_original_of_another_architecture_is_refused(
    evaluate: Callable[..., tuple[Any, str]], digits: DemoFiles, tmp_path: Path
) -> None:
    network = resnet34(num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    other = tmp_path / "other.safetensors"
    save_file(network.state_dict(), other)
    _, errors = evaluate(digits.checkpoint, "--original", other, code=3)
    assert "--original: resnet34 (10 classes, 1 channel, small-image stem) has another" in errors
    evaluate(digits.checkpoint, "--retrained", other)


def test_an_original_with_other_names_of_classes_is_refused(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path]
) -> None:
    names = list("abcdefghij")
    one = without("one.safetensors", [8], {"label_names": json.dumps(names)})
    other = without("other.safetensors", [], {"label_names": json.dumps(names[::-1])})
    for flag in ("--original", "--retrained"):
        _, errors = evaluate(one, flag, other, code=3)
        assert f"{flag}: calls class 0 j where the checkpoint calls it a" in errors


def test_an_original_that_states_another_normalisation_gives_a_warning(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], digits: DemoFiles
) -> None:
    clean = without("clean.safetensors", [8], metadata_with({}, forgotten=[8], **WRITTEN))
    other = without("other.safetensors", [], {"mean": "[0.1]", "std": "[0.3]"})
    _, errors = evaluate(clean, "--original", other)
    assert "--original: its checkpoint metadata state mean and std 0.1 and 0.3" in errors
    _, errors = evaluate(clean, "--original", other, "--mean", "0.5", "--std", "0.5")
    assert "state mean" not in errors


def test_an_original_that_the_checkpoint_was_not_made_from_gives_a_warning(
    evaluate: Callable[..., tuple[Any, str]], without: Callable[..., Path], tmp_path: Path
) -> None:
    clean = without("clean.safetensors", [8], metadata_with({}, forgotten=[8], **WRITTEN))
    other = tmp_path / "another.safetensors"
    save_file(
        {n: t * 1.01 if t.is_floating_point() else t for n, t in load_file(clean).items()}, other
    )
    _, errors = evaluate(clean, "--original", other)
    assert "--original shares no tensor with the checkpoint" in errors


def test_a_requirement_says_what_was_compared_with_what_also_where_it_holds(
    pbu: Callable[..., Ran], without: Callable[..., Path], digits: DemoFiles
) -> None:
    clean = without("clean.safetensors", [8])
    command = ["evaluate", clean, "--forget", digits.test / "8", "--retain", digits.test,
               "--original", digits.checkpoint, "--require", "A_Df<=1", "--require", "damage<=2",
               "--require", "A_Dr>=99.9"]  # fmt: skip
    done = pbu(*command)
    assert done.code == 5
    assert (
        "A_Df is 0.00, required A_Df<=1: holds (percent of 44 forget images that clean.safetensors"
        " recognises)" in done.out
    )
    assert "from those of digits.safetensors; no retained image was used)" in done.out
    assert "(percent of 406 retained images that clean.safetensors recognises)" in done.err
    found = json.loads(pbu(*command, "--json").out)["requirements"]
    assert [(one["requirement"], one["holds"]) for one in found] == [
        ("A_Df<=1", True), ("damage<=2", True), ("A_Dr>=99.9", False),
    ]  # fmt: skip
    assert found[0]["value"] == 0
    assert found[2]["bound"] == 99.9
