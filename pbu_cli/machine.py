"""The machine that a run is on: what it has, and which versions of what compute there."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from functools import cache
from pathlib import Path


def memory() -> float:
    """Bytes of memory of the machine or, where that is less, of the container; else infinity."""
    limits = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # no cgroup v2, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what a step frees, for the next step to take.

    glibc returns what is free at the end of its heap to the system once that is twice the largest
    block that it mapped and was given back, and every page taken again costs a fault: up to half
    the time of a step. A block of 32 MB, the most that counts, makes the limit 64 MB
    (mallopt(3), M_MMAP_THRESHOLD). Elsewhere nothing changes.
    """
    bytes((32 << 20) - (1 << 16))  # given back at once; less than 32 MB, which includes a header
