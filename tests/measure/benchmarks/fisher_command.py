"""The cost of an image in the whole `pbu fisher` command, in plain forward and backward passes.

    python -m tests.measure.benchmarks.fisher_command FOLDER [--layers all] [--many 2880]

FOLDER holds at least `--many` images of one class of MNIST. The command runs on few and on many of
them, and the difference divided by the images between is the cost of one image, without what is
the same for any number of images. A plain pass takes the gradients of all weights for the same
images. The figures are CPU seconds, which other work on the machine hardly changes, and the
medians of all repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.pipeline.fisher import fisher_of_checkpoint, measure_fisher
from pbu_cli.settings import FisherSettings
from tests.measure.archives import SHARED

CHECKPOINT = SHARED / "checkpoints" / "mnist_resnet34_fp16.safetensors"
PARTS = {
    "decode": "pbu_cli.inputs.prepare.decode",
    "fit": "pbu_cli.inputs.prepare.fit",
    "features and logits": "pbu_cli.inputs.prepare._run_network",
    "Fisher pass": "pbu_cli.pipeline.fisher.measure_fisher",
    "write": "pbu_cli.pipeline.fisher.write_fisher",
}
PLAIN = 256  # images of a plain pass, in batches of 64


def command(folder: Path, layers: str) -> tuple[dict[str, float], UnlearningInputs]:
    """CPU seconds of the command and of its parts, and its inputs."""
    seconds = dict.fromkeys(PARTS, 0.0)
    seen: list[UnlearningInputs] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if function is measure_fisher:
                seen.append(args[0])
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - start

        return run

    with ExitStack() as patches, tempfile.TemporaryDirectory() as place:
        for name, path in PARTS.items():
            patches.enter_context(patch(path, timed(name, resolve_name(path))))
        start = time.process_time()
        output, settings = Path(place, "fisher.safetensors"), FisherSettings(layers=layers)
        fisher_of_checkpoint(CHECKPOINT, folder, output, settings=settings)
        seconds["whole command"] = time.process_time() - start
    return seconds, seen[0]


def plain(inputs: UnlearningInputs) -> float:
    """CPU seconds that a plain forward and backward pass takes for one image."""
    module = inputs.loaded.network.module.requires_grad_(True)
    pixels = inputs.images.pixels[:PLAIN].float() / 255
    start = time.process_time()
    for x, labels in zip(pixels.split(64), inputs.image_labels[:PLAIN].split(64), strict=True):
        torch.autograd.grad(F.cross_entropy(module(x), labels), list(module.parameters()))
    return (time.process_time() - start) / len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--few", type=int, default=320)
    parser.add_argument("--many", type=int, default=2880)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(options.folder.iterdir())[: options.many]
    slopes: dict[str, list[float]] = {name: [] for name in (*PARTS, "whole command")}
    with tempfile.TemporaryDirectory() as place:
        folders = {count: Path(place, str(count), "8") for count in (options.few, options.many)}
        for count, folder in folders.items():
            folder.mkdir(parents=True)
            for file in files[:count]:
                (folder / file.name).write_bytes(file.read_bytes())
        for _ in range(options.repeats):
            (few, _), (many, inputs) = (command(f, options.layers) for f in folders.values())
            plain(inputs)
            unit = (options.many - options.few) * median(plain(inputs) for _ in range(3))
            for name, found in slopes.items():
                found.append((many[name] - few[name]) / unit)
    for name, found in slopes.items():
        print(f"{name:<20} {median(found):.2f}")


if __name__ == "__main__":
    main()
