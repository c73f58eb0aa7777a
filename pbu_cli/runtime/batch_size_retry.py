"""Process fewer images at a time when the device's memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from pbu_cli.errors import is_device_full

Result = TypeVar("Result")


class BatchSizeRetry:
    """Splits work on images into batches that fit into the device's memory.

    The first batch holds all images. When memory runs out, the batch is halved and done again, and
    all later batches have at most the halved size.
    """

    def __init__(self) -> None:
        self._max_size: int | None = None  # None: memory has not run out so far

    def each(self, work: Callable[[slice], Result], count: int) -> Iterator[Result]:
        """The results of `work` on consecutive slices that together cover `count` images.

        `work` must leave no side effect when it fails, because it is called again with fewer
        images. Raises the device's error where a single image does not fit, and every other error
        of `work`.

        >>> list(BatchSizeRetry().each(lambda part: part, 3))
        [slice(0, 3, None)]
        """
        start = 0
        while start < count:
            size = min(self._max_size or count, count - start)
            try:
                result = work(slice(start, start + size))
            except RuntimeError as error:
                if size == 1 or not is_device_full(error):
                    raise
                self._max_size = size // 2
            else:
                start += size
                yield result
