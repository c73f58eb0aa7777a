"""The demo as a newcomer runs it: one process, real files."""

from __future__ import annotations

import json
import subprocess
import sys

from pbu_cli.__main__ import run
from pbu_cli.benchmark import demo_digits as demo


def test_the_demo_runs_to_its_tables_and_writes_what_it_says(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "demo", "--output", str(tmp_path / "demo")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command in ("fisher", "unlearn", "evaluate"):
        assert f"$ pbu {command} " in done.stderr
    assert "Where the forget images go" in done.stdout
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {
        "digits.safetensors", "digits.fisher.safetensors", "digits.unlearned.safetensors",
        "train", "test",
    }  # fmt: skip
    again = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "demo", "--output", str(tmp_path / "demo")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_the_demo_in_json_is_the_three_documents_in_one(tmp_path, capsys, monkeypatch):
    """On a network that was hardly trained: forgetting and what it costs are not looked at here."""
    monkeypatch.setattr(demo, "EPOCHS", 2)
    code = run(["demo", "--output", str(tmp_path / "demo"), "--json", "--quiet", "--device", "cpu"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert code == 0, printed.err
    assert printed.err == ""
    assert (document["schema"], document["command"]) == (1, "demo")
    commands = [inner["command"] for inner in document["commands"]]
    assert commands == ["fisher", "unlearn", "evaluate"]
    assert document["commands"][1]["result"]["forgotten"] is True


def test_a_place_that_cannot_be_written_to_is_one_line(pbu):
    done = pbu("demo", "-o", "/proc/nope")
    assert done.code == 1
    assert "--output" in done.err
    assert "not foreseen" not in done.err
