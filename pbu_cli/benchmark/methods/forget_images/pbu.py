"""`pbu unlearn original.safetensors --forget CLASS --label CLASS`, unchanged, with its defaults.

Source: this package. The checkpoint and the forget images are written to files that the command
reads, the images as lossless PNG, and the command infers everything else. The seconds are those of
the command without the start of the interpreter, and with the writing of its inputs. Reads the
forget images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pbu_cli.benchmark.counting_loader import CountingLoader
from pbu_cli.benchmark.methods.task import Method, Result, Task
from pbu_cli.io.safetensors_format import write
from pbu_cli.pipeline.request import UnlearningRequest
from pbu_cli.pipeline.session import Session
from pbu_cli.pipeline.unlearn import prepare_unlearning, run_unlearning
from pbu_cli.settings import DEFAULT, InputOptions


def unlearn(task: Task) -> Iterator[Result]:
    """Run the steps of the command on files in a temporary folder."""
    with TemporaryDirectory() as scratch:
        checkpoint, folder = Path(scratch) / "original.safetensors", Path(scratch) / str(task.label)
        write(checkpoint, dict(task.original.state_dict()), dict(task.metadata or {}))
        write_images(task.forget, folder)
        # The label is given: a badly trained original may predict another class for the images.
        options = InputOptions(
            arch=task.arch, labels=(str(task.label),), device=str(task.forget.device)
        )
        settings = DEFAULT.adjusted(seed=task.seed)
        session = Session()
        prepared = prepare_unlearning(
            UnlearningRequest(checkpoint, (str(folder),), settings=settings, options=options),
            session,
        )
        done = run_unlearning(prepared, session).unlearned
    # The command passes over all images for their logits, for the Fisher diagonal and for the
    # measurement of what was written, and over mirrored images and the images of the steps.
    mirrored = 0 if done.mirrored is None else done.mirrored.images
    steps = done.steps * settings.schedule.batch_size
    task.forget.count_images(3 * len(task.forget) + mirrored + steps)
    yield Result(prepared.inputs.loaded.network.module)


def write_images(loader: CountingLoader, folder: Path) -> None:
    """Write the images as PNG files, in order, grey or RGB."""
    folder.mkdir()
    for number, pixels in enumerate(loader.pixels.movedim(1, -1).squeeze(-1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")


METHOD = Method(
    "pbu",
    "forget",
    unlearn,
    lambda size: 4 * size.forget + DEFAULT.schedule.steps * DEFAULT.schedule.batch_size,
    {
        "weights": vars(DEFAULT.weights),
        "schedule": vars(DEFAULT.schedule),
        "anchors": DEFAULT.anchors,
        "layers": DEFAULT.layers,
    },
)
