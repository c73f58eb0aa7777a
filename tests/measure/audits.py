"""The README's table of what is left of a class: everything that forgets it, beside a retrained
network, by `pbu evaluate --audit`.

    python -m tests.measure.audits original 8 --retrained WITHOUT_SHIP.safetensors
    python -m tests.measure.audits mnist 8 --original O.safetensors --retrained R.safetensors --rows default
    python -m tests.measure.audits original 3 --retrained R.safetensors --again R2.safetensors --rows

Cases are those of tests.measure.results; `--original` puts another checkpoint in the place of the case's,
`--again` adds the row of a network retrained by another seed, `--rows` without names is none else.
Unlearns from all training images of the class and audits on the test split, some 12 minutes a
class on one core. A line of JSON a network, and a table in the end.
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
from pbu_cli.benchmark.methods import finetune, pbu_paper
from pbu_cli.benchmark.methods.task import Task
from pbu_cli.benchmark.training import COLOUR, GREY
from pbu_cli.data.decoding import decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import UnlearningInputs, assemble
from pbu_cli.io.safetensors_format import write
from pbu_cli.settings import InputOptions
from tests.measure.archives import unpack
from tests.measure.results import CASES, CIFAR_CLASSES, SHARED, pbu

EPOCHS = 2  # of the authors' recipe
ORIGINALS = 14  # those of the originals, a third of which fine-tuning takes
MEASURES = ("probe", "probe_recall", "odds_auc", "relearnt", "js", "log_p_retain")


def by_pbu(*flags: str) -> Callable[..., None]:
    def make(original: Path, forget: Path, output: Path, own: list[str]) -> None:
        pbu("unlearn", str(original), "--forget", str(forget), "-o", str(output), *own, *flags)

    return make


def by_authors(original: Path, forget: Path, output: Path, own: list[str]) -> None:
    """Their recipe on the case's own network and images, as `pbu benchmark` runs it."""
    prepared, task = _task(original, forget, own)
    for _, result in zip(range(EPOCHS), pbu_paper.unlearn(task), strict=False):
        found = result.network
    write(output, dict(found.state_dict()), dict(prepared.loaded.checkpoint.metadata))


def by_tuning(original: Path, forget: Path, output: Path, own: list[str]) -> None:
    """As `pbu benchmark` fine-tunes: on all training images of the others, which pbu never sees."""
    prepared, task = _task(original, forget, own)
    folders = sorted(set(forget.parent.iterdir()) - {forget})  # in the order of the classes
    channels = prepared.images.pixels.shape[1]
    images = decode(
        list_groups([str(folder) for folder in folders]),
        channels=channels, size=prepared.preprocessing.size,
    )  # fmt: skip
    kept = torch.tensor([c for c in range(task.num_classes) if c != task.label])
    retained = CountingLoader(images.pixels, kept[images.group], prepared.preprocessing)
    recipe = replace(COLOUR if channels == 3 else GREY, epochs=ORIGINALS)
    (result,) = finetune.unlearn(replace(task, retained=retained, recipe=recipe))
    write(output, dict(result.network.state_dict()), dict(prepared.loaded.checkpoint.metadata))


def _task(original: Path, forget: Path, own: list[str]) -> tuple[UnlearningInputs, Task]:
    """The case's own network and images; no retained ones."""
    flags = dict(zip(own[::2], own[1::2], strict=True))  # --label among them
    mean, std = (
        tuple(map(float, flags[name].split(","))) if name in flags else None
        for name in ("--mean", "--std")
    )
    labels = (flags["--label"],)
    wanted = InputOptions(arch=flags.get("--arch"), labels=labels, mean=mean, std=std)
    loaded = load_model(original, wanted, _unheard)
    prepared = assemble(loaded, [str(forget)], wanted, _unheard)
    feed = CountingLoader(prepared.images.pixels, prepared.image_labels, prepared.preprocessing)
    label = int(prepared.image_labels[0])
    network = prepared.loaded.network
    nothing = feed.chosen(torch.zeros(0, dtype=torch.long))
    return prepared, Task(network.module, _never, label, network.num_classes, feed, nothing, GREY)


ROWS: dict[str, Callable[..., None]] = {
    "default": by_pbu(),
    "--fast": by_pbu("--fast"),
    f"authors' recipe, {EPOCHS} epochs": by_authors,
    f"fine-tuned, {finetune.epochs(ORIGINALS)} epochs": by_tuning,
}


def audited(name: str, made: Path, beside: list[str], test: Path, folder: str, own: list[str]
) -> list[dict[str, Any]]:  # fmt: skip
    """What `evaluate --audit` says of a network and of those beside it."""
    _, found = pbu("evaluate", str(made), *beside, "--forget", str(test / folder),
                   "--retain", str(test), "--audit", *own)  # fmt: skip
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
    archive, name, flags, _ = CASES[given.prepared]
    own = [*flags, "--label", str(given.label)]  # what forgot says itself no more
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
                ROWS[row](original, data / "train" / folder, output, own)
            first = row in ROWS and not rows
            beside = ["--original", str(original), *retrained] if first else retrained
            for found in audited(row, output, beside, data / "test", folder, own):
                if found["network"] not in {known["network"] for known in rows}:
                    print(json.dumps(found), flush=True)
                    rows.append(found)
    Console(width=140).print(table(rows))


def _never(seed: int) -> torch.nn.Module:
    raise AssertionError("the authors' recipe starts from the original")


def _unheard(what: str, value: str, source: str) -> None:
    """The table says what was measured, not what was inferred."""


if __name__ == "__main__":
    main()
