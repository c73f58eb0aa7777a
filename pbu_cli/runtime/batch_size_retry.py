"""Fewer images at a time where the device's memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from pbu_cli.errors import is_device_full

Result = TypeVar("Result")


class BatchSizeRetry:
    """How many images to take at a time: as many as are given, and half of what was too much from
    the moment on that the device's memory ran out."""

    def __init__(self) -> None:
        self._most: int | None = None

    def each(self, work: Callable[[slice], Result], count: int) -> Iterator[Result]:
        """What `work` makes of `count` images, some at a time, in order.

        Work that ran out of memory is done again on fewer images, so it must leave nothing behind;
        if one image is too much, the error goes on.

        >>> list(BatchSizeRetry().each(lambda part: part, 3))
        [slice(0, 3, None)]
        """
        start = 0
        while start < count:
            size = min(self._most or count, count - start)
            try:
                result = work(slice(start, start + size))
            except RuntimeError as error:
                if size == 1 or not is_device_full(error):
                    raise
                self._most = size // 2
            else:
                start += size
                yield result
