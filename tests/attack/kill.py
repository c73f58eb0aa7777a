"""Kill `pbu unlearn --force`, which replaces its own input, at random instants.

    python -m tests.attack.kill [--kills 200] [--seed 0] [--demo DIR]

Each round starts pbu on a copy of a small trained checkpoint and sends SIGKILL at a random instant
between its first import and its end. The file then has to be the whole old or the whole new one.
After the next run no temporary file of the killed run may be left.
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
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups, split_by_subfolder
from pbu_cli.io import checkpoint

STEPS = "2"


@dataclass
class Tally:
    """found: how often the file was old, new or neither. left: kills after which a temporary file
    was there. ended: runs that ended before they were killed."""

    found: Counter[str] = field(default_factory=Counter)
    left: int = 0
    ended: int = 0
    faults: list[str] = field(default_factory=list)


def command(model: Path, forget: Path) -> list[str]:
    return [
        sys.executable, "-m", "pbu_cli", "unlearn", "--fast", str(model), "--forget", str(forget),
        "--force", "-o", str(model), "--steps", STEPS, "--layers", "head", "--quiet",
        "--device", "cpu",
    ]  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_at_random(
    original: Path, forget: Path, folder: Path, *, kills: int, seed: int, late: bool = False
) -> Tally:
    """Kill so many runs; with `late` all of them in the last fifth of a run, where it writes."""
    instants = random.Random(seed)
    model = folder / "model.safetensors"
    shutil.copy(original, model)
    old = digest(model)
    started = time.perf_counter()
    done = subprocess.run(command(model, forget), capture_output=True, check=False, text=True)
    whole = time.perf_counter() - started
    assert done.returncode in (0, 5), done.stderr
    new = digest(model)
    assert new != old
    tally = Tally()
    for number in range(kills):
        shutil.copy(original, model)
        process = subprocess.Popen(
            command(model, forget), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # A quarter of the kills aim at the end of the run, where the files are written.
        early = 0.0 if not (late or number % 4 == 0) else 0.8
        time.sleep(instants.uniform(early, 1.05) * whole)
        process.send_signal(signal.SIGKILL)
        tally.ended += process.wait() != -signal.SIGKILL
        found = {old: "old", new: "new"}.get(digest(model), "neither")
        tally.found[found] += 1
        strays = {path.name for path in folder.iterdir()} - {model.name}
        tally.left += bool(strays)
        if found == "neither":
            tally.faults.append(f"kill {number}: a file that is neither the old nor the new one")
        else:
            checkpoint.read(model)
        if strays:  # the next run has to remove them
            shutil.copy(original, model)
            after = subprocess.run(
                command(model, forget), capture_output=True, check=False, text=True
            )
            left = {path.name for path in folder.iterdir()} - {model.name}
            if after.returncode not in (0, 5) or left or digest(model) != new:
                tally.faults.append(f"kill {number}: left {strays}, then {left} {after.stderr}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
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
            files.checkpoint, files.train / "8", folder, kills=given.kills, seed=given.seed
        )
        minutes = (time.perf_counter() - started) / 60
    print(
        f"{given.kills} kills in {minutes:.1f} min, {tally.ended} of them after the end: the file"
        f" was the old one {tally.found['old']} times, the new one {tally.found['new']}, neither"
        f" {tally.found['neither']}; {tally.left} kills left a sibling, and the next run left none"
    )
    for fault in tally.faults:
        print("FAULT", fault)
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
