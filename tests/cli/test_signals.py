"""Real signals to real processes: exit code, time to stop, one line, nothing left behind."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles

pytestmark = pytest.mark.slow  # runs commands from start to end

# Runs pbu with a word on stderr where a phase begins, so that the signal meets it.
MARKED = """
import importlib, sys
from pbu_cli.__main__ import main
module, name = sys.argv.pop(1).split(":")
home = importlib.import_module("pbu_cli." + module)
real = getattr(home, name)
def marked(*arguments, **options):
    print("PHASE", file=sys.stderr, flush=True)
    return real(*arguments, **options)
setattr(home, name, marked)
main()
"""
PHASES = {
    "reading": "io.checkpoint:parse_safetensors",
    "loading": "models.load:load_tensors",
    "decoding": "inputs.prepare:decode",
    "Fisher": "pipeline.fisher:fisher_diagonal",
    "steps": "pipeline.sanitize:unlearn",
    "writing": "pipeline.sanitize:write",
    "measuring what was written": "pipeline.sanitize:check_promises",
    "record": "pipeline.unlearn:record_unlearning",
}
STUCK = """
import sys, time
def network():
    words, end = ["PHASE"], time.monotonic() + 60
    while time.monotonic() < end:
        try:
            print(*words, file=sys.stderr, end=words and "\\n" or "", flush=True)
            words.clear()
            time.sleep(60)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("place", PHASES.values())
def test_every_phase_names_a_function(place: str) -> None:
    module, name = place.split(":")
    assert callable(getattr(importlib.import_module(f"pbu_cli.{module}"), name))


def started(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """pbu with default signal handlers, even where this test's own shell ignores signals."""

    def reset_handlers() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=reset_handlers, cwd=folder,
    )  # fmt: skip


def wait_for_phase(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line == "PHASE\n":
            return
    pytest.fail("the phase was not reached")


def unlearning(digits: DemoFiles) -> list[str]:
    return ["unlearn", "--fast", str(digits.checkpoint), "--forget", str(digits.train / "8"), "-q",
            "-o", "o.safetensors", "--record", "run.json", "--steps", "10"]  # fmt: skip


BOTH = (signal.SIGINT, signal.SIGTERM)
EVERY = [(phase, number) for phase in ("imports", *PHASES) for number in BOTH]


@pytest.mark.parametrize(
    ("phase", "number"), EVERY if os.environ.get("PBU_EVERY_SIGNAL") else EVERY[::3]
)
def test_a_signal_ends_every_phase_in_time(
    digits: DemoFiles, tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    """`PBU_EVERY_SIGNAL=1 pytest -s` prints the whole table: exit code, seconds, files left."""
    if phase == "imports":
        process = started(["-m", "pbu_cli", *unlearning(digits)], tmp_path)
        time.sleep(1)
    else:
        process = started(["-c", MARKED, PHASES[phase], *unlearning(digits)], tmp_path)
        wait_for_phase(process)
    sent = time.perf_counter()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    seconds = time.perf_counter() - sent
    left = sorted(path.name for path in tmp_path.iterdir())
    print(f"{phase:<27} {number.name:<8} {process.returncode}  {seconds:.2f} s  {left}")
    assert process.returncode == 128 + number, err
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert err == f"error: {word}; every file is whole, or was not written\n"
    assert out == ""
    assert seconds < 5  # two, on a machine that is not busy
    assert left == []


HOLDS_THE_LOCK = """
import sys
def network():
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    print("PHASE", file=sys.stderr, flush=True)
    hash(nested)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_native_code_that_keeps_the_interpreters_lock_is_ended(
    digits: DemoFiles, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "holds.py").write_text(HOLDS_THE_LOCK)
    process = started(
        ["-m", "pbu_cli", *unlearning(digits), "--arch", "holds.py:network"], tmp_path
    )
    wait_for_phase(process)
    time.sleep(0.2)
    sent = time.perf_counter()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.perf_counter() - sent < 2.5  # two, on a machine that is not busy
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert err == f"error: {word}; every file is whole, or was not written\n"
    on_linux = sys.platform == "linux"  # elsewhere it can only be killed
    assert process.returncode == (128 + number if on_linux else -signal.SIGKILL)


def test_signals_arrive_where_the_supervisor_was_killed(digits: DemoFiles, tmp_path: Path) -> None:
    process = started(["-c", MARKED, PHASES["steps"], *unlearning(digits)], tmp_path)
    wait_for_phase(process)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err == "error: terminated; every file is whole, or was not written\n"


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("the system does not list the children of a process")
    return [int(child) for child in found.read_text().split()]


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGKILL])
def test_the_supervisor_ends_with_pbu(
    digits: DemoFiles, tmp_path: Path, number: signal.Signals | None
) -> None:
    process = started(["-c", MARKED, PHASES["steps"], *unlearning(digits)], tmp_path)
    wait_for_phase(process)
    supervisors = children(process.pid)
    assert len(supervisors) == 1
    if number is not None:
        process.send_signal(number)
    process.communicate(timeout=60)  # which would wait for a supervisor that keeps stdout open
    end = time.monotonic() + 5
    while time.monotonic() < end and any(Path(f"/proc/{one}").exists() for one in supervisors):
        time.sleep(0.05)
    for one in supervisors:  # without init's help it may stay a zombie after SIGKILL
        status = Path(f"/proc/{one}/status")
        assert not status.exists() or (number == signal.SIGKILL and "Z (" in status.read_text())


@pytest.mark.parametrize("count", [1, 2])
def test_what_does_not_listen_is_ended_after_the_grace_or_by_a_second_signal(
    digits: DemoFiles, tmp_path: Path, count: int
) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    process = started(
        ["-m", "pbu_cli", *unlearning(digits), "--arch", "stuck.py:network"], tmp_path
    )
    wait_for_phase(process)
    sent = time.perf_counter()
    for _ in range(count):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    seconds = time.perf_counter() - sent
    assert process.returncode == 143
    # A signal between a word and its being crossed off has it said once more.
    assert err.removeprefix("PHASE\n") == (
        "error: terminated; every file is whole, or was not written\n"
    )
    assert (seconds > 1.4) == (count == 1)
    assert seconds < 5


def test_half_a_file_is_removed_even_where_the_end_is_forced(tmp_path: Path) -> None:
    code = f"""
import signal, sys, time
from pathlib import Path
from pbu_cli.io.atomic_files import exclusive_output, atomic_write
from pbu_cli.cli.signals import install_handlers
{STUCK}
install_handlers()
output = Path("out")
with exclusive_output(output, force=False), atomic_write(output) as temporary:
    temporary.write_bytes(b"half")
    network()
"""
    process = started(["-c", code], tmp_path)
    wait_for_phase(process)
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert not list(tmp_path.iterdir())


def test_a_signal_that_was_set_aside_stays_so(tmp_path: Path) -> None:
    code = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from pbu_cli.cli.signals import install_handlers
install_handlers()
os.kill(os.getpid(), signal.SIGHUP)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
