"""Infer the label of a folder of images from the user's flag, the folder's name, or predictions.

Every label comes with its source. Predictions that contradict what the user says are an error that
names the flag which settles it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pbu_cli.data.label_names import contradiction
from pbu_cli.errors import ImageError, printable

MAJORITY = 50.0  # percent of the images of a folder that must share the prediction to label it
OVERWHELMING = 90.0  # the same where what follows from the label cannot be undone
APART = 2.0  # the most frequent prediction is at least so many times as frequent as the second
DOUBTFUL = 10.0  # percent of the images: if fewer are predicted as the label, there is a warning
ALIKE = 15.0  # percentage points by which two distributions of predictions may differ in all


@dataclass(frozen=True)
class LabelRules:
    """How far predictions decide.

    binding: whether predictions that contradict a folder's name are an error. Without it the
    classes that the metadata call forgotten tell the label, since a network that has forgotten a
    class cannot. vote: percent of a folder's images that must share a prediction where nothing
    else tells their label.
    """

    binding: bool = True
    vote: float = MAJORITY


@dataclass(frozen=True)
class History:
    """What earlier runs of pbu have made the network forget, as its metadata say.

    forgotten: the classes. answers: for each of them, where it is known, percent of its forget
    images by the class that the network then predicted for them.
    """

    forgotten: tuple[int, ...] = ()
    answers: Mapping[int, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """The label of a folder.

    index: the class. source: what the label was inferred from, in words. doubt: a warning where
    few predictions agree with the label, else None.
    """

    index: int
    source: str
    doubt: str | None = None


def majority(predictions: Tensor) -> int:
    """The most frequent class in int64 [n]; the lowest index where several are equally frequent."""
    return int(torch.bincount(predictions).argmax())


def resolve_label(
    folder: str,
    given: int | None,
    named: int | None,
    predictions: Tensor,
    *,
    rules: LabelRules = LabelRules(),
    history: History = History(),
    misfit: str = "",
) -> Label:
    """The label of one folder: the user's, else the one in its name, else the majority prediction.

    folder: the folder's name, empty for a list. given: the label from --label. named: the label
    that the folder's name gives. predictions: int64 [n], the class that the model predicts for each
    image. misfit: why the images do not fit the network as they are prepared, in words; its
    predictions then tell no label.

    Raises ImageError where the predictions or the metadata contradict the name, and where nothing
    tells the label.
    """
    shown = printable(folder) or "the list"
    if given is not None:
        return Label(given, f"--label; {_agreement(predictions, given)}")
    if named is not None:
        if not rules.binding or named not in history.forgotten:
            _check_name(shown, named, predictions, rules, history)
        doubt = _doubt(shown, named, predictions) if rules.binding else None
        if named in history.forgotten:
            doubt = None
        return Label(named, f"the folder's name; {_agreement(predictions, named)}", doubt)
    if history.forgotten:
        return _label_from_history(shown, predictions, rules, history)
    return _label_from_vote(shown, folder, predictions, rules, misfit)


def _label_from_history(
    shown: str, predictions: Tensor, rules: LabelRules, history: History
) -> Label:
    """The forgotten class that the images are of, where the metadata tell it.

    Where the predictions do not bind, the only forgotten class is it. Otherwise the network has to
    predict for the images what it predicted for those that it forgot, and this has to differ from
    what it predicts for any class that it knows.
    """
    forgotten = ", ".join(map(str, history.forgotten))
    if not rules.binding and len(history.forgotten) == 1:
        (label,) = history.forgotten
        source = f"the forgotten class in the metadata; {_agreement(predictions, label)}"
        return Label(label, source)
    if not rules.binding:
        raise ImageError(
            f"{shown}: nothing tells its class, and a model that has forgotten it cannot: pass"
            " --label, or --original with the checkpoint before forgetting"
        )
    shares = _shares(predictions)
    alike = [
        label
        for label, before in history.answers.items()
        if _distance(shares, before) <= ALIKE and max(shares.values()) < OVERWHELMING
    ]
    if len(alike) == 1:
        source = (
            "the model predicts for the images what it predicted for those of this class when the"
            " metadata were written"
        )
        return Label(alike[0], source)
    commonest = majority(predictions)
    raise ImageError(
        f"{shown}: nothing tells its class: the model has forgotten {forgotten} before, so that its"
        f" predictions (most often {commonest}, for {_share(predictions, commonest):.1f} % of"
        f" {len(predictions)} images) may be those of a forgotten class: pass --label with the"
        " class that the images show"
    )


def _label_from_vote(
    shown: str, folder: str, predictions: Tensor, rules: LabelRules, misfit: str
) -> Label:
    """The majority prediction, where it is clear enough and nothing speaks against it."""
    label, runner_up = _two_commonest(predictions)
    share, second = _share(predictions, label), _share(predictions, runner_up)
    vote = f"{label} for {share:.1f} % of {len(predictions)} images, {runner_up} for {second:.1f} %"
    if misfit:
        raise ImageError(
            f"{shown}: nothing tells its class: the model predicts {vote}, but {misfit}, so that"
            " its predictions tell nothing: pass --size, or --mean and --std, as in the training,"
            " or --label"
        )
    if share < MAJORITY or share < APART * second:
        raise ImageError(
            f"{shown}: nothing tells its class: the model predicts {vote}, which is no clear"
            " majority: pass --label, or correct --size, --mean and --std"
        )
    against = contradiction(folder, label)
    if rules.vote > MAJORITY and (share < rules.vote or against):
        reason = against or f"expected {rules.vote:g} % or more"
        raise ImageError(
            f"{shown}: nothing but the predictions tells its class: {vote} ({reason}); look at the"
            f" images and pass --label {label}, or --yes, if that is the class they show"
        )
    return Label(label, f"{_agreement(predictions, label)}, {runner_up} for {second:.1f} %")


def _check_name(
    shown: str, named: int, predictions: Tensor, rules: LabelRules, history: History
) -> None:
    """Raise ImageError where the metadata or binding predictions contradict the folder's name."""
    if not rules.binding and history.forgotten and named not in history.forgotten:
        raise ImageError(
            f"{shown}: the folder's name says class {named}, but the checkpoint's metadata say"
            f" that it has forgotten {', '.join(map(str, history.forgotten))}: pass --label"
            f" {named}, or with --original and the checkpoint before forgetting"
        )
    predicted = majority(predictions)
    share = _share(predictions, predicted)
    if rules.binding and predicted != named and share >= MAJORITY:
        raise ImageError(
            f"{shown}: the folder's name says class {named}, but the model predicts {predicted} for"
            f" {share:.1f} % of its {len(predictions)} images (and {named} for"
            f" {_share(predictions, named):.1f} %): look at the images and pass --label with the"
            f" class that they show, {named} or {predicted}, or correct --size, --mean and --std"
        )


