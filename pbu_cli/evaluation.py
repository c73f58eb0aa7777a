"""One evaluation: what networks answer on forget and on retained images."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from pbu_cli import metrics
from pbu_cli.activations import read_head
from pbu_cli.case import (
    Case,
    Note,
    Subject,
    Wanted,
    assemble,
    left_out,
    load_subject,
    tried,
    unsound,
)
from pbu_cli.damage import Damage, estimated
from pbu_cli.errors import CheckpointError, ImageError, printable
from pbu_cli.evidence import label_from_name
from pbu_cli.files import read_whole
from pbu_cli.folders import MOST_LISTED, Group, list_groups, split_by_subfolder
from pbu_cli.images import Images, decode
from pbu_cli.logits import logits, prepared
from pbu_cli.objective import restricted_log_softmax, stability
from pbu_cli.stages import head_module

HEAD_MASK, ROW_SHIFT = "original, head mask", "original, row shift"  # the controls
LOOK = 64  # images a forward pass of an audit: small ones stay in a core's cache


@dataclass(frozen=True)
class Scores:
    """Accuracies of one network, percent; None where no retained images were given.

    a_df: forget images answered with their own label. a_dr: retained images answered right.
    intervals: 95 %, Wilson. answers: where the forget images go, percent by class.
    """

    name: str
    a_df: float
    a_df_interval: tuple[float, float]
    a_dr: float | None
    a_dr_interval: tuple[float, float] | None
    per_class: dict[int, float]
    answers: dict[int, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of the checkpoint, and of what it is compared with, on the same images.

    images, skipped: how many of the forget and of the retained images were used, and how many left
    out as unreadable, under `forget` and `retain`. damage: what the checkpoint has lost of A_Dr,
    estimated from the forget images alone; None without an original to have drifted from.
    """

    scores: tuple[Scores, ...]
    images: dict[str, int]
    skipped: dict[str, int]
    damage: Damage | None
    subject: Subject
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """A network's logits [n, c] on the forget images and, where given, on retained ones; for an
    audit also what goes into its head, [n, d]."""

    forget: Tensor
    retain: Tensor | None = None
    forget_features: Tensor | None = None
    retain_features: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """Networks, their controls and the images that they are compared on.

    subjects: `checkpoint`, and `original` and `retrained` where given. answers: of these and of the
    controls, in the order they are shown in. retained, labels: the retained images and what is
    right for them, None where not given. shift: what the row shift takes from the head, [d].
    taken_at_its_word: classes left out of the retained because the checkpoint's metadata alone say
    that they are forgotten.
    """

    case: Case
    subjects: dict[str, Subject]
    answers: dict[str, Answers]
    retained: Images | None
    labels: Tensor | None
    shift: Tensor | None
    taken_at_its_word: tuple[int, ...] = ()


def score(name: str, answers: Answers, forget: Tensor, retain: Tensor | None) -> Scores:
    """The scores of one network. forget, retain: int64 labels of the images answered."""
    given = answers.forget.argmax(dim=1).cpu()
    a_df = metrics.accuracy(given, forget)
    per_class = metrics.accuracy_per_class(given, forget)
    a_dr = bounds = None
    if answers.retain is not None and retain is not None:
        kept = answers.retain.argmax(dim=1).cpu()
        a_dr = metrics.accuracy(kept, retain)
        bounds = metrics.interval(a_dr, len(retain))
        per_class |= metrics.accuracy_per_class(kept, retain)
    return Scores(
        name,
        a_df,
        metrics.interval(a_df, len(forget)),
        a_dr,
        bounds,
        dict(sorted(per_class.items())),
        metrics.answer_shares(given, answers.forget.shape[1]),
    )


def head_masked(answers: Answers, forgotten: Tensor) -> Answers:
    """The control: the same network with the forgotten logits at minus infinity."""
    retain = answers.retain
    return replace(
        answers,
        forget=metrics.head_mask(answers.forget, forgotten),
        retain=None if retain is None else metrics.head_mask(retain, forgotten),
    )


def row_shifted(answers: Answers, forgotten: Tensor, shift: Tensor) -> Answers:
    """The control of an audit: the same network with one row of its head moved."""
    retain, inside = answers.retain, answers.retain_features
    assert answers.forget_features is not None
    return replace(
        answers,
        forget=metrics.shift_rows(answers.forget, answers.forget_features, forgotten, shift),
        retain=None
        if retain is None or inside is None
        else metrics.shift_rows(retain, inside, forgotten, shift),
    )


def evaluate(
    checkpoint: Path,
    forget: Sequence[str],
    wanted: Wanted,
    note: Note,
    *,
    retain: str | None = None,
    original: Path | None = None,
    retrained: Path | None = None,
    stdin: BinaryIO | None = None,
) -> Evaluation:
    """Score a checkpoint on forget images and, where given, on retained ones; see `compare`."""
    return scored(
        compare(
            checkpoint, forget, wanted, note,
            retain=retain, original=original, retrained=retrained, stdin=stdin,
        )
    )  # fmt: skip


