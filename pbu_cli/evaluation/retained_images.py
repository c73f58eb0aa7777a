"""Read the retained images of an evaluation and their labels."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import torch
from torch import Tensor

from pbu_cli.data.decoding import DecodedImages, decode
from pbu_cli.data.image_folders import MOST_LISTED, Group, list_groups, split_by_subfolder
from pbu_cli.data.label_inference import label_from_name
from pbu_cli.errors import ImageError, printable
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.io.regular_files import read_whole
from pbu_cli.settings import InputOptions


def retained_images(
    source: str,
    prepared: UnlearningInputs,
    options: InputOptions,
    note: Note,
    forgotten: tuple[int, ...],
) -> tuple[DecodedImages, Tensor, tuple[int, ...]]:
    """Retained images and their labels, those of forgotten classes left out; and which classes the
    metadata alone say are."""
    listed = (
        _from_list(Path(source), prepared)
        if os.path.isfile(source)  # noqa: PTH113 (False, not an error, for what is no name)
        else _from_folder(source, prepared, note)
    )
    gone = {*prepared.image_labels.tolist(), *forgotten}
    groups = [(group, label) for group, label in listed if label not in gone]
    if not groups:
        raise ImageError(f"{printable(source)}: holds no class but the forgotten; expected others")
    images = decode(
        [group for group, _ in groups],
        channels=prepared.images.pixels.shape[1],
        size=prepared.preprocessing.size,
        skip_bad=options.skip_bad,
    )
    labels = torch.tensor([label for _, label in groups])[images.group]
    gone_groups = len(listed) - len(groups)
    note(
        "retained",
        f"{len(images.pixels)} images of {len({label for _, label in groups})} classes",
        f"{source}" + (f"; {gone_groups} forgotten left out" if gone_groups else ""),
    )
    own = set(prepared.image_labels.tolist())
    return images, labels, tuple(sorted({label for _, label in listed} & set(forgotten) - own))


def _from_folder(source: str, prepared: UnlearningInputs, note: Note) -> list[tuple[Group, int]]:
    """A folder of class folders: labels by name or, where they are all the classes there are and no
    name says otherwise, by alphabetical order, as torchvision's ImageFolder has it."""
    classes = prepared.loaded.network.num_classes
    names = prepared.loaded.description.label_names
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


def _from_list(path: Path, prepared: UnlearningInputs) -> list[tuple[Group, int]]:
    """Lines of `path,label`; paths relative to the file."""
    by_label: dict[int, list[Path]] = {}
    classes = prepared.loaded.network.num_classes
    names = prepared.loaded.description.label_names
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
