"""Read regular files whole, and never wait for a FIFO or a device."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 24  # bytes


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else.

    Opening does not wait, since a FIFO or a device may never answer.
    """
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (Path.open has no opener)
    except ValueError:  # a NUL byte or a lone surrogate
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def read_whole(path: Path, limit: float = math.inf) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; see `read_buffer`."""
    return bytes(read_buffer(path, limit))


def read_buffer(path: Path, limit: float = math.inf) -> bytearray:
    """The bytes of a regular file of at most `limit` bytes, once in memory.

    The file is read, not mapped. Another program cannot change bytes in memory, while a mapped
    file that it shortens would kill this process at the next access. Raises OSError, whose
    `strerror` is the reason to show.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes; expected at most {int(limit):,}")
        content = bytearray(size)
        view, position = memoryview(content), 0
        while position < size:  # in pieces, between which a signal can end the run
            # None: a file of the kernel that has no data now
            count = file.readinto(view[position : position + PIECE]) or 0  # type: ignore[attr-defined]
            position += count
            if not count:
                break
        if position != size or file.read(1):
            raise OSError(errno.EIO, "changed while it was read")
    return content


def sha256(path: Path, limit: float = math.inf) -> str:
    """The sha256 of a regular file of at most `limit` bytes. Raises OSError."""
    return hashlib.sha256(read_buffer(path, limit)).hexdigest()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
