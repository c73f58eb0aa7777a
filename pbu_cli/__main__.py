"""`pbu` and `python -m pbu_cli`: run the command line; every error becomes one line and a code."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

from pbu_cli.cli.signals import install_handlers
from pbu_cli.errors import Stopped, is_out_of_memory
from pbu_cli.runtime.supervisor import dismiss

# Python collects garbage after this many new objects. Importing torch makes nearly two hundred
# thousand objects, all of which stay, and collecting as often as by default takes a fifth of that
# time.
GC_THRESHOLD = 100_000


def main() -> None:
    """Run the command line and exit with the documented code."""
    gc.set_threshold(GC_THRESHOLD)
    for closed in ("stdout", "stderr"):  # closed by the shell's `>&-`
        if getattr(sys, closed) is None:
            setattr(sys, closed, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):  # a name may have letters that the terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        install_handlers()
        code = run(sys.argv[1:])
    except Stopped as stopped:  # the signal arrived before `run` began or after it ended
        sys.stderr.write(f"error: {stopped}\n")
        code = stopped.exit_code
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Exit without unloading torch, which would take most of a second."""
    if code <= 128:  # a signal asks for an end at once
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            sys.exit(code)  # Python reports the failure
        atexit._run_exitfuncs()
    dismiss()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    An error is one line on stderr and, with `--json`, the document on stdout.
    """
    from pbu_cli.cli.app import app
    from pbu_cli.cli.console import Screen, error_document, error_line, silence
    from pbu_cli.errors import CriterionNotMet, PbuError

    def failed(message: str, code: int) -> int:
        error_line(message)
        with suppress(PbuError):  # stdout itself may be what failed
            Screen(as_json="--json" in arguments).document(error_document(message, code))
        return code

    try:
        code = app(arguments, prog_name="pbu", standalone_mode=False)
    except CriterionNotMet as error:
        error_line(str(error))  # the command has printed its document, error included
        return error.exit_code
    except PbuError as error:
        return failed(str(error), error.exit_code)
    except Stopped as stopped:
        return failed(str(stopped), stopped.exit_code)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return 0  # the reader of --help has gone
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:
        silence(sys.stdout)  # the reader of --version has gone; Python would complain at exit
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 2
        if hasattr(error, "format_message"):  # a usage error of typer
            context = getattr(error, "ctx", None)
            path = "pbu" if context is None else context.command_path
            return failed(f"{error.format_message().rstrip('.')}; see {path} --help", 2)
        if os.environ.get("PBU_TRACEBACK"):
            raise
        return failed(_unexpected(error), 1)
    return code if isinstance(code, int) else 0


def _unexpected(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory; lower --batch-size or --size, or use another --device"
    first = str(error).strip().partition("\n")[0]
    return (
        f"{type(error).__name__}: {first}; unexpected error: run again with PBU_TRACEBACK=1 and"
        " report it"
    )


if __name__ == "__main__":
    main()
