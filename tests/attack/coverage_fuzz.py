"""The targets of `fuzz.py`, with cases that atheris chooses by the coverage of pbu's Python code.

    python -m tests.attack.coverage_fuzz TARGET [libFuzzer flags, such as -max_total_time=60]

atheris is not a dependency of pbu: pip install atheris, on a platform where it builds. It starts
from the originals of `cases.py` and stops at the first fault.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["pbu_cli"]):
        from tests.attack import cases
        from tests.attack.cell_cases import cell_original
        from tests.attack.fuzz import attempt
        from tests.attack.pickle_cases import FRAGMENTS
        from tests.attack.targets import targets
    name = sys.argv.pop(1)
    target = targets()[name]
    originals = {
        "pickle": cases.pickles,
        "opcodes": lambda: [b"}(" + fragment + b"u." for fragment in FRAGMENTS],
        "image": cases.pictures,
        "fisher": lambda: (cases.fisher_original(),),
        "record": lambda: (cases.record_original(),),
        "cell": lambda: (cell_original(),),
    }.get(name, lambda: (b"{}", b"valid.png\na.png"))()
    with tempfile.TemporaryDirectory() as corpus:
        for number, original in enumerate(originals):
            (Path(corpus) / str(number)).write_bytes(original)
        atheris.Setup([*sys.argv, corpus], lambda data: attempt(target, data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
