"""What the forget images themselves say: which normalisation the network was trained under, and
which label they carry.

Nothing is guessed in silence: every choice comes with its score, and evidence that contradicts
the user is an error that names the flag to settle it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.errors import ImageError, InvalidUsage, printable

MAJORITY = 50.0  # percent of a folder that the model must give one class to make it the label
DOUBTFUL = 10.0  # percent: where the model agrees with a folder's name on fewer, that is said


def majority(answers: Tensor) -> int:
    """The commonest of int64 [n]; the lowest of them where several are equally common."""
    return int(torch.bincount(answers).argmax())


def parse_label(text: str, flag: str, label_names: Sequence[str] | None, num_classes: int) -> int:
    """A label as the user writes it: a class name where names are known, or an index."""
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

    `strict` asks for a number alone or behind class, label or digit, as subfolders of classes
    have it.

    >>> label_from_name("class8", None, 10), label_from_name("train2017", None, 10)
    (8, None)
    """
    if label_names is not None:
        wanted = re.sub(r"[\W_]+", " ", folder).strip().casefold()
        exact = [
            index
            for index, name in enumerate(label_names)
            if re.sub(r"[\W_]+", " ", name).strip().casefold() == wanted
        ]
        if len(exact) == 1 and wanted:
            return exact[0]
    if strict and not re.fullmatch(r"(class|label|digit)?[ _-]?\d+", folder, re.IGNORECASE):
        return None
    numbers = re.findall(r"\d+", folder)
    if len(numbers) != 1 or len(numbers[0]) > 9 or int(numbers[0]) >= num_classes:
        return None
    return int(numbers[0])


@dataclass(frozen=True)
class Label:
    """A folder's label, where it comes from, and what speaks against it, in words."""

    index: int
    source: str
    doubt: str | None = None


def resolve_label(
    folder: str,
    given: int | None,
    named: int | None,
    answers: Tensor,
    *,
    binding: bool = True,
    forgotten: Sequence[int] = (),
) -> Label:
    """The label of one folder: the user's, else its name's, else the model's majority answer.

    answers: int64 [n], the model's answers to the folder's images. Raises ImageError where they
    contradict the name, if they are `binding`, or where nothing tells. The answers of a network
    that says of itself what it has `forgotten` tell nothing; that record does, where it is of one
    class, and a name that it contradicts is an error.
    """
    answer = majority(answers)
    share = _share(answers, answer)
    shown = printable(folder) or "the list"
    if given is not None:
        return Label(given, f"--label; {_agreement(answers, given)}")
    if named is not None:
        agree = _share(answers, named)
        if forgotten and named not in forgotten:
            raise ImageError(
                f"{shown}: the folder's name says class {named}, but the checkpoint's metadata say"
                f" that it has forgotten {', '.join(map(str, forgotten))}: settle it with --label"
                f" {named}, or with --original and the checkpoint before forgetting"
            )
        if binding and answer != named and share >= MAJORITY:
            raise ImageError(
                f"{shown}: the folder's name says class {named}, but the model calls {share:.1f} %"
                f" of its {len(answers)} images {answer} (and {agree:.1f} % {named}): settle it"
                f" with --label {named} or --label {answer}, or set --mean and --std right"
            )
        doubt = (
            f"{shown}: the folder's name says class {named}, but the model calls only"
            f" {agree:.1f} % of its {len(answers)} images {named} (commonest: {share:.1f} %"
            f" {answer}); check --label, --mean, --std and --size"
        )
        return Label(
            named,
            f"the folder's name; {_agreement(answers, named)}",
            doubt if binding and agree < DOUBTFUL else None,
        )
    if len(forgotten) == 1:
        (gone,) = forgotten
        return Label(gone, f"metadata: what it has forgotten; {_agreement(answers, gone)}")
    if forgotten:
        raise ImageError(
            f"{shown}: nothing tells its class, and a model that has forgotten it cannot: pass"
            " --label, or --original with the checkpoint before forgetting"
        )
    if share < MAJORITY:
        raise ImageError(
            f"{shown}: nothing tells its class: the model's commonest answer, {answer}, is only"
            f" {share:.1f} % of {len(answers)} images: pass --label, or set --mean and --std right"
        )
    return Label(answer, _agreement(answers, answer))


def _share(answers: Tensor, label: int) -> float:
    return 100 * float((answers == label).float().mean())


def _agreement(answers: Tensor, label: int) -> str:
    return f"the model calls {_share(answers, label):.1f} % of the images {label}"
