"""The run record as a user meets it: written, added to, verified, and trusted in nothing."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.evaluation.evaluate import scored
from pbu_cli.io.strict_json import to_json
from pbu_cli.records import statement as record
from tests.conftest import Ran

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def recorded(digits: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run: model.safetensors, out.safetensors, run.json and its key. Not to be
    written to."""
    from pbu_cli.__main__ import run

    folder = tmp_path_factory.mktemp("recorded")
    tensors = load_file(digits.checkpoint)
    save_file(tensors, folder / "model.safetensors", {"author": "someone", "format": "pt"})
    command = ["unlearn", "--fast", folder / "model.safetensors", "--forget", digits.train / "8",
               "-o", folder / "out.safetensors", "--record", folder / "run.json",
               "--record-key", folder / "key", "--steps", "20", "-q"]  # fmt: skip
    assert run([str(word) for word in command]) in (0, 5)
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """The same, to be written to."""
    return shutil.copytree(recorded, tmp_path / "run")


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())  # type: ignore[no-any-return]


def test_the_record_is_a_statement_of_what_was_run(recorded, digits):
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


def test_the_digest_of_the_forget_set_needs_its_key_and_no_order(recorded, digits):
    """Against an HMAC written down here by hand."""
    found = content(recorded)["predicate"]["forget_set"]
    key = bytes.fromhex((recorded / "key").read_text())
    pixels = decode(list_groups([str(digits.train / "8")]), channels=1).pixels
    each = sorted(
        hmac.new(key, b"(1, 8, 8)" + image.numpy().tobytes(), hashlib.sha256).digest()
        for image in pixels.flip(0)
    )
    expected = hmac.new(key, b"".join(each), hashlib.sha256).hexdigest()
    assert found["hmac_sha256"] == expected
    assert (found["images"], found["by_class"]) == (len(pixels), {"8": len(pixels)})
    assert (recorded / "key").stat().st_mode & 0o777 == 0o600
    assert key.hex() not in (recorded / "run.json").read_text()


def test_the_output_says_the_same_in_short_and_keeps_its_metadata(recorded):
    with safe_open(recorded / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["author"] == "someone"
    run = json.loads(metadata["pbu"])["run"]
    assert run["settings"] == content(recorded)["predicate"]["run"]["settings"]
    assert run["input"] == content(recorded)["predicate"]["files"][1]["tensors"]
    assert "no proof" in run["limitation"]


def test_two_runs_differ_in_the_record_and_not_in_the_output(pbu, recorded, digits, tmp_path):
    command = ["unlearn", "--fast", recorded / "model.safetensors", "--forget", digits.train / "8",
               "-q", "--steps", "20", "-o", tmp_path / "o.safetensors"]  # fmt: skip
    assert pbu(*command, "--record", tmp_path / "run.json").code in (0, 5)
    output = (recorded / "out.safetensors").read_bytes()
    assert (tmp_path / "o.safetensors").read_bytes() == output
    here, there = (content(at)["predicate"]["forget_set"] for at in (tmp_path, recorded))
    assert here["hmac_sha256"] != there["hmac_sha256"]
    assert here["key"] == "discarded"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors", "run.json"]


def findings(done: Ran) -> dict[str, bool | None]:
    found: dict[str, bool | None] = {}
    for entry in json.loads(done.out)["findings"]:
        found[entry["what"]] = entry["holds"] if found.get(entry["what"], True) else False
    return found


def test_a_true_record_holds_even_where_all_of_it_moves(pbu, folder, digits):
    given = ["--record-key", folder / "key", "--forget", digits.train / "8"]
    done = pbu("verify", folder / "run.json", *given, "--json")
    assert done.code == 0, done.err
    assert set(findings(done).values()) == {True}
    assert len(findings(done)) == 4
    moved = folder.rename(folder.with_name("elsewhere"))
    assert pbu("verify", moved / "run.json").code == 0


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    statement = content(folder)
    change(statement["predicate"])
    (folder / "run.json").write_text(to_json(statement))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("output byte", "output out.safetensors"),
        ("output metadata", "output out.safetensors"),
        ("output gone", "output out.safetensors"),
        ("input", "input model.safetensors"),
        ("figure", "record"),
        ("one image less", "forget set"),
        ("other images", "forget set"),
        ("other key", "forget set"),
    ],
)
def test_what_does_not_hold_is_named_and_exits_with_5(pbu, folder, digits, change, what):
    output, key, forget = folder / "out.safetensors", folder / "key", digits.train / "8"
    data = bytearray(output.read_bytes())
    if change == "output byte":
        data[-1000] ^= 1
        output.write_bytes(data)
    elif change == "output metadata":
        save_file(load_file(output), output, {})
    elif change == "output gone":
        output.unlink()
    elif change == "input":
        shutil.copy(output, folder / "model.safetensors")
    elif change == "figure":
        edited(folder, lambda predicate: predicate["run"]["result"].update(a_df=0.01))
    elif change == "one image less":
        forget = shutil.copytree(forget, folder / "8")
        next(forget.iterdir()).unlink()
    elif change == "other images":
        forget = shutil.copytree(forget, folder / "8")
        shutil.copy(next((digits.train / "3").iterdir()), next(forget.iterdir()))
    elif change == "other key":
        key.write_text("0" * 64)
    done = pbu("verify", folder / "run.json", "--record-key", key, "--forget", forget, "--json")
    assert done.code == 5
    assert {name for name, holds in findings(done).items() if holds is False} == {what}
    assert what in done.err
    if change == "output metadata":
        tensors = [f for f in json.loads(done.out)["findings"] if "of the tensors" in f["detail"]]
        assert all(finding["holds"] for finding in tensors)


