"""Files, whatever is in them: read whole, written whole or not at all, by one run at a time.

Reading opens regular files only and never waits. Writing goes through a temporary sibling that is
synced and renamed, so that a name is at every instant the old file or the whole new one. What a
killed run leaves beside its output is removed by the next run on that output.
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
except ImportError:  # Windows: outputs are whole there too, but two runs on one are not kept apart
    fcntl = None  # type: ignore[assignment]


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system that has none
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # a folder that cannot be synced, or read

_unfinished: set[Path] = set()  # for `remove_partial`


def check_output(
    output: Path, *, force: bool, sources: tuple[Path, ...] = (), size: int = 0, suffix: str = ""
) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    `size` is what will be written, in bytes; the file it replaces stays until the new one is
    whole, so that all of it has to be free. Raises InvalidUsage where the output exists without
    `force`, is one of `sources`, ends in another suffix, or is no place for a file; PbuError where
    it does not fit or may not be written.
    """
    try:
        _check_place(output, force, sources, size, suffix)
    except OSError as error:
        raise _unwritable(output, error) from None


@contextmanager
def exclusive_output(output: Path, *, force: bool) -> Iterator[None]:
    """Keep `output` for this run until the end of the `with`, and clean up after killed ones.

    The claim is a locked sibling, so that it ends with the process however that ends. Raises
    PbuError where another run holds it, InvalidUsage where `output` has come to exist meanwhile.
    """
    lock = output.with_name(f".{output.name}.lock")
    try:
        held = _locked(lock)
    except BlockingIOError:
        raise PbuError(
            f"{printable(output)}: another run is about to write it; wait for that one, or choose"
            " another output"
        ) from None
    except OSError as error:
        raise _unwritable(output, error) from None
    _unfinished.add(lock)
    try:
        _check_replaceable(output, force)
        for stray in _temporaries(output):
            with suppress(OSError):
                stray.unlink()
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # while it is held: whoever opens the name from here on makes a new file
        os.close(held)
        _unfinished.discard(lock)


@contextmanager
def atomic_write(output: Path) -> Iterator[Path]:
    """A temporary sibling to write to, which becomes `output` at the end of the `with`.

    Where the body raises, nothing is left and `output` is as it was. The permissions of a file
    that is replaced stay. Raises PbuError where the disk does not take it.
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
        raise _unwritable(output, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)
    try:
        _sync_folder(output.parent)
    except OSError as error:
        raise PbuError(
            f"{printable(output)}: written, but its folder could not be synced"
            f" ({printable(error.strerror or error)}): a power cut may undo it"
        ) from None


def write_text(output: Path, text: str, *, private: bool = False) -> None:
    """Write a text as UTF-8, whole or not at all; `private`: for its owner's eyes alone."""
    with atomic_write(output) as temporary:
        mode = 0o600 if private else 0o666
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def remove_partial() -> None:
    """Remove what is half-written. For a run that has to end at once: no `finally` runs then."""
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
    if any(_same(source, output) for source in sources):
        raise InvalidUsage(f"{shown}: output equal to input; name another file")
    _check_replaceable(output, force)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PbuError(f"{printable(folder)}: no permission to write there; choose another output")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PbuError(
            f"{printable(folder)}: no space: {size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free;"
            " free some or choose another output"
        )


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _check_replaceable(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise InvalidUsage(
            f"{printable(output)}: output exists; pass --force to replace it, or name another"
        )


def _unwritable(output: Path, error: OSError) -> PbuError:
    return PbuError(
        f"{printable(output)}: cannot write: {printable(error.strerror or error)}; it is as it"
        " was, and nothing is left behind: free space or choose another output"
    )


def _locked(lock: Path) -> int:
    """A descriptor of a locked file of this name. Raises BlockingIOError where another has it.

    A file that a killed run has left is never used again, only locked and removed, so that
    whatever stands under the name, a link to some other file say, is not touched.
    """
    while True:
        with suppress(FileExistsError):
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if _lock_now(lock, held):
                return held
            continue
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with suppress(FileNotFoundError):  # its run has ended meanwhile
            held = os.open(lock, flags)
            if _lock_now(lock, held):
                lock.unlink()
                os.close(held)


def _lock_now(lock: Path, descriptor: int) -> bool:
    """Lock an open file; False, and closed, if the name stands for another file by now."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.stat(follow_symlinks=False)):
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


def _temporaries(output: Path) -> list[Path]:
    """What `atomic_write` of killed runs has left beside `output`."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):  # a folder that may be written to but not listed
        return [path for path in output.parent.iterdir() if name.fullmatch(path.name)]
    return []


def _sync_folder(path: Path) -> None:
    """Make the new name last. Where folders cannot be synced at all, or not read, nothing can."""
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
