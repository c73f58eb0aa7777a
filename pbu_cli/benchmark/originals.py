"""The original network of each seed: trained once, then read from disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pbu_cli import __version__
from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.benchmark.result_store import (
    Outcome,
    damaged,
    is_cost,
    is_digest,
    read_document,
    seal,
)
from pbu_cli.benchmark.training import train
from pbu_cli.errors import CheckpointError, PbuError, printable
from pbu_cli.io import checkpoint
from pbu_cli.io.atomic_files import write_text
from pbu_cli.io.safetensors_format import digest, write
from pbu_cli.models.network import load_tensors
from pbu_cli.settings import SCHEMA


class Original(NamedTuple):
    """The network of a seed, in eval mode; what its training cost, without measures; and the digest
    of its tensors."""

    network: nn.Module
    cost: Outcome
    digest: str


def stored_digest(plan: BenchmarkPlan, seed: int) -> str | None:
    """The digest of the original of a seed as it was trained, None where there is none.

    Raises CheckpointError where the file of the original is another by now, and where what was
    noted of its training cannot be used.
    """
    path = _path(plan, seed)
    noted = _read_note(path)
    if noted is None:
        if path.exists():
            raise _replaced(path, "it is of an older version of pbu, or its .json is missing")
        return None
    if path.exists():
        _check(path, checkpoint.fingerprint(path).tensors, noted["tensors"])
    return str(noted["tensors"])


def load_or_train(plan: BenchmarkPlan, seed: int, count_images: Callable[[int], None]) -> Original:
    """The original of a seed, from disk or else trained and written.

    count_images: called with the number of images of each training batch; not called where the
    network comes from disk. Raises CheckpointError as `stored_digest` does.
    """
    make_folder(plan.folder())
    path = _path(plan, seed)
    network = plan.network.build_untrained(seed).to(plan.device)
    noted = _read_note(path)
    if noted is not None and not path.exists() and any(path.parent.glob(f"seed{seed}-*.json")):
        raise _replaced(path, "it is not there, but cells are that were computed from it")
    if noted is not None and path.exists():
        original = checkpoint.read(path)
        _check(path, original.fingerprint.tensors, noted["tensors"])
        load_tensors(network, original.stored)
        cost = Outcome("", {}, float(noted["seconds"]), noted["images"])
        return Original(network.eval(), cost, noted["tensors"])
    images = 0

    def count(handed_out: int) -> None:
        nonlocal images
        images += handed_out
        count_images(handed_out)

    split = plan.dataset.train
    loader = CountingLoader(
        split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count
    )
    start = time.perf_counter()
    torch.manual_seed(seed)
    train(network, loader, plan.recipe, generator=torch.Generator().manual_seed(seed))
    wait_for(plan.device)
    seconds = round(time.perf_counter() - start, 2)
    metadata = {**checkpoint_metadata(plan), "seconds": f"{seconds:.2f}", "images": str(images)}
    state = dict(network.state_dict())
    tensors = digest(state)
    facts = {"tensors": tensors, "seconds": seconds, "images": images}
    note = {"schema": SCHEMA, "pbu": __version__, **facts}
    # The note comes first: a run that is killed in between trains the original again.
    write_text(path.with_suffix(".json"), json.dumps({**note, "seal": seal(note)}, indent=2) + "\n")
    write(path, state, metadata)
    return Original(network, Outcome("", {}, seconds, images), tensors)


def _path(plan: BenchmarkPlan, seed: int) -> Path:
    return plan.folder() / f"original-seed{seed}.safetensors"


def _read_note(path: Path) -> dict[str, Any] | None:
    """What was noted beside an original when it was trained: its digest and its cost."""
    place = path.with_suffix(".json")
    try:
        note = read_document(place)
        if not (
            is_digest(note.get("tensors")) and is_cost(note.get("seconds"), note.get("images"))
        ):
            raise ValueError("expected the digest and the cost of an original")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(place, error) from None
    return note


def _check(path: Path, found: str, noted: str) -> None:
    if found != noted:
        raise _replaced(path, "its tensors are others than those that were trained")


def _replaced(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(path)}: {reason}; restore it, or move its folder away to compute all cells"
        " anew"
    )


def checkpoint_metadata(plan: BenchmarkPlan) -> dict[str, str]:
    """The metadata of a written network: with it `pbu unlearn` needs no flags but --arch."""
    preprocessing = plan.dataset.preprocessing
    metadata = {
        "format": "pt",
        "num_classes": str(len(plan.dataset.classes)),
        "mean": str(list(preprocessing.mean)),
        "std": str(list(preprocessing.std)),
        "input_size": str([preprocessing.channels, *preprocessing.size]),
    }
    builder = plan.network.builder
    return metadata | ({"architecture": builder} if builder else {})


def wait_for(device: torch.device) -> None:
    """Wait until a GPU is idle, so that a stopwatch covers the work that it was given.

    CUDA kernels run asynchronously: Python goes on before they end.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_writable(folder: Path) -> None:
    """Raise PbuError where results cannot be written, before any work is done."""
    nearest = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise PbuError(
            f"{printable(nearest)}: not a folder that can be written to; choose another --out"
        )


def make_folder(folder: Path) -> Path:
    """Make the folder and its parents, and return it; PbuError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PbuError(
            f"{printable(folder)}: cannot be made: {error.strerror}; choose another --out"
        ) from None
    return folder
