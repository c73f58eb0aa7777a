"""The original network of each seed: trained once, then read from disk."""

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
from pbu_cli.models.load import load_tensors


def load_or_train(
    plan: BenchmarkPlan, seed: int, count_images: Callable[[int], None]
) -> tuple[nn.Module, Outcome]:
    """The original of a seed, from disk or else trained and written, and the cost of its training.

    The outcome has no measures. count_images: called with the number of images of each training
    batch; not called where the network comes from disk.
    """
    path = make_folder(plan.folder()) / f"original-seed{seed}.safetensors"
    network = plan.network.build_untrained(seed).to(plan.device)
    if path.exists():
        original = checkpoint.read(path)
        load_tensors(network, original.stored)
        cost = (float(original.metadata["seconds"]), int(original.metadata["images"]))
        return network.eval(), Outcome("", {}, *cost)
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
    seconds = time.perf_counter() - start
    metadata = {**checkpoint_metadata(plan), "seconds": f"{seconds:.2f}", "images": str(images)}
    write(path, dict(network.state_dict()), metadata)
    return network, Outcome("", {}, round(seconds, 2), images)


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
