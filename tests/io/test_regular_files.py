"""Regular files are read whole; anything else is refused without waiting."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from pbu_cli.io.regular_files import read_whole, sha256


def test_a_regular_file_is_read_whole_and_hashed(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "link").symlink_to("a")
    assert read_whole(tmp_path / "link", len(content)) == content
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="expected at most 2,303,999"):
        read_whole(tmp_path / "a", len(content) - 1)


def test_other_files_are_refused_with_a_reason(tmp_path: Path) -> None:
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
        for read in (read_whole, sha256):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                read(tmp_path / name)
            assert caught.value.errno == number, name
            assert caught.value.strerror, name


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(path, max(status.st_size - 1, 0))
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(OSError, match="changed while it was read"):
        read_whole(path)
