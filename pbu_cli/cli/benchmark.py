"""`pbu benchmark`: parse the flags, run the grid, show the table. torch is imported later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pbu_cli import __version__
from pbu_cli.benchmark.methods import NAMES, parse_methods
from pbu_cli.cli.flags.parsing import size_in_pixels
from pbu_cli.cli.flags.shared import (
    IMAGES,
    NETWORK,
    OUTPUT,
    Device,
    Json,
    NoExifRotation,
    Quiet,
    Verbose,
)
from pbu_cli.settings import SCHEMA

if TYPE_CHECKING:
    from pbu_cli.benchmark.protocol import BenchmarkPlan
    from pbu_cli.benchmark.result_store import Cell
    from pbu_cli.benchmark.table import Row
    from pbu_cli.cli.console import Screen

DatasetName = Annotated[
    Literal["mnist", "cifar10", "cifar100", "food101", "folder"],
    typer.Option(
        help="folder: any folder with train/<class> and test/<class>.", rich_help_panel=IMAGES
    ),
]
DataRoot = Annotated[
    Path, typer.Option(metavar="DIR", help="Where the data set is.", rich_help_panel=IMAGES)
]
Download = Annotated[
    bool, typer.Option("--download", help="Download what is missing.", rich_help_panel=IMAGES)
]
ImagesPerClass = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000,
        help="Use at most this many images of each class in either split, for trials.",
        rich_help_panel=IMAGES,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        help="Input size in pixels.",
        show_default="the images', or the next larger one that the model takes",
        rich_help_panel=IMAGES,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A torchvision classifier, which is trained here.",
        rich_help_panel=NETWORK,
    ),
]
OwnArch = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FUNCTION",
        help="Instead of --model: a function that returns the untrained module.",
        rich_help_panel=NETWORK,
    ),
]
Stem = Annotated[
    Literal["auto", "small", "usual"],
    typer.Option(
        help="The first layers of a ResNet. auto: small (3x3, no max-pool) for colour images of at"
        " most 64 pixels.",
        rich_help_panel=NETWORK,
    ),
]
Classes = Annotated[
    str, typer.Option(metavar="C,C,...", help="Classes to forget one at a time, number or name.")
]
Methods = Annotated[
    str, typer.Option(metavar="M,M,...", help=f"all, or some of: {', '.join(NAMES)}.")
]
Seeds = Annotated[int, typer.Option(min=1, max=1000, help="How many originals to train.")]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="Epochs of an original.", show_default="the recipe's"),
]
Results = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="Where results and originals are kept. A run reuses those that are there.",
        rich_help_panel=OUTPUT,
    ),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Write the network of every method too.", rich_help_panel=OUTPUT),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg", help="Draw the table as a picture.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would run; train nothing.", rich_help_panel=OUTPUT),
]


def benchmark(
    dataset: DatasetName = "mnist",
    data_root: DataRoot = Path("data"),
    download: Download = False,
    images_per_class: ImagesPerClass = None,
    size: ImageSize = None,
    model: Model = "resnet34",
    arch: OwnArch = None,
    no_exif_rotation: NoExifRotation = False,
    stem: Stem = "auto",
    classes: Classes = "0",
    methods: Methods = "all",
    seeds: Seeds = 1,
    epochs: Epochs = None,
    out: Results = Path("results"),
    keep: Keep = False,
    plot: Plot = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare pbu with other methods on the same originals, images and measures."""
    from pbu_cli.cli.session import open_session

    method_names, pixels = parse_methods(methods), size_in_pixels(size)
    screen, _ = open_session(as_json, quiet, verbose)
    from pbu_cli.benchmark.datasets import load_dataset, resized
    from pbu_cli.benchmark.networks import choose_network
    from pbu_cli.benchmark.originals import check_writable
    from pbu_cli.benchmark.protocol import BenchmarkPlan, parse_classes
    from pbu_cli.benchmark.table import document, summarise
    from pbu_cli.benchmark.training import recipe_for
    from pbu_cli.io.atomic_files import check_output
    from pbu_cli.runtime.device import choose_device

    if plot is not None:
        check_output(plot, force=True, suffix=".svg")
    torch_device = choose_device(device)
    with screen.progress("reading", None) as bar:
        data = load_dataset(
            dataset,
            data_root,
            size=pixels,
            per_class=images_per_class,
            download=download and not dry_run,
            exif_rotation=not no_exif_rotation,
            progress=lambda split, images: bar(images, split),
        )
    channels, own_size = data.preprocessing.channels, data.preprocessing.size
    network = choose_network(
        model, arch, len(data.classes), channels, own_size, stem=stem, fixed_size=bool(pixels)
    )
    recipe = recipe_for(data.name, network.name, channels)
    plan = BenchmarkPlan(
        resized(data, network.size),
        network,
        recipe if epochs is None else replace(recipe, epochs=epochs),
        parse_classes(classes, data),
        method_names,
        seeds,
        out,
        torch_device,
        keep_networks=keep,
    )
    check_writable(plan.folder())
    for what, value, source in plan.notes():
        screen.note(what, value, source)
    if dry_run:
        screen.line(f"dry run: nothing was trained; would write {plan.folder()}")
        screen.document({**_heading(plan), "dry_run": True})
        return
    cells = list(_run(screen, plan))
    rows = summarise(cells, data.name, network.name)
    _show(screen, plan, rows, plot)
    results = {"rows": [document(row) for row in rows], "cells": [asdict(cell) for cell in cells]}
    screen.document({**_heading(plan), **results})


