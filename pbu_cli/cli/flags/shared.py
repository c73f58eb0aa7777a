"""The flags that several commands share, each declared once, and what their texts mean.

No torch here: `--help` and usage errors answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pbu_cli.settings import MAX_BATCH, MAX_DRAWS, Estimator

NETWORK, IMAGES, OUTPUT = "Network", "Images", "Output"  # panels of --help

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        readable=False,
        help="A safetensors or PyTorch file, or a folder as timm or transformers saved it.",
    ),
]
Forget = Annotated[
    list[str],
    typer.Option(
        metavar="DIR",
        help="Folder of images of the class to forget; again for another class; - reads paths"
        " from stdin.",
        rich_help_panel=IMAGES,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|timm:NAME|FILE.py:FUNCTION|pkg.mod:FUNCTION",
        help="torchvision classifier, one of timm (timm:NAME), or a function that returns the"
        " module.",
        show_default="from config.json, metadata or the tensors",
        rich_help_panel=NETWORK,
    ),
]
StateDict = Annotated[
    str | None,
    typer.Option(
        "--state-dict",
        metavar="KEY",
        help="Which of several state dicts in a PyTorch file to read, such as model_ema.",
        show_default="the only one",
        rich_help_panel=NETWORK,
    ),
]
LabelFlag = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS",
        help="Class to forget, index or name; once, or once for each --forget.",
        show_default="from the folder's name or the model",
        rich_help_panel=IMAGES,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,M",
        help="Mean per channel, of pixels in [0, 1].",
        show_default="from config, metadata or the images",
        rich_help_panel=IMAGES,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,S",
        help="Standard deviation per channel.",
        show_default="as --mean",
        rich_help_panel=IMAGES,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="N|HxW",
        help="Input size in pixels.",
        show_default="from config, metadata or the images",
        rich_help_panel=IMAGES,
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        min=1, max=4, help="Image channels.", show_default="the network's", rich_help_panel=IMAGES
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Go on without unreadable images, and count them.",
        rich_help_panel=IMAGES,
    ),
]
NoExifRotation = Annotated[
    bool,
    typer.Option(
        "--no-exif-rotation",
        help="Do not turn images as their EXIF data say; torchvision's ImageFolder does not.",
        rich_help_panel=IMAGES,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="WEIGHTS|none",
        help="Resize and normalise as torchvision evaluates these weights (IMAGENET1K_V2); none:"
        " pbu's own way, whatever a file states.",
        show_default="as config.json, preprocessor_config.json or metadata state",
        rich_help_panel=IMAGES,
    ),
]
ClassIndex = Annotated[
    str | None,
    typer.Option(
        "--class-index",
        metavar="FILE",
        help="Names or WordNet ids of the classes: imagenet_class_index.json, or one a line.",
        show_default="from config.json or metadata",
        rich_help_panel=IMAGES,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="auto: CUDA, then MPS, then CPU.",
        rich_help_panel=NETWORK,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="The same bytes from the same run: one thread on a CPU, slower kernels on a GPU.",
        rich_help_panel=NETWORK,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(min=1, max=MAX_BATCH, help="Images per forward pass.", rich_help_panel=NETWORK),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Order of the images, and random draws.")
]
LAYERS = "stage|last|head|all|REGEX"
Layers = Annotated[
    str,
    typer.Option(
        metavar=LAYERS,
        help="Which parameters: last stage, last stage and head, head, all, or a pattern in their"
        " names.",
    ),
]
EstimatorFlag = Annotated[
    Estimator,
    typer.Option(
        help="Fisher diagonal. empirical: of the images' own labels; exact: the expectation over"
        " the model's predictions; mc: of labels drawn from the predictions."
    ),
]
Draws = Annotated[
    int, typer.Option(min=1, max=MAX_DRAWS, help="Draws per image of --estimator mc.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.safetensors",
        help="Where to write; unlearn writes a folder if CHECKPOINT is one.",
        show_default="beside the checkpoint",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing output.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no notes.", rich_help_panel=OUTPUT),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Log the steps of the run to stderr.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Infer, check and report; write nothing.", rich_help_panel=OUTPUT
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE.json",
        help="Where to record what was run, on what, and what came out.",
        rich_help_panel=OUTPUT,
    ),
]
RecordKey = Annotated[
    Path | None,
    typer.Option(
        "--record-key",
        metavar="FILE",
        help="Where to keep the key of the record's digest of the forget set; keep it apart.",
        show_default="discarded",
        rich_help_panel=OUTPUT,
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A_Df<=X|A_Dr>=X|damage<=X|MEASURE~X",
        help="Exit with 5 where this does not hold; may be repeated. ~X: within X of --retrained.",
        rich_help_panel=OUTPUT,
    ),
]
