"""Locks that only one process holds at a time, and that end with it, however it ends."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no fcntl: writes are atomic there, but runs do not lock outputs
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # the file system has no locks
PAUSE = 0.05  # seconds between two attempts


def locked(path: Path, seconds: float) -> int:
    """A descriptor of a new locked file of this name, tried for so many seconds.

    Raises BlockingIOError where another process holds the lock for longer.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            return _open_locked(path)
        time.sleep(PAUSE)
    return _open_locked(path)


def _open_locked(path: Path) -> int:
    """A descriptor of a new locked file of this name. Raises BlockingIOError where another process
    holds the lock.

    A file that a killed run has left is locked and removed, but never used. So whatever else may
    stand under the name, such as a link to another file, is not changed.
    """
    while True:
        with suppress(FileExistsError):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if _lock_or_close(path, lock):
                return lock
            continue
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with suppress(FileNotFoundError):  # the run that held it has ended in the meantime
            lock = os.open(path, flags)
            if _lock_or_close(path, lock):
                path.unlink()
                os.close(lock)


def _lock_or_close(path: Path, descriptor: int) -> bool:
    """Lock an open file. If `path` no longer names this file, close it and return False."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
            return True
    except BlockingIOError:
        os.close(descriptor)
        raise
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False
