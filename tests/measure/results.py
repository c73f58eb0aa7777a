"""A_Df and A_Dr before and after `pbu unlearn`, by class, on real checkpoints and images.

    python -m tests.measure.results                      # all rows, about 15 minutes on two cores
    python -m tests.measure.results mnist --classes 8    # one row
    python -m tests.measure.results resnet20 --images 10 --seeds 3
    python -m tests.measure.results original --classes 8 --flags --alpha 10 --max-damage 2

Checkpoints and images come from ../shared. The forget images are of the training split: all of
them, or `--images` of them, drawn by each seed. The figures are measured on the test split. The
script prints a line of JSON for each run, and at the end a table of means over the seeds, with the
worst class of each case.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pbu_cli.__main__ import run
from tests.measure.archives import SHARED, unpack

ROOT = Path(__file__).resolve().parents[2]
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                 "truck")  # fmt: skip
CIFAR = ["--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616"]
IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
ARCH = str(ROOT / "tests" / "networks" / "cifar_resnet.py")
# name -> (data, checkpoint, flags, classes)
CASES: dict[str, tuple[str, str, list[str], list[int]]] = {
    "mnist": ("mnist", "mnist_resnet34_fp16", [], [8, 2, 6, 4, 9]),
    "original": (
        "cifar10",
        "cifar10_resnet20_original",
        ["--arch", f"{ARCH}:resnet20", *CIFAR],
        [0, 3, 8],
    ),
    **{
        name: ("cifar10", f"cifar10_{name}", ["--arch", f"{ARCH}:{name}", *IMAGENET], [0, 3, 8])
        for name in ("resnet20", "resnet32")
    },
}


def pbu(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON document of one command line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run([*arguments, "--json", "--quiet"])
    if code not in (0, 5):  # 5: written, but a criterion is not met
        raise SystemExit(f"pbu {' '.join(arguments)}: exit code {code}")
    return code, json.loads(out.getvalue())


def some_images(folder: Path, count: int, seed: int, place: Path) -> Path:
    """A folder with links to `count` of the images, drawn by `seed`."""
    chosen = random.Random(seed).sample(sorted(folder.iterdir()), count)
    few = place / f"{count}-{seed}" / folder.name
    few.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        (few / path.name).symlink_to(path)
    return few


def row(
    case: str, label: int, data: Path, place: Path, images: int | None, seed: int,
    flags: list[str], before: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn one class with one seed and evaluate.

    before: the row of another seed, whose figures for the original are the same.
    """
    archive, name, case_flags, _ = CASES[case]
    checkpoint = str(SHARED / "checkpoints" / f"{name}.safetensors")
    folder = str(label) if archive == "mnist" else CIFAR_CLASSES[label]
    forget = data / archive / "train" / folder
    if images is not None:
        forget = some_images(forget, images, seed, place / case)
    output = str(place / f"{case}-{label}-{seed}.safetensors")
    start = time.perf_counter()
    code, done = pbu("unlearn", checkpoint, "--forget", str(forget), "-o", output, "--force",
                     "--label", str(label), "--seed", str(seed), *case_flags, *flags)  # fmt: skip
    seconds = time.perf_counter() - start
    test = data / archive / "test"
    compared = [] if before else ["--original", checkpoint]
    _, found = pbu("evaluate", output, *compared, "--forget", str(test / folder),
                   "--retain", str(test), *case_flags)  # fmt: skip
    by_name = {score["name"]: score for score in found["scores"]}
    return {
        "case": case,
        "class": label,
        "images": done["images"],
        "seed": seed,
        "original": before["original"]
        if before
        else [by_name["original"][key] for key in ("a_df", "a_dr")],
        "mask": before["mask"] if before else by_name["original, head mask"]["a_dr"],
        "result": [by_name["checkpoint"][key] for key in ("a_df", "a_dr")],
        "damage": done["result"]["damage"],
        "exit": code,
        "stopped": done["result"]["reason"],
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each class: means over the seeds, and the standard deviation of A_Dr."""
    shown = Table("case", "class", "images", "seeds", "A_Df before", "after, most", "A_Dr before",
                  "after", "head mask", "estimated loss, most", "exit", "seconds")  # fmt: skip
    worst: dict[str, tuple[float, int]] = {}
    for (case, label), each in groupby(rows, key=lambda row: (row["case"], row["class"])):
        group = list(each)
        (df0, dr0), after = group[0]["original"], [row["result"][1] for row in group]
        mean = statistics.fmean(after)
        spread = f" ± {statistics.stdev(after):.2f}" if len(after) > 1 else ""
        worst[case] = min(worst.get(case, (1e9, 0)), (mean - dr0, label))
        shown.add_row(
            case, str(label), str(group[0]["images"]), str(len(group)), f"{df0:.2f}",
            f"{max(row['result'][0] for row in group):.2f}", f"{dr0:.2f}", f"{mean:.2f}{spread}",
            f"{group[0]['mask']:.2f}", f"{max(row['damage']['high'] for row in group):.1f}",
            " ".join(sorted({str(row["exit"]) for row in group})),
            f"{statistics.median(row['seconds'] for row in group):.1f}",
        )  # fmt: skip
    shown.caption = "; ".join(
        f"{case}: worst class {label}, {change:+.2f}" for case, (change, label) in worst.items()
    )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--classes", type=int, nargs="+")
    parser.add_argument("--images", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for pbu unlearn")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for case in given.cases or CASES:
            archive = CASES[case][0]
            data = place / "data"
            if not (data / archive).exists():
                unpack(SHARED / "data" / f"{archive}.tar.xz", data / archive)
            for label in given.classes or CASES[case][3]:
                found = None
                for seed in range(given.first_seed, given.first_seed + given.seeds):
                    found = row(case, label, data, place, given.images, seed, given.flags, found)
                    print(json.dumps(found), flush=True)
                    rows.append(found)
    Console(width=140).print(table(rows))


if __name__ == "__main__":
    main()
