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
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pbu_cli.errors import InvalidUsage, PbuError, printable
from pbu_cli.io.lock_files import locked

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
def exclusive_output(output: Path, *, force: bool, wait: float = 0) -> Iterator[None]:
    """Lock `output` for this run until the end of the `with`, and clean up after killed runs.

    The lock is on a hidden file beside the output, so it ends with the process, however that ends.
    wait: seconds to wait for another run that holds it. Raises PbuError where another run holds it,
    InvalidUsage where `output` exists by now and `force` is not given.
    """
    lock_path = output.with_name(f".{output.name}.lock")
    try:
        lock = locked(lock_path, wait)
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
            remove(temporary)
        yield
    finally:
        with suppress(OSError):
            lock_path.unlink()  # while it is locked: the next run then creates a new file
        os.close(lock)
        _unfinished.discard(lock_path)


@contextmanager
def atomic_write(
    output: Path, *, like: Path | None = None, private: bool = False
) -> Iterator[Path]:
    """An empty temporary file to write to, which replaces `output` at the end of the `with`.

    Only its owner may read the temporary file. A file that is replaced keeps its permissions,
    its owner and its extended attributes. A new file gets the usual permissions, but none that the
    file `like` does not have; with `private` only its owner may read it. Where the body raises, the
    temporary file is removed and `output` is unchanged. Raises PbuError where the disk does not
    accept the file.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    _unfinished.add(temporary)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        with temporary.open("rb") as file:
            _set_attributes(file.fileno(), output, like, private)
            os.fsync(file.fileno())
        temporary.replace(output)
    except OSError as error:
        raise _cannot_write(output, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)
    try:
        _sync(output.parent)
    except OSError as error:
        raise PbuError(
            f"{printable(output)}: written, but its folder could not be synced"
            f" ({printable(error.strerror or error)}): a power cut may undo the write"
        ) from None


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """An empty temporary folder, which becomes `output` at the end of the `with`.

    `output` must not exist: a folder cannot be replaced in one step. Where the body raises, the
    temporary folder is removed. Raises PbuError where the disk does not accept it.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    _unfinished.add(temporary)
    try:
        temporary.mkdir()
        yield temporary
        for entry in (*temporary.iterdir(), temporary):
            _sync(entry)
        temporary.rename(output)
        _sync(output.parent)
    except OSError as error:
        raise _cannot_write(output, error) from None
    finally:
        remove(temporary)
        _unfinished.discard(temporary)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where it can be removed."""
    shutil.rmtree(path, ignore_errors=True)  # which leaves files and links as they are
    with suppress(OSError):
        path.unlink()


def write_text(output: Path, text: str, *, private: bool = False) -> None:
    """Write a text as UTF-8, whole or not at all. private: only its owner may read the file."""
    with atomic_write(output, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_partial() -> None:
    """Remove unfinished files. For a process that has to end at once and runs no `finally`."""
    for path in list(_unfinished):
        remove(path)


def _set_attributes(descriptor: int, output: Path, like: Path | None, private: bool) -> None:
    """Give the open temporary file the permissions, owner and attributes of the output to be."""
    try:
        old = output.stat()
    except OSError:
        umask = os.umask(0o077)
        os.umask(umask)
        mode = 0o600 if private else 0o666 & ~umask
        if like is not None:
            with suppress(OSError):
                mode &= like.stat().st_mode | 0o600
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)
        return
    if not hasattr(os, "fchmod"):  # Windows
        return
    with suppress(OSError):  # only root may give files away
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
    if hasattr(os, "listxattr"):
        with suppress(OSError):  # a file system may have none, and some are for root alone
            for name in os.listxattr(output):
                with suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(output, name))


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


def check_new_folder(output: Path, *, size: int = 0) -> None:
    """Refuse an output folder as `check_output` refuses a file. A folder is never replaced."""
    if output.exists() or output.is_symlink():
        raise InvalidUsage(
            f"{printable(output)}: output exists, and a folder is never replaced, not even with"
            " --force: remove it, or name another"
        )
    check_output(output, force=False, size=size)


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


def _leftover_temporaries(output: Path) -> list[Path]:
    """The temporary files of `atomic_write` that killed runs have left beside `output`."""
    name = re.compile(rf"\.{re.escape(output.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):  # the folder may be writable but not readable
        return [path for path in output.parent.iterdir() if name.fullmatch(path.name)]
    return []


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder. Does nothing where it cannot be synced or read."""
    opened = -1
    try:
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        if opened >= 0:
            os.close(opened)
