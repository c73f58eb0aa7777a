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

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.checkpoint import read_tensors
from pbu_cli.io.safetensors_format import Tensors, digest, write
from pbu_cli.settings import SCHEMA, Estimator

KIND = "pbu-fisher-diagonal"


def forget_digest(prepared: UnlearningInputs, key: str) -> str:
    """HMAC-sha256 of the forget set as the network sees it: size, pixels and labels.

    Keyed, and of the whole set at once, so that it says nothing about any one image. The key is
    the checkpoint's digest: the same command writes the same file.
    """
    total = hmac.new(key.encode(), digestmod=hashlib.sha256)
    total.update(repr(tuple(prepared.images.pixels.shape)).encode())
    total.update(prepared.images.pixels.contiguous().numpy().data)
    total.update(prepared.image_labels.numpy().tobytes())
    return total.hexdigest()


def write_fisher(
    path: Path,
    prepared: UnlearningInputs,
    diagonal: Tensors,
    estimator: Estimator,
    draws: int,
    seed: int,
) -> None:
    """Write a diagonal (sum over images, float32), under the parameters' own names."""
    theta = digest(prepared.loaded.checkpoint.tensors)
    metadata = {
        "kind": KIND,
        "version": str(SCHEMA),
        "estimator": estimator,
        "labels": json.dumps(sorted(set(prepared.image_labels.tolist()))),
        "images": str(len(prepared.images.pixels)),
        "preprocessing": repr(prepared.preprocessing),
        "checkpoint": theta,
        "forget_set": forget_digest(prepared, theta),
    }
    if estimator == "mc":
        metadata |= {"draws": str(draws), "seed": str(seed)}
    write(path, {name: value.float() for name, value in diagonal.items()}, metadata)


def read_fisher(
    path: Path, prepared: UnlearningInputs, trained: list[str]
) -> tuple[Tensors, Estimator, int]:
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
    theta = digest(prepared.loaded.checkpoint.tensors)
    expected = {
        "checkpoint": (theta, "another checkpoint"),
        "preprocessing": (repr(prepared.preprocessing), "another preprocessing"),
        "forget_set": (forget_digest(prepared, theta), "another set of forget images or labels"),
    }
    for key, (wanted, problem) in expected.items():
        if metadata.get(key) != wanted:
            raise CheckpointError(
                f"{shown}: was measured on {problem}; measure it again: pbu fisher"
            )
    shapes, device = prepared.loaded.checkpoint.shapes, prepared.loaded.device
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
