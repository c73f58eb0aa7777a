"""SIGINT, SIGTERM and SIGHUP: an orderly end, or a forced end where that takes too long.

Python handles a signal between two of its own instructions, and one call into torch may take long.
So the first signal raises `Stopped` in the main thread. A second thread ends the process where
that has no effect within GRACE seconds, or at once where a second signal arrives. Where native code
keeps that thread from running, the supervisor ends the process a little later.
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
from pbu_cli.runtime.supervisor import dismiss, supervise

GRACE = 1.5  # seconds from the first signal to the end of the process
PATIENCE = 1.6  # seconds until the supervisor ends it


def install_handlers() -> None:
    """Install the handlers. A signal that is ignored, as SIGHUP is under nohup, stays ignored."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    named = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    numbers = [  # Windows has no SIGHUP
        n for n in named if n is not None and signal.getsignal(n) != signal.SIG_IGN
    ]
    passed_on = supervise(reading, numbers, PATIENCE)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _stop)
    sys.unraisablehook = _unless_stopped
    threading.Thread(target=_watch, args=(passed_on, reading), daemon=True).start()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _watch(passed_on: int, reading: int) -> None:
    """Wait for the first signal, then for a second one or for the end of the grace period."""
    first = os.read(passed_on, 1) or os.read(reading, 1)
    if select.select([passed_on], [], [], GRACE)[0] and not os.read(passed_on, 1):
        select.select([reading], [], [], GRACE)  # the supervisor has ended, so nobody passes on
    number = first[0]
    remove_partial()
    dismiss()
    with suppress(OSError):
        os.write(2, f"error: {Stopped(number)}\n".encode())
    os._exit(128 + number)


def _unless_stopped(found: Any) -> None:
    """Be silent about a `Stopped` that was raised inside a finaliser, which cannot pass it on: the
    watching thread ends the process."""
    if not isinstance(found.exc_value, Stopped):
        sys.__unraisablehook__(found)
