"""What the forget images themselves say: which normalisation the network was trained under, and
which label they carry.

Nothing is guessed in silence: every choice comes with its score, and evidence that contradicts
the user is an error that names the flag to settle it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pbu_cli.activations import entering
from pbu_cli.errors import ImageError, InvalidUsage, printable
from pbu_cli.logits import logits
from pbu_cli.settings import NORMALISATIONS, Preprocessing

FEW = 64  # images every candidate normalisation is tried on first ...
SAMPLE = 256  # ... and those that may still be the best; a difference of shares has ...
CLOSE = 30.0  # ... a standard error of at most 9 points among FEW, so more than three of them
MISMATCH_POINTS = 50  # percentage points of recognition that one nat of mismatch outweighs
MAJORITY = 50.0  # percent of a folder that the model must give one class to make it the label
DOUBTFUL = 10.0  # percent: where the model agrees with a folder's name on fewer, that is said


@dataclass(frozen=True)
class Candidate:
    """A normalisation and how well the network took to the images under it.

    recognised: percent answered with the label, or with their folder's commonest answer where no
    label is known. mismatch: nats, 0 for networks without BatchNorm.
    """

    name: str
    preprocessing: Preprocessing
    recognised: float
    mismatch: float

    @property
    def score(self) -> float:
        return self.recognised - MISMATCH_POINTS * self.mismatch


def rank_normalisations(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    batch_size: int = SAMPLE,
) -> list[Candidate]:
    """The usual normalisations, best first, tried on at most SAMPLE of the images.

    pixels uint8 [n, k, h, w], groups int64 [n], labels by group. Recognition alone misleads: raw
    0-255 pixels saturate some networks until every image is called the same class. So where there
    is BatchNorm, the mismatch between its running statistics and the images' counts too.

    Whatever is more than CLOSE points behind after FEW images is tried on no more; where that is
    all but the best, they are what the scores are of.
    """

    def ranked(names: Iterable[str], count: int) -> list[Candidate]:
        index = torch.linspace(0, len(pixels) - 1, min(len(pixels), count)).round().long()
        some, owners = pixels[index], groups[index]
        found = [_tried(model, some, owners, labels, name, batch_size) for name in names]
        return sorted(found, key=lambda candidate: -candidate.score)

    first = ranked(NORMALISATIONS, FEW)
    close = [c.name for c in first if c.score >= first[0].score - CLOSE]
    again = close if len(close) > 1 and len(pixels) > FEW else []
    return ranked(again, SAMPLE) + [c for c in first if c.name not in again]


def _tried(
    model: nn.Module,
    pixels: Tensor,
    groups: Tensor,
    labels: Sequence[int | None],
    name: str,
    batch_size: int,
) -> Candidate:
    """One of the usual normalisations on all of these images."""
    mean, std = (_per_channel(values, pixels.shape[1]) for values in NORMALISATIONS[name])
    preprocessing = Preprocessing((pixels.shape[2], pixels.shape[3]), mean, std)
    statistics = _FirstBatchNorm(model)
    answers = logits(model, pixels, preprocessing, batch_size).argmax(dim=1).cpu()
    right = 0
    for group, label in enumerate(labels):
        given = answers[groups == group]
        if len(given):
            right += int((given == (majority(given) if label is None else label)).sum())
    return Candidate(name, preprocessing, 100 * right / len(answers), statistics.close())


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


def settle_label(
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


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Three numbers for RGB, their mean for each channel of anything else."""
    if channels == 3:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels


class _FirstBatchNorm:
    """KL of the first BatchNorm's input from its running statistics, as Gaussians, in nats a
    channel: 1/2 ((v + (m - M)^2) / V - 1 - log(v / V)), over all batches seen until `close`."""

    def __init__(self, model: nn.Module) -> None:
        self._count = 0
        self._moments = torch.zeros(())  # sums of x and of x^2 by channel, float64
        layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
        self._layer = layer = next((m for m in layers if m.running_mean is not None), None)
        self._hook = (
            None if layer is None else layer.register_forward_pre_hook(self._look, with_kwargs=True)
        )

    def _look(self, layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        x = entering(args, named).transpose(0, 1).flatten(1)  # channels first
        # Sums of float32 are rounded too coarsely to be subtracted; MPS has no float64.
        mean, var = (t.cpu().double() for t in (x.mean(1), x.var(1, correction=0)))
        self._moments = self._moments + x.shape[1] * torch.stack([mean, var + mean**2])
        self._count += x.shape[1]

    def close(self) -> float:
        if self._hook is None or self._layer is None or not self._count:
            return 0.0
        self._hook.remove()
        running = (self._layer.running_mean, self._layer.running_var)
        expected, scale = (t.cpu().double() for t in running if t is not None)
        scale = scale.clamp_min(1e-12)
        mean, square = self._moments / self._count
        var = (square - mean**2).clamp_min(1e-12)
        ratio = (var + (mean - expected) ** 2) / scale
        return 0.5 * float((ratio - 1 - (var / scale).log()).mean())
