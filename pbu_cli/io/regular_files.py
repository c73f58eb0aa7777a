"""Read regular files whole, and never wait for a FIFO or a device."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from pathlib import Path
from typing import BinaryIO


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
    """The bytes of a regular file of at most `limit` bytes.

    The file is read, not mapped. Another program cannot change bytes in memory, while a mapped
    file that it shortens would kill this process at the next access. Raises OSError, whose
    `strerror` is the reason to show.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes; expected at most {int(limit):,}")
        content = file.read(size + 1) or b""  # None: a file of the kernel that has no data now
    if len(content) != size:
        raise OSError(errno.EIO, "changed while it was read")
    return content


def sha256(path: Path, limit: float = math.inf) -> str:
    """The sha256 of a regular file of at most `limit` bytes. Raises OSError."""
    return hashlib.sha256(read_whole(path, limit)).hexdigest()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