def _doubt(shown: str, named: int, predictions: Tensor) -> str | None:
    """A warning where few predictions agree with the name, or more with another class."""
    agree, predicted = _share(predictions, named), majority(predictions)
    if agree >= DOUBTFUL and predicted == named:
        return None
    return (
        f"{shown}: the folder's name says class {named}, but the model predicts {named} for only"
        f" {agree:.1f} % of its {len(predictions)} images (most often {predicted}:"
        f" {_share(predictions, predicted):.1f} %); check --label, --mean, --std and --size"
    )


def _two_commonest(predictions: Tensor) -> tuple[int, int]:
    """The two most frequent classes in int64 [n], the lower index first where they are equal."""
    counts = torch.bincount(predictions, minlength=2)
    first, second = torch.argsort(counts, descending=True, stable=True)[:2].tolist()
    return int(first), int(second)


def _shares(predictions: Tensor) -> dict[int, float]:
    """Percent of predictions by class, without the classes that are never predicted."""
    return {label: _share(predictions, label) for label in set(predictions.tolist())}


def _distance(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Half the sum of the absolute differences of two shares in percent (total variation).

    >>> _distance({0: 60, 1: 40}, {0: 50, 2: 50})
    50.0
    """
    return sum(abs(one.get(c, 0) - other.get(c, 0)) for c in {*one, *other}) / 2


def _share(predictions: Tensor, label: int) -> float:
    """The percentage of predictions that are `label`."""
    return 100 * float((predictions == label).float().mean())


def _agreement(predictions: Tensor, label: int) -> str:
    return f"the model predicts {label} for {_share(predictions, label):.1f} % of the images"
