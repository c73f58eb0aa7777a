"""fisher and unlearn from a case to their result, without a word printed: `cli` renders it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pbu_cli import metrics
from pbu_cli.activations import read_head
from pbu_cli.anchors import Company, imagine, synthesise
from pbu_cli.case import Case, Subject, affordable
from pbu_cli.checkpoint import Tensors, write
from pbu_cli.crops import Crops, cropped, find_crops
from pbu_cli.damage import Damage, estimated
from pbu_cli.description import metadata_with
from pbu_cli.errors import CheckpointError, PbuError, printable
from pbu_cli.fisher import fisher_diagonal
from pbu_cli.forget_set import ForgetSet, recognised_mirrored, shifted
from pbu_cli.json_text import plain
from pbu_cli.logits import batches, normalise
from pbu_cli.memory_format import contiguous
from pbu_cli.model import load
from pbu_cli.objective import restricted_log_softmax, stability
from pbu_cli.settings import FORGOTTEN, Estimator, Schedule, Weights
from pbu_cli.stages import head_module, maps_channels_last
from pbu_cli.trunk import beyond, bytes_held, look
from pbu_cli.unlearning import Progress, unlearn

FISHER_BATCH = 64  # images; the totals are gone through once a batch, ...
FISHER_INPUTS = 1 << 18  # ... so of small inputs a batch takes so many numbers, where that is more


@dataclass(frozen=True)
class Mirrored:
    """What the network made of mirror images: how many it recognised for each image that it did,
    of some; whether they joined; how many it was shown in all."""

    recognised: float
    joined: bool
    images: int


@dataclass(frozen=True)
class Unlearned:
    """What became of a case, measured on the file as it was written.

    Percent of the forget images before and after; drift in nats, over all of them, and over all
    anchors where there were any, before the weights were rounded to the file's dtype; moved is
    ||theta - theta*|| / ||theta*|| over the parameters that changed.
    """

    steps: int
    reason: str
    learning_rate: float
    a_df_before: float
    a_df: float
    drift: float
    drift_on_anchors: float | None
    moved: float
    mirrored: Mirrored | None
    answers: dict[int, float]

    @property
    def damage(self) -> Damage:
        """What those drifts have cost of A_Dr, as far as they tell."""
        return estimated(self.drift, self.drift_on_anchors)

    @property
    def forgotten(self) -> bool:
        return self.a_df <= FORGOTTEN


def measure_fisher(
    case: Case,
    estimator: Estimator,
    *,
    draws: int = 1,
    seed: int = 0,
    done: Callable[[int], None] | None = None,
) -> Tensors:
    """The Fisher diagonal of what trains, summed over all forget images."""
    module = case.subject.network.module
    numel = (case.images.pixels if case.features is None else case.features)[0].numel()
    size = min(max(FISHER_BATCH, FISHER_INPUTS // numel), case.batch_size)

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (inputs, labels) in enumerate(case.batches(size)):
            yield inputs.contiguous(), labels
            if done is not None:
                done(min((number + 1) * size, len(case.image_labels)))

    with contiguous(module), beyond(module, case.cut):
        return fisher_diagonal(
            module, counted(),
            estimator=estimator, draws=draws, seed=seed, parameters=case.trained,
        )  # fmt: skip


def sanitise(
    case: Case,
    fisher: Tensors,
    output: Path,
    *,
    weights: Weights,
    schedule: Schedule,
    anchors: int = 0,
    run: Mapping[str, Any] | None = None,
    making: Callable[[int], None] = lambda count: None,
    seen: Callable[[Progress], None] = lambda progress: None,
) -> Unlearned:
    """Unlearn, write the sanitized checkpoint, and measure what was written.

    Every number that did not change comes out bit-identical, the others in the input's dtype:
    with anchors, the head's row of the class changes beside what trains. So
    many `anchors` are made, where the weights have a use for them; `making` hears of each batch.
    `run` is what the output's metadata are to say of this run; the same for the same run.
    """
    subject, changed = case.subject, case.trained
    module = subject.network.module
    images, mirrored = _forget_set(case, schedule)
    last: Progress | None = None
    with _live_tail(case) as crops:
        company = None
        if anchors and (weights.epsilon or weights.zeta):
            images, company = _company(case, images, anchors, weights, schedule, making)
            changed = [*changed, *(name for name in company.changes if name not in changed)]
        for last in unlearn(
            module, images, fisher,
            trained=case.trained, head=case.head, weights=weights, schedule=schedule,
            company=company, crops=crops,
        ):  # fmt: skip
            seen(last)
        on_anchors = None if company is None else company.drift()
    assert last is not None
    tensors = _output_tensors(subject, changed)
    measured: list[Tensor] = []

    def verify(written: Tensors) -> None:
        checkpoint = subject.checkpoint
        written = {name.removeprefix(checkpoint.prefix): t for name, t in written.items()}
        _check_promises(checkpoint.tensors, written, _names_in_file(subject, changed))
        load(module, written)
        with _live_tail(case):  # the frozen trunk has just been found unchanged
            rounds = (inputs for inputs, _ in case.batches(case.batch_size))
            measured.append(look(module, None, rounds)[1])

    facts = {
        "forgotten": sorted({*subject.description.forgotten, *case.image_labels.tolist()}),
        "mean": list(case.preprocessing.mean),
        "std": list(case.preprocessing.std),
        "input_size": [case.images.pixels.shape[1], *case.preprocessing.size],
        "run": {} if run is None else plain(run),
    }
    write(
        output,
        subject.checkpoint.stored_names(tensors),
        metadata_with(subject.checkpoint.metadata, **facts),
        verify,
    )
    after = measured[0]
    reference = restricted_log_softmax(case.answers, case.forgotten)
    return Unlearned(
        last.seen.step,
        last.decision.reason,
        last.learning_rate,
        metrics.accuracy(case.answers.argmax(dim=1).cpu(), case.image_labels),
        metrics.accuracy(after.argmax(dim=1).cpu(), case.image_labels),
        stability(after, reference, case.forgotten).item(),
        on_anchors,
        _relative_distance(subject.checkpoint.tensors, tensors, changed),
        mirrored,
        metrics.answer_shares(after.argmax(dim=1).cpu(), subject.network.num_classes),
    )


@contextmanager
def _live_tail(case: Case) -> Iterator[Crops]:
    """While it lasts the case's module takes what `case.batches` gives, its kernels cropped to the
    taps that meet any of it. The crops by parameter."""
    module = case.subject.network.module
    some, _ = next(case.batches(2))
    with beyond(module, case.cut):
        crops = find_crops(module, some)
        with cropped(module, crops):
            yield crops


def _forget_set(case: Case, schedule: Schedule) -> tuple[ForgetSet, Mirrored | None]:
    """The case's images; of a few, shifted copies too, so that they fill the window; and the mirror
    images of all of them, where memory holds what the trunk makes of both and the network takes
    those for the class as well."""
    pixels, labels, device = case.images.pixels, case.image_labels, case.subject.device
    features, answers = case.features, case.answers
    copies = _copies(case, schedule)
    if copies > 1:
        pixels = shifted(pixels, copies, schedule.seed)
        labels = labels.repeat(copies)
        features, answers = _look(case, pixels)
    images = ForgetSet(
        pixels if features is not None else pixels.to(device),
        labels.to(device), case.forgotten, case.preprocessing, answers, features,
    )  # fmt: skip
    count, cut = len(images), case.cut
    if not schedule.mirror or cut is None or not affordable(bytes_held(cut, 2 * count), device):
        return images, None
    some = torch.linspace(0, count - 1, min(schedule.window, count)).long()
    found = _look(case, pixels[some].flip(3))[1]
    there = some.to(device)
    share = recognised_mirrored(answers[there], found, images.labels[there])
    if share < schedule.mirror:
        return images, Mirrored(share, False, len(some))
    features, answers = _look(case, pixels.flip(3))
    assert features is not None
    return images.with_mirrored(features, answers), Mirrored(share, True, len(some) + count)


def _look(case: Case, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """What the frozen trunk makes of images, uint8, and theta*'s logits on them."""
    module, device = case.subject.network.module, case.subject.device
    unused = torch.zeros(len(pixels), dtype=torch.int8)
    rounds = batches(pixels, unused, case.preprocessing, case.batch_size, device)
    with cropped(module, find_crops(module, normalise(pixels[:2].to(device), case.preprocessing))):
        return look(module, case.cut, (inputs for inputs, _ in rounds))


