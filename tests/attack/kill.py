"""Interrupt `pbu unlearn --force --record`, which replaces its own input, at random instants.

    python -m tests.attack.kill [--kills 200] [--signal TERM] [--seed 0] [--demo DIR]

Each round starts pbu on a copy of a small trained checkpoint and sends SIGKILL or SIGTERM at a
random instant between its first import and its end. The file then has to be the whole old or the
whole new one, and the new one needs the record that verifies it, and its key. SIGTERM has to end
the run within two seconds, with exit code 143 and without a temporary file. After SIGKILL the next
run with the same names has to remove what the killed one left.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pbu_cli.benchmark import demo_digits as demo
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.io import checkpoint
from pbu_cli.records.verifier import verify
from pbu_cli.records.writer import read_key

STEPS = "2"
PATIENCE = 2.0  # seconds from SIGTERM to the end


@dataclass
class Tally:
    """found: how often the file was old, new or neither. alone: records whose output did not
    appear any more. left: rounds after which a temporary file was there. ended: runs that ended
    before the signal. slowest: seconds from the signal to the end."""

    found: Counter[str] = field(default_factory=Counter)
    alone: int = 0
    left: int = 0
    ended: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A run in `folder` that replaces its input, a copy of `original`."""

    folder: Path
    forget: Path
    original: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def names(self) -> set[str]:
        return {path.name for path in (self.model, self.record, self.key)}

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "pbu_cli", "unlearn", "--fast", str(self.model), "--forget",
            str(self.forget), "--force", "-o", str(self.model), "--steps", STEPS, "--layers",
            "head", "--quiet", "--device", "cpu", "--record", str(self.record), "--record-key",
            str(self.key),
        ]  # fmt: skip

    def reset(self) -> None:
        for path in (self.record, self.key):
            path.unlink(missing_ok=True)
        shutil.copy(self.original, self.model)

    def whole(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(), capture_output=True, check=False, text=True)

    def strays(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - self.names


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unverified(run: Run) -> list[str]:
    """What is wrong with the record of a new output."""
    if not (run.record.exists() and run.key.exists()):
        return ["an output without its record or its key"]
    found = verify(run.record, read_key(run.key), [str(run.forget)])
    return [f"{one.what}: {one.detail}" for one in found if one.holds is False]


def interrupt(run: Run, number: int, wait: float, old: str, new: str, tally: Tally) -> list[str]:
    """One round: what is wrong after the signal `number`, sent after so many seconds."""
    run.reset()
    process = subprocess.Popen(run.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(wait)
    sent = time.perf_counter()
    process.send_signal(number)
    code = process.wait()
    seconds = time.perf_counter() - sent
    stopped = code == (-number if number == signal.SIGKILL else 128 + number)
    found = {old: "old", new: "new"}.get(digest(run.model), "neither")
    tally.ended += not stopped
    tally.found[found] += 1
    tally.slowest = max(tally.slowest, seconds)
    tally.alone += found == "old" and run.record.exists()
    strays = run.strays()
    tally.left += bool(strays)
    wrong = []
    if found == "neither":
        return ["a file that is neither the old nor the new one"]
    checkpoint.read(run.model)
    if found == "new":
        wrong += unverified(run)
    elif run.record.exists():  # complete, though its output is missing
        verify(run.record)
    if not stopped and code not in (0, 5, -number):  # before Python's first line pbu has no handler
        wrong.append(f"exit code {code}")
    if number == signal.SIGTERM:
        wrong += [f"left {strays}"] if strays else []
        wrong += [f"{seconds:.1f} s"] if seconds > PATIENCE else []
    elif strays or run.record.exists():  # the next run with these names removes and replaces
        shutil.copy(run.original, run.model)
        run.key.unlink(missing_ok=True)  # which no run replaces
        after = run.whole()
        if after.returncode not in (0, 5) or run.strays() or digest(run.model) != new:
            wrong.append(f"left {strays}, then {run.strays()} {after.stderr}")
    return wrong


def kill_at_random(
    run: Run, *, kills: int, seed: int, number: int = signal.SIGKILL, late: bool = False
) -> Tally:
    """Interrupt so many runs; with `late` all of them in the last fifth, where a run writes."""
    instants, tally = random.Random(seed), Tally()
    run.reset()
    old = digest(run.model)
    started = time.perf_counter()
    done = run.whole()
    whole = time.perf_counter() - started
    assert done.returncode in (0, 5), done.stderr
    new = digest(run.model)
    assert new != old
    for count in range(kills):
        # A quarter of the signals aim at the end of the run, where the files are written.
        early = 0.8 if late or count % 4 == 0 else 0.0
        wait = instants.uniform(early, 1.05) * whole
        wrong = interrupt(run, number, wait, old, new, tally)
        tally.faults += [f"round {count}, {wait:.3f} s: {text}" for text in wrong]
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--late", action="store_true", help="only in the last fifth of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo", type=Path, help="folder of a finished `pbu demo`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        files = demo.write_digits(Path(place) / "digits")
        if given.demo is not None:
            shutil.copy(given.demo / files.checkpoint.name, files.checkpoint)
        else:
            groups = split_by_subfolder(list_groups([str(files.train)])[0])
            images = decode(groups, channels=1)
            network = demo.train_digits(images.pixels, images.group, torch.device("cpu"))
            demo.write_checkpoint(network, files.checkpoint)
        folder = Path(place) / "run"
        folder.mkdir()
        started = time.perf_counter()
        tally = kill_at_random(
            Run(folder, files.train / "8", files.checkpoint),
            kills=given.kills,
            seed=given.seed,
            number=getattr(signal, f"SIG{given.signal}"),
            late=given.late,
        )
        minutes = (time.perf_counter() - started) / 60
    print(
        f"{given.kills} times SIG{given.signal} in {minutes:.1f} min, {tally.ended} of them after"
        f" the end: the file was the old one {tally.found['old']} times, the new one"
        f" {tally.found['new']}, neither {tally.found['neither']}; {tally.alone} records stand"
        f" before their output, {tally.left} rounds left a temporary file, the slowest end took"
        f" {tally.slowest:.2f} s; {len(tally.faults)} faults"
    )
    for fault in tally.faults:
        print("FAULT", fault)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
