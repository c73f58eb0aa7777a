"""The defaults, as frozen dataclasses. No torch here: `--help` shows these numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Imported for their registration with Pillow: Image.open would else load all of its plugins.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pbu_cli.errors import InvalidUsage

Estimator = Literal["empirical", "exact", "mc"]

SAFETENSORS = ".safetensors"  # suffix of every file of tensors that pbu writes
SCHEMA = 1  # version of every JSON document and Fisher file that pbu writes
HEAVIEST = 1e6  # weight of a term; the defaults are between 0.02 and 100
LEAST_ANCHORS = 16  # if any
FORGOTTEN = 0.5  # percent of the forget images that may still be recognised


@dataclass(frozen=True)
class Weights:
    """Weights of the objective's terms, all dimensionless.

    Losses are means over images and the Fisher diagonal is divided by its own mean, so that one
    setting serves every network. The last three are not in the paper; 0 gives its objective.
    """

    alpha: float = 1.0  # forgetting: how much the class's likelihood weighs
    beta: float = 0.1  # Fisher-weighted distance from theta*
    gamma: float = 0.1  # plain squared distance from theta*
    delta: float = 100.0  # stability of the answers among the other classes
    epsilon: float = 0.0  # stability of answers and features on the anchors
    zeta: float = 0.0  # log distance of the forget images' features from those of the anchors

    def __post_init__(self) -> None:
        for name in vars(self):
            value = getattr(self, name)
            if not 0 <= value <= HEAVIEST:
                raise InvalidUsage(f"--{name} {value:g}: expected a number from 0 to {HEAVIEST:g}")


@dataclass(frozen=True)
class Schedule:
    """How the objective is descended: one setting for every network and class."""

    steps: int = 100  # at most; the stopping rule ends a run sooner
    batch_size: int = 64
    warm_up: int = 0  # steps in which the rate rises linearly to the full one, ...
    hold: float = 0.6  # share of the steps at the full rate ...
    last_rate: float = 0.05  # ... from where the rate falls linearly to this share of its start
    head_rate: float = 200.0  # learning rate of the head over that of the other layers
    steps_to_goal: float = 10.0  # calibration: Adam's first steps would reach the goal in so many
    tau: float = 1e-6  # the probability of the class that forgetting aims for
    restraint: float = 0.0  # weight of log odds below that goal, beside alpha for those above it
    recognised: float = 0.1  # an image counts as recognised while the class holds more than this
    window: int = 256  # the recent forget images by which a run is judged
    growth: float = 0.1  # alpha grows by this share a step while too many are recognised ...
    ceiling: float = 30.0  # ... to at most this many times its start, and falls back to it else
    seed: int = 0
    most_drift: float = 1.0  # nats, of forget images or, where there are any, of anchors
    inversion: int = 20  # steps in which an anchor is made
    mirror: float = 0.0  # share recognised mirrored from which mirror images join; 0: never
    imagined: float = 0.2  # inputs of the class made from anchors, for each forget image
    apart: float = 0.09  # share that may stay of the distance of forget images from anchors, ...
    least_apart: float = 2.5  # ... but not less than this
    scatter: float = 0.75  # share of the scatter of forget images, in squares, that has to stay


@dataclass(frozen=True)
class Preset:
    """What belongs together: weights, schedule, which parameters train, and how many anchors."""

    weights: Weights
    schedule: Schedule
    layers: str
    anchors: int


# The answers alone, in seconds; also the frame of the paper's own objective, with delta = 0.
FAST = Preset(Weights(), Schedule(), "last", 0)
# The features too: with a head that trains the logits would move and the features stay.
DEEP = Preset(
    Weights(alpha=1.0, beta=0.02, gamma=0.02, delta=10.0, epsilon=80.0, zeta=5.0),
    Schedule(
        steps=300,
        warm_up=10,
        hold=0.0,
        last_rate=0.0,
        steps_to_goal=4.0,
        restraint=1.0,
        tau=4.5e-5,  # where networks trained without the class have it: log odds of about -10
        most_drift=0.5,
        mirror=0.95,
    ),
    "stage",
    2048,
)


@dataclass(frozen=True)
class Preprocessing:
    """Pixels in [0, 1], less `mean`, over `std`, one number a channel; size (height, width)."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)


# The usual normalisations, tried in this order. Raw 0-255 is mean 0 and std 1/255.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "MNIST": ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
    "0.5/0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit range": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "raw 0-255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


SMALL = 96  # pixels; networks for images up to this size are trained without a margin ...


@dataclass(frozen=True)
class InputOptions:
    """What the user said about network and images; None or empty is for pbu to infer."""

    arch: str | None = None
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    device: str = "auto"
    batch_size: int = 256
    skip_bad: bool = False
    deterministic: bool = False
