"""Import timm and transformers, which are extras: only where a checkpoint or a flag asks for one.

Neither may reach the network from here, and nothing that a file names is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from types import ModuleType

from pbu_cli.errors import CheckpointError, PbuError, is_out_of_memory, printable

EXTRAS = {"timm": "timm", "transformers": "hf"}  # library -> the extra that installs it


def library(name: str, what: str) -> ModuleType:
    """The library, imported. what: the checkpoint or flag that needs it, for the message.

    Raises CheckpointError that names the command where it is not installed.
    """
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(variable, "1")
    try:
        with redirect_stdout(sys.stderr):
            found = import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"{what} needs {name}, which cannot be imported ({printable(error)}); install it:"
            f" pip install 'pbu-cli[{EXTRAS[name]}]'"
        ) from None
    if name == "transformers":
        found.logging.set_verbosity_error()
        found.logging.disable_progress_bar()
    return found


@contextmanager
def one_line(subject: str) -> Iterator[None]:
    """Within this context what a library raises becomes a CheckpointError of one line.

    subject: what the library was asked to do, for the message.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except PbuError:
        raise
    except Exception as error:  # a library may raise anything on a description that is wrong
        if is_out_of_memory(error):
            raise
        reason = printable(str(error).partition("\n")[0][:300])
        raise CheckpointError(
            f"{subject}: {type(error).__name__}: {reason}; expected a description as the library"
            " wrote it: restore it, or pass --arch FILE.py:FUNCTION"
        ) from None
