"""What all commands do alike: JSON documents, streams, exit codes, batch sizes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.cli.session import log_to_stderr
from pbu_cli.records.statement import statement
from tests.cli.conftest import FAST
from tests.conftest import Ran


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
def test_no_forward_pass_is_of_more_images_than_the_batch_size(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = torch.nn.Linear.forward

    def forward(layer: Any, x: Tensor) -> Tensor:
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


def test_json_is_one_document_and_quiet_is_quiet(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
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
def test_json_has_errors_as_a_document_too(
    pbu: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    done = pbu(*command, "--json")
    assert done.code == code
    document = json.loads(done.out)
    assert document.keys() == {"schema", "pbu", "error"}
    assert document["error"]["exit_code"] == code
    assert f"error: {document['error']['message']}" in done.err


@pytest.mark.slow
def test_json_of_a_run_that_falls_short_is_its_result_with_the_error(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
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


@pytest.fixture
def quiet_logger() -> Iterator[logging.Logger]:
    """The package's logger, which a command with --verbose sets up for the whole process."""
    logger = logging.getLogger("pbu_cli")
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def test_verbose_logs_each_step_to_stderr(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, quiet_logger: logging.Logger
) -> None:
    command = ["fisher", digits.checkpoint, "--forget", digits.train / "8", "--layers", "head",
               "-o", tmp_path / "f.safetensors", "--force", "-q"]  # fmt: skip
    assert pbu(*command).err == ""
    done = pbu(*command, "--verbose")
    assert "parameters that train: fc.weight, fc.bias" in done.err
    assert "parameters by strategy" in done.err


def test_what_is_logged_is_one_harmless_line(
    capsys: pytest.CaptureFixture[str], quiet_logger: logging.Logger
) -> None:
    log_to_stderr()
    quiet_logger.debug("parameters that train: %s", "\x1b[2J\n")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    assert r"\x1b[2J\n" in lines[0]


def test_piped_output_has_no_escapes(
    pbu: Callable[..., Ran], digits: DemoFiles, unlearned: Any
) -> None:
    done = pbu("evaluate", unlearned, "--forget", digits.test / "8")
    assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize(("raised", "code"), [(SystemExit(3), 3), (SystemExit("no"), 1)])
def test_an_exit_from_somewhere_inside_is_no_success(
    pbu: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, raised: Any, code: int
) -> None:
    def app(*arguments: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr("pbu_cli.cli.app.app", app)
    assert pbu("unlearn").code == code


@pytest.mark.slow
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


def test_what_a_network_prints_does_not_stand_among_the_results(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from pbu_cli.benchmark.demo_digits import ARCHITECTURE\n"
        "from pbu_cli.models.sources.torchvision_build import build\n"
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
def test_where_stdout_takes_nothing_the_error_and_its_code_stay(
    words: list[str], code: int, stdout: str
) -> None:
    line = f'"{sys.executable}" -m pbu_cli {" ".join(words)} {stdout}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_results_that_stdout_does_not_take_are_an_error(digits: DemoFiles, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    line = (f'"{sys.executable}" -m pbu_cli fisher "{digits.checkpoint}" --layers head -q'
            f' --forget "{digits.train / "8"}" -o "{output}" >/dev/full')  # fmt: skip
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stdout: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.exists()


def test_a_name_in_config_json_that_is_no_architecture_is_told_as_its_own(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_a_letter_gets_its_escape(tmp_path: Path, encoding: str) -> None:
    """The name of a file may have letters that the encoding of the terminal lacks."""
    done = subprocess.run(
        [sys.executable, "-m", "pbu_cli", "verify", "\u0436.json"], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert b"\\u0436.json: no such record" in done.stderr


def test_a_terminal_that_was_closed_ends_the_run_with_129(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pty\n"
        "master, slave = pty.openpty()\n"
        "os.dup2(slave, 1)\n"
        "os.close(slave), os.close(master)\n"
        "sys.argv = ['pbu', 'verify', 'run.json']\n"
        "from pbu_cli.__main__ import main\n"
        "main()\n"
    )
    (tmp_path / "x").write_text("x")
    entry = {"role": "config", "path": "x", "sha256": hashlib.sha256(b"x").hexdigest()}
    (tmp_path / "run.json").write_text(json.dumps(statement([entry])))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=False, capture_output=True
    )
    assert done.returncode == 129, done.stderr