def check_anchors(case: Case, count: int, schedule: Schedule) -> None:
    """Raise CheckpointError where the network has no head that anchors could be told apart at,
    PbuError where memory does not hold so many."""
    some = normalise(case.images.pixels[:2].to(case.subject.device), case.preprocessing)
    read_head(case.subject.network.module, _head(case), [some])
    images = len(case.image_labels) * _copies(case, schedule)
    each = some[:1].nbytes if case.cut is None else bytes_held(case.cut, 1)
    _check_room(case, count, each, inputs_made(case, count, schedule), images)


def _check_room(case: Case, count: int, each: int, made: int, images: int) -> None:
    needed = each * (min(count, images) + 2 * made + images)
    # Twice the share of memory that the images' features may take: little else is held by now.
    if not affordable(needed // 2, case.subject.device):
        raise PbuError(
            f"{count} anchors: take {needed / 2**30:.1f} GiB, more than memory has to spare;"
            " nothing was written: lower --anchors, or use --fast"
        )


def _head(case: Case) -> str:
    network = case.subject.network
    head = head_module(network.module, network.builder)
    if head is None:
        raise CheckpointError(
            "anchors: found no linear or convolutional layer that gives the logits; expected one"
            " at the network's end: use --fast"
        )
    return head


def _company(
    case: Case,
    images: ForgetSet,
    count: int,
    weights: Weights,
    schedule: Schedule,
    done: Callable[[int], None],
) -> tuple[ForgetSet, Company]:
    """Anchors made from at most `count` forget images, for a module that takes features; and the
    images joined by inputs of the class to forget that are made from those.
    """
    network, forgotten, head = case.subject.network, case.forgotten, _head(case)
    device = case.subject.device
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images)), device=device).long()
    starts = images.inputs(chosen)
    further = inputs_made(case, count, schedule) - count
    _check_room(case, count, starts[0].nbytes, count + further, len(images))
    last = case.cut is not None and maps_channels_last(network.builder)
    made = synthesise(
        network.module, head, starts, case.staying,
        count=count, schedule=schedule, channels_last=last, done=done,
    )  # fmt: skip
    if further:
        more, answers = imagine(
            network.module, made, starts, forgotten,
            count=further, schedule=schedule, channels_last=last,
            done=lambda number: done(count + number),
        )  # fmt: skip
        images = images.joined(more, answers)
    return images, Company(network.module, head, made, forgotten, weights, schedule)


