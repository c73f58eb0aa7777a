"""Fisher files: a diagonal on disk, bound to the checkpoint and the forget set it belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.checkpoint import read_tensors
from pbu_cli.io.safetensors_format import Tensors, write
from pbu_cli.settings import SCHEMA, Estimator, Preprocessing

KIND = "pbu-fisher-diagonal"
# A sum of squared gradients outside of these bounds is no measurement, and its multiples overflow
# or vanish in float32, so that the Fisher-weighted distance would be without effect.
LARGEST, SMALLEST_MEAN = 1e30, 1e-30
ONE_NUMBER = 0.99  # share of the sum; if one number holds more, the others weigh nothing


@dataclass(frozen=True)
class FisherSource:
    """What a diagonal is measured on.

    checkpoint: sha256 digest of the checkpoint's tensors under their stored names, as the record
    has it (`Checkpoint.fingerprint.tensors`). pixels: uint8 [n, k, h, w], labels: int64 [n], both
    on the CPU: the forget images as the network sees them before normalisation.
    """

    checkpoint: str
    preprocessing: Preprocessing
    pixels: Tensor
    labels: Tensor


def write_fisher(
    path: Path,
    diagonal: Tensors,
    source: FisherSource,
    *,
    estimator: Estimator,
    draws: int,
    seed: int,
) -> None:
    """Write a diagonal (sum over images, float32) under the parameters' own names.

    The keys of the metadata are part of the file format. `draws` and `seed` are written for the
    estimator `mc` alone. No digest of the forget images is written: whoever has the file could find
    the images with it among candidates.
    """
    metadata = {
        "kind": KIND,
        "version": str(SCHEMA),
        "estimator": estimator,
        "labels": json.dumps(sorted(set(source.labels.tolist()))),
        "images": str(len(source.pixels)),
        "preprocessing": repr(source.preprocessing),
        "checkpoint": source.checkpoint,
    }
    if estimator == "mc":
        metadata |= {"draws": str(draws), "seed": str(seed)}
    write(path, {name: value.float() for name, value in diagonal.items()}, metadata)


def read_fisher(
    path: Path,
    source: FisherSource,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device,
) -> tuple[Tensors, Estimator, int]:
    """The diagonal on `device`, its estimator and the number of draws.

    shapes: the names and shapes of the parameters that train; the diagonal has their order.

    Raises CheckpointError if the file is not a Fisher file, if it belongs to another checkpoint,
    forget set or preprocessing, if it lacks one of the parameters, or if a value is negative, not
    finite or beyond what gradients give.
    """
    tensors, metadata = read_tensors(path)
    estimator, draws = _estimator(path, metadata)
    _check_source(path, source, metadata)
    shown = printable(path)
    diagonal: Tensors = {}
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{shown}: lacks {printable(name)}, which trains; measure it again with the same"
                " --layers"
            )
        value = tensors[name].float()  # torch cannot compare float8
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise CheckpointError(
                f"{shown}: {printable(name)} is negative or not finite, so the file is damaged;"
                " measure it again: pbu fisher"
            )
        largest = float(value.max()) if value.numel() else 0.0
        if largest > LARGEST:
            raise CheckpointError(
                f"{shown}: {printable(name)} holds {largest:.3g}, which no sum of squared gradients"
                f" reaches (at most {LARGEST:g} expected), so the file is damaged; measure it"
                " again: pbu fisher"
            )
        diagonal[name] = value.to(device)
    total, count = _sum(diagonal), sum(value.numel() for value in diagonal.values())
    if 0 < total < count * SMALLEST_MEAN:
        raise CheckpointError(
            f"{shown}: its mean is {total / count:.3g}, too small to weigh with (at least"
            f" {SMALLEST_MEAN:g} expected); measure it again: pbu fisher"
        )
    return diagonal, estimator, draws


def doubts_about(diagonal: Tensors) -> list[str]:
    """A warning where the diagonal, divided by its mean, weighs nothing or one number alone.

    >>> doubts_about({"w": torch.tensor([1.0, 2.0])}), len(doubts_about({"w": torch.zeros(2)}))
    ([], 1)
    """
    total = _sum(diagonal)
    if not total:
        return ["the Fisher diagonal is zero everywhere, so that --beta is without effect"]
    name, largest = max(
        ((name, float(value.max())) for name, value in diagonal.items() if value.numel()),
        key=lambda pair: pair[1],
    )
    count = sum(value.numel() for value in diagonal.values())
    if count < 100 or largest < ONE_NUMBER * total:
        return []
    return [
        f"one number of {printable(name)} holds {100 * largest / total:.1f} % of the Fisher"
        " diagonal's sum, so that --beta is without effect on all others: measure it again"
    ]


def _sum(diagonal: Tensors) -> float:
    return sum(value.cpu().double().sum().item() for value in diagonal.values())


def _estimator(path: Path, metadata: Mapping[str, str]) -> tuple[Estimator, int]:
    """The estimator and the number of draws, from the metadata of a Fisher file."""
    known = metadata.get("kind") == KIND and metadata.get("version") == str(SCHEMA)
    estimators: tuple[Estimator, ...] = get_args(Estimator)
    estimator = next((e for e in estimators if e == metadata.get("estimator")), None)
    draws = metadata.get("draws", "1")
    if not known or estimator is None or not re.fullmatch("[0-9]{1,9}", draws):
        raise CheckpointError(
            f"{printable(path)}: not a Fisher file of this version; write one: pbu fisher"
        )
    return estimator, int(draws)


def _check_source(path: Path, source: FisherSource, metadata: Mapping[str, str]) -> None:
    expected = {
        "checkpoint": (source.checkpoint, "another checkpoint"),
        "preprocessing": (repr(source.preprocessing), "another preprocessing"),
        "labels": (json.dumps(sorted(set(source.labels.tolist()))), "other labels"),
        "images": (str(len(source.pixels)), "another number of images"),
    }
    for key, (value, problem) in expected.items():
        if metadata.get(key) != value:
            raise CheckpointError(
                f"{printable(path)}: was measured on {problem}; measure it again: pbu fisher"
            )
