"""The command line as a user meets it: results, refusals, exit codes, and nothing half-done."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import squeezenet1_1

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups, split_by_subfolder
from pbu_cli.pipeline import unlearn as commands
from pbu_cli.settings import DEEP
from pbu_cli.settings import FAST as FAST_PRESET
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from tests.conftest import Ran

Run = Callable[..., Ran]
FAST = ["--fast", "--steps", "20"]
PAIR = """
from pbu_cli import commands
from pbu_cli.demo import ARCHITECTURE
from pbu_cli.model import build
def pair():
    network = build(ARCHITECTURE)
    network.register_forward_hook(lambda module, inputs, logits: (logits, inputs))
    return network
"""
UNHEARD = """
from torch.nn.functional import linear
from pbu_cli.demo import ARCHITECTURE
from pbu_cli.model import build
def unheard():
    network = build(ARCHITECTURE)
    *body, head = network.children()
    def forward(x):
        for layer in body:
            x = layer(x)
        return linear(x.flatten(1), head.weight, head.bias)
    network.forward = forward
    return network
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unlearned(digits: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' checkpoint without its eights, through the command line's shortest call."""
    from pbu_cli.__main__ import run

    output = tmp_path_factory.mktemp("unlearned") / "out.safetensors"
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o", output, "-q"]
    assert run([str(word) for word in command]) == 0
    return output


def test_the_shortest_call_forgets_the_class_and_keeps_the_others(pbu, digits, unlearned):
    done = pbu(
        "evaluate", unlearned, "--forget", digits.test / "8", "--retain", digits.test,
        "--original", digits.checkpoint, "--json",
    )  # fmt: skip
    assert done.code == 0
    scores = {score["name"]: score for score in json.loads(done.out)["scores"]}
    assert scores["original"]["a_df"] > 90
    assert scores["checkpoint"]["a_df"] <= 2.5  # one of 44
    assert scores["checkpoint"]["a_dr"] >= scores["original"]["a_dr"] - 1
    assert scores["original, head mask"]["a_df"] == 0


def test_the_output_keeps_names_shapes_dtypes_and_every_buffer(digits, unlearned):
    before, after = load_file(digits.checkpoint), load_file(unlearned)
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("layer4.", "fc.")) for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)
    others = torch.arange(10) != 8  # of the head, the class's row alone
    assert torch.equal(before["fc.weight"][others], after["fc.weight"][others])
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert all(before[n].dtype == after[n].dtype for n in before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_they_came(pbu, digits, tmp_path, dtype):
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(digits.checkpoint).items()
    }
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source, {"author": "someone"})
    done = pbu(
        "unlearn", "--fast", source, "--forget", digits.train / "8", "-o", output, "--json", "-q"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["result"]["a_df"] <= 0.5
    after = load_file(output)
    for name, tensor in tensors.items():
        assert after[name].dtype == tensor.dtype
        if not name.startswith(("layer4.", "fc.")):
            assert torch.equal(after[name], tensor), name


def test_a_wrapped_pickle_with_a_prefix_keeps_its_names(pbu, digits, tmp_path):
    tensors = {f"module.{name}": t for name, t in load_file(digits.checkpoint).items()}
    torch.save({"state_dict": tensors, "best": 0.9}, tmp_path / "model.th")
    done = pbu("unlearn", tmp_path / "model.th", "--forget", digits.train / "8", *FAST, "-q")
    assert done.code in (0, 5)
    assert load_file(tmp_path / "model.unlearned.safetensors").keys() == tensors.keys()


def test_the_same_command_and_any_order_of_the_list_write_the_same_bytes(
    pbu, digits, tmp_path, monkeypatch
):
    folder = digits.train / "8"
    paths = sorted(folder.iterdir())
    sums = set()
    for number, order in enumerate((None, None, paths, paths[::-1], paths[40:] + paths[:40])):
        output = tmp_path / f"{number}.safetensors"
        if order is not None:
            lines = io.BytesIO("".join(f"{path}\n" for path in order).encode())
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
        source = folder if order is None else "-"
        done = pbu("unlearn", digits.checkpoint, "--forget", source, "-o", output, *FAST, "-q",
                   "--label", "8")  # fmt: skip
        assert done.code in (0, 5), done.err
        sums.add(sha256(output))
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("flags", "preset", "anchors"),
    [([], DEEP, DEEP.anchors), (["--fast"], FAST_PRESET, 0), (["--delta", "0"], FAST_PRESET, 0),
     (["--anchors", "100", "--zeta", "1"], DEEP, 100)],
)  # fmt: skip
def test_what_goes_together_is_chosen_together(pbu, digits, tmp_path, flags, preset, anchors):
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--json",
               "-o", tmp_path / "o.safetensors", "--steps", "5", *flags)  # fmt: skip
    settings = json.loads(done.out)["settings"]
    assert settings["anchors"] == anchors
    assert settings["layers"] == preset.layers
    assert settings["schedule"]["tau"] == preset.schedule.tau
    asked = dict(zip((flag[2:] for flag in flags[::2]), flags[1::2], strict=False))
    for name, value in vars(preset.weights).items():
        assert settings["weights"][name] == float(asked.get(name, value))


@pytest.mark.parametrize(
    "flags",
    [["--fast", "--anchors", "9"], ["--delta", "0", "--zeta", "1"], ["--anchors", "0"],
     ["--epsilon", "0", "--zeta", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_anchors_and_their_weights_go_together(pbu, digits, flags):
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", *flags)
    assert done.code == 2
    assert "--fast" in done.err


@pytest.mark.parametrize("count", [1, 15])
def test_fewer_anchors_than_have_statistics_are_refused(pbu, digits, count):
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--anchors", count)
    assert done.code == 2
    assert f"--anchors {count}: expected 0 or at least 16" in done.err


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_head_that_is_never_called_is_said_before_anything_is_made(pbu, digits, tmp_path, flags):
    (tmp_path / "own.py").write_text(UNHEARD)
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o",
               tmp_path / "o.safetensors", "--arch", f"{tmp_path / 'own.py'}:unheard"]  # fmt: skip
    done = pbu(*command, *flags)
    assert done.code == 3
    assert "fc is called 0 times" in done.err
    assert "anchors" not in done.err
    assert pbu(*command, "--dry-run", "--fast").code == 0


def test_a_fisher_file_gives_the_same_result_as_measuring_again(pbu, digits, tmp_path):
    fisher = tmp_path / "f.safetensors"
    assert pbu("fisher", digits.checkpoint, "--forget", digits.train / "8", "-o", fisher).code == 0
    sums = set()
    for number, flags in enumerate(([], ["--fisher", fisher])):
        output = tmp_path / f"{number}.safetensors"
        pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o", output, *FAST,
            *flags)  # fmt: skip
        sums.add(sha256(output))
    assert len(sums) == 1


@pytest.mark.parametrize("what", ["images", "checkpoint", "layers", "kind", "mean"])
def test_a_fisher_file_of_something_else_is_refused(pbu, digits, tmp_path, what):
    fisher = tmp_path / "f.safetensors"
    flags = ["--layers", "head" if what == "layers" else "last"]
    forget = digits.train / "8"
    assert pbu("fisher", digits.checkpoint, "--forget", forget, "-o", fisher, *flags).code == 0
    source = digits.checkpoint
    more: list[str] = []
    if what == "images":
        forget = tmp_path / "8"
        shutil.copytree(digits.train / "8", forget)
        next(forget.iterdir()).unlink()
    elif what == "checkpoint":
        tensors = load_file(source)
        tensors["fc.bias"] += 0.1
        source = tmp_path / "other.safetensors"
        save_file(tensors, source)
    elif what == "kind":
        save_file(load_file(fisher), fisher)
    elif what == "mean":
        more = ["--mean", "0.4", "--std", "0.5"]
    done = pbu("unlearn", source, "--forget", forget, "--fisher", fisher, *more,
               "-o", tmp_path / "out.safetensors")  # fmt: skip
    assert done.code == 3
    assert "measure it again" in done.err or "write one" in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_fisher_file_of_eight_bits_is_read_like_any(pbu, digits, tmp_path):
    fisher = tmp_path / "f.safetensors"
    forget = digits.train / "8"
    pbu("fisher", digits.checkpoint, "--forget", forget, "-o", fisher)
    with safe_open(fisher, "pt") as file:
        metadata = file.metadata()
    tensors = {name: -torch.ones_like(t) for name, t in load_file(fisher).items()}
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}, fisher, metadata)
    done = pbu("unlearn", digits.checkpoint, "--forget", forget, "--fisher", fisher)
    assert done.code == 3
    assert "negative or not finite" in done.err


def test_two_classes_by_two_folders_and_by_one_folder_of_folders(pbu, digits, tmp_path):
    both = tmp_path / "gone"
    for digit in "38":
        shutil.copytree(digits.train / digit, both / digit)
    sums = set()
    for number, flags in enumerate(
        (["--forget", both / "3", "--forget", both / "8"], ["--forget", both])
    ):
        output = tmp_path / f"{number}.safetensors"
        done = pbu("unlearn", digits.checkpoint, *flags, "-o", output, "--json", "-q")
        assert done.code == 0, done.err
        assert json.loads(done.out)["result"]["a_df"] <= 0.5
        sums.add(sha256(output))
    assert len(sums) == 1


def test_a_second_class_is_forgotten_and_the_first_stays_so(
    pbu, digits, unlearned, tmp_path, monkeypatch
):
    """No anchor is made of a class that is gone: the first run recorded it."""
    asked: list[list[int]] = []

    def spied(model, head, starts, staying, **more):
        asked.append(staying.nonzero().flatten().tolist())
        return synthesise_anchors(model, head, starts, staying, **more)

    monkeypatch.setattr("pbu_cli.pipeline.anchors.synthesise", spied)
    output = tmp_path / "second.safetensors"
    done = pbu("unlearn", unlearned, "--forget", digits.train / "3", "-o", output, "-q")
    assert done.code == 0, done.err
    assert asked == [[0, 1, 2, 4, 5, 6, 7, 9]]
    for digit in "38":
        done = pbu("evaluate", output, "--forget", digits.test / digit, "--label", digit,
                   "--require", "A_Df<=0.5")  # fmt: skip
        assert done.code == 0, done.out


def test_an_output_remembers_what_it_forgot(pbu, digits, unlearned, tmp_path):
    """No folder name, no original, no flag: label and normalisation come from the metadata."""
    folder = tmp_path / "some images"
    shutil.copytree(digits.test / "8", folder)
    done = pbu("evaluate", unlearned, "--forget", folder)
    assert done.code == 0
    assert "unknown" in done.out
    notes = dict(line.split(":", 1) for line in done.err.splitlines())
    assert " 8  (metadata: what it has forgotten; the model calls" in notes["label"]
    assert notes["normalisation"].endswith("(metadata written by pbu)")


@pytest.mark.parametrize(
    ("require", "code"), [("A_Df<=99", 0), ("A_Dr>=100.0", 5), ("A_Df>=50", 5), ("A_Dr=3", 2)]
)
def test_requirements_decide_the_exit_code(pbu, digits, unlearned, require, code):
    done = pbu("evaluate", unlearned, "--forget", digits.test / "8", "--retain", digits.test,
               "--require", require)  # fmt: skip
    assert done.code == code


def test_no_forward_pass_is_of_more_images_than_the_batch_size(pbu, digits, tmp_path, monkeypatch):
    seen: list[int] = []
    real = torch.nn.Linear.forward

    def forward(layer, x):
        seen.append(len(x))
        return real(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    for command in (
        ["fisher", digits.checkpoint, "--layers", "head", "-o", tmp_path / "f.safetensors"],
        [
            "unlearn",
            "--fast",
            digits.checkpoint,
            "--layers",
            "head",
            "-o",
            tmp_path / "u.safetensors",
        ],
        [
            "unlearn",
            digits.checkpoint,
            "--anchors",
            "40",
            "--steps",
            "5",
            "-o",
            tmp_path / "d.safetensors",
        ],
        ["evaluate", digits.checkpoint, "--retain", digits.test],
    ):
        done = pbu(*command, "--forget", digits.train / "8", "--batch-size", 16, "-q")
        assert done.code in (0, 5), done.err
        assert max(seen) <= 16, command
        seen.clear()


def test_a_run_that_does_not_forget_says_so_with_exit_code_5(pbu, digits, tmp_path):
    output = tmp_path / "out.safetensors"
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "--steps",
               "1", "-o", output)  # fmt: skip
    assert done.code == 5
    assert "still recognised" in done.err
    assert output.exists()


def test_json_is_one_document_and_quiet_is_quiet(pbu, digits, tmp_path):
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--dry-run", "--json",
               "--quiet", "-o", tmp_path / "o.safetensors")  # fmt: skip
    document = json.loads(done.out)
    assert document["schema"] == 1
    assert document["dry_run"] is True
    assert {entry["what"] for entry in document["inferred"]} >= {"architecture", "label"}
    assert done.err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["unlearn", "no.safetensors", "--forget", "."], 3),
        (["fisher", "no.safetensors", "--forgt", "."], 2),
        (["evaluate", "no.safetensors", "--forget", ".", "--require", "A"], 2),
        (["demo", "--output", "."], 2),
    ],
)
def test_json_has_errors_as_a_document_too(pbu, tmp_path, monkeypatch, command, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    done = pbu(*command, "--json")
    assert done.code == code
    document = json.loads(done.out)
    assert document.keys() == {"schema", "pbu", "error"}
    assert document["error"]["exit_code"] == code
    assert f"error: {document['error']['message']}" in done.err


def test_json_of_a_run_that_falls_short_is_its_result_with_the_error(pbu, digits, tmp_path):
    images = ["--forget", digits.train / "8", "--json", "-q"]
    for command in (
        ["unlearn", "--fast", "--steps", "1", "-o", tmp_path / "o.safetensors"],
        ["evaluate", "--require", "A_Df<=1"],
    ):
        done = pbu(*command, digits.checkpoint, *images)
        assert done.code == 5
        document = json.loads(done.out)
        assert document["error"]["exit_code"] == 5
        assert document["error"]["message"] in done.err
        assert document["command"] == command[0]


def test_piped_output_has_no_escapes(pbu, digits, unlearned):
    done = pbu("evaluate", unlearned, "--forget", digits.test / "8")
    assert "\x1b" not in done.out + done.err


# Bad input: what is wrong -> exit code and a part of the one line.


def bad_cases(digits: DemoFiles, folder: Path) -> dict[str, tuple[list[object], int, str]]:
    """Name -> arguments behind `unlearn`, exit code, words of the line."""
    forget = digits.train / "8"
    eights = sorted(forget.iterdir())
    tensors = load_file(digits.checkpoint)
    given = {}
    for name, content in {"empty": b"", "noise": bytes(range(200)),
                          "truncated": digits.checkpoint.read_bytes()[:5000]}.items():  # fmt: skip
        given[name] = folder / f"{name}.safetensors"
        given[name].write_bytes(content)
    for name, change in {
        "nan": {"fc.bias": torch.full((10,), float("nan"))},
        "misfit": {"fc.weight": torch.zeros(10, 511)},
    }.items():
        given[name] = folder / f"{name}.safetensors"
        save_file({**tensors, **change}, given[name])
    given["squeezenet"] = folder / "squeezenet.safetensors"
    save_file(squeezenet1_1(num_classes=10).state_dict(), given["squeezenet"])
    (folder / "own.py").write_text(PAIR)
    (folder / "configured").mkdir()
    shutil.copy(digits.checkpoint, folder / "configured" / "m.safetensors")
    (folder / "configured" / "config.json").write_text('{"num_classes": 9}')
    for name in ("none", "text", "one_bad", "no\x1b[31m\nrm -rf"):
        (folder / name).mkdir()
    (folder / "text" / "notes.txt").write_text("hello")
    for path in eights[:20]:
        shutil.copy(path, folder / "one_bad")
    (folder / "one_bad" / "broken.png").write_bytes(eights[0].read_bytes()[:40])
    wrong = shutil.copytree(forget, folder / "class3")
    taken = folder / "taken.safetensors"
    taken.write_bytes(b"precious")
    ok: list[object] = [digits.checkpoint, "--forget", forget]
    return {
        "no checkpoint": ([folder / "no.safetensors", "--forget", forget], 3, "No such file"),
        "empty checkpoint": ([given["empty"], "--forget", forget], 3, "empty file"),
        "truncated checkpoint": ([given["truncated"], "--forget", forget], 3, "not a safetensors"),
        "not a checkpoint": ([given["noise"], "--forget", forget], 3, "not a safetensors"),
        "NaN in the weights": ([given["nan"], "--forget", forget], 3, "NaN or infinity"),
        "shapes of no architecture": ([given["misfit"], "--forget", forget], 3, "closest"),
        "wrong --arch": ([*ok, "--arch", "resnet34"], 3, "resnet34"),
        "unknown --arch": ([*ok, "--arch", "resnet35"], 3, "resnet35"),
        "--arch of no file": ([*ok, "--arch", "no.py:net"], 2, "no file"),
        "no folder": ([digits.checkpoint, "--forget", folder / "gone"], 4, "No such file"),
        "empty folder": ([digits.checkpoint, "--forget", folder / "none"], 4, "empty"),
        "folder of no images": ([digits.checkpoint, "--forget", folder / "text"], 4, "PNG"),
        "one corrupt image": (
            [digits.checkpoint, "--forget", folder / "one_bad"], 4, "broken.png",
        ),
        "folder named to harm": (
            [digits.checkpoint, "--forget", folder / "no\x1b[31m\nrm -rf"], 4, "x1b",
        ),
        "label out of range": ([*ok, "--label", "10"], 2, "0 to 9"),
        "folder that contradicts": (
            [digits.checkpoint, "--forget", wrong], 4, "--label",
        ),
        "unknown flag": ([*ok, "--alhpa", "1"], 2, "--alhpa"),
        "negative weight": ([*ok, "--alpha", "-1"], 2, "--alpha"),
        "NaN weight": ([*ok, "--alpha", "nan"], 2, "--alpha"),
        "negative seed": ([*ok, "--seed", "-1"], 2, "--seed"),
        "seed of too many bits": ([*ok, "--seed", str(2**64)], 2, "--seed"),
        "layers that match nothing": ([*ok, "--layers", "layer9"], 2, "layer9"),
        "pattern that is none": ([*ok, "--layers", "("], 2, "compile"),
        "mean without std": ([*ok, "--mean", "0.5"], 2, "--std"),
        "mean of words": ([*ok, "--mean", "a,b", "--std", "1"], 2, "--mean"),
        "size zero": ([*ok, "--size", "0"], 2, "--size"),
        "channels it does not take": ([*ok, "--channels", "3"], 2, "--channels"),
        "images too small for it": ([given["squeezenet"], "--forget", forget], 4, "--size"),
        "answers that are no logits": (
            [*ok, "--arch", f"{folder / 'own.py'}:pair"], 3, "a tuple",
        ),
        "config of other classes": (
            [folder / "configured" / "m.safetensors", "--forget", forget], 3, "num_classes for 9",
        ),
        "CUDA where there is none": ([*ok, "--device", "cuda:9"], 1, "--device"),
        "no such device": ([*ok, "--device", "tpu"], 2, "--device"),
        "output exists": ([*ok, "-o", taken], 2, "--force"),
        "output is the Fisher file": ([*ok, "--fisher", taken, "-o", taken, "--force"], 2, "equal"),
        "output in no folder": ([*ok, "-o", folder / "no" / "x.safetensors"], 2, "no such folder"),
        "every class": (
            [digits.checkpoint, "--forget", digits.train], 4, "none would be left to keep",
        ),
        "output no safetensors": ([*ok, "-o", folder / "x.pt"], 2, "safetensors"),
        "Fisher file of nothing": ([*ok, "--fisher", folder / "f.safetensors"], 3, "No such file"),
    }  # fmt: skip


def test_bad_input_is_one_line_an_exit_code_and_nothing_written(
    pbu: Run, digits: DemoFiles, tmp_path: Path
) -> None:
    """`pytest -s` prints the table: what was fed, exit code, line."""
    cases = bad_cases(digits, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = sha256(digits.checkpoint)
    rows: list[str] = []  # printed at the end: every call of pbu takes what was printed before it
    for name, (arguments, code, words) in cases.items():
        place = [] if "-o" in arguments else ["-o", tmp_path / "out.safetensors"]
        done = pbu("unlearn", "--fast", *arguments, *place, "--quiet")
        lines = [line for line in done.err.splitlines() if line.strip()]
        rows.append(f"{name:<28} {done.code}  {lines[-1] if lines else ''}")
        assert done.code == code, (name, done.err)
        assert words in done.err, (name, done.err)
        assert "Traceback" not in done.err, name
        assert "\x1b" not in done.err, name
        assert done.out == "", name
        assert len(lines) == 1, (name, done.err)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert sha256(digits.checkpoint) == source
    print(*rows, sep="\n")


@pytest.mark.parametrize("command", ["fisher", "unlearn", "evaluate"])
@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_checkpoint_that_is_a_folder_is_refused_by_name(pbu, digits, command, path):
    done = pbu(command, path, "--forget", digits.train / "8", "-q")
    assert done.code == 3
    assert "cannot read the checkpoint" in done.err


def test_skip_bad_goes_on_and_counts(pbu: Run, digits: DemoFiles, tmp_path: Path) -> None:
    folder = tmp_path / "8"
    shutil.copytree(digits.train / "8", folder)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    for command, flags in (("unlearn", FAST), ("fisher", ["--layers", "head"])):
        done = pbu(command, digits.checkpoint, "--forget", folder, "--skip-bad", "--json", *flags,
                   "-o", tmp_path / f"{command}.safetensors")  # fmt: skip
        assert "1 unreadable forget images were left out, first" in done.err
        assert "broken.png" in done.err
        assert json.loads(done.out)["skipped"] == 1


def test_a_folder_that_the_network_knows_nothing_of_is_warned_of(pbu, digits, tmp_path):
    """Named 5, holding a few of each other class: no majority that would contradict the name."""
    folder = tmp_path / "5"
    folder.mkdir()
    for digit in "0123789":
        for path in sorted((digits.train / digit).iterdir())[:4]:
            shutil.copy(path, folder)
    done = pbu("unlearn", digits.checkpoint, "--forget", folder, "--dry-run", "--json", "-q",
               "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.code == 0
    assert done.err.startswith("warning: 5: the folder's name says class 5, but the model calls")
    assert json.loads(done.out)["warnings"][0] in done.err


@pytest.mark.parametrize("lack", ["space", "permission"])
def test_a_folder_without_space_or_permission_is_found_before_any_work(
    pbu, digits, tmp_path, monkeypatch, lack
):
    if lack == "space":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9000))
    else:  # not by the folder's mode: root writes everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(commands, "unlearn", None)
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "-q",
               "-o", tmp_path / "x.safetensors")  # fmt: skip
    assert done.code == 1
    assert f"no {lack}" in done.err
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_old_output_as_it_was(
    digits: DemoFiles, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that fills up while the output is written."""
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"precious")
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", str(digits.train / "8"),
               "-q", "--steps", "1", "--force", "-o", str(output)]  # fmt: skip
    limit = 10_000_000
    assert digits.checkpoint.stat().st_size > limit
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *command], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot write" in done.stderr
    assert output.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_two_runs_on_one_output_do_not_interleave(pbu, digits, tmp_path):
    output = tmp_path / "o.safetensors"
    command = [
        "unlearn",
        "--fast",
        digits.checkpoint,
        "--forget",
        digits.train / "8",
        "-q",
        "-o",
        output,
    ]
    words = [str(word) for word in (*command, "--steps", "100000")]
    with subprocess.Popen([sys.executable, "-m", "pbu_cli", *words]) as first:
        try:
            while not list(tmp_path.iterdir()) and first.poll() is None:
                time.sleep(0.1)
            done = pbu(*command)
            assert done.code == 1
            assert "another run is about to write it" in done.err
            assert not output.exists()
        finally:
            first.terminate()
    assert not list(tmp_path.iterdir())


