"""The flags of `pbu unlearn` alone, with their defaults shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pbu_cli.cli.flags.shared import LAYERS
from pbu_cli.settings import DEFAULT, FAST


def _weight(name: str, text: str) -> typer.models.OptionInfo:
    """The flag of a weight, with its defaults shown."""
    default, fast = (getattr(settings.weights, name) for settings in (DEFAULT, FAST))
    shown = f"{default:g}" if default == fast else f"{default:g}; --fast: {fast:g}"
    found: typer.models.OptionInfo = typer.Option(min=0, help=text, show_default=shown)
    return found


Fast = Annotated[
    bool,
    typer.Option(
        "--fast", help="Change the logits and hardly the features, without anchors: seconds."
    ),
]
Alpha = Annotated[float | None, _weight("alpha", "Weight of forgetting.")]
Beta = Annotated[float | None, _weight("beta", "Weight of the Fisher-weighted distance.")]
Gamma = Annotated[float | None, _weight("gamma", "Weight of the squared distance.")]
Delta = Annotated[
    float | None,
    _weight("delta", "Weight of stable logits; 0 is the paper's objective, without anchors."),
]
Epsilon = Annotated[
    float | None,
    _weight("epsilon", "Weight of stable logits and features on the anchors."),
]
Zeta = Annotated[
    float | None,
    _weight(
        "zeta",
        "Weight of the loss that keeps a linear probe from separating forget features from"
        " anchor features.",
    ),
]
Anchors = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=100_000,
        help="How many inputs to synthesise for the classes that are kept.",
        show_default=f"{DEFAULT.anchors}; --fast: none",
    ),
]
NoMirror = Annotated[
    bool,
    typer.Option(
        "--no-mirror",
        help="Never use mirrored images. By default they join the forget images where the network"
        " recognises the class in them.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000,
        help="Take at most this many steps.",
        show_default=f"{DEFAULT.schedule.steps}; --fast: {FAST.schedule.steps}",
    ),
]
MaxDamage = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        metavar="POINTS",
        help="Exit with 5 where A_Dr is estimated to have lost more.",
        show_default="no limit",
    ),
]
TrainedLayers = Annotated[
    str | None,
    typer.Option(
        metavar=LAYERS,
        help="Which parameters train: the last stage, the last stage and the head, the head, all,"
        " or a pattern in their names. With anchors the head's row of the class moves too.",
        show_default=f"{DEFAULT.layers}; --fast: {FAST.layers}",
    ),
]
FisherFile = Annotated[
    Path | None,
    typer.Option(
        readable=False,
        metavar="FILE",
        help="Fisher file of `pbu fisher`.",
        show_default="measured now",
    ),
]
Again = Annotated[
    bool,
    typer.Option("--again", help="Run also where the metadata say that the class was forgotten."),
]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes",
        help="Where nothing but the predictions tells the class, take that of most images, also"
        " without an overwhelming majority.",
    ),
]
