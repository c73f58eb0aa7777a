"""Fisher files: a diagonal on disk, bound to the checkpoint and the forget set it belongs to."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pbu_cli.case import Case
from pbu_cli.checkpoint import Tensors, digest, read_tensors, write
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.settings import SCHEMA, Estimator

KIND = "pbu-fisher-diagonal"


def forget_digest(case: Case, key: str) -> str:
    """HMAC-sha256 of the forget set as the network sees it: size, pixels and labels.

    Keyed, and of the whole set at once, so that it says nothing about any one image. The key is
    the checkpoint's digest: the same command writes the same file.
    """
    total = hmac.new(key.encode(), digestmod=hashlib.sha256)
    total.update(repr(tuple(case.images.pixels.shape)).encode())
    total.update(case.images.pixels.contiguous().numpy().data)
    total.update(case.image_labels.numpy().tobytes())
    return total.hexdigest()


def write_fisher(
    path: Path, case: Case, diagonal: Tensors, estimator: Estimator, draws: int, seed: int
) -> None:
    """Write a diagonal (sum over images, float32), under the parameters' own names."""
    theta = digest(case.subject.checkpoint.tensors)
    metadata = {
        "kind": KIND,
        "version": str(SCHEMA),
        "estimator": estimator,
        "labels": json.dumps(sorted(set(case.image_labels.tolist()))),
        "images": str(len(case.images.pixels)),
        "preprocessing": repr(case.preprocessing),
        "checkpoint": theta,
        "forget_set": forget_digest(case, theta),
    }
    if estimator == "mc":
        metadata |= {"draws": str(draws), "seed": str(seed)}
    write(path, {name: value.float() for name, value in diagonal.items()}, metadata)


def read_fisher(path: Path, case: Case, trained: list[str]) -> tuple[Tensors, Estimator, int]:
    """The diagonal of the `trained` parameters, its estimator and how many draws that took.

    Raises CheckpointError where the file is no Fisher file, or belongs to another checkpoint,
    another forget set or another preprocessing, or lacks a parameter.
    """
    tensors, metadata = read_tensors(path)
    shown = printable(path)
    estimator = next((e for e in get_args(Estimator) if e == metadata.get("estimator")), None)
    draws = metadata.get("draws", "1")
    known = metadata.get("kind") == KIND and metadata.get("version") == str(SCHEMA)
    if not known or estimator is None or not re.fullmatch("[0-9]{1,9}", draws):
        raise CheckpointError(f"{shown}: not a Fisher file of this version; write one: pbu fisher")
    theta = digest(case.subject.checkpoint.tensors)
    expected = {
        "checkpoint": (theta, "another checkpoint"),
        "preprocessing": (repr(case.preprocessing), "another preprocessing"),
        "forget_set": (forget_digest(case, theta), "another set of forget images or labels"),
    }
    for key, (wanted, problem) in expected.items():
        if metadata.get(key) != wanted:
            raise CheckpointError(
                f"{shown}: was measured on {problem}; measure it again: pbu fisher"
            )
    shapes, device = case.subject.checkpoint.shapes, case.subject.device
    chosen: dict[str, Tensor] = {}
    for name in trained:
        if name not in tensors or tuple(tensors[name].shape) != shapes[name]:
            raise CheckpointError(
                f"{shown}: lacks {printable(name)}, which trains; measure it again with the same"
                " --layers"
            )
        value = tensors[name].float()  # torch compares no float8
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise CheckpointError(f"{shown}: {printable(name)} is negative or not finite: damaged")
        chosen[name] = value.to(device)
    return chosen, estimator, int(draws)
