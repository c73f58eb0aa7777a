"""Outputs are written whole or not at all, and two runs never write one output at a time."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.io.atomic_files import atomic_write, check_output, exclusive_output, write_text

# A run that holds the lock and has written half of its output.
HOLD = """
import sys, time
from pathlib import Path
from pbu_cli.io.atomic_files import exclusive_output, atomic_write
output = Path(sys.argv[1])
with exclusive_output(output, force=True), atomic_write(output) as temporary:
    temporary.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""

# A run that takes the lock 200 times and logs when it holds it.
RACE = """
import sys
from pathlib import Path
from pbu_cli.errors import PbuError
from pbu_cli.io.atomic_files import exclusive_output
output, log = Path(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
won = 0
while won < 200:
    try:
        with exclusive_output(output, force=True):
            print("in", file=log)
            print("out", file=log)
            won += 1
    except PbuError:
        pass
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_output_that_must_not_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    source, taken = tmp_path / "in.safetensors", tmp_path / "taken.safetensors"
    for path in (source, taken):
        path.write_bytes(b"x")
    os.link(source, tmp_path / "also.safetensors")

    def check(output: Path, force: bool = False, size: int = 1) -> None:
        check_output(output, force=force, sources=(source,), size=size, suffix=".safetensors")

    check(tmp_path / "new.safetensors")
    check(taken, force=True)
    for output, force, match in (
        (taken, False, "--force"),
        (source, True, "equal to input"),
        (tmp_path / "also.safetensors", True, "equal to input"),
        (tmp_path / "out.pt", False, "ending in .safetensors"),
        (tmp_path / "no" / "out.safetensors", False, "no such folder"),
    ):
        with pytest.raises(InvalidUsage, match=match):
            check(output, force)
    with pytest.raises(PbuError, match="no space"):
        check(tmp_path / "big.safetensors", size=1 << 60)
    with pytest.raises(PbuError, match="File name too long"):
        check(tmp_path / ("x" * 300 + ".safetensors"))


def test_a_replaced_file_keeps_its_permissions_and_a_private_one_is_private(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("old")
    output.chmod(0o640)
    write_text(output, "new")
    assert (output.read_text(), output.stat().st_mode & 0o777) == ("new", 0o640)
    write_text(tmp_path / "key", "secret", private=True)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["key", "out"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_changes_nothing(tmp_path: Path, failure: BaseException) -> None:
    output = tmp_path / "out"
    output.write_text("old")

    def fail() -> None:
        with atomic_write(output) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(PbuError if isinstance(failure, OSError) else KeyboardInterrupt):
        fail()
    assert output.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_lock_ends_with_its_run_and_refuses_a_file_that_appeared_meanwhile(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        with exclusive_output(output, force=False):
            assert names(tmp_path) == [".out.lock"]
            with (
                pytest.raises(PbuError, match="another run"),
                exclusive_output(output, force=False),
            ):
                pass
    assert names(tmp_path) == []
    output.touch()
    with pytest.raises(InvalidUsage, match="exists"), exclusive_output(output, force=False):
        pass
    assert names(tmp_path) == ["out"]


def test_files_of_a_killed_run_do_not_hinder_the_next_run_which_removes_them(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.[1].x"
    output.write_text("old")
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(PbuError, match="another run"),
            exclusive_output(output, force=True),
        ):
            pass
        assert len(names(tmp_path)) == 3
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 3
    others = [".out.[1].x.tmp", ".out.1.x.01234567.tmp", "out.[1].x.01234567.tmp"]
    for other in others:
        (tmp_path / other).touch()
    with exclusive_output(output, force=True):
        assert names(tmp_path) == sorted([output.name, f".{output.name}.lock", *others])
    assert names(tmp_path) == sorted([output.name, *others])
    assert output.read_text() == "old"


def test_a_lock_file_that_is_a_link_does_not_harm_its_target(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".out.lock").symlink_to("precious")
    with (
        pytest.raises(PbuError, match="cannot write"),
        exclusive_output(tmp_path / "out", force=True),
    ):
        pass
    (tmp_path / ".out.lock").unlink()
    os.link(tmp_path / "precious", tmp_path / ".out.lock")
    with exclusive_output(tmp_path / "out", force=True):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert names(tmp_path) == ["precious"]


def test_runs_that_race_for_an_output_never_hold_its_lock_at_the_same_time(tmp_path: Path) -> None:
    """Each run logs two lines. If two runs held the lock, an `in` would follow an `in`."""
    output, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-c", RACE, str(output), str(log)]
    runs = [subprocess.Popen(command) for _ in range(3)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 600
    assert names(tmp_path) == ["log"]


def test_an_unfinished_file_is_private_and_the_finished_one_has_the_old_attributes(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    output.write_text("old")
    output.chmod(0o640)
    attributes = []
    with suppress(OSError):  # not every file system has them
        os.setxattr(output, "user.note", b"kept")
        attributes = os.listxattr(output)
    with atomic_write(output) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert os.listxattr(output) == attributes
    assert output.read_text() == "new"


@pytest.mark.parametrize(("source", "expected"), [(0o600, 0o600), (0o640, 0o640), (0o777, 0o644)])
def test_a_new_file_is_no_more_open_than_the_file_that_it_is_made_from(
    tmp_path: Path, source: int, expected: int
) -> None:
    like = tmp_path / "source"
    like.touch()
    like.chmod(source)
    umask = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "out", like=like) as temporary:
            temporary.write_text("x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == expected


def test_a_second_run_waits_for_the_lock(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with exclusive_output(tmp_path / "out", force=True, wait=10):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive_output(tmp_path / "out", force=True):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
