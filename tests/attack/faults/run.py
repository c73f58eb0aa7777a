"""Run every fault on this checkout and on an older one, and print the table.

    git worktree add --detach ../before f14c514
    python -m tests.attack.faults.run --before ../before [--point 4] [--csv FILE] [--data DIR]

Each command has a minute and 8 GiB. Shown are the exit code, the seconds and the peak memory of the
process, and whether the result is the right one. A command that had to be ended after the minute
shows the code `hang`.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tests.attack.faults as here
from tests.attack.faults.fault import Fault, Place
from tests.measure.archives import SHARED, unpack

PATIENCE = 60  # seconds
MEMORY = 8 << 30  # bytes of address space that a command may add to torch's own, about 8 GiB
CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Tried:
    """code: the exit code, or `hang`. mebibytes: the peak of the resident memory."""

    code: str
    seconds: float
    mebibytes: float
    right: bool
    text: str


def all_faults() -> list[Fault]:
    found: list[Fault] = []
    for module in pkgutil.iter_modules(here.__path__):
        found += getattr(importlib.import_module(f"{here.__name__}.{module.name}"), "FAULTS", [])
    return sorted(found, key=lambda fault: fault.point)


def begin() -> None:
    """Limit the memory, and take signals as usual: `nohup` and background jobs ignore some."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + (4 << 30),) * 2)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_DFL)


def attempt(fault: Fault, package: Path, data: Path) -> Tried:
    """Prepare the fault's inputs in a new folder and run its command there."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), package, data)
        fault.prepare(place)
        command = [sys.executable, "-m", "pbu_cli", *map(str, fault.arguments)]
        output = Path(folder).with_suffix(".output")
        start = time.perf_counter()
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=folder, env={**place.environment, **fault.more}, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=begin,
            )  # fmt: skip
            code, usage = None, None
            while time.perf_counter() - start < PATIENCE:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    break
                time.sleep(0.02)
            if code is None:
                process.kill()
                _, _, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        text = output.read_text("utf-8", "replace")
        output.unlink()
        right = code == fault.code and fault.says in " ".join(text.split())
        if right:
            try:
                fault.check(place)
            except AssertionError as error:
                right, text = False, f"{text}\ncheck: {error!r}"
    assert usage is not None
    shown = "hang" if code is None else str(code if code >= 0 else 128 - code)
    return Tried(shown, seconds, usage.ru_maxrss / 1024, right, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of f14c514")
    parser.add_argument("--point", type=int)
    parser.add_argument("--title", default="", help="only faults whose title has this text")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--data", type=Path, help="the unpacked archives, if they are unpacked")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as unpacked:
        data = given.data
        if data is None:
            data = Path(unpacked)
            for name in ("mnist", "cifar10"):
                unpack(SHARED / "data" / f"{name}.tar.xz", data)
        checkouts = {"after": CHECKOUT}
        if given.before is not None:
            checkouts = {"before": given.before.resolve(), **checkouts}
        rows, wrong = [], 0
        for fault in all_faults():
            if given.point not in (None, fault.point) or given.title not in fault.title:
                continue
            row: dict[str, object] = {"point": fault.point, "fault": fault.title}
            row["command"] = " ".join(["pbu", *map(str, fault.arguments)])
            for which, package in checkouts.items():
                tried = attempt(fault, package, data)
                row[which] = tried.code
                row[f"{which}_s"] = round(tried.seconds, 1)
                row[f"{which}_mib"] = round(tried.mebibytes)
                row[f"{which}_right"] = "yes" if tried.right else "no"
                wrong += which == "after" and not tried.right
                if which == "after" and not tried.right:
                    print(f"WRONG ({fault.code} expected, {fault.says!r}): {tried.text[-1500:]}")
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} faults, {wrong} of them wrong in this checkout")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
