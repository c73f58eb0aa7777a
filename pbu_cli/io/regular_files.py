"""Reading regular files whole, whatever is in them, without ever waiting for a FIFO or a device."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: outputs are whole there too, but two runs on one are not kept apart
    fcntl = None  # type: ignore[assignment]


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else, and waits for nothing: a
    FIFO or a device may never answer."""
    try:
        file = open(path, "rb", opener=_at_once)  # noqa: SIM115 (Path.open has no opener)
    except ValueError:  # a NUL byte or a lone surrogate
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def read_whole(path: Path, limit: float = math.inf) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    What is in memory can change no more; of a mapped file that another program cuts short, the
    next access would kill the process. Raises OSError, the reason to show in its `strerror`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes; expected at most {int(limit):,}")
        content = file.read(size + 1) or b""  # None: of a kernel's file that has nothing now
    if len(content) != size:
        raise OSError(errno.EIO, "changed while it was read")
    return content


def sha256(path: Path, limit: float = math.inf) -> str:
    """sha256 of a regular file of at most `limit` bytes. Raises OSError."""
    return hashlib.sha256(read_whole(path, limit)).hexdigest()


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
