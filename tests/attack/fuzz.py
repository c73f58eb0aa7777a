"""Feed everything that pbu reads from strangers with made-up files.

    python -m tests.attack.fuzz [--minutes 5] [--seed 0] [--target NAME]

A case passes if pbu reads the file, or refuses it with a PbuError of one printable line. Any other
exception counts as a crash, and so does more than 4 GB of address space. Ten seconds count as a
hang. A file that once led to a fault is kept in `tests/attack/corpus/<target>/`, and
`tests/attack/test_fuzz.py` tries it again.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, given, settings

from pbu_cli.errors import PbuError
from tests.attack.targets import Target, targets

PATIENCE = 10  # seconds that one case may take
MEMORY = 4 << 30  # bytes of address space that all cases together may add


class Hang(BaseException):
    """A case took longer than PATIENCE."""


def attempt(target: Target, data: bytes) -> str:
    """Feed one case: `read`, or the name of the PbuError that refused it. Any fault is raised."""

    def time_is_up(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(PATIENCE)
    try:
        with tempfile.TemporaryDirectory() as place:
            try:
                target.feed(data, Path(place))
            except PbuError as error:
                return _refused(error)
        return "read"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _refused(error: PbuError) -> str:
    line = str(error)
    assert line.isprintable(), ascii(line)
    assert len(line) < 2000, line
    return type(error).__name__


def fuzz(target: Target, *, cases: int, seed: int, seen: Counter[str]) -> None:
    """Try so many cases and count their outcomes in `seen`.

    The exception of the first fault is raised, for the smallest case that has it.
    """

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def check(data: bytes) -> None:
        seen[attempt(target, data)] += 1

    check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=targets())
    arguments = parser.parse_args()
    chosen = {n: t for n, t in targets().items() if arguments.target in (None, n)}
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    start, seed = time.monotonic(), arguments.seed
    seen = {name: Counter[str]() for name in chosen}
    faults: Counter[str] = Counter()
    while time.monotonic() - start < 60 * arguments.minutes:
        for name, target in chosen.items():
            try:
                fuzz(target, cases=200, seed=seed, seen=seen[name])
            except (Exception, Hang) as error:
                key = f"{name}: {type(error).__name__}: {str(error)[:200]!r}"
                faults[key] += 1
                if faults[key] == 1:
                    print("FAULT", key, *getattr(error, "__notes__", ()), flush=True)
        seed += 1
    minutes = (time.monotonic() - start) / 60
    for name, counts in seen.items():
        refused = ", ".join(f"{kind} {n:,}" for kind, n in counts.most_common())
        print(f"{name:<12} {counts.total():>8,} cases: {refused}")
    total = sum(counts.total() for counts in seen.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    hangs = sum(n for key, n in faults.items() if "Hang" in key)
    print(
        f"{total:,} cases in {minutes:.1f} min, crashes {faults.total() - hangs}, hangs {hangs},"
        f" peak memory {peak:.0f} MiB"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
