"""`pbu` and `python -m pbu_cli`: run the command line; every error becomes one line and a code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

WHOLE = "every checkpoint and Fisher file is whole, or was not written"


def main() -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line. An error is one line on stderr and, with `--json`, the
    one document on stdout."""
    from pbu_cli.cli import app
    from pbu_cli.console import Screen, error_document, error_line, silence
    from pbu_cli.errors import CriterionNotMet, PbuError

    def failed(message: str, code: int) -> int:
        error_line(message)
        Screen(as_json="--json" in arguments).document(error_document(message, code))
        return code

    try:
        code = app(arguments, prog_name="pbu", standalone_mode=False)
    except CriterionNotMet as error:
        error_line(str(error))  # its document has been written, with the error in it
        return error.exit_code
    except PbuError as error:
        return failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return failed(f"interrupted; {WHOLE}", 130)
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            return failed(f"terminated; {WHOLE}", stop.code)
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
        if type(error).__name__ == "Abort":  # what some versions of typer make of Ctrl-C ...
            return failed(f"interrupted; {WHOLE}", 130)
        if os.environ.get("PBU_TRACEBACK"):
            raise
        return failed(_unforeseen(error), 1)
    if code == 130:  # ... and what the others make of it
        return failed(f"interrupted; {WHOLE}", 130)
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; lower --batch-size, or use --device cpu"
    first = str(error).strip().partition("\n")[0]
    return (
        f"{type(error).__name__}: {first}; this was not foreseen: run again with PBU_TRACEBACK=1"
        " and report it"
    )


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
