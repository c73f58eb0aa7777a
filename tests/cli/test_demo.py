"""The demo as a newcomer runs it: one process, real files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pbu_cli.__main__ import run
from pbu_cli.benchmark import demo_digits
from tests.conftest import Ran


@pytest.mark.slow
def test_the_demo_runs_to_its_tables_and_writes_what_it_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pbu_cli", "demo", "--output", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("fisher", "unlearn", "evaluate"):
        assert f"$ pbu {name} " in done.stderr
    assert "Where the forget images go" in done.stdout
    written = {path.name for path in (tmp_path / "demo").iterdir()}
    assert written == {
        "digits.safetensors", "digits.fisher.safetensors", "digits.unlearned.safetensors",
        "train", "test",
    }  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "not empty" in again.stderr


@pytest.mark.slow
def test_the_demo_in_json_is_the_three_documents_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is hardly trained; what forgetting costs is not tested here."""
    monkeypatch.setattr(demo_digits, "RECIPE", replace(demo_digits.RECIPE, epochs=2))
    code = run(["demo", "--output", str(tmp_path / "demo"), "--json", "--quiet", "--device", "cpu"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert code == 0, printed.err
    assert printed.err == ""
    assert (document["schema"], document["command"]) == (1, "demo")
    commands = [inner["command"] for inner in document["commands"]]
    assert commands == ["fisher", "unlearn", "evaluate"]
    assert document["commands"][1]["result"]["forgotten"] is True


def test_a_place_that_cannot_be_written_to_is_one_line(pbu: Callable[..., Ran]) -> None:
    done = pbu("demo", "-o", "/proc/nope")
    assert done.code == 1
    assert "--output" in done.err
    assert "unexpected error" not in done.err
