"""Which images are retained, and of which class each is: folders of classes, and lists."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.data.class_index import WORDNET_ID
from pbu_cli.data.class_order import NAME, ONE_BASED, POSITION, better_order, class_orders
from pbu_cli.data.label_names import label_from_name, parse_label
from pbu_cli.data.labelled_list import read_labelled_list
from pbu_cli.errors import ImageError, printable
from pbu_cli.images.image_folders import Group, list_groups, repeated_folders, split_by_subfolder
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.settings import InputOptions

FLAGS = (NAME, POSITION, ONE_BASED)  # the values of --retain-order


@dataclass(frozen=True)
class RetainedSource:
    """The files of the retained images, of which none has been read.

    source: what --retain was. groups: the files, one group a class. labels: the class of each
    group. other_orders: the labels in the other orders that the source's folders may stand in, if
    the user did not say which. left_out: how many classes are left out, as they are forgotten.
    """

    source: str
    groups: tuple[Group, ...]
    labels: tuple[int, ...]
    other_orders: Mapping[str, tuple[int, ...]]
    left_out: int

    def __len__(self) -> int:
        """How many files there are."""
        return sum(len(group.paths) for group in self.groups)

    def of_files(self, labels: Sequence[int]) -> Tensor:
        """One label a file for one label a group, int64 [n], in the order of the files."""
        counts = torch.tensor([len(group.paths) for group in self.groups])
        return torch.tensor(labels).repeat_interleave(counts)


@dataclass(frozen=True)
class _LabelledGroups:
    """What a source holds: a label a group, and the labels that other orders would give."""

    groups: Sequence[Group]
    labels: Sequence[int]
    other_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)


def find_retained_images(
    source: str,
    prepared: UnlearningInputs,
    options: InputOptions,
    log: InferenceLog,
    forgotten: Sequence[str] = (),
    order: str | None = None,
) -> RetainedSource:
    """List the images of `source`, a folder of class folders or a CSV file of `path,label` lines.

    Left out are the classes of the forget images and those that the user calls forgotten, by index
    or name. order: how the folders stand for the classes, by `name`, `position` or `one-based`;
    None for what their names say. Raises ImageError where the source cannot be understood or no
    other class is in it, InvalidUsage where there is no such class.
    """
    # os.path.isfile is False, and no error, for a string that cannot be a path.
    if os.path.isfile(source):  # noqa: PTH113
        found = _from_csv(source, prepared, options, log, order)
    else:
        found = _from_folder(source, prepared, options, log, order)
    loaded = prepared.loaded
    class_names, num_classes = loaded.description.label_names, loaded.network.num_classes
    ids = loaded.description.label_ids
    left_out = {
        *prepared.image_labels.tolist(),
        *(parse_label(text, "--forgotten", class_names, num_classes, ids) for text in forgotten),
    }
    kept = [k for k, label in enumerate(found.labels) if label not in left_out]
    if not kept:
        raise ImageError(
            f"{printable(source)}: holds images of the forgotten classes alone; expected images of"
            " other classes"
        )
    return RetainedSource(
        source,
        tuple(found.groups[k] for k in kept),
        tuple(found.labels[k] for k in kept),
        {name: tuple(labels[k] for k in kept) for name, labels in found.other_orders.items()},
        len(found.labels) - len(kept),
    )


def check_order(source: RetainedSource, predictions: Tensor, labels: Tensor, index: Tensor) -> None:
    """Raise ImageError where the labels fit the predictions of the original, or of the only
    network, far worse than those of another order. Nothing is chosen by this.

    All int64 [n], of the images that could be read. index: which of the listed files each is.
    """
    others = {name: source.of_files(found)[index] for name, found in source.other_orders.items()}
    better = better_order(predictions, labels, others)
    if better is None:
        return
    advice = (
        f"pass --retain-order {better.order}, or --retain-order {NAME} to keep them"
        if better.order in FLAGS
        else "pass a CSV file of path,label lines with the network's own labels as --retain, or"
        f" --retain-order {NAME} to keep them"
    )
    raise ImageError(f"{printable(source.source)}: {better}: {advice}")


def _from_folder(
    source: str,
    prepared: UnlearningInputs,
    options: InputOptions,
    log: InferenceLog,
    order: str | None,
) -> _LabelledGroups:
    """The class folders of a folder, with their labels.

    The labels come from the folders' names. Where the names do not give all of them, but there are
    as many folders as classes and no name contradicts it, the labels follow the alphabetical order,
    as in torchvision's ImageFolder.
    """
    num_classes = prepared.loaded.network.num_classes
    class_names = prepared.loaded.description.label_names
    ids = prepared.loaded.description.label_ids
    (whole,) = list_groups([source], None)
    log.warn(repeated_folders([whole]))
    groups = split_by_subfolder(whole)
    names = [group.name for group in groups]
    orders = class_orders(names, class_names, num_classes, ids)
    if order is not None or NAME in orders:
        return _in_order(source, groups, orders, order)
    labels = [
        label_from_name(name, class_names, num_classes, strict=True, ids=ids) for name in names
    ]
    contradicting = [k for k, label in enumerate(labels) if label not in (None, k)]
    if len(groups) == num_classes and not contradicting:
        first, last = printable(groups[0].name, 40), printable(groups[-1].name, 40)
        log.add(
            Inferred(
                "retained",
                names,
                "alphabetical order: not every folder's name is a class",
                f"classes 0 to {num_classes - 1} are {first} to {last}",
            )
        )
        return _LabelledGroups(groups, range(num_classes))
    contradiction = ""
    if len(groups) == num_classes:
        index = contradicting[0]
        contradiction = (
            f", where {printable(groups[index].name, 40)} names class {labels[index]} but would be"
            f" {index}"
        )
    possible = [name for name in FLAGS if name in orders]
    if possible:
        contradiction += f"; or pass --retain-order {' or '.join(possible)}"
    unknown = [name for name, label in zip(names, labels, strict=True) if label is None]
    if unknown:
        which = f"{printable(unknown[0], 40)} names no class" + (
            f", and neither do {len(unknown) - 1} others" if unknown[1:] else ""
        )
    else:
        which = "two folders name the same class"
    if options.class_index is None and any(map(WORDNET_ID.fullmatch, unknown)):
        contradiction += "; or pass --class-index FILE, which gives the class of each WordNet id"
    raise ImageError(
        f"{printable(source)}: {len(groups)} folders, and not every name gives a class of its own:"
        f" {which};"
        " expected folders named by class index or class name, or one folder for each of the"
        f" {num_classes} classes in alphabetical order{contradiction}"
    )


def _in_order(
    source: str, groups: Sequence[Group], orders: Mapping[str, Sequence[int]], order: str | None
) -> _LabelledGroups:
    """The groups in the order that the user states, else in the one by name, beside the others."""
    if order is None:
        others = {name: labels for name, labels in orders.items() if name != NAME}
        return _LabelledGroups(groups, orders[NAME], others)
    if order not in orders:
        possible = " or ".join(name for name in FLAGS if name in orders)
        raise ImageError(
            f"{printable(source)}: --retain-order {order} does not give each of {len(groups)}"
            f" folders or labels a class of its own; expected {possible or 'other names'}, or a CSV"
            " file of path,label lines"
        )
    return _LabelledGroups(groups, orders[order])


def _from_csv(
    source: str,
    prepared: UnlearningInputs,
    options: InputOptions,
    log: InferenceLog,
    order: str | None,
) -> _LabelledGroups:
    """The images of a file of `path,label` lines, one group a label."""
    class_names = prepared.loaded.description.label_names
    ids = prepared.loaded.description.label_ids
    num_classes = prepared.loaded.network.num_classes
    found = read_labelled_list(
        Path(source), class_names, num_classes, skip_missing=options.skip_bad, ids=ids
    )
    if found.header is not None:
        log.add(Inferred("header", found.header, f"the first line of {source}; it is left out"))
    orders = class_orders(found.texts, class_names, num_classes, ids)
    return _in_order(source, found.groups, {**orders, NAME: list(found.labels)}, order)
