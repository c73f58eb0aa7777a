"""What an unlearning run will need: memory and time, from one step on the images of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import PbuError
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.frozen_backbone import bytes_held, from_features
from pbu_cli.models.hooks import gradients_for
from pbu_cli.runtime.device import spare_memory, used_memory
from pbu_cli.settings import UnlearningSettings
from pbu_cli.unlearning.model_inversion import bfloat16_if_possible, inputs_at_once

MEASURED = 16  # inputs in the passes that are measured: an eighth of a step, or less
WORTH_SAYING = 60.0  # seconds
# The last valid weights, theta*, the gradients, the Fisher diagonal, Adam's two moments and the
# penalty's gradients.
COPIES = 7
# Features of mirrored images: made, joined with the others, and joined once more with synthetic
# ones, while the features of the images themselves stay.
MIRRORED = 4
BACKWARD = 1.5  # what a backward pass holds at most, over what autograd has kept for it
FISHER = 2.0  # passes of a training step that the square of a gradient takes, of one image


@dataclass(frozen=True)
class Cost:
    """What one input costs: the seconds of its share in a training step and in a step of model
    inversion, and the bytes that autograd holds for it."""

    training: float
    inversion: float
    held: int


@dataclass(frozen=True)
class Needs:
    """What a run needs: bytes beyond those in use, those of them for the anchors and for mirrored
    images, and seconds. Mirrored images are left out where memory does not hold them."""

    more: float
    of_anchors: float
    seconds: float
    of_mirrored: float = 0.0


def measured(inputs: UnlearningInputs) -> Cost:
    """The cost of one input, from forward and backward passes of a few forget images.

    Each pass is made twice, and the second is timed. The first counts what autograd holds.
    """
    network, device = inputs.loaded.network, inputs.loaded.device
    module = network.module
    index = torch.arange(MEASURED) % len(inputs.images.pixels)
    if inputs.features is not None:
        x = inputs.features[index.to(device)]
    else:
        x = normalise(inputs.images.pixels[index].to(device), inputs.preprocessing)
    trained = [module.get_parameter(name) for name in inputs.trained]
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    def train() -> None:
        loss = module(x).float().logsumexp(dim=1).sum()
        torch.autograd.grad(loss, trained, allow_unused=True)

    def invert() -> None:
        inputs = x.detach().requires_grad_()
        with bfloat16:
            loss = module(inputs).float().logsumexp(dim=1).sum()
        torch.autograd.grad(loss, inputs)

    with from_features(module, inputs.split_point):
        with gradients_for(module, trained):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                train()
            training = _seconds(train, device)
        bfloat16 = bfloat16_if_possible(module, x[:2])
        with gradients_for(module, []):
            invert()
            inversion = _seconds(invert, device)
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    activations = sum(size for storage, size in held.items() if storage not in weights)
    return Cost(training / MEASURED, inversion / MEASURED, activations // MEASURED)


def needs(
    inputs: UnlearningInputs, settings: UnlearningSettings, cost: Cost, *, made: int
) -> Needs:
    """What the run needs at `cost` for each input. made: how many inputs the run synthesises."""
    schedule, images = settings.schedule, len(inputs.image_labels)
    batch = schedule.batch_size * (2 if settings.anchors else 1)
    seconds = (
        cost.training * (schedule.steps * batch + FISHER * settings.draws * images)
        + cost.inversion * schedule.inversion * made
    )
    split_point = inputs.split_point
    pixels = 4 * inputs.images.pixels[0].numel()
    each = pixels if split_point is None else bytes_held(split_point, 1)
    at_once = max(batch, inputs_at_once(schedule) if made else 0)
    trained = sum(inputs.loaded.network.module.get_parameter(n).nbytes for n in inputs.trained)
    # Anchors and synthetic forget inputs are held twice while they are joined.
    of_anchors = float(each * 2 * made)
    mirrored = MIRRORED * each * images if schedule.mirror and split_point is not None else 0
    more = of_anchors + mirrored + COPIES * trained + BACKWARD * at_once * cost.held
    return Needs(more, of_anchors, seconds, mirrored)


def check_needs(
    inputs: UnlearningInputs, settings: UnlearningSettings, *, made: int
) -> Inferred[Any] | None:
    """What the run needs, as a line for the user; None where it takes less than a minute.

    Raises PbuError where the machine does not have the memory. A GPU is left to find out for
    itself: it does a batch that it cannot hold again in halves.
    """
    device = inputs.loaded.device
    found = needs(inputs, settings, measured(inputs), made=made)
    spare = spare_memory(device)
    required = found.more - found.of_mirrored
    if device.type == "cpu" and required > spare:
        raise PbuError(
            f"unlearning: takes {required / 1e9:.1f} GB more than is in use, and"
            f" {spare / 1e9:.1f} GB are free; nothing was written: {_advice(settings, found)}"
        )
    if found.seconds < WORTH_SAYING:
        return None
    gigabytes = (used_memory(device) + found.more) / 1e9
    anchors = f", {settings.anchors:,} anchors" if settings.anchors else ""
    text = (
        f"about {gigabytes:.1f} GB and {_duration(found.seconds)}"
        f" ({settings.schedule.steps} steps{anchors})"
    )
    return Inferred("needs", round(found.seconds), "one step, measured here", text)


def _advice(settings: UnlearningSettings, found: Needs) -> str:
    if 2 * found.of_anchors > found.more:
        return f"pass fewer than --anchors {settings.anchors}, or --fast, which makes none"
    return "pass a smaller --batch-size, or fewer layers with --layers, such as --layers head"


def _duration(seconds: float) -> str:
    """Seconds in words.

    >>> _duration(100), _duration(3000), _duration(9000)
    ('2 minutes', '50 minutes', '2.5 hours')
    """
    minutes = max(1, round(seconds / 60))
    if minutes == 1:
        return "1 minute"
    return f"{minutes} minutes" if minutes < 90 else f"{seconds / 3600:.1f} hours"


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """How long `work` takes on the device."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
