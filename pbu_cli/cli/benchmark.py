"""`pbu benchmark`: parse, run the grid, render. No torch until the command runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pbu_cli import __version__
from pbu_cli.benchmark.methods import NAMES
from pbu_cli.cli.options import IMAGES, NETWORK, OUTPUT, Device, Json, Quiet, pixels_of
from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.settings import SCHEMA

if TYPE_CHECKING:
    from pbu_cli.benchmark.protocol import BenchmarkPlan
    from pbu_cli.benchmark.result_store import Cell
    from pbu_cli.cli.console import Screen


CAPTIONS = (
    "A_Df, A_Dr: percent on the test split, mean and standard deviation over the seeds; the",
    "paper's as it reports them, pbu-paper beside the same figures as pbu. odds AUC: how well the",
    "log odds of the class tell its images from others, 0.5 for not at all; of head-mask, under",
    "the mask. seconds of the work alone; images: training images handed to the method, each time",
    "counted; reads: which.",
)


def benchmark(
    dataset: Annotated[
        Literal["mnist", "cifar10", "cifar100", "food101", "folder"],
        typer.Option(help="folder: train/<class> and test/<class>.", rich_help_panel=IMAGES),
    ] = "mnist",
    data_root: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the data are.", rich_help_panel=IMAGES)
    ] = Path("data"),
    download: Annotated[
        bool,
        typer.Option("--download", help="Fetch what is missing.", rich_help_panel=IMAGES),
    ] = False,
    images_per_class: Annotated[
        int | None,
        typer.Option(min=1, help="At most, in either split: for trials.", rich_help_panel=IMAGES),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Input size in pixels.",
            show_default="the images', or the next that the model takes",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="A torchvision classifier, trained here.", rich_help_panel=NETWORK
        ),
    ] = "resnet34",
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Instead of --model: a function that returns the untrained module.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    stem: Annotated[
        Literal["auto", "small", "usual"],
        typer.Option(
            help="Of a ResNet; auto: small (3x3, no max-pool) for colour images up to 64 pixels.",
            rich_help_panel=NETWORK,
        ),
    ] = "auto",
    classes: Annotated[
        str, typer.Option(metavar="C,C,...", help="To forget, each on its own: numbers or names.")
    ] = "0",
    methods: Annotated[
        str, typer.Option(metavar="M,M,...", help=f"all, or of: {', '.join(NAMES)}.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="How many originals.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the original.", show_default="the recipe's")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Results and originals; a run goes on from what is there.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("results"),
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Write every method's network too.", rich_help_panel=OUTPUT),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="A picture.", rich_help_panel=OUTPUT)
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would run, and stop.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare pbu with other methods: same originals, same images, same measurements."""
    chosen = _methods(methods)
    pixels = pixels_of(size)
    from pbu_cli.benchmark.datasets import load, resized
    from pbu_cli.benchmark.networks import choose
    from pbu_cli.benchmark.originals import check_place
    from pbu_cli.benchmark.plot import draw
    from pbu_cli.benchmark.protocol import BenchmarkPlan
    from pbu_cli.benchmark.table import document, marks, summarise, table
    from pbu_cli.benchmark.training import recipe_for
    from pbu_cli.cli.console import Screen
    from pbu_cli.data.label_inference import parse_label
    from pbu_cli.io.atomic_files import check_output, write_text
    from pbu_cli.runtime.device import choose_device

    if plot is not None:
        check_output(plot, force=True, suffix=".svg")
    screen = Screen(as_json=as_json, quiet=quiet)
    torch_device = choose_device(device)
    with screen.progress("reading", None) as bar:
        data = load(
            dataset,
            data_root,
            size=pixels,
            per_class=images_per_class,
            download=download and not dry_run,
            heard=lambda which, count: bar(count, which),
        )
    known = data.preprocessing
    candidate = choose(
        model, arch, len(data.classes), known.channels, known.size, stem=stem, fixed=bool(pixels)
    )
    data = resized(data, candidate.size)
    recipe = recipe_for(data.name, candidate.name, known.channels)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    named = [text.strip() for text in classes.split(",")]
    labels = [parse_label(text, "--classes", data.classes, len(data.classes)) for text in named]
    plan = BenchmarkPlan(
        data,
        candidate,
        recipe,
        tuple(dict.fromkeys(labels)),
        chosen,
        seeds,
        out,
        torch_device,
        keep,
    )
    check_place(plan.folder())
    _introduce(screen, plan)
    if dry_run:
        screen.line(f"dry run: nothing was trained; would write {plan.folder()}")
        screen.document({**_heading(plan), "dry_run": True})
        return
    measured = list(_worked(screen, plan))
    rows = summarise(measured, data.name, candidate.name)
    for label in plan.labels:
        title = (
            f"{data.name}, {candidate.name}, class {_class_name(plan, label)}:"
            f" {seeds} {'seed' if seeds == 1 else 'seeds'}"
        )
        screen.table(
            title, *table([row for row in rows if row.label == label]),
            *(CAPTIONS if label == plan.labels[-1] else ()),
        )  # fmt: skip
    if plot is not None:
        write_text(plot, draw(f"{data.name}, {candidate.name}", marks(rows)))
        screen.line(f"wrote {plot}")
    screen.line(f"wrote {plan.folder()}")
    screen.document(
        {
            **_heading(plan),
            "rows": [document(row) for row in rows],
            "cells": [asdict(cell) for cell in measured],
        }
    )


