"""`pbu unlearn original.safetensors --forget CLASS --label CLASS`, unchanged, with its defaults.

Source: this package. The checkpoint and the forget images are written to files as the command
reads them, the images as PNG without loss, and it infers all else; the seconds are those of the
command less the start of the interpreter, with the writing of its inputs. Reads the forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import assemble
from pbu_cli.io.safetensors_format import write
from pbu_cli.pipeline.fisher import measure_fisher
from pbu_cli.pipeline.unlearn import unlearn_and_write
from pbu_cli.settings import DEEP, InputOptions


def unlearn(task: Task) -> Iterator[Result]:
    """The command's own steps on files of their own."""
    schedule = replace(DEEP.schedule, seed=task.seed)
    with TemporaryDirectory() as scratch:
        checkpoint, output = (Path(scratch) / f"{n}.safetensors" for n in ("original", "unlearned"))
        write(checkpoint, dict(task.original.state_dict()), dict(task.metadata or {}))
        folder = Path(scratch) / str(task.label)
        write_images(task.forget, folder)
        # Said, since what a badly trained original calls the images is no matter here.
        options = InputOptions(
            arch=task.arch, labels=(str(task.label),), device=str(task.forget.device)
        )
        loaded = load_model(checkpoint, options, _unheard)
        prepared = assemble(loaded, [str(folder)], options, _unheard, layers=DEEP.layers)
        diagonal = measure_fisher(prepared, "empirical", seed=task.seed)
        done = unlearn_and_write(
            prepared, diagonal, output,
            weights=DEEP.weights, schedule=schedule, anchors=DEEP.anchors,
        )  # fmt: skip
    # One pass to look, one for the Fisher diagonal, the steps, and one over what was written.
    mirrored = 0 if done.mirrored is None else done.mirrored.images
    task.forget.seen(3 * len(task.forget) + mirrored + done.steps * schedule.batch_size)
    yield Result(loaded.network.module)


def write_images(feed: CountingLoader, folder: Path) -> None:
    """The images as PNG files, in order, grey or RGB."""
    folder.mkdir()
    for number, pixels in enumerate(feed.pixels.movedim(1, -1).squeeze(-1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")


def _unheard(what: str, value: str, source: str) -> None:
    """What is inferred is what the benchmark knows."""


METHOD = Method(
    "pbu",
    "forget",
    unlearn,
    lambda size: 4 * size.forget + DEEP.schedule.steps * DEEP.schedule.batch_size,
    {
        "weights": vars(DEEP.weights),
        "schedule": vars(DEEP.schedule),
        "anchors": DEEP.anchors,
        "layers": DEEP.layers,
    },
)