def test_evaluations_are_added_and_the_whole_still_holds(pbu, folder, digits):
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


def test_the_record_is_of_the_bytes_that_were_measured(pbu, folder, digits, monkeypatch):
    given = shutil.copy(folder / "out.safetensors", folder / "given.safetensors")
    measured = hashlib.sha256(given.read_bytes()).hexdigest()

    def swapped(comparison: Any) -> Any:
        shutil.copy(folder / "model.safetensors", given)
        return scored(comparison)

    monkeypatch.setattr("pbu_cli.evaluation.evaluate.scored", swapped)
    done = pbu("evaluate", given, "--forget", digits.test / "8", "--record", folder / "of.json")
    assert done.code == 0, done.err
    entry = json.loads((folder / "of.json").read_text())["predicate"]["files"][0]
    assert entry["sha256"] == measured


def test_a_record_of_another_file_is_not_added_to(pbu, folder, digits):
    before = (folder / "run.json").read_bytes()
    done = pbu("evaluate", folder / "model.safetensors", "--forget", digits.test / "8",
               "--record", folder / "run.json")  # fmt: skip
    assert done.code == 3
    assert "another file" in done.err
    assert (folder / "run.json").read_bytes() == before


def test_an_evaluation_alone_begins_a_record(pbu, digits, tmp_path):
    done = pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q",
               "--record", tmp_path / "run.json")  # fmt: skip
    assert done.code == 0, done.err
    assert pbu("verify", tmp_path / "run.json").code == 0


def test_an_output_over_its_input_is_verified_as_such(pbu, folder, digits):
    model = folder / "model.safetensors"
    before = model.read_bytes()
    command = ["unlearn", "--fast", model, "--forget", digits.train / "8", "-o", model, "-q",
               "--steps", "1", "--record", folder / "in_place.json"]  # fmt: skip
    assert pbu(*command).code == 2
    assert model.read_bytes() == before
    assert pbu(*command, "--force").code in (0, 5)
    assert model.read_bytes() != before
    done = pbu("verify", folder / "in_place.json", "--json")
    assert done.code == 0, done.err
    assert findings(done)["input model.safetensors"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--record-key", "KEY"], "expected --record too"),
        (["--record", "run.txt"], "ending in .json"),
        (["--record", "run.json"], "--force"),
        (["--record", "new.json", "--record-key", "key", "--force"], "--force"),
        (["--record", "new.json", "--record-key", "new.json"], "equal to --record"),
        (["--record", "new.json", "--record-key", "new.safetensors"], "equal to --output"),
    ],
)
def test_places_that_do_not_do_are_refused_before_any_work(
    pbu, folder, digits, monkeypatch, flags, words
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("pbu_cli.pipeline.unlearn.unlearn", None)
    done = pbu("unlearn", "--fast", "model.safetensors", "--forget", digits.train / "8", "-o",
               "new.safetensors", "-q", *flags)  # fmt: skip
    assert done.code == 2
    assert words in done.err


def _nested(good: dict[str, Any], depth: int) -> bytes:
    lists = b'"x": ' + b"[" * depth + b"]" * depth + b', "files"'
    return json.dumps(good).encode().replace(b'"files"', lists)


def hostile() -> dict[str, bytes]:
    """Records as strangers may write them."""
    entry = {"role": "output", "path": "out.safetensors", "sha256": "0" * 64}
    good = record.statement([entry])

    def of(**change: Any) -> bytes:
        return json.dumps({**good, "predicate": {**good["predicate"], **change}}).encode()

    deep = b"[" * 100_000
    return {
        "empty": b"",
        "not JSON": b"\x00\xff",
        "not UTF-8": b'{"a": "\xff"}',
        "a list": b"[]",
        "deep": deep,
        "deep inside": _nested(good, 100_000),
        "a key twice": json.dumps(good).encode().replace(b'"predicate":', b'"predicate": 1, '
                                                         b'"predicate":', 1),
        "another type": json.dumps({**good, "_type": "x"}).encode(),
        "another predicate": json.dumps({**good, "predicateType": 3}).encode(),
        "no predicate": json.dumps({**good, "predicate": []}).encode(),
        "files of none": of(files=[]),
        "files no list": of(files="abc"),
        "files no objects": of(files=[1]),
        "a digest too short": of(files=[{**entry, "sha256": "0"}]),
        "a path that is a number": of(files=[{**entry, "path": 3}]),
        "too many files": of(files=[entry] * 2000),
        "evaluations no list": of(evaluations={"files": []}),
        "evaluations of nothing": of(evaluations=[1]),
        "a forget set of no shape": of(forget_set={"images": 1, "hmac_sha256": "0" * 64}),
        "a huge forget set": of(
            forget_set={"images": 1, "hmac_sha256": "0" * 64, "shape": [3, 10**9, 10**9]}
        ),
        "an endless number": b'{"a": ' + b"1" * 100_000 + b"}",
    }  # fmt: skip


def test_a_record_nested_as_deeply_as_some_pythons_read_is_one_line_and_a_code(pbu, tmp_path):
    """Python 3.11 refuses it, 3.12 reads it and finds it changed."""
    entry = {"role": "output", "path": "out.safetensors", "sha256": "0" * 64}
    (tmp_path / "run.json").write_bytes(_nested(record.statement([entry]), 900))
    done = pbu("verify", tmp_path / "run.json")
    assert done.code in (3, 5)
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_record_is_one_line_and_a_code(pbu, tmp_path, name):
    path = tmp_path / "run.json"
    path.write_bytes(hostile()[name])
    done = pbu("verify", path)
    assert done.code == 3
    assert len(done.err.splitlines()) == 1
    assert "not a run record" in done.err
    with pytest.raises(CheckpointError):
        record.read_record(path)


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "/proc/kcore", "/proc/kmsg", "fifo", "loop", ".", "nul\0", "\ud800", "x" * 300,
     "\x1b[2J\n[bold]", "../../../../../../etc/hostname"],
)  # fmt: skip
def test_a_record_may_name_anything_and_nothing_happens(pbu, tmp_path, name):
    import os

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for tensors in ({}, {"tensors": "0" * 64}):
        entry = {"role": "\x1b[31mconfig\n", "path": name, "sha256": "0" * 64, **tensors}
        (tmp_path / "run.json").write_text(to_json(record.statement([entry])))
        done = pbu("verify", tmp_path / "run.json")
        assert done.code == 5
        assert len(done.err.splitlines()) == 1
        assert "\x1b" not in done.out + done.err