def _run(screen: Screen, plan: BenchmarkPlan) -> Iterator[Cell]:
    """Yield the cells as they come, with a bar over the whole grid and a note for each new one."""
    from pbu_cli.benchmark.grid import run_grid
    from pbu_cli.benchmark.protocol import GridProgress, duration

    progress, count = GridProgress(plan), len(plan.grid())
    with screen.progress("benchmark", progress.total) as bar:

        def count_images(images: int) -> None:
            progress.advance(images)
            bar(progress.done, f"cell {progress.cells} of {count} done")

        for cell, stored in run_grid(plan, count_images):
            progress.finish_cell(stored=stored)
            bar(progress.done, f"cell {progress.cells} of {count} done")
            if not stored:
                last = cell.outcomes[-1]
                screen.note(
                    f"{progress.cells} of {count}",
                    f"{cell.name}: A_Df {last.measures['a_df']:.2f},"
                    f" A_Dr {last.measures['a_dr']:.2f}",
                    f"{last.seconds:.0f} s; about {duration(progress.seconds_left())} left",
                )
            yield cell


def _show(screen: Screen, plan: BenchmarkPlan, rows: list[Row], plot: Path | None) -> None:
    """A table for each class, the captions below the last one, and the picture."""
    from pbu_cli.benchmark.plot import draw
    from pbu_cli.benchmark.table import CAPTIONS, plot_points, table
    from pbu_cli.io.atomic_files import write_text

    name = f"{plan.dataset.name}, {plan.network.name}"
    seeds = "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    for label in plan.labels:
        columns, texts = table([row for row in rows if row.label == label])
        captions = CAPTIONS if label == plan.labels[-1] else ()
        title = f"{name}, class {plan.class_name(label)}: {seeds}"
        screen.table(title, columns, texts, *captions)
    if plot is not None:
        write_text(plot, draw(name, plot_points(rows)))
        screen.line(f"wrote {plot}")
    screen.line(f"wrote {plan.folder()}")


def _heading(plan: BenchmarkPlan) -> dict[str, Any]:
    """The entries of the JSON document that do not depend on what is measured."""
    found = {"schema": SCHEMA, "pbu": __version__, "command": "benchmark"}
    return {**found, "output": str(plan.folder()), "protocol": plan.document()}