def compare(
    checkpoint: Path,
    forget: Sequence[str],
    wanted: Wanted,
    note: Note,
    *,
    retain: str | None = None,
    original: Path | None = None,
    retrained: Path | None = None,
    stdin: BinaryIO | None = None,
    inside: bool = False,
) -> Comparison:
    """What a checkpoint, and the networks it is compared with, answer to the same images.

    The original is what images, labels and normalisation are inferred with where it is given: a
    checkpoint that has forgotten a class is no witness to it. Only the normalisation and the size
    that pbu recorded when it unlearned stand above what the original would suggest. Retained
    images of a forgotten class are left out. With the original come the controls that are free:
    the head mask and, for an audit, which looks `inside` at the head's input too, the row shift.
    """
    paths = {"checkpoint": checkpoint, "original": original, "retrained": retrained}
    subjects = {
        name: load_subject(path, wanted, note if name == "checkpoint" else _unheard)
        for name, path in paths.items()
        if path is not None
    }
    _compare("channels", {name: s.network.channels for name, s in subjects.items()})
    lead = "checkpoint" if original is None else "original"
    guide, recorded = subjects[lead], subjects["checkpoint"].description
    guide = replace(guide, description=guide.description.processed_like(recorded))
    case = assemble(guide, forget, wanted, note, stdin=stdin, binding=original is not None)
    channels, size = case.images.pixels.shape[1], case.preprocessing.size
    for name, other in subjects.items():
        subjects[name] = case.subject if name == lead else tried(other, channels, size, wanted)
    _compare("classes", {name: s.network.num_classes for name, s in subjects.items()})
    kept = None if retain is None else _retained(retain, case, wanted, note, recorded.forgotten)
    pictures = None if kept is None else kept[0]
    answers = {
        name: _looked_inside(s, case, pictures) if inside else _answered(s, case, pictures)
        for name, s in subjects.items()
    }
    shift = None
    if "original" in answers:
        whole, gone = answers["original"], case.forgotten.to(answers["original"].forget.device)
        answers[HEAD_MASK] = head_masked(whole, gone)
        if whole.forget_features is not None and _head_is_linear(subjects["original"]):
            shift = metrics.row_shift(whole.forget, whole.forget_features, gone)
        if shift is not None:
            answers[ROW_SHIFT] = row_shifted(whole, gone, shift)
    order = ("checkpoint", "original", HEAD_MASK, ROW_SHIFT, "retrained")
    return Comparison(
        case,
        subjects,
        {name: answers[name] for name in order if name in answers},
        pictures,
        None if kept is None else kept[1],
        shift,
        () if kept is None else kept[2],
    )


def scored(comparison: Comparison) -> Evaluation:
    """The scores of what was compared."""
    case, retained = comparison.case, comparison.retained
    used = {"forget": case.images, "retain": retained}
    return Evaluation(
        tuple(
            score(name, answers, case.image_labels, comparison.labels)
            for name, answers in comparison.answers.items()
        ),
        {which: 0 if some is None else len(some.pixels) for which, some in used.items()},
        {which: 0 if some is None else len(some.bad) for which, some in used.items()},
        _damage(comparison),
        case.subject,
        case.warnings
        + (() if retained is None else tuple(left_out("retained", retained)))
        + tuple(
            f"A_Dr leaves out class {case.subject.class_name(label)}, which only the checkpoint's"
            " own metadata call forgotten: --forget its images too, or do not rely on this A_Dr"
            for label in comparison.taken_at_its_word
        ),
    )


def _damage(comparison: Comparison) -> Damage | None:
    if "original" not in comparison.answers:
        return None
    before, after = (comparison.answers[name].forget for name in ("original", "checkpoint"))
    gone = comparison.case.forgotten.to(before.device)
    drift = stability(after.to(before), restricted_log_softmax(before, gone), gone)
    return estimated(drift.item())


def _unheard(what: str, value: str, source: str) -> None:
    """What is inferred of the networks for comparison is what was of the checkpoint."""


def _compare(what: str, counts: dict[str, int]) -> None:
    first = counts["checkpoint"]
    for name, count in counts.items():
        if count != first:
            raise CheckpointError(
                f"--{name}: {count} {what}, the checkpoint has {first}: not comparable"
            )


def _answered(subject: Subject, case: Case, retained: Images | None) -> Answers:
    def given(images: Images) -> Tensor:
        return logits(subject.network.module, images.pixels, case.preprocessing, case.batch_size)

    known = subject is case.subject
    return _sound(
        subject,
        Answers(
            case.answers if known else given(case.images),
            None if retained is None else given(retained),
        ),
    )


