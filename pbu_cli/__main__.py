"""`pbu` and `python -m pbu_cli`: run the command line; every error becomes one line and a code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from pbu_cli.cli.signals import install_handlers
from pbu_cli.errors import Stopped, is_out_of_memory

# Objects made and kept until Python looks for garbage among them. torch's import makes nearly two
# hundred thousand, all of which stay; to look as often as by default takes a fifth of its time.
LIVING = 100_000


def main() -> None:
    """Run the command line and exit with the documented code."""
    gc.set_threshold(LIVING)
    for closed in ("stdout", "stderr"):  # by the shell's `>&-`; a file would get its number
        if getattr(sys, closed) is None:
            setattr(sys, closed, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    try:
        install_handlers()
        code = run(sys.argv[1:])
    except Stopped as stopped:  # before `run` could install_handlers it, or after
        sys.stderr.write(f"error: {stopped}\n")
        code = stopped.exit_code
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit without taking all of torch down, which would be most of a second for nothing."""
    if code <= 128:  # who asks for an end does not wait for anyone
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            sys.exit(code)  # it is Python that says so
        atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of one command line. An error is one line on stderr and, with `--json`, the
    one document on stdout."""
    from pbu_cli.cli.app import app
    from pbu_cli.cli.console import Screen, error_document, error_line, silence
    from pbu_cli.errors import CriterionNotMet, PbuError

    def failed(message: str, code: int) -> int:
        error_line(message)
        with suppress(PbuError):  # where stdout is what failed
            Screen(as_json="--json" in arguments).document(error_document(message, code))
        return code

    try:
        code = app(arguments, prog_name="pbu", standalone_mode=False)
    except CriterionNotMet as error:
        error_line(str(error))  # its document has been written, with the error in it
        return error.exit_code
    except PbuError as error:
        return failed(str(error), error.exit_code)
    except Stopped as stopped:
        return failed(str(stopped), stopped.exit_code)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return 0  # from the rich that typer writes --help with: its reader has left
        return stop.code if isinstance(stop.code, int) else 1
    except BrokenPipeError:
        silence(sys.stdout)  # of --version; without this Python complains as it exits
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 2
        if hasattr(error, "format_message"):  # typer's own: a usage error
            context = getattr(error, "ctx", None)
            path = "pbu" if context is None else context.command_path
            return failed(f"{error.format_message().rstrip('.')}; see {path} --help", 2)
        if os.environ.get("PBU_TRACEBACK"):
            raise
        return failed(_unforeseen(error), 1)
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory; lower --batch-size or --size, or use another --device"
    first = str(error).strip().partition("\n")[0]
    return (
        f"{type(error).__name__}: {first}; this was not foreseen: run again with PBU_TRACEBACK=1"
        " and report it"
    )


if __name__ == "__main__":
    main()
