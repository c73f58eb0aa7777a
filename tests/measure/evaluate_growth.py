"""The memory and the time of `pbu evaluate` by the number of retained images.

    python -m tests.measure.evaluate_growth cifar100 --images DIR --checkpoint FILE --work DIR
    python -m tests.measure.evaluate_growth imagenet --images DIR --work DIR [--checkpoint FILE]

cifar100: DIR is the folder of class folders of CIFAR-100's training images, and FILE the ResNet-20
`cifar100_resnet20.safetensors`. imagenet: DIR holds one image of each class of ImageNet, called
`<WordNet id>_<name>.JPEG`; more images are links to these. FILE has the weights of timm's
`tf_efficientnet_lite0`; without it the network is torchvision's `mobilenet_v3_small` with random
weights, which is quick and whose memory is the same. --code: a clone of another version of pbu to
measure; --csv: a file that rows are added to. What is measured is the whole process, on one thread:
seconds from start to end and of the processor, and the largest resident memory.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small

ROOT = Path(__file__).resolve().parents[2]
PER_CLASS = {"cifar100": (10, 50, 500), "imagenet": (1, 2, 5)}  # images of each class
CIFAR100 = (
    "--mean", "0.5071,0.4865,0.4409", "--std", "0.2673,0.2564,0.2762", "--label", "8",
)  # fmt: skip
NETWORK = """from tests.networks.cifar_resnet import CifarResNet
def resnet20():
    return CifarResNet(3, num_classes=100)
"""
IMAGENET = (
    "--size", "224", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--label", "0",
    "--batch-size", "16",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Class folders with so many images each, the one to forget, and how the network is read."""

    checkpoint: Path
    folders: Path
    forget: str
    flags: tuple[str, ...]


def class_folders(of: str, images: Path, count: int, work: Path) -> Path:
    """A folder of class folders with `count` links each."""
    place = work / f"{of}-{count}"
    if place.exists():
        return place
    sources = (
        {folder.name: sorted(folder.iterdir()) for folder in sorted(images.iterdir())}
        if of == "cifar100"
        else {path.name[:9]: [path] * count for path in sorted(images.glob("n*.JPEG"))}
    )
    for name, paths in sources.items():
        (place / name).mkdir(parents=True)
        for number, path in enumerate(paths[:count]):
            (place / name / f"{number:03}{path.suffix}").symlink_to(path.resolve())
    return place


def case(of: str, images: Path, count: int, work: Path, checkpoint: Path | None) -> Case:
    folders = class_folders(of, images, count, work)
    if of == "cifar100":
        assert checkpoint is not None, "--checkpoint is missing"
        network = work / "cifar100_resnet20.py"
        network.write_text(NETWORK)
        flags: tuple[str, ...] = ("--arch", f"{network}:resnet20", *CIFAR100)
        return Case(checkpoint, folders, "bicycle", flags)
    if checkpoint is not None:
        flags = ("--arch", "timm:tf_efficientnet_lite0", *IMAGENET)
        return Case(checkpoint, folders, "n01440764", flags)
    random = work / "mobilenet_v3_small.safetensors"
    if not random.exists():
        torch.manual_seed(0)
        save_file(mobilenet_v3_small().state_dict(), random)
    return Case(random, folders, "n01440764", IMAGENET)


def measure(of: str, found: Case, code: Path, work: Path, more: list[str]) -> dict[str, object]:
    """One row: what a run took, and a digest of its scores, which has to stay the same."""
    command = [
        "evaluate", str(found.checkpoint), "--forget", str(found.folders / found.forget),
        "--retain", str(found.folders), "--json", *found.flags, *more,
    ]  # fmt: skip
    said, start = work / "said.json", time.perf_counter()
    with said.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pbu_cli", *command],
            stdout=out,
            cwd=code,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)},
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"pbu ended with {os.waitstatus_to_exitcode(status)}")
    document = json.loads(said.read_text())
    scores = json.dumps(document["scores"], sort_keys=True)
    return {
        "network": found.checkpoint.stem,
        "flags": " ".join(more),
        "retained": document["images"]["retain"],
        "seconds": f"{seconds:.1f}",
        "cpu_seconds": f"{usage.ru_utime + usage.ru_stime:.1f}",
        "peak_mb": f"{usage.ru_maxrss * 1024 / 1e6:.0f}",
        "a_dr": f"{document['scores'][0]['a_dr']:.4f}",
        "scores_sha256": hashlib.sha256(scores.encode()).hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("of", choices=PER_CLASS)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the links are made")
    parser.add_argument("--per-class", type=int, nargs="*", help="images of each class")
    parser.add_argument("--code", type=Path, default=ROOT, help="the clone to measure")
    parser.add_argument("--name", default="now", help="what the clone is called in the rows")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--csv", type=Path, help="rows are added to this file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for count in given.per_class or PER_CLASS[given.of]:
        found = case(given.of, given.images, count, given.work, given.checkpoint)
        more = ["--audit"] if given.audit else []
        row = {"code": given.name, **measure(given.of, found, given.code, given.work, more)}
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
