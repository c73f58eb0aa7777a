"""Prepare a run: decode the forget images, resolve what was not said, find the frozen backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from pbu_cli.data.label_inference import Label, LabelRules
from pbu_cli.data.preprocessing import batches, input_batches, normalise
from pbu_cli.errors import ImageError, InvalidUsage, printable
from pbu_cli.images.decoding import DecodedImages, decode
from pbu_cli.images.image_files import Fit, fit_centre
from pbu_cli.images.image_folders import Group, list_groups, repeated_folders
from pbu_cli.images.resizing import Resizing
from pbu_cli.inputs.fit import fit
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.labels import (
    check_folder_order,
    labels_from_flags,
    resolve_class_folders,
    resolve_labels,
)
from pbu_cli.inputs.loaded_model import LoadedModel, check_memory, not_finite, validated
from pbu_cli.inputs.resizing import resizing_warnings, stated_resizing
from pbu_cli.inputs.resolve import resolve_size, unreadable_images
from pbu_cli.models.frozen_backbone import SplitPoint, bytes_held, extract, find_split_point
from pbu_cli.models.hooks import gradients_for
from pbu_cli.models.kernels.kernel_cropping import NO_CROPS, cropped, find_crops
from pbu_cli.models.parameter_groups import trained_parameters
from pbu_cli.runtime.device import affordable
from pbu_cli.settings import InputOptions, Preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlearningInputs:
    """A loaded model, its decoded forget images and everything that was inferred from them.

    images: uint8 pixels on the CPU. image_labels: int64 [n]. logits: what the model gives for the
    images, float32 [n, c], on the device. batch_size: images per forward pass. trained, head:
    the names of the parameters that train, and those of the head among them. stem_pool: whether a
    small stem has a max-pool, None for a network without such a stem. resizing: the stated way of
    resizing, None for pbu's own. split_point,
    features: where the frozen backbone ends, and its output for the images, float32 [n, ...].
    Both are None where nothing trains, where no module ends a frozen backbone, and where memory
    does not hold the features.
    """

    loaded: LoadedModel
    preprocessing: Preprocessing
    images: DecodedImages
    image_labels: Tensor
    logits: Tensor
    batch_size: int
    trained: list[str]
    head: list[str]
    split_point: SplitPoint | None
    features: Tensor | None
    stem_pool: bool | None = None
    resizing: Resizing | None = None

    @property
    def fit(self) -> Fit:
        """How images become the network's input, the forget images and all others alike."""
        return fit_centre if self.resizing is None else self.resizing

    @property
    def forgotten(self) -> Tensor:
        """bool [c], true for the classes to forget; on the device."""
        mask = torch.zeros(self.loaded.network.num_classes, dtype=torch.bool)
        mask[self.image_labels] = True
        return mask.to(self.loaded.device)

    @property
    def retained_classes(self) -> Tensor:
        """bool [c], true for the classes that anchors are made of; on the device.

        These are the classes that are neither forgotten by this run nor, according to the
        metadata, by an earlier one. Where the metadata call all other classes forgotten, they are
        not believed: anchors need at least one class.
        """
        others = ~self.forgotten
        never_forgotten = others.clone()
        never_forgotten[list(self.loaded.description.forgotten)] = False
        return never_forgotten if bool(never_forgotten.any()) else others

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) in order: the backbone's features where they are held, else images."""
        device = self.loaded.device
        if self.features is None:
            yield from batches(
                self.images.pixels, self.image_labels, self.preprocessing, size, device
            )
        else:
            labels = self.image_labels.to(device)
            yield from zip(self.features.split(size), labels.split(size), strict=True)


