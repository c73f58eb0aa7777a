"""The original network of a seed: trained once, kept on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.protocol import BenchmarkPlan
from pbu_cli.benchmark.result_store import Outcome
from pbu_cli.benchmark.training import train
from pbu_cli.errors import PbuError, printable
from pbu_cli.io import checkpoint
from pbu_cli.io.safetensors_format import write
from pbu_cli.models.build import load


def original(
    plan: BenchmarkPlan, seed: int, seen: Callable[[int], None]
) -> tuple[nn.Module, Outcome]:
    """The network of a seed from disk, else trained and written; what its training cost."""
    path = make_folder(plan.folder()) / f"original-seed{seed}.safetensors"
    network = plan.candidate.fresh(seed).to(plan.device)
    if path.exists():
        kept = checkpoint.read(path)
        load(network, kept.stored_names(kept.tensors))
        cost = (float(kept.metadata["seconds"]), int(kept.metadata["images"]))
        return network.eval(), Outcome("", {}, *cost)
    images = 0

    def count(handed: int) -> None:
        nonlocal images
        images += handed
        seen(handed)

    split = plan.dataset.train
    feed = CountingLoader(
        split.pixels, split.labels, plan.dataset.preprocessing, plan.device, count
    )
    start = time.perf_counter()
    torch.manual_seed(seed)
    train(network, feed, plan.recipe, seed=seed)
    settle(plan.device)
    seconds = time.perf_counter() - start
    facts = {**described(plan), "seconds": f"{seconds:.2f}", "images": str(images)}
    write(path, dict(network.state_dict()), facts)
    return network, Outcome("", {}, round(seconds, 2), images)


def described(plan: BenchmarkPlan) -> dict[str, str]:
    """The metadata of a checkpoint, as `pbu unlearn` understands them."""
    known = plan.dataset.preprocessing
    facts = {
        "format": "pt",
        "num_classes": str(len(plan.dataset.classes)),
        "mean": str(list(known.mean)),
        "std": str(list(known.std)),
        "input_size": str([known.channels, *known.size]),
    }
    return facts | ({"architecture": plan.candidate.builder} if plan.candidate.builder else {})


def settle(device: torch.device) -> None:
    """Wait for a GPU, which works on while Python does: its time belongs to what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_place(folder: Path) -> None:
    """Raise PbuError where results could not be written, before any work is done."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise PbuError(
            f"{printable(there)}: not a folder that can be written to; choose another --out"
        )


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PbuError(
            f"{printable(folder)}: cannot be made: {error.strerror}; choose another --out"
        ) from None
    return folder