def inputs_made(case: Case, anchors: int, schedule: Schedule) -> int:
    """How many inputs `sanitise` makes from the network, if it is asked for so many anchors."""
    count = len(case.image_labels)
    return anchors + min(round(schedule.imagined * count * _copies(case, schedule)), anchors)


def _copies(case: Case, schedule: Schedule) -> int:
    """How often each image is taken: so often that they fill the window, if memory holds so many,
    twice over while they are put together."""
    pixels, device = case.images.pixels, case.subject.device
    once = pixels.nbytes + (0 if case.cut is None else bytes_held(case.cut, len(pixels)))
    copies = -(-schedule.window // len(pixels))
    while copies > 1 and not affordable(2 * copies * once, device):
        copies //= 2
    return copies


def _names_in_file(subject: Subject, changed: list[str]) -> set[str]:
    """Every name in the file of a parameter that changes: a tied one has several."""
    module = subject.network.module
    named = dict(module.named_parameters())
    memory = {named[name].data_ptr() for name in changed}
    state = module.state_dict()
    return {
        name
        for name in subject.checkpoint.tensors
        if name in changed or (name in state and state[name].data_ptr() in memory)
    }


def _output_tensors(subject: Subject, changed: list[str]) -> Tensors:
    state = subject.network.module.state_dict()
    names = _names_in_file(subject, changed)
    return {
        name: _stored_as(state[name].detach().cpu(), stored) if name in names else stored
        for name, stored in subject.checkpoint.tensors.items()
    }


def _stored_as(now: Tensor, stored: Tensor) -> Tensor:
    """`now` in the stored dtype; float64 that float32 did not move keeps its last digits."""
    return torch.where(now == stored.to(now.dtype), stored, now.to(stored.dtype)).contiguous()


def _check_promises(stored: Tensors, written: Tensors, changed: set[str]) -> None:
    """Same names, shapes and dtypes; what was not to change bit-identical; all of it finite."""
    faults = sorted(stored.keys() ^ written.keys())
    for name in stored.keys() & written.keys():
        before, after = stored[name], written[name]
        same = before.shape == after.shape and before.dtype == after.dtype
        if not same or (name not in changed and not _same_bytes(before, after)):
            faults.append(name)
        elif name in changed and not bool(after.float().isfinite().all()):
            raise PbuError(
                f"{printable(name)} overflows {after.dtype} after unlearning; nothing was written:"
                " lower --alpha or start from a float32 checkpoint"
            )
    if faults:
        raise PbuError(
            f"{len(faults)} tensors would not have come out as promised, first"
            f" {printable(faults[0])}; nothing was written: please report this"
        )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def _relative_distance(before: Tensors, after: Tensors, names: list[str]) -> float:
    moved = sum((after[n].double() - before[n].double()).pow(2).sum().item() for n in names)
    length = sum(before[n].double().pow(2).sum().item() for n in names)
    return float((moved / length) ** 0.5) if length else 0.0


def timed() -> Callable[[], float]:
    """A stopwatch: seconds since the last reading."""
    last = time.perf_counter()

    def lap() -> float:
        nonlocal last
        now = time.perf_counter()
        seconds, last = now - last, now
        return seconds

    return lap
