"""Work on many image files by threads, in the order of the files."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
MAX_WORKERS = 16
MIN_BYTES_FOR_THREADS = 2048  # two threads decode smaller files more slowly than one does
MAX_IMAGES_PER_TASK = 32  # a 28x28 PNG is decoded faster than a task is handed to a thread


def in_parallel(
    work: Callable[[int], Result], paths: Sequence[Path], workers: int | None
) -> Generator[Result, None, None]:
    """work(0), work(1), ... for each of `paths`, in this order, computed by threads."""
    workers, count = workers or default_workers(paths), len(paths)
    step = max(1, min(MAX_IMAGES_PER_TASK, count // (4 * workers)))
    tasks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    pool = ThreadPoolExecutor(workers)
    try:
        for results in pool.map(lambda task: [work(index) for index in task], tasks):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C and an early end do not wait for the rest


def default_workers(paths: Sequence[Path]) -> int:
    """How many threads are worth using, judged by the sizes of some of the files.

    Pillow decodes without the GIL but needs it briefly for every image, and with small images that
    is most of the work.
    """
    sizes = []
    for path in paths[:: max(1, len(paths) // 32)]:
        with suppress(OSError, ValueError):  # `decode` reports files that cannot be read
            sizes.append(path.stat().st_size)
    small = bool(sizes) and statistics.median(sizes) < MIN_BYTES_FOR_THREADS
    return 1 if small else min(os.cpu_count() or 1, MAX_WORKERS)
