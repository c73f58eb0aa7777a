"""The machine that a run is on: what it has, and which versions of what compute there."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path


def memory() -> float:
    """Bytes of memory of the machine or, where that is less, of the container; else infinity."""
    limits = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no cgroup v2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)