def prepare_inputs(
    loaded: LoadedModel,
    sources: Sequence[str],
    options: InputOptions,
    log: InferenceLog,
    *,
    layers: str | None = None,
    stdin: BinaryIO | None = None,
    rules: LabelRules = LabelRules(),  # noqa: B008 (frozen)
    progress: Callable[[int], None] = lambda count: None,
) -> UnlearningInputs:
    """Decode the forget images in the folders `sources` and resolve what the user did not say.

    layers: what is to train, as for `trained_parameters`; by default nothing is. rules: how far
    the network's predictions tell the label. progress is called with the number of images decoded
    so far. Raises ImageError where no class would be left to retain.
    """
    groups = list_groups(sources, stdin)
    resizing = stated_resizing(loaded.description, options)
    found_size, odd = resolve_size(groups, options, loaded, resizing)
    size = log.add(found_size)
    fit_to_size = fit_centre if resizing is None else log.add(resizing)
    log.warn(odd)
    channels = options.channels or loaded.network.channels
    check_memory(loaded, sum(len(group.paths) for group in groups), channels, size, options)
    loaded = validated(loaded, channels, size, options)
    network = loaded.network
    trained, head = (
        ([], []) if layers is None else trained_parameters(network.module, network.layout, layers)
    )
    folders = resolve_class_folders(groups, options, loaded)
    images = decode(
        [folder.group for folder in folders],
        channels=channels,
        size=size,
        skip_bad=options.skip_bad,
        exif_rotation=options.exif_rotation,
        fit=fit_to_size,
        progress=progress,
    )
    log.add(_counted(images, groups, len(folders)))
    given = labels_from_flags(options, folders, loaded)
    known = [f.named if label is None else label for f, label in zip(folders, given, strict=True)]
    fitted = fit(loaded, images, known, options)
    if fitted.stem is not None:
        log.add(fitted.stem)
    preprocessing, misfit = log.add(fitted.normalisation), fitted.misfit()
    split_point, features, logits = _run_network(
        loaded, trained, images, preprocessing, options.batch_size
    )
    predictions = logits.argmax(dim=1).cpu()
    labels = resolve_labels(
        loaded, folders, given, predictions, images.group, rules=rules, misfit=misfit
    )
    check_folder_order(folders, labels, predictions, images.group, loaded)
    _log_labels(labels, loaded, log)
    log.warn([f"{misfit}: check --size, --mean and --std"] if misfit else [])
    log.warn(unreadable_images("forget", images))
    log.warn(repeated_folders(groups))
    if resizing is None:
        log.warn(resizing_warnings(groups, size, loaded.description))
    log.warn(label.doubt for label in labels if label.doubt is not None)
    logger.debug("device: %s, preprocessing: %s", loaded.device, preprocessing)
    logger.debug("parameters that train: %s", ", ".join(trained))
    logger.debug("the frozen backbone ends at: %s", split_point and split_point.path)
    per_image = torch.tensor([label.index for label in labels])[images.group]
    return UnlearningInputs(
        loaded, preprocessing, images, per_image, logits, options.batch_size,
        trained, head, split_point, features, None if fitted.stem is None else fitted.stem.value,
        None if resizing is None else resizing.value,
    )  # fmt: skip


def _run_network(
    loaded: LoadedModel,
    trained: Sequence[str],
    images: DecodedImages,
    preprocessing: Preprocessing,
    batch_size: int,
) -> tuple[SplitPoint | None, Tensor | None, Tensor]:
    """Where the frozen backbone ends, its features of the images, and the logits.

    Raises CheckpointError where the logits are not finite.
    """
    module, device = loaded.network.module, loaded.device
    # An evaluation compares networks, perhaps one with itself: it crops no kernel of any of them.
    crops = find_crops(module, images.pixels[:2].to(device) / 255) if trained else NO_CROPS
    with cropped(module, crops):
        split_point = _affordable_split_point(loaded, trained, images, preprocessing)
        inputs = input_batches(images.pixels, preprocessing, batch_size, device)
        features, logits = extract(module, split_point, inputs)
    if not bool(logits.isfinite().all()):
        raise not_finite(loaded)
    return split_point, features, logits


def _counted(images: DecodedImages, groups: Sequence[Group], folders: int) -> Inferred[int]:
    count = len(images.pixels)
    ignored = sum(len(group.ignored) for group in groups)
    where = "1 folder" if folders == 1 else f"{folders} folders"
    return Inferred("images", count, f"{ignored} other files ignored", f"{count} in {where}")


def _log_labels(labels: Sequence[Label], loaded: LoadedModel, log: InferenceLog) -> None:
    """Log each label once. Raises ImageError where the labels are all the classes there are."""
    by_index = {label.index: label for label in labels}
    for label in by_index.values():
        log.add(Inferred("label", label.index, label.source, loaded.class_name(label.index)))
    if len(by_index) == loaded.network.num_classes:
        raise ImageError(
            f"the images cover all {len(by_index)} classes of the network, so that none would be"
            " left to keep; expected fewer classes: pass --forget with those to forget alone"
        )


def _affordable_split_point(
    loaded: LoadedModel, trained: Sequence[str], images: DecodedImages, preprocessing: Preprocessing
) -> SplitPoint | None:
    """Where the frozen backbone ends, if memory holds its features of all images."""
    if not trained:
        return None
    device, module = loaded.device, loaded.network.module
    some = normalise(images.pixels[:2].to(device), preprocessing)
    with gradients_for(module, [module.get_parameter(name) for name in trained]):
        if not module(some).requires_grad:
            raise InvalidUsage(
                f"--layers: the logits depend on none of the {len(trained)} parameters chosen,"
                f" first {printable(trained[0])}; choose layers that the output depends on"
            )
    split_point = find_split_point(module, trained, some)
    held = 0 if split_point is None else bytes_held(split_point, len(images.pixels))
    return split_point if split_point is not None and affordable(held, device) else None
