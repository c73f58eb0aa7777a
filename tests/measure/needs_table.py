"""The memory and the time that `pbu unlearn` says it needs, against what it takes, at 224 pixels.

    python -m tests.measure.needs_table IMAGES [NAME ...] --work FOLDER [--flags FLAGS] [--csv FILE]

IMAGES is a folder of images of one class. The networks have random weights, because the class does
not change what a run needs; a trained one may be put into FOLDER before. FLAGS are further flags
of `pbu unlearn`, such as '--steps 20' for a network that one core would work on for hours. What was
taken is that of the whole process on one thread: the processor's seconds, which other work on the
machine changes least, and the largest resident memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NAMES = ("tf_efficientnet_lite0", "resnet50", "convnext_tiny", "vit_b_16")
LABEL = 1
FACTORS = {"GB": 1.0, "minute": 60.0, "minutes": 60.0, "hours": 3600.0}


def random_network(name: str, path: Path) -> None:
    """Save a network of torchvision, or of timm where torchvision has none of that name."""
    import timm
    import torchvision

    torch.manual_seed(0)
    known: Callable[[str], Any] = torchvision.models.get_model
    model = known(name) if name in torchvision.models.list_models() else timm.create_model(name)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def stated(inferred: list[dict[str, Any]]) -> tuple[float, float]:
    """Gigabytes and seconds of the line `needs: about 2.1 GB and 11 minutes (300 steps)`."""
    (value,) = (entry["value"] for entry in inferred if entry["what"] == "needs")
    words = value.split("(")[0].split()
    return float(words[1]), float(words[4]) * FACTORS[words[5]]


def measure(name: str, images: Path, work: Path, flags: list[str]) -> dict[str, object]:
    checkpoint = work / f"{name}.safetensors"
    if not checkpoint.exists():
        random_network(name, checkpoint)
    arch = f"timm:{name}" if name.startswith("tf_") else name
    command = [
        "unlearn", str(checkpoint), "--arch", arch, "--forget", str(images), "--label", str(LABEL),
        "--size", "224", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--json", "--force",
        "-o", str(work / f"{name}.unlearned.safetensors"), *flags,
    ]  # fmt: skip
    said = work / f"{name}.json"
    with said.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pbu_cli", *command],
            stdout=out,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
    document = json.loads(said.read_text())
    gigabytes, estimate = stated(document["inferred"])
    return {
        "network": name,
        "flags": " ".join(flags) or "default",
        "steps": document["result"]["steps"],
        "estimated_gb": f"{gigabytes:.1f}",
        "peak_gb": f"{usage.ru_maxrss * 1024 / 1e9:.1f}",
        "estimated_seconds": f"{estimate:.0f}",
        "processor_seconds": f"{usage.ru_utime + usage.ru_stime:.0f}",
        "exit": os.waitstatus_to_exitcode(status),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--work", type=Path, required=True, help="where the networks are kept")
    parser.add_argument("--flags", default="", help="further flags of `pbu unlearn`")
    parser.add_argument("--csv", type=Path, help="rows are added to this file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for name in given.names or NAMES:
        row = measure(name, given.images, given.work, shlex.split(given.flags))
        print(row, flush=True)
        if given.csv:
            new = not given.csv.exists()
            with given.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
