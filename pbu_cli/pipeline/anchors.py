"""The anchors of prepared inputs, and whether memory holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pbu_cli.data.preprocessing import normalise
from pbu_cli.errors import CheckpointError, PbuError
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import read_head
from pbu_cli.models.frozen_backbone import bytes_held
from pbu_cli.models.parameter_groups import head_module, maps_channels_last
from pbu_cli.pipeline.forget_set import copies_of_each
from pbu_cli.runtime.device import affordable
from pbu_cli.settings import Schedule, Weights
from pbu_cli.unlearning.anchor_loss import AnchorLoss
from pbu_cli.unlearning.forget_set import ForgetSet
from pbu_cli.unlearning.model_inversion import synthesise_anchors, synthesise_forget_inputs


def check_anchors(prepared: UnlearningInputs, count: int, schedule: Schedule) -> None:
    """Raise CheckpointError where the network has no head that anchors could be told apart at,
    PbuError where memory does not hold so many."""
    some = normalise(prepared.images.pixels[:2].to(prepared.loaded.device), prepared.preprocessing)
    read_head(prepared.loaded.network.module, _head(prepared), [some])
    images = len(prepared.image_labels) * copies_of_each(prepared, schedule)
    each = some[:1].nbytes if prepared.split_point is None else bytes_held(prepared.split_point, 1)
    _check_room(prepared, count, each, inputs_made(prepared, count, schedule), images)


def _check_room(prepared: UnlearningInputs, count: int, each: int, made: int, images: int) -> None:
    needed = each * (min(count, images) + 2 * made + images)
    # Twice the share of memory that the images' features may take: little else is held by now.
    if not affordable(needed // 2, prepared.loaded.device):
        raise PbuError(
            f"{count} anchors: take {needed / 2**30:.1f} GiB, more than memory has to spare;"
            " nothing was written: lower --anchors, or use --fast"
        )


def _head(prepared: UnlearningInputs) -> str:
    network = prepared.loaded.network
    head = head_module(network.module, network.builder)
    if head is None:
        raise CheckpointError(
            "anchors: found no linear or convolutional layer that gives the logits; expected one"
            " at the network's end: use --fast"
        )
    return head


def anchors_for(
    prepared: UnlearningInputs,
    images: ForgetSet,
    count: int,
    weights: Weights,
    schedule: Schedule,
    done: Callable[[int], None],
) -> tuple[ForgetSet, AnchorLoss]:
    """Anchors made from at most `count` forget images, for a module that takes features; and the
    images joined by inputs of the class to forget that are made from those.
    """
    network, forgotten, head = prepared.loaded.network, prepared.forgotten, _head(prepared)
    device = prepared.loaded.device
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images)), device=device).long()
    starts = images.inputs(chosen)
    further = inputs_made(prepared, count, schedule) - count
    _check_room(prepared, count, starts[0].nbytes, count + further, len(images))
    last = prepared.split_point is not None and maps_channels_last(network.builder)
    made = synthesise_anchors(
        network.module, head, starts, prepared.staying,
        count=count, schedule=schedule, channels_last=last, done=done,
    )  # fmt: skip
    if further:
        more, answers = synthesise_forget_inputs(
            network.module, made, starts, forgotten,
            count=further, schedule=schedule, channels_last=last,
            done=lambda number: done(count + number),
        )  # fmt: skip
        images = images.joined(more, answers)
    return images, AnchorLoss(network.module, head, made, forgotten, weights, schedule)


def inputs_made(prepared: UnlearningInputs, anchors: int, schedule: Schedule) -> int:
    """How many inputs `unlearn_and_write` makes from the network, if it is asked for so many anchors."""
    count = len(prepared.image_labels)
    return anchors + min(
        round(schedule.imagined * count * copies_of_each(prepared, schedule)), anchors
    )
