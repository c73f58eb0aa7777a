"""Files: only regular ones are read, outputs are whole, and two runs on one do not interleave."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pbu_cli.errors import InvalidUsage, PbuError
from pbu_cli.io import atomic_files as files

HOLD = """
import sys, time
from pathlib import Path
from pbu_cli.files import exclusive_output, atomic_write
output = Path(sys.argv[1])
with exclusive_output(output, force=True), atomic_write(output) as temporary:
    temporary.write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_regular_file_is_read_whole_and_its_digest_is_sha256(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "link").symlink_to("a")
    assert files.read_whole(tmp_path / "link", len(content)) == content
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="expected at most 2,303,999"):
        files.read_whole(tmp_path / "a", len(content) - 1)


def test_what_is_no_regular_file_is_neither_read_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, number in (
        ("fifo", errno.EINVAL),
        ("zero", errno.EINVAL),
        ("loop", errno.ELOOP),
        (".", errno.EISDIR),
        ("nul\0", errno.EINVAL),
        ("lone\ud800", errno.EINVAL),
        ("x" * 300, errno.ENAMETOOLONG),
        ("none", errno.ENOENT),
    ):
        for read in (files.read_whole, files.sha256):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                read(tmp_path / name)
            assert caught.value.errno == number, name
            assert caught.value.strerror, name


def test_a_file_that_changes_while_it_is_read_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(path, max(status.st_size - 1, 0))
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(OSError, match="changed while it was read"):
        files.read_whole(path)


def test_an_output_that_must_not_be_written_is_refused_before_any_work(tmp_path):
    source, taken = tmp_path / "in.safetensors", tmp_path / "taken.safetensors"
    for path in (source, taken):
        path.write_bytes(b"x")
    os.link(source, tmp_path / "also.safetensors")

    def check(output: Path, force: bool = False, size: int = 1) -> None:
        files.check_output(output, force=force, sources=(source,), size=size, suffix=".safetensors")

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


def test_a_replaced_file_keeps_its_permissions_and_a_private_one_is_private(tmp_path):
    output = tmp_path / "out"
    output.write_text("old")
    output.chmod(0o640)
    files.write_text(output, "new")
    assert (output.read_text(), output.stat().st_mode & 0o777) == ("new", 0o640)
    files.write_text(tmp_path / "key", "secret", private=True)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["key", "out"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_replacement_that_fails_changes_nothing(tmp_path, failure):
    output = tmp_path / "out"
    output.write_text("old")

    def fail() -> None:
        with files.atomic_write(output) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(PbuError if isinstance(failure, OSError) else KeyboardInterrupt):
        fail()
    assert output.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_claim_ends_with_its_run_and_refuses_a_file_that_came_meanwhile(tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        with files.exclusive_output(output, force=False):
            assert names(tmp_path) == [".out.lock"]
            with (
                pytest.raises(PbuError, match="another run"),
                files.exclusive_output(output, force=False),
            ):
                pass
    assert names(tmp_path) == []
    output.touch()
    with pytest.raises(InvalidUsage, match="exists"), files.exclusive_output(output, force=False):
        pass
    assert names(tmp_path) == ["out"]


def test_what_a_killed_run_leaves_is_no_hindrance_and_goes_with_the_next(tmp_path):
    output = tmp_path / "out.[1].x"
    output.write_text("old")
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(PbuError, match="another run"),
            files.exclusive_output(output, force=True),
        ):
            pass
        assert len(names(tmp_path)) == 3
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 3
    others = [".out.[1].x.tmp", ".out.1.x.01234567.tmp", "out.[1].x.01234567.tmp"]
    for other in others:
        (tmp_path / other).touch()
    with files.exclusive_output(output, force=True):
        assert names(tmp_path) == sorted([output.name, f".{output.name}.lock", *others])
    assert names(tmp_path) == sorted([output.name, *others])
    assert output.read_text() == "old"


def test_a_lock_that_is_a_link_harms_nothing_behind_it(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".out.lock").symlink_to("precious")
    with (
        pytest.raises(PbuError, match="cannot write"),
        files.exclusive_output(tmp_path / "out", force=True),
    ):
        pass
    (tmp_path / ".out.lock").unlink()
    os.link(tmp_path / "precious", tmp_path / ".out.lock")
    with files.exclusive_output(tmp_path / "out", force=True):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert names(tmp_path) == ["precious"]


RACE = """
import sys
from pathlib import Path
from pbu_cli.errors import PbuError
from pbu_cli.files import exclusive_output
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


def test_runs_that_race_for_an_output_never_hold_it_at_once(tmp_path):
    """Two lines a turn: held by two at once, an `in` would follow an `in`."""
    output, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-c", RACE, str(output), str(log)]
    runs = [subprocess.Popen(command) for _ in range(3)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    assert log.read_text().split() == ["in", "out"] * 600
    assert names(tmp_path) == ["log"]
