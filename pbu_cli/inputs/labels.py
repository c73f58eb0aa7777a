"""The class folders among the forget images, and the label of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbu_cli.data.class_order import NAME, better_order, class_orders
from pbu_cli.data.label_inference import History, Label, LabelRules, resolve_label
from pbu_cli.data.label_names import label_from_name, parse_label
from pbu_cli.errors import ImageError, InvalidUsage
from pbu_cli.images.image_folders import Group, split_by_subfolder
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.settings import InputOptions


@dataclass(frozen=True)
class ClassFolder:
    """Images that share one label, and the label that the folder's name gives, if it gives one."""

    group: Group
    named: int | None


def in_fixed_order(
    sources: Sequence[str], options: InputOptions
) -> tuple[tuple[str, ...], InputOptions]:
    """The sources by their resolved paths, and the options with each label beside its source.

    The order in which a user names the folders then changes nothing in what is written.

    >>> in_fixed_order(["/b", "/a"], InputOptions(labels=("5", "3")))[0]
    ('/a', '/b')
    """
    order = sorted(
        range(len(sources)),
        key=lambda k: b"" if sources[k] == "-" else os.fsencode(os.path.realpath(sources[k])),
    )
    labels = options.labels
    if len(labels) == len(sources):
        labels = tuple(labels[k] for k in order)
    return tuple(sources[k] for k in order), replace(options, labels=labels)


def resolve_class_folders(
    groups: Sequence[Group], options: InputOptions, loaded: LoadedModel
) -> list[ClassFolder]:
    """The folders whose images share a label, one for each class folder.

    A folder whose own name says no class may be a folder of class folders. The names of its
    subfolders are read strictly, since `part1` and `batch2` are common names and no classes.
    """
    names, classes = loaded.description.label_names, loaded.network.num_classes
    ids = loaded.description.label_ids
    found: list[ClassFolder] = []
    for group in groups:
        label = label_from_name(group.name, names, classes, ids=ids)
        if options.labels or label is not None:
            found.append(ClassFolder(group, label))
            continue
        found += [
            ClassFolder(inner, label_from_name(inner.name, names, classes, strict=True, ids=ids))
            for inner in split_by_subfolder(group)
        ]
    return found


def labels_from_flags(
    options: InputOptions, folders: Sequence[ClassFolder], loaded: LoadedModel
) -> list[int | None]:
    """One label a folder from --label, given once for all or once for each; None without it."""
    if not options.labels:
        return [None] * len(folders)
    if len(options.labels) not in (1, len(folders)):
        raise InvalidUsage(
            f"--label given {len(options.labels)} times for {len(folders)} --forget; expected once,"
            " or once for each"
        )
    names, classes = loaded.description.label_names, loaded.network.num_classes
    ids = loaded.description.label_ids
    labels: list[int | None] = [
        parse_label(text, "--label", names, classes, ids) for text in options.labels
    ]
    return labels * (len(folders) // len(labels))


def resolve_labels(
    loaded: LoadedModel,
    folders: Sequence[ClassFolder],
    given: Sequence[int | None],
    predictions: Tensor,
    group: Tensor,
    *,
    rules: LabelRules,
    misfit: str,
) -> list[Label]:
    """The label of every folder, from --label, its name, or what the network predicts for it.

    predictions, group: int64 [n], the predicted class of each image and the index of its folder.
    misfit: why the images do not fit the network, in words, or empty.
    """
    history = History(loaded.description.forgotten, loaded.description.answers)
    return [
        resolve_label(
            folder.group.name,
            given[k],
            folder.named,
            predictions[group == k],
            rules=rules,
            history=history,
            misfit=misfit,
        )
        for k, folder in enumerate(folders)
    ]


def check_folder_order(
    folders: Sequence[ClassFolder],
    labels: Sequence[Label],
    predictions: Tensor,
    group: Tensor,
    loaded: LoadedModel,
) -> None:
    """Raise ImageError where the labels are those of the folders' names, and the predictions fit
    another order of the folders far better."""
    used = [label.index for label in labels]
    names, classes = loaded.description.label_names, loaded.network.num_classes
    ids = loaded.description.label_ids
    orders = class_orders([folder.group.name for folder in folders], names, classes, ids)
    if orders.pop(NAME, None) != used:
        return
    others = {order: torch.tensor(found)[group] for order, found in orders.items()}
    better = better_order(predictions, torch.tensor(used)[group], others)
    if better is not None:
        raise ImageError(
            f"--forget: {better}: pass each folder by its own --forget, and --label once for each"
        )
