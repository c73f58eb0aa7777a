"""Make the anchors of a run, after checking that memory holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import CheckpointError, PbuError, printable
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import layers_of_logits, read_head
from pbu_cli.models.frozen_backbone import bytes_held
from pbu_cli.pipeline.forget_set import copies_of_each
from pbu_cli.runtime.device import affordable
from pbu_cli.settings import UnlearningSettings
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.class_row import ClassRow
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.model_inversion import synthesise_anchors, synthesise_forget_inputs

LOOKED_AT = 16  # forget images that tell which layer gives the logits


def check_anchors(inputs: UnlearningInputs, settings: UnlearningSettings) -> list[str]:
    """A warning where the head's row of the class will stay where it is.

    Raises CheckpointError where no head is found whose input tells anchors and images apart,
    PbuError where memory does not hold the anchors.
    """
    module, head, device = inputs.loaded.network.module, _head(inputs), inputs.loaded.device
    count = min(LOOKED_AT, inputs.batch_size)
    some = normalise(inputs.images.pixels[:count].to(device), inputs.preprocessing)
    features, logits = read_head(module, head, [some])
    layers = layers_of_logits(module, head, some)
    if layers not in ((), (head,)):
        raise CheckpointError(
            f"anchors: the logits come from {printable(' and '.join(layers))}, and not from"
            f" {printable(head)} alone, whose input the anchors hold; expected one last layer:"
            " call it last in forward, merge what is added to it (such as LoRA), or use --fast"
        )
    images = len(inputs.image_labels) * copies_of_each(inputs, settings.schedule)
    split_point = inputs.split_point
    each = some[:1].nbytes if split_point is None else bytes_held(split_point, 1)
    _check_memory(inputs, settings, each, images)
    row = ClassRow(module, head, inputs.forgotten, features.to(device), logits.to(device))
    if row.changes or not settings.weights.delta:
        return []
    if layers:
        own = ", ".join(name for name, _ in module.get_submodule(head).named_parameters())
        why = f"its weight is computed from other tensors, or shared ({own})"
    else:
        why = "its output is not the logits"
    return [
        f"{printable(head)}: the row of the class in the last layer stays where it is, since {why}:"
        " only the layers before it forget, so that more of the class may be left: measure it with"
        " pbu evaluate --audit, or save the network with a plain last layer, whose row is moved"
    ]


def make_anchors(
    inputs: UnlearningInputs,
    images: ForgetSet,
    settings: UnlearningSettings,
    done: Callable[[int], None],
) -> tuple[ForgetSet, AnchorLoss]:
    """The anchors' loss, and the forget set joined by synthetic inputs of the class to forget.

    The anchors are made from at most as many forget images as there are anchors, for a module
    that takes the frozen backbone's features. done: called with the number made so far.
    """
    network, head, device = inputs.loaded.network, _head(inputs), inputs.loaded.device
    schedule, count = settings.schedule, settings.anchors
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images)), device=device).long()
    seeds = images.inputs(chosen)
    _check_memory(inputs, settings, seeds[0].nbytes, len(images))
    split_point = inputs.split_point
    channels_last = split_point is not None and split_point.channels_last
    anchors = synthesise_anchors(
        network.module, head, seeds, inputs.retained_classes,
        count=count, schedule=schedule, channels_last=channels_last, done=done,
    )  # fmt: skip
    more = inputs_made(inputs, settings) - count
    if more:
        synthetic, logits = synthesise_forget_inputs(
            network.module, anchors, seeds, inputs.forgotten,
            count=more, schedule=schedule, channels_last=channels_last,
            done=lambda number: done(count + number),
        )  # fmt: skip
        images = images.joined(synthetic, logits)
    loss = AnchorLoss(network.module, head, anchors, inputs.forgotten, settings.weights, schedule)
    return images, loss


def inputs_made(inputs: UnlearningInputs, settings: UnlearningSettings) -> int:
    """How many inputs a run synthesises: the anchors, and at most as many forget inputs."""
    schedule, count = settings.schedule, len(inputs.image_labels)
    synthetic = round(schedule.imagined * count * copies_of_each(inputs, schedule))
    return settings.anchors + min(synthetic, settings.anchors)


def log_forgotten_before(inputs: UnlearningInputs, log: InferenceLog) -> None:
    """Log the classes that earlier runs have forgotten: no anchors are made of them."""
    loaded = inputs.loaded
    before = sorted({*loaded.description.forgotten} - {*inputs.image_labels.tolist()})
    if before:
        names = ", ".join(map(loaded.class_name, before))
        source = f"{loaded.description.sources['forgotten']}: no anchors for them"
        log.add(Inferred("forgotten before", before, source, names))


def _check_memory(
    inputs: UnlearningInputs, settings: UnlearningSettings, each: int, images: int
) -> None:
    """Raise PbuError where memory does not hold the anchors. each: bytes of one input; images:
    how many forget images there are, copies included."""
    count = settings.anchors
    needed = each * (min(count, images) + 2 * inputs_made(inputs, settings) + images)
    # Anchors may take twice the share of memory that the images' features may take, because
    # little else is held by now.
    if not affordable(needed // 2, inputs.loaded.device):
        raise PbuError(
            f"{count} anchors: take {needed / 2**30:.1f} GiB, more than memory has to spare;"
            " nothing was written: lower --anchors, or use --fast"
        )


def _head(inputs: UnlearningInputs) -> str:
    head = inputs.loaded.network.layout.head_layer
    if head is None:
        raise CheckpointError(
            "anchors: found no linear or convolutional layer that gives the logits; expected one"
            " at the network's end: use --fast"
        )
    return head
