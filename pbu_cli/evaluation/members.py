"""Read the images of `--members`: forget images that the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pbu_cli.data.class_order import NAME, better_order, class_orders
from pbu_cli.data.label_names import label_from_name
from pbu_cli.data.preprocessing import image_logits
from pbu_cli.errors import ImageError, printable
from pbu_cli.images.decoding import DecodedImages, decode
from pbu_cli.images.image_folders import Group, list_groups
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.settings import InputOptions

# Share of the members that may be forget images too, because data sets hold duplicates.
MAX_SHARED = 0.05


@dataclass(frozen=True)
class Members:
    """Images of the forgotten classes that the network was trained on; labels: int64 [n]."""

    images: DecodedImages
    labels: Tensor


def read_members(
    sources: Sequence[str], prepared: UnlearningInputs, options: InputOptions, log: InferenceLog
) -> Members:
    """Decode the members. Raises ImageError if they are of other classes or are forget images."""
    groups = list_groups(sources)
    labels = [_label(group, prepared) for group in groups]
    images = decode(
        groups,
        channels=prepared.images.pixels.shape[1],
        size=prepared.preprocessing.size,
        skip_bad=options.skip_bad,
        exif_rotation=options.exif_rotation,
        fit=prepared.fit,
    )
    forget_images = {image.numpy().tobytes() for image in prepared.images.pixels}
    count = len(images.pixels)
    shared = sum(image.numpy().tobytes() in forget_images for image in images.pixels)
    if shared > MAX_SHARED * count:
        raise ImageError(
            f"--members: {shared} of {count} are --forget images too; expected images that the"
            " network was trained on, against --forget images that it never saw"
        )
    _check_order(groups, labels, images, prepared)
    log.add(Inferred("members", count, ", ".join(sources), f"{count} images"))
    return Members(images, torch.tensor(labels)[images.group])


def _check_order(
    groups: Sequence[Group], labels: list[int], images: DecodedImages, prepared: UnlearningInputs
) -> None:
    """Raise ImageError where the folders' names fit the predictions of the original, or of the only
    network, far worse than another order of the folders."""
    loaded = prepared.loaded
    names, classes = loaded.description.label_names, loaded.network.num_classes
    ids = loaded.description.label_ids
    orders = class_orders([group.name for group in groups], names, classes, ids)
    if orders.pop(NAME, None) != labels or not orders:
        return
    predictions = image_logits(
        loaded.network.module, images.pixels, prepared.preprocessing, prepared.batch_size
    ).argmax(dim=1)
    others = {order: torch.tensor(found)[images.group] for order, found in orders.items()}
    better = better_order(predictions.cpu(), torch.tensor(labels)[images.group], others)
    if better is not None:
        raise ImageError(f"--members: {better}: name each folder by its class")


def _label(group: Group, prepared: UnlearningInputs) -> int:
    """The only forgotten class, or the one of several that the folder's name gives."""
    forgotten = sorted(set(prepared.image_labels.tolist()))
    if len(forgotten) == 1:
        return int(forgotten[0])
    loaded = prepared.loaded
    names, ids = loaded.description.label_names, loaded.description.label_ids
    label = label_from_name(group.name, names, loaded.network.num_classes, ids=ids)
    if label is None or label not in forgotten:
        raise ImageError(
            f"--members {printable(group.name)}: expected a folder named after one of the"
            f" forgotten classes ({', '.join(map(str, forgotten))})"
        )
    return label
