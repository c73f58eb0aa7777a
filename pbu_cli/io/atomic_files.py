"""Write a file whole or not at all, and let only one run at a time write it.

A write goes to a temporary file in the same folder, which is synced to disk and then renamed. So
the output's name stands at every moment for the whole old file or the whole new one. Files that a
killed run leaves beside its output are removed by the next run on that output.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pbu_cli.errors import InvalidUsage, PbuError, printable

try:
    import fcntl
except ImportError:  # Windows has no fcntl: writes are atomic there, but runs do not lock outputs
    fcntl = None  # type: ignore[assignment]


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # the file system has no locks
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # the folder cannot be synced or read

_unfinished: set[Path] = set()  # what `remove_partial` removes


def check_output(
    output: Path, *, force: bool, sources: tuple[Path, ...] = (), size: int = 0, suffix: str = ""
) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    size: how many bytes will be written. All of them must be free, because the file that is
    replaced stays until the new one is whole. Raises InvalidUsage where the output exists without
    `force`, is one of `sources`, does not end in `suffix`, or is not a place for a file. Raises
    PbuError where it does not fit or may not be written.
    """
    try:
        _check_place(output, force, sources, size, suffix)
    except OSError as error:
        raise _cannot_write(output, error) from None


@contextmanager
def exclusive_output(output: Path, *, force: bool) -> Iterator[None]:
    """Lock `output` for this run until the end of the `with`, and clean up after killed runs.

    The lock is on a hidden file beside the output, so it ends with the process, however that ends.
    Raises PbuError where another run holds it, InvalidUsage where `output` exists by now and
    `force` is not given.
    """
    lock_path = output.with_name(f".{output.name}.lock")
    try:
        lock = _open_locked(lock_path)
    except BlockingIOError:
        raise PbuError(
            f"{printable(output)}: another run is about to write it; wait for that run, or choose"
            " another output"
        ) from None
    except OSError as error:
        raise _cannot_write(output, error) from None
    _unfinished.add(lock_path)
    try:
        _check_replaceable(output, force)
        for temporary in _leftover_temporaries(output):
            with suppress(OSError):
                temporary.unlink()
        yield
    finally:
        with suppress(OSError):
            lock_path.unlink()  # while it is locked: the next run then creates a new file
        os.close(lock)
        _unfinished.discard(lock_path)


@contextmanager
def atomic_write(output: Path) -> Iterator[Path]:
    """A temporary file to write to, which replaces `output` at the end of the `with`.

    Where the body raises, the temporary file is removed and `output` is unchanged. A file that is
    replaced keeps its permissions. Raises PbuError where the disk does not accept the file.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    _unfinished.add(temporary)
    try:
        yield temporary
        with suppress(FileNotFoundError):
            shutil.copymode(output, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(output)
    except OSError as error:
        raise _cannot_write(output, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)
    try:
        _sync_folder(output.parent)
    except OSError as error:
        raise PbuError(
            f"{printable(output)}: written, but its folder could not be synced"
            f" ({printable(error.strerror or error)}): a power cut may undo the write"
        ) from None


def write_text(output: Path, text: str, *, private: bool = False) -> None:
    """Write a text as UTF-8, whole or not at all. private: only its owner may read the file."""
    with atomic_write(output) as temporary:
        mode = 0o600 if private else 0o666
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def remove_partial() -> None:
    """Remove unfinished files. For a process that has to end at once and runs no `finally`."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink()


def _check_place(
    output: Path, force: bool, sources: tuple[Path, ...], size: int, suffix: str
) -> None:
    shown, folder = printable(output), output.parent
    if suffix and output.suffix != suffix:
        raise InvalidUsage(f"{shown}: expected a name ending in {suffix} for what is written there")
    if not folder.is_dir():
        raise InvalidUsage(f"{printable(folder)}: no such folder for the output; make it first")
    if output.is_dir():
        raise InvalidUsage(f"{shown}: is a folder; expected the name of a file to write")
    if any(_same_file(source, output) for source in sources):
        raise InvalidUsage(f"{shown}: output equal to input; name another file")
    _check_replaceable(output, force)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PbuError(f"{printable(folder)}: no permission to write there; choose another output")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PbuError(
            f"{printable(folder)}: no space: {size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free;"
            " free some space or choose another output"
        )


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _check_replaceable(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise InvalidUsage(
            f"{printable(output)}: output exists; pass --force to replace it, or name another"
        )


def _cannot_write(output: Path, error: OSError) -> PbuError:
    return PbuError(
        f"{printable(output)}: cannot write: {printable(error.strerror or error)}; any old file is"
        " unchanged and no partial file is left: free space or choose another output"
    )


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


def _leftover_temporaries(output: Path) -> list[Path]:
    """The temporary files of `atomic_write` that killed runs have left beside `output`."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):  # the folder may be writable but not readable
        return [path for path in output.parent.iterdir() if name.fullmatch(path.name)]
    return []


def _sync_folder(path: Path) -> None:
    """Sync the new name to disk. Does nothing where folders cannot be synced or read."""
    folder = -1
    try:
        folder = os.open(path, os.O_RDONLY)
        os.fsync(folder)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        if folder >= 0:
            os.close(folder)
