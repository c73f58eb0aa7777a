"""Records that runs and evaluations write."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.errors import PbuError
from pbu_cli.evaluation.evaluate import score_comparison
from pbu_cli.settings import InputOptions
from tests.conftest import Ran
from tests.records.conftest import content, edited


def test_the_record_is_a_statement_of_what_was_run(recorded: Path, digits: DemoFiles) -> None:
    statement = content(recorded)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    output = (recorded / "out.safetensors").read_bytes()
    name, digest = "out.safetensors", hashlib.sha256(output).hexdigest()
    assert statement["subject"] == [{"name": name, "digest": {"sha256": digest}}]
    predicate = statement["predicate"]
    run = predicate["run"]
    assert run["settings"]["schedule"]["seed"] == 0
    assert run["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert {entry["what"] for entry in run["inferred"]} >= {"architecture", "label"}
    assert run["result"]["a_df_before"] > 90
    assert any("no proof" in line for line in predicate["limitations"])
    assert "8" not in run["settings"]["wanted"]["labels"]


def test_the_output_says_the_same_in_short_and_keeps_its_metadata(recorded: Path) -> None:
    with safe_open(recorded / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["author"] == "someone"
    run = json.loads(metadata["pbu"])["run"]
    assert run["settings"] == content(recorded)["predicate"]["run"]["settings"]
    assert run["input"] == content(recorded)["predicate"]["files"][1]["tensors"]
    assert "no proof" in run["limitation"]


def test_two_runs_differ_in_the_record_and_not_in_the_output(
    pbu: Callable[..., Ran], recorded: Path, digits: DemoFiles, tmp_path: Path
) -> None:
    command = ["unlearn", "--fast", recorded / "model.safetensors", "--forget", digits.train / "8",
               "-q", "--steps", "20", "-o", tmp_path / "o.safetensors"]  # fmt: skip
    assert pbu(*command, "--record", tmp_path / "run.json").code in (0, 5)
    output = (recorded / "out.safetensors").read_bytes()
    assert (tmp_path / "o.safetensors").read_bytes() == output
    here, there = (content(at)["predicate"]["forget_set"] for at in (tmp_path, recorded))
    assert here["hmac_sha256"] != there["hmac_sha256"]
    assert here["key"] == "discarded"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors", "run.json"]


def test_evaluations_are_added_and_the_whole_still_holds(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    command = ["evaluate", folder / "out.safetensors", "--forget", digits.test / "8", "-q",
               "--record", folder / "run.json"]  # fmt: skip
    for more in ([], ["--original", folder / "model.safetensors"]):
        assert pbu(*command, *more).code == 0
    first, second = content(folder)["predicate"]["evaluations"]
    assert [score["name"] for score in first["scores"]] == ["checkpoint"]
    assert [entry["role"] for entry in second["files"]] == ["checkpoint", "original"]
    assert pbu("verify", folder / "run.json").code == 0
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    edited(folder, lambda predicate: predicate["evaluations"][0]["scores"][0].update(a_df=0))
    assert pbu("verify", folder / "run.json").code == 5
    done = pbu(*command)
    assert done.code == 3
    assert "was changed" in done.err


def test_the_record_is_of_the_bytes_that_were_measured(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = shutil.copy(folder / "out.safetensors", folder / "given.safetensors")
    measured = hashlib.sha256(given.read_bytes()).hexdigest()

    def swapped(comparison: Any) -> Any:
        shutil.copy(folder / "model.safetensors", given)
        return score_comparison(comparison)

    monkeypatch.setattr("pbu_cli.pipeline.evaluate.score_comparison", swapped)
    done = pbu("evaluate", given, "--forget", digits.test / "8", "--record", folder / "of.json")
    assert done.code == 0, done.err
    entry = json.loads((folder / "of.json").read_text())["predicate"]["files"][0]
    assert entry["sha256"] == measured


def test_a_record_of_another_file_is_not_added_to(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    before = (folder / "run.json").read_bytes()
    done = pbu("evaluate", folder / "model.safetensors", "--forget", digits.test / "8",
               "--record", folder / "run.json")  # fmt: skip
    assert done.code == 3
    assert "another file" in done.err
    assert (folder / "run.json").read_bytes() == before


def test_an_evaluation_alone_begins_a_record(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    done = pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q",
               "--record", tmp_path / "run.json")  # fmt: skip
    assert done.code == 0, done.err
    assert pbu("verify", tmp_path / "run.json").code == 5  # the checkpoint lies elsewhere
    assert pbu("verify", tmp_path / "run.json", "--files-anywhere").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--record-key", "KEY"], "expected --record too"),
        (["--record", "run.txt"], "ending in .json"),
        (["--record", "run.json"], "--force"),
        (["--record", "new.json", "--record-key", "key", "--force"], "never replaced"),
        (["--record", "new.json", "--record-key", ".new.json.lock"], "lock of --record"),
        (["--record", "new.json", "--record-key", ".new.safetensors.lock"], "lock of --output"),
        (["--record", ".run.json.0123abcd.tmp"], "ending in .json"),
        (["--record", "new.json", "--record-key", "new.json"], "equal to --record"),
        (["--record", "new.json", "--record-key", "new.safetensors"], "equal to --output"),
    ],
)
def test_places_that_do_not_do_are_refused_before_any_work(
    pbu: Callable[..., Ran],
    folder: Path,
    digits: DemoFiles,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("pbu_cli.pipeline.sanitize.unlearn", None)
    done = pbu("unlearn", "--fast", "model.safetensors", "--forget", digits.train / "8", "-o",
               "new.safetensors", "-q", *flags)  # fmt: skip
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_BYTES"])
def test_a_full_record_is_left_as_it_was(
    pbu: Callable[..., Ran],
    folder: Path,
    digits: DemoFiles,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    before = (folder / "run.json").read_bytes()
    monkeypatch.setattr(f"pbu_cli.records.writer.{limit}", 2)
    done = pbu("evaluate", folder / "out.safetensors", "--forget", digits.test / "8", "-q",
               "--record", folder / "run.json")  # fmt: skip
    assert done.code == 1
    assert "full" in done.err
    assert (folder / "run.json").read_bytes() == before


def test_the_config_of_every_network_is_digested_and_the_module_of_arch(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "nets.py").write_text(
        "from pbu_cli.benchmark.demo_digits import ARCHITECTURE\n"
        "from pbu_cli.models.sources.torchvision_build import build\n"
        "def net():\n    return build(ARCHITECTURE)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    original = shutil.copy(digits.checkpoint, tmp_path / "package" / "original.safetensors")
    config = tmp_path / "package" / "config.json"
    config.write_text('{"num_classes": 10}')
    record = tmp_path / "of.json"
    done = pbu("evaluate", digits.checkpoint, "--original", original, "-q", "--record", record,
               "--forget", digits.test / "8", "--arch", "package.nets:net")  # fmt: skip
    assert done.code == 0, done.err
    assert pbu("verify", record, "--files-anywhere").code == 0
    for place in (config, tmp_path / "package" / "nets.py"):
        was = place.read_bytes()
        place.write_bytes(was + b"\n")
        assert pbu("verify", record, "--files-anywhere").code == 5
        place.write_bytes(was)


def test_where_the_record_cannot_be_written_nothing_is(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, *, private: bool = False) -> None:
        if not private:
            raise PbuError(f"{path}: cannot write: No space left on device")
        path.write_text(text)

    monkeypatch.setattr("pbu_cli.records.writer.write_text", full)
    output, key = folder / "o.safetensors", folder / "k"
    done = pbu("unlearn", "--fast", folder / "model.safetensors", "--forget", digits.train / "8",
               "-q", "--steps", "1", "-o", output, "--record", folder / "r.json",
               "--record-key", key)  # fmt: skip
    assert done.code == 1
    assert "No space left on device" in done.err
    assert not output.exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert not key.exists()


def test_what_measured_the_fisher_file_stands_in_the_record(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    measured, output = folder / "drawn.safetensors", folder / "o.safetensors"
    prepared = [folder / "model.safetensors", "--forget", digits.train / "8", "-q"]
    assert pbu("fisher", *prepared, "--estimator", "mc", "--draws", "2", "--layers", "head",
               "-o", measured).code == 0  # fmt: skip
    command = [
        "unlearn",
        "--fast",
        *prepared,
        "--fisher",
        measured,
        "--layers",
        "head",
        "-o",
        output,
    ]
    done = pbu(*command, "--estimator", "exact")
    assert done.code == 2
    assert "--estimator" in done.err
    done = pbu(*command, "--steps", "1", "--json")
    assert done.code in (0, 5), done.err
    settings = json.loads(done.out)["settings"]
    assert (settings["estimator"], settings["draws"]) == ("mc", 2)


def test_the_record_is_there_before_its_output(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between the two leaves a record that misses its output, and the next
    run replaces it."""
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.suffix == ".safetensors":
            raise KeyboardInterrupt
        return replace(self, target)

    flags = ("-q", "--steps", "1", "-o", folder / "o.safetensors", "--record", folder / "r.json")
    arguments = ("unlearn", "--fast", folder / "model.safetensors", "--forget", digits.train / "8",
                 *flags)  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        assert pbu(*arguments).code not in (0, 5)
    assert not (folder / "o.safetensors").exists()
    done = pbu("verify", folder / "r.json")
    assert done.code == 5
    assert "output o.safetensors: cannot read" in done.err
    assert "--force" in pbu(*arguments).err
    assert pbu(*arguments, "--force").code in (0, 5)
    assert pbu("verify", folder / "r.json").code == 0


def test_a_record_does_not_replace_the_config_of_its_network(
    pbu: Callable[..., Ran], folder: Path, digits: DemoFiles
) -> None:
    config = folder / "config.json"
    config.write_text('{"num_classes": 10}')
    for command in ("unlearn", "evaluate"):
        done = pbu(command, folder / "model.safetensors", "--forget", digits.train / "8",
                   "--record", config, *(["--force"] if command == "unlearn" else []))  # fmt: skip
        assert done.code == 2
        assert "is the config.json of" in done.err
    assert config.read_text() == '{"num_classes": 10}'
    config.unlink()


def test_an_absolute_path_of_arch_stays_out_of_what_is_written() -> None:
    options = InputOptions(arch="/home/somebody/net.py:build")
    assert options.entry()["arch"] == "net.py:build"
    assert InputOptions(arch="package.module:build").entry()["arch"] == "package.module:build"