def _looked_inside(subject: Subject, case: Case, retained: Images | None) -> Answers:
    """Answers with features. Raises CheckpointError for a network without a head to look at."""
    network = subject.network
    head = head_module(network.module, network.builder)
    if head is None:
        raise CheckpointError(
            f"--audit: {printable(network.name)} has no linear or convolutional layer in its head;"
            " expected one whose input can be read"
        )

    def read(images: Images) -> tuple[Tensor, Tensor]:
        parts = images.pixels.split(min(LOOK, case.batch_size))
        rounds = (prepared(part, case.preprocessing, subject.device) for part in parts)
        return read_head(network.module, head, rounds)

    features, forget = read(case.images)
    if retained is None:
        return _sound(subject, Answers(forget, None, features))
    inside, retain = read(retained)
    return _sound(subject, Answers(forget, retain, features, inside))


def _sound(subject: Subject, answers: Answers) -> Answers:
    """The answers, all of them numbers: NaN has its argmax too, and would count as forgotten."""
    for found in vars(answers).values():
        if found is not None and not bool(found.isfinite().all()):
            raise unsound(subject)
    return answers


def _head_is_linear(subject: Subject) -> bool:
    network = subject.network
    head = head_module(network.module, network.builder)
    return head is not None and isinstance(network.module.get_submodule(head), nn.Linear)


def _retained(
    source: str, case: Case, wanted: Wanted, note: Note, forgotten: tuple[int, ...]
) -> tuple[Images, Tensor, tuple[int, ...]]:
    """Retained images and their labels, those of forgotten classes left out; and which classes the
    metadata alone say are."""
    listed = (
        _from_list(Path(source), case)
        if os.path.isfile(source)  # noqa: PTH113 (False, not an error, for what is no name)
        else _from_folder(source, case, note)
    )
    gone = {*case.image_labels.tolist(), *forgotten}
    groups = [(group, label) for group, label in listed if label not in gone]
    if not groups:
        raise ImageError(f"{printable(source)}: holds no class but the forgotten; expected others")
    images = decode(
        [group for group, _ in groups],
        channels=case.images.pixels.shape[1],
        size=case.preprocessing.size,
        skip_bad=wanted.skip_bad,
    )
    labels = torch.tensor([label for _, label in groups])[images.group]
    gone_groups = len(listed) - len(groups)
    note(
        "retained",
        f"{len(images.pixels)} images of {len({label for _, label in groups})} classes",
        f"{source}" + (f"; {gone_groups} forgotten left out" if gone_groups else ""),
    )
    own = set(case.image_labels.tolist())
    return images, labels, tuple(sorted({label for _, label in listed} & set(forgotten) - own))


def _from_folder(source: str, case: Case, note: Note) -> list[tuple[Group, int]]:
    """A folder of class folders: labels by name or, where they are all the classes there are and no
    name says otherwise, by alphabetical order, as torchvision's ImageFolder has it."""
    classes = case.subject.network.num_classes
    names = case.subject.description.label_names
    (whole,) = list_groups([source], None)
    groups = split_by_subfolder(whole)
    found = [label_from_name(g.name, names, classes, strict=True) for g in groups]
    known = [label for label in found if label is not None]
    if len(known) == len(groups) == len(set(known)):
        return list(zip(groups, known, strict=True))
    astray = [k for k, label in enumerate(found) if label not in (None, k)]
    if len(groups) == classes and not astray:
        first, last = printable(groups[0].name, 40), printable(groups[-1].name, 40)
        note(
            "retained",
            f"classes 0 to {classes - 1} are {first} to {last}",
            "alphabetical order: not every folder's name is a class",
        )
        return [(group, label) for label, group in enumerate(groups)]
    contradiction = (
        f", and {printable(groups[astray[0]].name, 40)} names class {found[astray[0]]} but would be"
        f" {astray[0]}"
        if len(groups) == classes
        else ""
    )
    raise ImageError(
        f"{printable(source)}: {len(groups)} folders, not all of which name a class of their own;"
        f" expected class indices or names, or one folder for each of the {classes} classes in"
        f" alphabetical order{contradiction}"
    )


def _from_list(path: Path, case: Case) -> list[tuple[Group, int]]:
    """Lines of `path,label`; paths relative to the file."""
    by_label: dict[int, list[Path]] = {}
    classes = case.subject.network.num_classes
    names = case.subject.description.label_names
    try:
        text = read_whole(path, MOST_LISTED).decode("utf-8-sig")  # Excel writes a BOM
        with io.StringIO(text, newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row:
                    continue
                label = label_from_name(row[-1].strip(), names, classes, strict=True)
                if len(row) != 2 or label is None:
                    raise ImageError(
                        f"{printable(path)}, line {number}: expected path,label with a label from"
                        f" 0 to {classes - 1}, got {printable(','.join(row), 80)}"
                    )
                by_label.setdefault(label, []).append(path.parent / row[0])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{printable(path)}: not a readable list: {printable(reason)}") from None
    return [
        (Group(str(label), tuple(sorted(paths))), label)
        for label, paths in sorted(by_label.items())
    ]
