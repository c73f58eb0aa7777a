"""The defaults and what a user may set, as frozen dataclasses.

No torch here: `--help` shows these numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pbu_cli.errors import InvalidUsage

Estimator = Literal["empirical", "exact", "mc"]

SAFETENSORS = ".safetensors"  # suffix of every file of tensors that pbu writes
SCHEMA = 1  # version of every JSON document and Fisher file that pbu writes
MAX_WEIGHT = 1e6  # of a term of the objective; the defaults are between 0.02 and 100
MIN_ANCHORS = 16  # with fewer anchors their statistics cannot be compared
FORGOTTEN = 0.5  # percent of the forget images that may still be recognised
MAX_BATCH = 65_536  # images per forward pass; far more than any machine holds of any image
MAX_DRAWS = 10_000  # labels drawn for each image by the estimator `mc`
MAX_SIZE = 4096  # pixels a side that --size may ask for
MAX_STATED_SIZE = 1024  # pixels a side that a file may ask for; published networks take up to 800
UNSEEN = 0.0045  # times 1 / classes^2: the probability of a class that training has not seen
NO_PRESET = "none"  # the value of --preset for pbu's own way of resizing
SMALL_IMAGE = 96  # pixels a side; networks for images up to this size see them without a margin


@dataclass(frozen=True)
class Weights:
    """The weights of the objective's terms, all dimensionless.

    The losses are means over images and the Fisher diagonal is divided by its own mean, so one
    setting serves every network. With the last three at 0 the objective is the paper's.
    """

    alpha: float = 1.0  # forgetting: how much the likelihood of the class weighs
    beta: float = 0.1  # the Fisher-weighted squared distance from theta*
    gamma: float = 0.1  # the plain squared distance from theta*
    delta: float = 100.0  # stability of the logits of the other classes on the forget images
    epsilon: float = 0.0  # stability of the logits and the features on the anchors
    zeta: float = 0.0  # separation of the forget images' features from the anchors' features

    def __post_init__(self) -> None:
        for name in vars(self):
            value = getattr(self, name)
            if not 0 <= value <= MAX_WEIGHT:
                raise InvalidUsage(
                    f"--{name} {value:g}: expected a number from 0 to {MAX_WEIGHT:g}"
                )


@dataclass(frozen=True)
class Schedule:
    """How the objective is minimised: one setting for every network and class.

    The names of the fields are part of the written files and of `--json`, so they stay.
    """

    steps: int = 100  # at most; the stopping rule may end a run sooner
    batch_size: int = 64
    warm_up: int = 0  # steps in which the learning rate rises linearly to the full rate
    hold: float = 0.6  # the learning rate starts to fall after this share of the steps
    last_rate: float = 0.05  # the learning rate falls linearly to this share of the full rate
    head_rate: float = 200.0  # learning rate of the head over that of the other layers
    steps_to_goal: float = 10.0  # calibration: Adam would reach the goal in this many first steps
    tau: float | None = 1e-6  # the probability of the class to aim for; None: see `goal`
    restraint: float = 0.0  # weight of log odds below that goal, relative to alpha's start
    recognised: float = 0.1  # an image is recognised while its class holds more probability
    window: int = 256  # a run is judged by this many of the most recent forget images
    growth: float = 0.1  # alpha grows by this share a step while too many images are recognised
    ceiling: float = 30.0  # alpha grows to at most this many times its start
    seed: int = 0
    most_drift: float = 1.0  # nats, measured on the anchors if there are any, else on forget images
    inversion: int = 20  # optimisation steps that make an anchor
    mirror: float = 0.0  # mirrored images join from this recognised share on; 0: they never do
    imagined: float = 0.2  # synthetic forget inputs for each forget image
    apart: float = 0.09  # share of the distance between forget images and anchors that may remain
    least_apart: float = 2.5  # the distance may always remain at least this large
    scatter: float = 0.75  # share of the variance of the forget images' features that has to remain

    def goal(self, classes: int) -> float:
        """The log odds that forgetting aims for in a network of so many classes, logit(tau).

        Without a tau it is UNSEEN / classes^2: in networks that were trained without a class, it
        had log odds of -10.3 (of ten classes), -15.0 and -14.7 (of a hundred) on its own images.
        >>> [round(Schedule(tau=None).goal(classes), 1) for classes in (10, 100, 1000)]
        [-10.0, -14.6, -19.2]
        """
        tau = UNSEEN / classes**2 if self.tau is None else self.tau
        return math.log(tau / (1 - tau))


@dataclass(frozen=True)
class UnlearningSettings:
    """Everything that decides how a class is forgotten.

    layers: which parameters train, `stage`, `last`, `head`, `all` or a regular expression on
    their names. anchors: how many anchors are made. estimator, draws: how the Fisher diagonal is
    estimated where no Fisher file is given.
    """

    weights: Weights = field(default_factory=Weights)
    schedule: Schedule = field(default_factory=Schedule)
    layers: str = "last"
    anchors: int = 0
    estimator: Estimator = "empirical"
    draws: int = 1

    def adjusted(self, **changes: Any) -> UnlearningSettings:
        """The same with some settings changed, by name, whether of weights, schedule or these.

        A change to None changes nothing.

        >>> FAST.adjusted(alpha=2.0, steps=50, anchors=None).schedule.steps
        50
        """
        given = {name: value for name, value in changes.items() if value is not None}
        weights = {name: given.pop(name) for name in vars(self.weights) if name in given}
        schedule = {name: given.pop(name) for name in vars(self.schedule) if name in given}
        return replace(
            self,
            weights=replace(self.weights, **weights),
            schedule=replace(self.schedule, **schedule),
            **given,
        )

    def within_batch(self, batch_size: int) -> UnlearningSettings:
        """The same with steps that pass at most `batch_size` images through the network.

        A step passes as many anchors as forget images, if there are anchors. Raises InvalidUsage
        where the number of anchors and the weights of their terms do not go together.
        """
        weights, anchors = self.weights, self.anchors
        if 0 < anchors < MIN_ANCHORS:
            raise InvalidUsage(
                f"--anchors {anchors}: expected 0 or at least {MIN_ANCHORS}, whose statistics can"
                " be compared; 0 needs --epsilon 0 --zeta 0, or --fast"
            )
        if bool(anchors) != bool(weights.epsilon or weights.zeta):
            raise InvalidUsage(
                f"--anchors {anchors} with --epsilon {weights.epsilon:g} --zeta {weights.zeta:g}:"
                " needs both or neither: give anchors and a weight, or --fast alone for neither"
            )
        most = batch_size // 2 if anchors else batch_size
        return self.adjusted(batch_size=max(1, min(self.schedule.batch_size, most)))


# The logits change and the features hardly do, in seconds. With delta = 0 it is the frame of the
# paper's own objective.
FAST = UnlearningSettings()
# The features change too. The head does not train: if it did, its logits would move and the
# features would stay as they are.
DEFAULT = UnlearningSettings(
    Weights(alpha=1.0, beta=0.02, gamma=0.02, delta=10.0, epsilon=80.0, zeta=5.0),
    Schedule(
        steps=300,
        warm_up=10,
        hold=0.0,
        last_rate=0.0,
        steps_to_goal=4.0,
        restraint=1.0,
        tau=None,
        most_drift=0.5,
        mirror=0.95,
    ),
    layers="stage",
    anchors=2048,
)


@dataclass(frozen=True)
class FisherSettings:
    """How a Fisher diagonal is measured, and of which parameters; `layers` as in unlearning."""

    estimator: Estimator = "empirical"
    draws: int = 1
    seed: int = 0
    layers: str = DEFAULT.layers  # a diagonal of the first layers shows the images


@dataclass(frozen=True)
class Preprocessing:
    """Pixels in [0, 1], less `mean`, over `std`, one number a channel; size (height, width).

    Fisher files hold the repr of this class, so its name and its fields stay.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class InputOptions:
    """What the user says about the network and the images; None or empty is for pbu to infer.

    arch: a torchvision name, or FILE.py:FUNCTION or pkg.mod:FUNCTION. state_dict: the key of the
    state dict to read, where a PyTorch file holds several. labels: class indices or
    names, one for all folders or one for each. mean, std: one number a channel, of pixels in
    [0, 1]. size: (height, width) in pixels. batch_size: images per forward pass. exif_rotation:
    turn images as their EXIF data say. preset: torchvision weights whose way of resizing and
    normalisation are used, or NO_PRESET for pbu's own way whatever a file states. class_index: a
    file with the name or the WordNet id of each class.
    """

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
    exif_rotation: bool = True
    preset: str | None = None
    state_dict: str | None = None
    class_index: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH:
            raise InvalidUsage(
                f"--batch-size {self.batch_size}: expected a number from 1 to {MAX_BATCH:,}"
            )

    def entry(self) -> dict[str, Any]:
        """The options as records and metadata have them, without the folder of an absolute --arch.

        `exif_rotation` is there only where it is off, `preset`, `state_dict` and `class_index` only
        where they are given: a run without the flags writes the bytes of versions without them.
        """
        found = dict(vars(self))
        if self.arch is not None and ":" in self.arch and os.path.isabs(self.arch):  # noqa: PTH117
            found["arch"] = os.path.basename(self.arch)  # noqa: PTH119 (a path is the user's own)
        if self.exif_rotation:
            del found["exif_rotation"]
        if self.class_index is not None:
            found["class_index"] = os.path.basename(self.class_index)  # noqa: PTH119 (as above)
        for key in ("preset", "state_dict", "class_index"):
            if found[key] is None:
                del found[key]
        return found