def test_a_check_of_the_forget_set_that_was_asked_for_is_made_or_fails(pbu, folder, digits):
    key, images = ["--record-key", folder / "key"], ["--forget", digits.train / "8"]
    for half in (key, images):
        done = pbu("verify", folder / "run.json", *half)
        assert done.code == 2
        assert "checked with both" in done.err
    alone = folder / "alone.json"
    assert pbu("evaluate", folder / "out.safetensors", "--forget", digits.test / "8", "-q",
               "--record", alone).code == 0  # fmt: skip
    done = pbu("verify", alone, *key, *images)
    assert done.code == 5
    assert "has none" in done.err


def test_paths_of_the_forget_set_may_come_on_stdin(pbu, folder, digits, monkeypatch):
    listed = "\n".join(str(path) for path in sorted((digits.train / "8").iterdir()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    done = pbu("verify", folder / "run.json", "--record-key", folder / "key", "--forget", "-")
    assert done.code == 0, done.err


@pytest.mark.parametrize("limit", ["MOST_FILES", "LARGEST"])
def test_a_full_record_is_left_as_it_was(pbu, folder, digits, monkeypatch, limit):
    before = (folder / "run.json").read_bytes()
    monkeypatch.setattr(f"pbu_cli.records.writer.{limit}", 2)
    done = pbu("evaluate", folder / "out.safetensors", "--forget", digits.test / "8", "-q",
               "--record", folder / "run.json")  # fmt: skip
    assert done.code == 1
    assert "full" in done.err
    assert (folder / "run.json").read_bytes() == before


def test_the_config_of_every_network_is_digested_and_the_module_of_arch(
    pbu, digits, tmp_path, monkeypatch
):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "nets.py").write_text(
        "from pbu_cli.demo import ARCHITECTURE\nfrom pbu_cli.model import build\n"
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
    assert pbu("verify", record).code == 0
    for place in (config, tmp_path / "package" / "nets.py"):
        was = place.read_bytes()
        place.write_bytes(was + b"\n")
        assert pbu("verify", record).code == 5
        place.write_bytes(was)


def test_where_the_record_cannot_be_written_the_output_is_said_to_be(
    pbu, folder, digits, monkeypatch
):
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
    assert "o.safetensors: written, but its record was not" in done.err
    assert output.exists()
    assert not key.exists()


def test_what_measured_the_fisher_file_stands_in_the_record(pbu, folder, digits):
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
