"""The errors that pbu raises on purpose, one class per exit code.

A message is one line. It says what is wrong, what was expected, what was found and what to do next.
"""

from __future__ import annotations


class PbuError(Exception):
    """Failed at run time: exit code 1. Base of every error that pbu raises on purpose."""

    exit_code = 1


class InvalidUsage(PbuError):
    """A flag or a combination of flags that cannot be carried out: exit code 2."""

    exit_code = 2


class CheckpointError(PbuError):
    """A checkpoint, Fisher file or architecture that cannot be used: exit code 3."""

    exit_code = 3


class ImageError(PbuError):
    """Images that cannot be used, or that contradict the label: exit code 4."""

    exit_code = 4


class CriterionNotMet(PbuError):
    """The work finished, but a required criterion does not hold: exit code 5."""

    exit_code = 5


class Stopped(BaseException):
    """A signal that asks pbu to end; its exit code is 128 plus the signal's number.

    It is not an Exception, so that code that recovers from errors lets it pass.

    >>> str(Stopped(15)).partition(";")[0], Stopped(15).exit_code
    ('terminated', 143)
    """

    def __init__(self, number: int) -> None:
        word = "interrupted" if number == 2 else "terminated"
        super().__init__(f"{word}; every file is whole, or was not written")
        self.exit_code = 128 + number


def is_device_full(error: BaseException) -> bool:
    """Whether a GPU ran out of memory, as reported by torch's allocator, cuDNN or cuBLAS.

    >>> is_device_full(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    True
    """
    return type(error).__name__ == "OutOfMemoryError" or "STATUS_ALLOC_FAILED" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the device ran out of memory."""
    of_machine = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return of_machine or is_device_full(error)


def printable(text: object, limit: int = 300) -> str:
    r"""Text from outside as one harmless line: control characters escaped, length limited.

    File names, tensor names and metadata come from strangers. A terminal escape sequence in one of
    them must not reach the terminal.

    >>> printable("weights\x1b[2J\n.pt")
    'weights\\x1b[2J\\n.pt'
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in str(text)
    )
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
