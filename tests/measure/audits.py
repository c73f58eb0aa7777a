"""The tables of what is left of a class after each method, by `pbu evaluate --audit`.

    python -m tests.measure.audits original 8 --retrained WITHOUT_SHIP
    python -m tests.measure.audits mnist 8 --original ORIGINAL --retrained RETRAINED --rows default
    python -m tests.measure.audits original 3 --retrained RETRAINED --again ANOTHER --rows

The cases are those of `tests.measure.results`. `--original` replaces the case's checkpoint.
`--again` adds a row for a network that was retrained with another seed. `--rows` without names
leaves all other rows out. Each method forgets all training images of the class, and the audit is
made on the test split, which takes about 12 minutes a class on one core. The script prints a line
of JSON for each network, and a table at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.forget_images import pbu_paper
from pbu_cli.benchmark.methods.retained_images import finetune
from pbu_cli.benchmark.methods.task import Task
from pbu_cli.benchmark.training import COLOUR, GREY
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.io.safetensors_format import write
from pbu_cli.settings import InputOptions
from tests.measure.archives import SHARED, unpack
from tests.measure.results import CASES, CIFAR_CLASSES, pbu

EPOCHS = 2  # of the authors' recipe
ORIGINAL_EPOCHS = 14  # of the originals' training; fine-tuning takes a third of them
MEASURES = ("probe", "probe_recall", "odds_auc", "relearnt", "js", "log_p_retain")


def by_pbu(*flags: str) -> Callable[..., None]:
    def make(original: Path, forget: Path, output: Path, case_flags: list[str]) -> None:
        pbu("unlearn", str(original), "--forget", str(forget), "-o", str(output),
            *case_flags, *flags)  # fmt: skip

    return make


def by_authors(original: Path, forget: Path, output: Path, case_flags: list[str]) -> None:
    """The recipe of the method's authors, as `pbu benchmark` runs it."""
    inputs, task = _task(original, forget, case_flags)
    for _, result in zip(range(EPOCHS), pbu_paper.unlearn(task), strict=False):
        found = result.network
    write(output, dict(found.state_dict()), dict(inputs.loaded.checkpoint.metadata))


def by_tuning(original: Path, forget: Path, output: Path, case_flags: list[str]) -> None:
    """Fine-tune as `pbu benchmark` does, on all retained training images, which pbu never reads."""
    inputs, task = _task(original, forget, case_flags)
    folders = sorted(set(forget.parent.iterdir()) - {forget})  # in the order of the classes
    channels = inputs.images.pixels.shape[1]
    images = decode(
        list_groups([str(folder) for folder in folders]),
        channels=channels, size=inputs.preprocessing.size,
    )  # fmt: skip
    kept = torch.tensor([c for c in range(task.num_classes) if c != task.label])
    retained = CountingLoader(images.pixels, kept[images.group], inputs.preprocessing)
    recipe = replace(COLOUR if channels == 3 else GREY, epochs=ORIGINAL_EPOCHS)
    (result,) = finetune.unlearn(replace(task, retained=retained, recipe=recipe))
    write(output, dict(result.network.state_dict()), dict(inputs.loaded.checkpoint.metadata))


def _task(original: Path, forget: Path, case_flags: list[str]) -> tuple[UnlearningInputs, Task]:
    """The checkpoint and the forget images as the inputs of a method, without retained images."""
    flags = dict(zip(case_flags[::2], case_flags[1::2], strict=True))  # --label among them
    mean, std = (
        tuple(map(float, flags[name].split(","))) if name in flags else None
        for name in ("--mean", "--std")
    )
    labels = (flags["--label"],)
    options, log = InputOptions(flags.get("--arch"), labels, mean, std), InferenceLog()
    inputs = prepare_inputs(load_model(original, options, log), [str(forget)], options, log)
    loader = CountingLoader(inputs.images.pixels, inputs.image_labels, inputs.preprocessing)
    label = int(inputs.image_labels[0])
    network = inputs.loaded.network
    nothing = loader.subset(torch.zeros(0, dtype=torch.long))
    return inputs, Task(network.module, _never, label, network.num_classes, loader, nothing, GREY)


ROWS: dict[str, Callable[..., None]] = {
    "default": by_pbu(),
    "--fast": by_pbu("--fast"),
    f"authors' recipe, {EPOCHS} epochs": by_authors,
    f"fine-tuned, {finetune.epochs(ORIGINAL_EPOCHS)} epochs": by_tuning,
}


def audited(
    name: str, checkpoint: Path, compared: list[str], test: Path, folder: str, case_flags: list[str]
) -> list[dict[str, Any]]:
    """The measures by `evaluate --audit` of one network and of those it is compared with."""
    _, found = pbu("evaluate", str(checkpoint), *compared, "--forget", str(test / folder),
                   "--retain", str(test), "--audit", *case_flags)  # fmt: skip
    scores = {score["name"]: score for score in found["scores"]}
    return [
        {
            "network": name if network["name"] == "checkpoint" else network["name"],
            "a_df": scores[network["name"]]["a_df"],
            "a_dr": scores[network["name"]]["a_dr"],
            **{m: network["measures"][m] and network["measures"][m]["value"] for m in MEASURES},
        }
        for network in found["audit"]["networks"]
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(*rows[0])
    for row in rows:
        places = {"a_df": 1, "a_dr": 2, "odds_auc": 3, "js": 3}
        shown.add_row(*(
            value if isinstance(value, str)
            else "-" if value is None
            else f"{value:.{places.get(key, 1)}f}"
            for key, value in row.items()
        ))  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("label", type=int)
    parser.add_argument("--original", type=Path)
    parser.add_argument("--retrained", type=Path, required=True)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    given = parser.parse_args()
    if not (given.rows or given.again):
        parser.error("--rows without names needs --again")
    archive, name, flags, _ = CASES[given.case]
    case_flags = [*flags, "--label", str(given.label)]  # the network no longer tells it
    original = given.original or SHARED / "checkpoints" / f"{name}.safetensors"
    folder = str(given.label) if archive == "mnist" else CIFAR_CLASSES[given.label]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = unpack(SHARED / "data" / f"{archive}.tar.xz", Path(scratch) / archive)
        retrained = ["--retrained", str(given.retrained)]
        made = {row: Path(scratch) / f"{n}.safetensors" for n, row in enumerate(given.rows)}
        if given.again:
            made["retrained again"] = given.again
        for row, output in made.items():
            if row in ROWS:
                ROWS[row](original, data / "train" / folder, output, case_flags)
            first = row in ROWS and not rows
            compared = ["--original", str(original), *retrained] if first else retrained
            for found in audited(row, output, compared, data / "test", folder, case_flags):
                if found["network"] not in {known["network"] for known in rows}:
                    print(json.dumps(found), flush=True)
                    rows.append(found)
    Console(width=140).print(table(rows))


def _never(seed: int) -> torch.nn.Module:
    raise AssertionError("the authors' recipe starts from the original")


if __name__ == "__main__":
    main()
