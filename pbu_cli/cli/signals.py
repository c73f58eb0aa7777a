"""SIGINT, SIGTERM and SIGHUP: an orderly end, or a prompt one where that does not come.

Python hears of a signal between two of its own instructions, and a single one of torch's may take
long. So the first signal raises `Stopped` where the main thread stands, and a second thread ends
the process if that has not happened soon, or at once if a second signal comes.
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
    """End in order on the signals that ask for it; one that nohup has set aside stays so."""
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
    """Wait for the first signal, then for the second or the end of the grace."""
    number = os.read(reading, 1)[0]
    select.select([reading], [], [], GRACE)
    remove_partial()
    with suppress(OSError):
        os.write(2, f"error: {Stopped(number)}\n".encode())
    os._exit(128 + number)


def _unless_stopped(found: Any) -> None:
    """A `Stopped` that met a finaliser, which cannot pass it on, is left to the watch."""
    if not isinstance(found.exc_value, Stopped):
        sys.__unraisablehook__(found)
