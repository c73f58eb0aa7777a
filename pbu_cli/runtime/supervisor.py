"""A small process that ends pbu after a signal where pbu itself cannot.

Python handles a signal, and runs any thread, only while no native code keeps the interpreter's
lock. What Python does at once, without the lock, is to write the signal's number to a pipe. The
supervisor is forked before anything large is imported. It reads that pipe, passes the numbers on,
and ends pbu where it still lives some time after the first. It ends itself with pbu.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from pbu_cli.errors import Stopped

SIGEV_THREAD = 2  # of glibc and musl
LAST = 0.2  # seconds between asking the C library to end pbu and SIGKILL

_running: int | None = None  # the supervisor's process
_kept: list[object] = []  # memory that the C library uses


class _Notification(ctypes.Structure):
    """`struct sigevent` of 64-bit Linux: when a request is done, call function(value)."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("rest", ctypes.c_char * 40),
    )


class _Read(ctypes.Structure):
    """`struct aiocb` of 64-bit Linux, and room for the fields of the C library."""

    _fields_ = (
        ("descriptor", ctypes.c_int),
        ("operation", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("notification", _Notification),
        ("rest", ctypes.c_char * 192),
    )


def supervise(signals: int, numbers: Sequence[int], patience: float) -> int:
    """Start the supervisor, and return a descriptor from which the numbers of signals are read.

    signals: the pipe to which Python writes them. numbers: the signals that may come. patience:
    seconds from the first signal to the end. Where no process can be forked, `signals` itself is
    returned.
    """
    global _running
    if not hasattr(os, "fork"):
        return signals
    reading, writing = os.pipe()
    exits = {number: os.pipe() for number in numbers}
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        child = os.fork()
    except OSError:  # the limit of processes is reached
        return signals
    finally:
        if os.getpid() == parent:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    if child == 0:
        ways_out = {number: ends[1] for number, ends in exits.items()}
        _watch(parent, signals, writing, ways_out, patience)
    os.close(writing)
    _running = child
    os.register_at_fork(after_in_child=_forget)
    for number, (end, _) in exits.items():
        with suppress(AttributeError, OSError):
            _exit_when_written(end, 128 + number)
    return reading


def dismiss() -> None:
    """End the supervisor, so that nothing of pbu is left when pbu ends."""
    if _running is not None:
        with suppress(OSError):
            os.kill(_running, signal.SIGKILL)
            os.waitpid(_running, 0)


def _forget() -> None:
    """A forked process of pbu is not supervised, and its signals are not those of pbu."""
    global _running
    _running = None
    signal.set_wakeup_fd(-1)


def _exit_when_written(descriptor: int, code: int) -> None:
    """Have the C library end this process with `code` as soon as something can be read there.

    A thread of the C library waits for it and then calls `_exit`, without the interpreter's lock.
    """
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    library = ctypes.CDLL(None)
    function = ctypes.cast(library._exit, ctypes.c_void_p).value
    buffer = ctypes.create_string_buffer(1)
    notification = _Notification(code, 0, SIGEV_THREAD, function)
    read = _Read(descriptor, 0, 0, ctypes.addressof(buffer), 1, notification)
    _kept.extend((library, buffer, read))
    library.aio_read(ctypes.byref(read))


def _watch(
    parent: int, signals: int, passed_on: int, ways_out: Mapping[int, int], patience: float
) -> NoReturn:
    """The supervisor: wait for the first signal, then for the end of the patience, or of pbu."""
    try:
        for number in ways_out:
            signal.signal(number, signal.SIG_IGN)
        _close_all_but([2, signals, passed_on, *ways_out.values()])
        first = os.read(signals, 1)
        if first:
            os.write(passed_on, first)
            _wait(signals, passed_on, patience)
            os.write(2, f"error: {Stopped(first[0])}\n".encode())
            os.write(ways_out[first[0]], b"x")
            _wait(signals, passed_on, LAST)
            if os.getppid() == parent:
                os.kill(parent, signal.SIGKILL)
    finally:
        os._exit(0)


def _wait(signals: int, passed_on: int, seconds: float) -> None:
    """Wait so long and pass further signals on. Exits where pbu has ended."""
    end = time.monotonic() + seconds
    while select.select([signals], [], [], max(0, end - time.monotonic()))[0]:
        more = os.read(signals, 1)
        if not more:
            os._exit(0)
        os.write(passed_on, more)


def _close_all_but(kept: Sequence[int]) -> None:
    """Close every other descriptor: a reader of pbu's output must not wait for the supervisor."""
    low = 0
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 16)