def test_memory_that_runs_out_is_one_line(digits: DemoFiles, tmp_path: Path) -> None:
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", str(digits.train / "8"),
               "-q", "--size", "1024", "-o", str(tmp_path / "x.safetensors")]  # fmt: skip
    limit = 6 << 30  # of address space; the first layer alone answers with 35 GB
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *command], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "error: out of memory; lower --batch-size or --size, or use another --device\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write to: for root, who writes everywhere, a read-only mount."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.getuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("root without the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_found_before_any_work(pbu, digits, locked, monkeypatch):
    monkeypatch.setattr(commands, "unlearn", None)
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "-q",
               "-o", locked / "x.safetensors")  # fmt: skip
    assert done.code == 1
    assert "no permission to write there" in done.err or "Read-only file system" in done.err
    assert not list(locked.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_leaves_nothing_behind(
    digits: DemoFiles, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    flags = ["--steps", "100000", "-o", str(tmp_path / "o.safetensors")]
    images = str(digits.train / "8")
    command = ["unlearn", "--fast", str(digits.checkpoint), "--forget", images, *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "pbu_cli", *command], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored behind a shell's &
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("trains"):
                break
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
    word = "interrupted" if number == signal.SIGINT else "terminated"
    whole = "every file is whole, or was not written"
    assert process.stderr.read() == f"error: {word}; {whole}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("raised", "code"), [(SystemExit(3), 3), (SystemExit("no"), 1)])
def test_an_exit_from_somewhere_inside_is_no_success(pbu, monkeypatch, raised, code):
    def app(*arguments, **options):
        raise raised

    monkeypatch.setattr("pbu_cli.cli.app.app", app)
    assert pbu("unlearn").code == code


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["evaluate"], 0),
        (["evaluate", "--require", "A_Df<=1"], 5),
        (["unlearn", "--fast", "--steps", "1", "-o", "OUT"], 5),
    ],
)
def test_a_reader_that_leaves_changes_neither_work_nor_exit_code(
    digits: DemoFiles, tmp_path: Path, command: list[str], code: int, flag: str
) -> None:
    output = tmp_path / "out.safetensors"
    words = [str(output) if word == "OUT" else word for word in command]
    if not words[0].startswith("--"):
        words[1:1] = [str(digits.checkpoint), "--forget", str(digits.train / "8"), flag]
    pipe = closed_pipe()
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", *words], stdout=pipe, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    os.close(pipe)
    assert done.returncode == code, done.stderr
    for word in ("Traceback", "BrokenPipe", "Broken pipe"):
        assert word not in done.stderr
    assert output.exists() == ("OUT" in command)


