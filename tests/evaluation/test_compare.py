"""Evaluation: scores against counts by hand, and the doors for retained images."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import PREPROCESSING
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.evaluation.accuracy_loss import estimated
from pbu_cli.evaluation.outputs import Answers, head_masked
from pbu_cli.evaluation.scores import score
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.models.inference import logits
from pbu_cli.models.model_config import metadata_with
from pbu_cli.settings import InputOptions


def test_scores_are_counts_over_the_images():
    forget = torch.tensor([[0.0, 9, 1], [9, 0, 1], [9, 0, 1], [0, 0, 9]])
    retain = torch.tensor([[9.0, 0, 0], [0, 0, 9], [0, 9, 0]])
    labels = torch.tensor([0, 2, 2])
    found = score("x", Answers(forget, retain), torch.full((4,), 1), labels)
    assert found.a_df == 25.0
    assert found.answers == {0: 50.0, 1: 25.0, 2: 25.0}
    assert found.a_dr == pytest.approx(200 / 3)
    assert found.per_class == {0: 100.0, 1: 25.0, 2: 50.0}
    masked = head_masked(Answers(forget, retain), torch.tensor([False, True, False]))
    assert score("m", masked, torch.full((4,), 1), labels).a_df == 0


def test_without_retained_images_their_accuracy_is_unknown():
    found = score("x", Answers(torch.eye(3)), torch.tensor([0, 1, 2]), None)
    assert found.a_dr is None
    assert found.a_dr_interval is None


def test_what_a_network_has_lost_is_estimated_from_its_drift(pbu, digits, tmp_path):
    """By the definition: KL of the answers among nine classes, image by image."""
    moved = load_file(digits.checkpoint)
    moved["fc.bias"] += torch.linspace(-2, 2, 10)
    worse = tmp_path / "worse.safetensors"
    save_file(moved, worse)
    given = ("--forget", digits.test / "8", "--original", digits.checkpoint, "--json")
    done = pbu("evaluate", worse, *given, "--require", "damage<=1")
    assert done.code == 5
    assert "required damage<=1" in done.err
    found = json.loads(done.out)["damage"]
    shown = " ".join(pbu("evaluate", worse, *given[:-1]).out.split())
    estimate = f"loss of A_Dr, estimated from the forget images alone: {found['estimate']:.1f} ["
    assert estimate in shown

    prepared = load_model(digits.checkpoint, InputOptions(), lambda *a: None)
    images = decode(list_groups([str(digits.test / "8")]), channels=1, size=(8, 8)).pixels
    z = logits(prepared.network.module, images, PREPROCESSING, 256).double()
    kept, drifts = [k for k in range(10) if k != 8], []
    for row in z:
        p = row[kept].softmax(0)
        q = (row + torch.linspace(-2, 2, 10).double())[kept].softmax(0)
        drifts.append((p * (p / q).log()).sum().item())
    expected = estimated(sum(drifts) / len(drifts))
    assert found["estimate"] == pytest.approx(expected.estimate, rel=1e-3)
    assert found["high"] == pytest.approx(expected.high, rel=1e-3)

    unmoved = json.loads(pbu("evaluate", digits.checkpoint, *given).out)
    assert unmoved["damage"]["estimate"] == 0
    alone = pbu("evaluate", worse, *given[:2], "--json", "--require", "damage<=1")
    assert alone.code == 5
    assert "damage is unknown without --original" in alone.err
    assert json.loads(alone.out)["damage"] is None


def test_a_list_of_paths_and_labels_is_the_same_as_the_folders(pbu, digits, tmp_path):
    lines = [f"{p},{p.parent.name}\n" for p in sorted(digits.test.rglob("*.png"))]
    listed = tmp_path / "retain.csv"
    listed.write_text("".join(lines))
    scores = [
        json.loads(
            pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain", retain,
                "--json").out
        )["scores"]
        for retain in (digits.test, listed)
    ]  # fmt: skip
    assert scores[0] == scores[1]


@pytest.mark.parametrize("line", ["x.png", "x.png,ten", "x.png,10", "a,b,3", "\0"])
def test_a_list_that_makes_no_sense_is_named_by_line(pbu, digits, tmp_path, line):
    (tmp_path / "retain.csv").write_text(line)
    done = pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain",
               tmp_path / "retain.csv", "-q")  # fmt: skip
    assert done.code == 4
    assert len(done.err.strip().splitlines()) == 1


def test_folders_that_name_no_class_go_by_alphabet_if_they_are_all(pbu, digits, tmp_path):
    names = "abcdefghij"
    real = tmp_path / "real"
    for digit, name in enumerate(names):
        shutil.copytree(digits.test / str(digit), real / name)
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "--json", "-q"]
    by_name = json.loads(pbu(*command, "--retain", digits.test).out)["scores"]
    by_alphabet = json.loads(pbu(*command, "--retain", real).out)
    assert by_alphabet["scores"] == by_name
    assert ("retained", "classes 0 to 9 are a to j") in {
        (entry["what"], entry["value"]) for entry in by_alphabet["inferred"]
    }
    (real / "d").rename(real / "8")
    done = pbu(*command, "--retain", real)  # in alphabetical order it would be 0
    assert done.code == 4
    assert "8 names class 8 but would be 0" in done.err
    (real / "8").rename(real / "d")
    shutil.rmtree(real / "a")
    done = pbu(*command, "--retain", real)
    assert done.code == 4
    assert "alphabetical" in done.err


def test_the_normalisation_that_pbu_recorded_wins_over_what_the_original_suggests(
    pbu, digits, tmp_path
):
    """An output of `unlearn --mean 0.48 --std 0.52` is not to be judged under another guess."""
    clean = tmp_path / "clean.safetensors"
    metadata = metadata_with({}, forgotten=[8], mean=[0.48], std=[0.52], input_size=[1, 8, 8])
    save_file(load_file(digits.checkpoint), clean, metadata)
    done = pbu("evaluate", clean, "--original", digits.checkpoint, "--forget", digits.test / "8",
               "--json", "-q")  # fmt: skip
    inferred = {entry["what"]: entry for entry in json.loads(done.out)["inferred"]}
    assert inferred["normalisation"]["value"] == "mean 0.48 std 0.52"
    assert inferred["normalisation"]["source"] == "metadata written by pbu"
    assert inferred["input size"]["source"] == "metadata written by pbu"


def test_a_folder_that_contradicts_what_was_forgotten_is_an_error(pbu, digits, tmp_path):
    clean = tmp_path / "clean.safetensors"
    metadata = metadata_with({}, forgotten=[8], mean=[0.5], std=[0.5])
    save_file(load_file(digits.checkpoint), clean, metadata)
    command = ["evaluate", clean, "--forget", digits.test / "3", "-q"]
    done = pbu(*command)
    assert done.code == 4
    assert "--label 3" in done.err
    assert "--original" in done.err
    for settled in (["--label", "3"], ["--original", digits.checkpoint]):
        assert pbu(*command, *settled).code == 0


def test_classes_that_only_the_checkpoint_calls_forgotten_are_warned_of(pbu, digits, tmp_path):
    claims = tmp_path / "claims.safetensors"
    save_file(load_file(digits.checkpoint), claims, metadata_with({}, forgotten=[3, 8]))
    command = ["evaluate", claims, "--forget", digits.test / "8", "--retain", digits.test, "-q",
               "--original", digits.checkpoint]  # fmt: skip
    done = pbu(*command)
    assert done.code == 0
    assert done.err.count("leaves out class") == 1
    assert "leaves out class 3" in done.err
    done = pbu(*command, "--forget", digits.test / "3")
    assert "leaves out" not in done.err


def test_unreadable_images_are_counted_and_announced_on_both_sides(pbu, digits, tmp_path):
    forget, retain = tmp_path / "8", tmp_path / "retain"
    shutil.copytree(digits.test / "8", forget)
    shutil.copytree(digits.test / "3", retain / "3")
    for folder in (forget, retain / "3"):
        (folder / "broken.png").write_bytes(b"\x89PNG")
    done = pbu("evaluate", digits.checkpoint, "--forget", forget, "--retain", retain, "--skip-bad",
               "--json", "-q")  # fmt: skip
    document = json.loads(done.out)
    assert document["skipped"] == {"forget": 1, "retain": 1}
    assert len(document["warnings"]) == 2
    assert "1 unreadable forget images" in done.err
    assert "1 unreadable retained images" in done.err


@pytest.mark.parametrize("audit", [[], ["--audit"]])
@pytest.mark.parametrize("broken", ["checkpoint", "--original", "--retrained"])
def test_a_network_that_answers_no_numbers_has_not_forgotten(pbu, digits, tmp_path, broken, audit):
    """Finite weights, but too large: NaN, of which argmax makes class 0."""
    large = tmp_path / "large.safetensors"
    save_file({n: t * 1e30 if t.is_floating_point() else t
               for n, t in load_file(digits.checkpoint).items()}, large)  # fmt: skip
    named = {"checkpoint": digits.checkpoint, "--original": digits.checkpoint,
             "--retrained": digits.checkpoint, broken: large}  # fmt: skip
    done = pbu("evaluate", named.pop("checkpoint"), "--forget", digits.test / "8", "-q", *audit,
               "--retain", digits.test, *(word for pair in named.items() for word in pair),
               "--label", "8", "--require", "A_Df<=1")  # fmt: skip
    assert done.code == 3, done.err
    assert "NaN or infinity" in done.err
    assert "large.safetensors" in done.err


def test_a_list_may_come_from_excel_and_a_name_that_is_none_is_an_error(pbu, digits, tmp_path):
    image = next((digits.test / "3").iterdir())
    listed = tmp_path / "list.csv"
    listed.write_bytes(b"\xef\xbb\xbf" + f"{image},3\n".encode())
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q", "--retain"]
    assert pbu(*command, listed).code == 0
    listed.write_bytes(f"{image},3\nno\0name.png,3\n".encode())
    done = pbu(*command, listed)
    assert done.code == 4, done.err
    assert "1 of 2 images" in done.err or "NUL" in done.err  # up to Python 3.10 csv refuses it
    done = pbu(*command, "x" * 5000)
    assert done.code == 4
    assert "not foreseen" not in done.err
