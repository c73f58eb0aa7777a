"""SIGINT, SIGTERM and SIGHUP: an orderly end, or a forced end where that takes too long.

Python handles a signal between two of its own instructions, and one call into torch may take long.
So the first signal raises `Stopped` in the main thread. A second thread ends the process where
that has no effect within GRACE seconds, or at once where a second signal arrives.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from pbu_cli.errors import Stopped
from pbu_cli.io.atomic_files import remove_partial

GRACE = 1.5  # seconds from the first signal to the end of the process


def install_handlers() -> None:
    """Install the handlers. A signal that is ignored, as SIGHUP is under nohup, stays ignored."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _unless_stopped
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _watch(reading: int) -> None:
    """Wait for the first signal, then for a second one or for the end of the grace period."""
    number = os.read(reading, 1)[0]
    select.select([reading], [], [], GRACE)
    remove_partial()
    with suppress(OSError):
        os.write(2, f"error: {Stopped(number)}\n".encode())
    os._exit(128 + number)


def _unless_stopped(found: Any) -> None:
    """Be silent about a `Stopped` that was raised inside a finaliser, which cannot pass it on: the
    watching thread ends the process."""
    if not isinstance(found.exc_value, Stopped):
        sys.__unraisablehook__(found)
