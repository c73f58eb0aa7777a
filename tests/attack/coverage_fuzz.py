"""The doors of tests/attack/fuzz.py, open_session by atheris: coverage of pbu's Python code leads the way.

    python -m tests.attack.coverage_fuzz TARGET [libFuzzer flags, such as -max_total_time=60]

atheris is no dependency: pip install atheris where it builds. Starts from tests/attack/fuzz.py's own
originals; stops at the first fault.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris  # type: ignore[import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["pbu_cli"]):
        from tests.attack import fuzz
    name = sys.argv.pop(1)
    target = fuzz.targets()[name]
    originals = {
        "pickle": fuzz.pickles,
        "image": fuzz.pictures,
        "fisher": lambda: (fuzz.fisher_original(),),
        "record": lambda: (fuzz.record_original(),),
    }.get(name, lambda: (b"{}", b"sound.png\na.png"))()
    with tempfile.TemporaryDirectory() as corpus:
        for number, original in enumerate(originals):
            (Path(corpus) / str(number)).write_bytes(original)
        atheris.Setup([*sys.argv, corpus], lambda data: fuzz.attempt(target, data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
