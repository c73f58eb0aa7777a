"""`pbu` and `python -m pbu_cli`: run the command line; every error becomes one line and a code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and exit with the documented code."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line; errors are printed as one line on stderr."""
    from pbu_cli.cli import app
    from pbu_cli.console import silence
    from pbu_cli.errors import PbuError

    try:
        code = app(arguments, prog_name="pbu", standalone_mode=False)
    except PbuError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted; nothing was written", 130)
    except SystemExit as stop:
        # 128 + a signal, or the 1 of the rich that typer writes --help with: its reader has left.
        return stop.code if isinstance(stop.code, int) and stop.code > 128 else 0
    except BrokenPipeError:
        silence(sys.stdout)  # of --version; without this Python complains as it exits
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return 2
        if hasattr(error, "format_message"):  # typer's own: a usage error
            context = getattr(error, "ctx", None)
            path = "pbu" if context is None else context.command_path
            return _failed(f"{error.format_message().rstrip('.')}; see {path} --help", 2)
        if type(error).__name__ == "Abort":  # what typer makes of Ctrl-C
            return _failed("interrupted; nothing was written", 130)
        if os.environ.get("PBU_TRACEBACK"):
            raise
        return _failed(_unforeseen(error), 1)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int) -> int:
    from pbu_cli.console import error_line

    error_line(message)
    return code


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
