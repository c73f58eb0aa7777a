"""Read the retained images of an evaluation and their labels."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.data.decoding import DecodedImages, decode
from pbu_cli.data.image_folders import MAX_LIST_BYTES, Group, list_groups, split_by_subfolder
from pbu_cli.data.label_inference import label_from_name
from pbu_cli.errors import ImageError, printable
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.regular_files import read_whole
from pbu_cli.settings import InputOptions


@dataclass(frozen=True)
class RetainedImages:
    """Images of the retained classes.

    labels: int64 [n]. left_out_by_metadata: classes of the source that were left out because the
    checkpoint's metadata call them forgotten, although none of the forget images is of them.
    """

    images: DecodedImages
    labels: Tensor
    left_out_by_metadata: tuple[int, ...]


def read_retained_images(
    source: str,
    prepared: UnlearningInputs,
    options: InputOptions,
    log: InferenceLog,
    forgotten_by_metadata: tuple[int, ...],
) -> RetainedImages:
    """Decode the images of `source`, a folder of class folders or a CSV file of `path,label` lines.

    Images of forgotten classes are left out: the classes of the forget images, and those that the
    checkpoint's metadata call forgotten. Raises ImageError where the source cannot be understood or
    no other class is in it.
    """
    labelled_groups = (
        _groups_from_csv(Path(source), prepared)
        # os.path.isfile is False, and no error, for a string that cannot be a path.
        if os.path.isfile(source)  # noqa: PTH113
        else _groups_from_folder(source, prepared, log)
    )
    forgotten = set(prepared.image_labels.tolist())
    left_out = {*forgotten, *forgotten_by_metadata}
    retained_groups = [(group, label) for group, label in labelled_groups if label not in left_out]
    if not retained_groups:
        raise ImageError(
            f"{printable(source)}: holds images of the forgotten classes alone; expected images of"
            " other classes"
        )
    images = decode(
        [group for group, _ in retained_groups],
        channels=prepared.images.pixels.shape[1],
        size=prepared.preprocessing.size,
        skip_bad=options.skip_bad,
    )
    labels = torch.tensor([label for _, label in retained_groups])[images.group]
    num_left_out = len(labelled_groups) - len(retained_groups)
    num_classes = len({label for _, label in retained_groups})
    log.add(
        Inferred(
            "retained",
            len(images.pixels),
            source + (f"; {num_left_out} forgotten left out" if num_left_out else ""),
            f"{len(images.pixels)} images of {num_classes} classes",
        )
    )
    present = {label for _, label in labelled_groups}
    by_metadata = (present & set(forgotten_by_metadata)) - forgotten
    return RetainedImages(images, labels, tuple(sorted(by_metadata)))


def _groups_from_folder(
    source: str, prepared: UnlearningInputs, log: InferenceLog
) -> list[tuple[Group, int]]:
    """The class folders of a folder, with their labels.

    The labels come from the folders' names. Where the names do not give all of them, but there are
    as many folders as classes and no name contradicts it, the labels follow the alphabetical order,
    as in torchvision's ImageFolder.
    """
    num_classes = prepared.loaded.network.num_classes
    class_names = prepared.loaded.description.label_names
    (whole,) = list_groups([source], None)
    groups = split_by_subfolder(whole)
    labels = [label_from_name(g.name, class_names, num_classes, strict=True) for g in groups]
    known = [label for label in labels if label is not None]
    if len(known) == len(groups) == len(set(known)):
        return list(zip(groups, known, strict=True))
    contradicting = [k for k, label in enumerate(labels) if label not in (None, k)]
    if len(groups) == num_classes and not contradicting:
        first, last = printable(groups[0].name, 40), printable(groups[-1].name, 40)
        log.add(
            Inferred(
                "retained",
                [group.name for group in groups],
                "alphabetical order: not every folder's name is a class",
                f"classes 0 to {num_classes - 1} are {first} to {last}",
            )
        )
        return [(group, label) for label, group in enumerate(groups)]
    contradiction = ""
    if len(groups) == num_classes:
        index = contradicting[0]
        contradiction = (
            f", where {printable(groups[index].name, 40)} names class {labels[index]} but would be"
            f" {index}"
        )
    raise ImageError(
        f"{printable(source)}: {len(groups)} folders, and not every name gives a class of its own;"
        " expected folders named by class index or class name, or one folder for each of the"
        f" {num_classes} classes in alphabetical order{contradiction}"
    )


def _groups_from_csv(path: Path, prepared: UnlearningInputs) -> list[tuple[Group, int]]:
    """The images of a file of `path,label` lines, one group a label; paths relative to the file."""
    paths_by_label: dict[int, list[Path]] = {}
    num_classes = prepared.loaded.network.num_classes
    class_names = prepared.loaded.description.label_names
    try:
        text = read_whole(path, MAX_LIST_BYTES).decode("utf-8-sig")  # Excel writes a BOM
        with io.StringIO(text, newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row:
                    continue
                label = label_from_name(row[-1].strip(), class_names, num_classes, strict=True)
                if len(row) != 2 or label is None:
                    raise ImageError(
                        f"{printable(path)}, line {number}: expected path,label with a label from"
                        f" 0 to {num_classes - 1}, got {printable(','.join(row), 80)}"
                    )
                paths_by_label.setdefault(label, []).append(path.parent / row[0])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            f"{printable(path)}: cannot be read as a list of path,label lines: {printable(reason)}"
        ) from None
    return [
        (Group(str(label), tuple(sorted(paths))), label)
        for label, paths in sorted(paths_by_label.items())
    ]
