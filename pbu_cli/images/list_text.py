"""The text of a list of paths, in whichever encoding a shell or a spreadsheet writes it."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from pbu_cli.errors import ImageError, printable

# PowerShell's `>` writes UTF-16, Excel a mark before UTF-8. UTF-32 first: it starts like UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Share of NUL bytes. UTF-16 of Latin text has a half; `find -print0` one NUL a path, at most 1/6.
TOO_MANY_NULS = 0.25


def list_text(data: bytes, where: str, unmarked: Callable[[bytes], str]) -> str:
    """The text of `data`: by its byte-order mark, else by `unmarked`.

    where: what the list is called in a message. Raises ImageError where the bytes are no text of
    that encoding, or seem to be UTF-16 without a mark.

    >>> list_text("a.png".encode("utf-16"), "stdin", bytes.decode)
    'a.png'
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    try:
        if encoding == "utf-8-sig":
            return unmarked(data.removeprefix(codecs.BOM_UTF8))
        if encoding is not None:
            return data.decode(encoding)
        if data.count(0) <= TOO_MANY_NULS * len(data):
            return unmarked(data)
        found = "every second byte or so is NUL, as in UTF-16 without a byte-order mark"
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"line {line} is not {error.encoding.upper()} ({error.reason})"
    raise ImageError(
        f"{printable(where)}: {found}; expected text in UTF-8, or with a byte-order mark in UTF-16:"
        " save the list as UTF-8"
    )