def _worked(screen: Screen, plan: BenchmarkPlan) -> Iterator[Cell]:
    """The cells as they come; a bar over the whole grid, and a line for each that was computed."""
    from pbu_cli.benchmark.grid import run

    grid = plan.grid()
    costs = [plan.passes(*place) for place in grid]
    total, before, inside = sum(costs), 0, 0
    start, computed = time.perf_counter(), 0
    with screen.progress("benchmark", total) as bar:
        here = ""

        def seen(images: int) -> None:
            nonlocal inside
            inside += images
            bar(min(before + inside, total), here)

        for number, ((cell, found), cost) in enumerate(
            zip(run(plan, seen), costs, strict=True), start=1
        ):
            before, inside = before + cost, 0
            computed += 0 if found else cost
            here = f"cell {number} of {len(grid)} done"
            bar(before, here)
            last = cell.outcomes[-1]
            if not found:
                pace = (time.perf_counter() - start) / max(computed, 1)
                screen.note(
                    f"{number} of {len(grid)}",
                    f"{cell.name}: A_Df {last.measures['a_df']:.2f}, A_Dr"
                    f" {last.measures['a_dr']:.2f}",
                    f"{last.seconds:.0f} s; about {_duration(pace * (total - before))} left",
                )
            yield cell


def _introduce(screen: Screen, plan: BenchmarkPlan) -> None:
    data, recipe = plan.dataset, plan.recipe
    counts = f"{len(data.train.labels):,} training, {len(data.test.labels):,} test"
    screen.note("images", counts, f"{data.name}, {len(data.classes)} classes")
    screen.note("architecture", plan.candidate.shown, "trained here, from random weights")
    screen.note(
        "recipe",
        ", ".join(f"{key} {value}" for key, value in asdict(recipe).items()),
        f"one-cycle; {plan.device}",
    )
    cells = len(plan.grid())
    total = sum(plan.passes(*place) for place in plan.grid())
    screen.note("grid", f"{cells} cells, about {total:,} passes of an image", str(plan.folder()))


def _methods(text: str) -> tuple[str, ...]:
    names = NAMES if text == "all" else tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InvalidUsage(
            f"--methods {printable(unknown[0])}: expected all, or some of {', '.join(NAMES)}"
        )
    return tuple(name for name in NAMES if name in names)


def _heading(plan: BenchmarkPlan) -> dict[str, Any]:
    data = plan.dataset
    return {
        "schema": SCHEMA,
        "pbu": __version__,
        "command": "benchmark",
        "output": str(plan.folder()),
        "protocol": {
            "dataset": data.name,
            "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
            "preprocessing": vars(data.preprocessing),
            "architecture": plan.candidate.shown,
            "recipe": asdict(plan.recipe),
            "digest": plan.digest,
            "classes": list(plan.labels),
            "methods": list(plan.methods),
            "seeds": plan.seeds,
            "device": str(plan.device),
        },
    }


def _class_name(plan: BenchmarkPlan, label: int) -> str:
    name = plan.dataset.classes[label]
    return name if name == str(label) else f"{label} {name}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(59), _duration(3700)
    ('59 s', '1 h 01 min')
    """
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
