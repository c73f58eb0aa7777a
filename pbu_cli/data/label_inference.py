"""Infer the label of a folder of images from the user's flag, the folder's name, or predictions.

Every label comes with its source. Predictions that contradict what the user says are an error that
names the flag which settles it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.errors import ImageError, InvalidUsage, printable

MAJORITY = 50.0  # percent of the images of a folder that must share the prediction to label it
DOUBTFUL = 10.0  # percent of the images: if fewer are predicted as the label, there is a warning


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


def parse_label(text: str, flag: str, label_names: Sequence[str] | None, num_classes: int) -> int:
    """The class that the user names on the command line, by its name or its index.

    label_names: the class names if they are known. flag: what the error message calls the input.
    Raises InvalidUsage where there is no such class.
    """
    if label_names is not None and text in label_names:
        return label_names.index(text)
    if re.fullmatch(r"\d{1,9}", text) and int(text) < num_classes:
        return int(text)
    known = "" if label_names is None else " or a class name of the checkpoint's config"
    raise InvalidUsage(
        f"{flag} {printable(text)}: expected a class from 0 to {num_classes - 1}{known}"
    )


def label_from_name(
    folder: str, label_names: Sequence[str] | None, num_classes: int, *, strict: bool = False
) -> int | None:
    """The label that a folder's name gives: a class name, or its only number; else None.

    strict: a number counts only if it is alone or follows `class`, `label` or `digit`, as in the
    names of class folders.

    >>> label_from_name("class8", None, 10), label_from_name("train2017", None, 10)
    (8, None)
    """
    if label_names is not None:
        normal_name = re.sub(r"[\W_]+", " ", folder).strip().casefold()
        exact = [
            index
            for index, name in enumerate(label_names)
            if re.sub(r"[\W_]+", " ", name).strip().casefold() == normal_name
        ]
        if len(exact) == 1 and normal_name:
            return exact[0]
    if strict and not re.fullmatch(r"(class|label|digit)?[ _-]?\d+", folder, re.IGNORECASE):
        return None
    numbers = re.findall(r"\d+", folder)
    if len(numbers) != 1 or len(numbers[0]) > 9 or int(numbers[0]) >= num_classes:
        return None
    return int(numbers[0])


def resolve_label(
    folder: str,
    given: int | None,
    named: int | None,
    predictions: Tensor,
    *,
    binding: bool = True,
    forgotten: Sequence[int] = (),
) -> Label:
    """The label of one folder: the user's, else the one in its name, else the majority prediction.

    folder: the folder's name, empty for a list. given: the label from --label. named: the label
    that the folder's name gives. predictions: int64 [n], the class that the model predicts for each
    image. binding: whether predictions that contradict the name are an error. forgotten: the
    classes that the checkpoint's metadata call forgotten. The predictions of such a network do not
    tell the label. A single forgotten class does.

    Raises ImageError where the predictions or the metadata contradict the name, and where nothing
    tells the label.
    """
    shown = printable(folder) or "the list"
    if given is not None:
        return Label(given, f"--label; {_agreement(predictions, given)}")
    if named is not None:
        _check_name(shown, named, predictions, binding, forgotten)
        doubt = _doubt(shown, named, predictions) if binding else None
        return Label(named, f"the folder's name; {_agreement(predictions, named)}", doubt)
    if len(forgotten) == 1:
        (label,) = forgotten
        source = f"the forgotten class in the metadata; {_agreement(predictions, label)}"
        return Label(label, source)
    if forgotten:
        raise ImageError(
            f"{shown}: nothing tells its class, and a model that has forgotten it cannot: pass"
            " --label, or --original with the checkpoint before forgetting"
        )
    label = majority(predictions)
    share = _share(predictions, label)
    if share < MAJORITY:
        raise ImageError(
            f"{shown}: nothing tells its class: the most frequent prediction, {label}, holds for"
            f" only {share:.1f} % of {len(predictions)} images: pass --label, or correct --mean and"
            " --std"
        )
    return Label(label, _agreement(predictions, label))


def _check_name(
    shown: str, named: int, predictions: Tensor, binding: bool, forgotten: Sequence[int]
) -> None:
    """Raise ImageError where the metadata or binding predictions contradict the folder's name."""
    if forgotten and named not in forgotten:
        raise ImageError(
            f"{shown}: the folder's name says class {named}, but the checkpoint's metadata say"
            f" that it has forgotten {', '.join(map(str, forgotten))}: pass --label"
            f" {named}, or with --original and the checkpoint before forgetting"
        )
    predicted = majority(predictions)
    share = _share(predictions, predicted)
    if binding and predicted != named and share >= MAJORITY:
        raise ImageError(
            f"{shown}: the folder's name says class {named}, but the model predicts {predicted} for"
            f" {share:.1f} % of its {len(predictions)} images (and {named} for"
            f" {_share(predictions, named):.1f} %): pass --label {named} or --label"
            f" {predicted}, or correct --mean and --std"
        )


def _doubt(shown: str, named: int, predictions: Tensor) -> str | None:
    """A warning where few predictions agree with the folder's name."""
    agree, predicted = _share(predictions, named), majority(predictions)
    if agree >= DOUBTFUL:
        return None
    return (
        f"{shown}: the folder's name says class {named}, but the model predicts {named} for only"
        f" {agree:.1f} % of its {len(predictions)} images (most often {predicted}:"
        f" {_share(predictions, predicted):.1f} %); check --label, --mean, --std and --size"
    )


def _share(predictions: Tensor, label: int) -> float:
    """The percentage of predictions that are `label`."""
    return 100 * float((predictions == label).float().mean())


def _agreement(predictions: Tensor, label: int) -> str:
    return f"the model predicts {label} for {_share(predictions, label):.1f} % of the images"