def test_a_reader_of_the_errors_that_leaves_changes_no_exit_code(tmp_path: Path) -> None:
    pipe = closed_pipe()
    command = [sys.executable, "-m", "pbu_cli", "unlearn", "no.pt", "--forget", str(tmp_path)]
    assert subprocess.run(command, stderr=pipe, check=False).returncode == 3
    os.close(pipe)


NAMED = """
from torch import Tensor, nn


class Named(nn.Module):
    '''Calls its layers by the names of their arguments.'''

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer
        self.spare = nn.Linear(2, 2)
        self.conv = nn.Conv2d(1, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def call(self, name: str, x: Tensor) -> Tensor:
        layer = getattr(self, name)
        return layer(input=x) if name == self.layer else layer(x)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.call("bn", self.call("conv", x)).relu()
        return self.call("fc", self.call("layer4", maps).mean((2, 3)))


def conv(): return Named("conv")
def bn(): return Named("bn")
def layer4(): return Named("layer4")
def fc(): return Named("fc")
"""


@pytest.mark.parametrize("layer", ["conv", "bn", "layer4", "fc"])
def test_a_network_may_call_its_layers_by_the_names_of_arguments(pbu, digits, tmp_path, layer):
    own = tmp_path / "own.py"
    own.write_text(NAMED)
    torch.manual_seed(0)
    save_file(runpy.run_path(str(own))[layer]().state_dict(), tmp_path / "m.safetensors")
    done = pbu("unlearn", tmp_path / "m.safetensors", "--forget", digits.train / "8",
               "--label", "2", "--arch", f"{own}:{layer}", "--mean", "0.5", "--std", "0.5",
               "--anchors", "16", "--steps", "5", "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.code in (0, 5), done.err
    assert (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("command", ["unlearn", "fisher"])
def test_layers_that_no_answer_depends_on_are_refused(pbu, digits, tmp_path, command):
    own = tmp_path / "own.py"
    own.write_text(NAMED)
    save_file(runpy.run_path(str(own))["conv"]().state_dict(), tmp_path / "m.safetensors")
    done = pbu(command, tmp_path / "m.safetensors", "--forget", digits.train / "8", "--label", "2",
               "--arch", f"{own}:conv", "--layers", "spare")  # fmt: skip
    assert done.code == 2
    assert "depend on none of the 2 parameters" in done.err


def test_what_metadata_call_forgotten_is_said_where_it_steers_the_anchors(pbu, digits, tmp_path):
    claims = tmp_path / "claims.safetensors"
    save_file(load_file(digits.checkpoint), claims, {"pbu": '{"forgotten": [0, 1]}'})
    command = ["unlearn", claims, "--forget", digits.train / "2", "--dry-run", "--json", "-q"]
    inferred = {e["what"]: e for e in json.loads(pbu(*command).out)["inferred"]}
    assert inferred["forgotten before"]["value"] == "0, 1"
    inferred = {e["what"]: e for e in json.loads(pbu(*command, "--fast").out)["inferred"]}
    assert "forgotten before" not in inferred


def test_a_link_that_is_replaced_is_said_to_leave_what_it_points_to(pbu, digits, tmp_path):
    target = Path(shutil.copy(digits.checkpoint, tmp_path / "target.safetensors"))
    link, before = tmp_path / "link.safetensors", target.read_bytes()
    link.symlink_to(target)
    done = pbu("unlearn", *FAST, link, "--forget", digits.train / "8", "-o", link, "--force", "-q")
    assert done.code in (0, 5)
    assert target.read_bytes() == before
    assert "target.safetensors stays as it is" in done.err


def test_what_a_network_prints_does_not_stand_among_the_results(pbu, digits, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from pbu_cli.demo import ARCHITECTURE\nfrom pbu_cli.model import build\n"
        "def net():\n    network = build(ARCHITECTURE)\n    inner = network.forward\n"
        "    network.forward = lambda x: (print('debug', x.shape), inner(x))[1]\n"
        "    return network\n"
    )
    done = pbu("unlearn", *FAST, digits.checkpoint, "--forget", digits.train / "8", "--json", "-q",
               "--arch", f"{net}:net", "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.code in (0, 5), done.err
    assert json.loads(done.out)["command"] == "unlearn"
    assert "debug" in done.err


@pytest.mark.parametrize(
    ("words", "code"), [(["unlearn", "--nope", "--json"], 2), (["verify", "none.json"], 3)]
)
@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_where_stdout_takes_nothing_the_error_and_its_code_stay(words, code, stdout):
    line = f'"{sys.executable}" -m pbu_cli {" ".join(words)} {stdout}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_results_that_stdout_does_not_take_are_an_error(digits, tmp_path):
    output = tmp_path / "o.safetensors"
    line = (f'"{sys.executable}" -m pbu_cli fisher "{digits.checkpoint}" --layers head -q'
            f' --forget "{digits.train / "8"}" -o "{output}" >/dev/full')  # fmt: skip
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stdout: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.exists()


def test_a_name_in_config_json_that_is_no_architecture_is_told_as_its_own(pbu, digits, tmp_path):
    checkpoint = shutil.copy(digits.checkpoint, tmp_path / "model.safetensors")
    command = ["fisher", checkpoint, "--forget", digits.train / "8", "--dry-run", "-q"]
    for config, said in (
        ({"architecture": "vit_base_patch16_224"}, "config.json: vit_base_patch16_224"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "config.json: 2 and 2 numbers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        done = pbu(*command)
        assert done.code == 3, done.err
        assert said in done.err
        assert "--arch vit" not in done.err


def test_a_network_without_a_convolution_is_unlearned_too(pbu, digits, tmp_path):
    net, checkpoint = tmp_path / "net.py", tmp_path / "in.safetensors"
    net.write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),\n"
        "                         nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    images = decode(split_by_subfolder(list_groups([str(digits.train)])[0]), channels=1)
    torch.manual_seed(0)
    module = runpy.run_path(str(net))["net"]()
    x = images.pixels.float() / 127.5 - 1
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(x), images.group).backward()
        optimiser.step()
    save_file(module.state_dict(), checkpoint)
    command = ["unlearn", checkpoint, "--forget", digits.train / "8", "--arch", f"{net}:net",
               "--steps", "50", "--json", "-q"]  # fmt: skip
    done = pbu(*command)
    assert done.code == 3
    assert "--channels" in done.err
    done = pbu(*command, "--channels", "1")
    assert done.code == 0, done.err
    assert json.loads(done.out)["result"]["a_df"] == 0


def test_a_dry_run_says_that_memory_does_not_hold_the_anchors(pbu, digits, monkeypatch):
    monkeypatch.setattr(commands, "affordable", lambda needed, device: needed < 1000)
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--dry-run", "-q")
    assert done.code == 1
    assert "lower --anchors" in done.err
