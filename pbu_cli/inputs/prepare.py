"""A prepared: the network, the forget images and everything inferred from them, ready to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from pbu_cli.data.decoding import DecodedImages, decode
from pbu_cli.data.image_folders import list_groups
from pbu_cli.data.label_inference import resolve_label
from pbu_cli.data.preprocessing import batches, normalise
from pbu_cli.errors import ImageError, InvalidUsage, printable
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.loaded_model import LoadedModel, tried, unsound
from pbu_cli.inputs.resolve import (
    given_labels,
    groups_by_class,
    left_out,
    resolve_normalisation,
    resolve_size,
)
from pbu_cli.models.frozen_backbone import SplitPoint, bytes_held, extract, find_split_point
from pbu_cli.models.hooks import gradients_for
from pbu_cli.models.kernel_cropping import NO_CROPS, cropped, find_crops
from pbu_cli.models.parameter_groups import trained_parameters
from pbu_cli.runtime.device import (
    affordable,
)
from pbu_cli.settings import InputOptions, Preprocessing


@dataclass(frozen=True)
class UnlearningInputs:
    """A loaded with its forget images.

    images: uint8 pixels on the CPU. image_labels: int64 [n]. answers: the subject's logits on the
    images, float32 [n, c], on the device. warnings: what the user should know of them.
    batch_size: images per forward pass. trained, head: names of the parameters that are to train,
    and of the head's among them. split_point, features: where the frozen trunk before those ends, and what
    it makes of the images, where memory holds that.
    """

    loaded: LoadedModel
    preprocessing: Preprocessing
    images: DecodedImages
    image_labels: Tensor
    answers: Tensor
    warnings: tuple[str, ...]
    batch_size: int
    trained: list[str]
    head: list[str]
    split_point: SplitPoint | None
    features: Tensor | None

    @property
    def forgotten(self) -> Tensor:
        """bool [c], true for the classes to forget; on the device."""
        mask = torch.zeros(self.loaded.network.num_classes, dtype=torch.bool)
        mask[self.image_labels] = True
        return mask.to(self.loaded.device)

    @property
    def staying(self) -> Tensor:
        """bool [c], true for the classes that are forgotten neither now nor, as the metadata say,
        before; where they say so of all others, for those all the same. On the device."""
        staying = ~self.forgotten
        before = list(self.loaded.description.forgotten)
        left = staying.clone()
        left[before] = False
        return left if bool(left.any()) else staying

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels), in order: features for the network `beyond` the split_point, else images."""
        device = self.loaded.device
        if self.features is None:
            yield from batches(
                self.images.pixels, self.image_labels, self.preprocessing, size, device
            )
        else:
            labels = self.image_labels.to(device)
            yield from zip(self.features.split(size), labels.split(size), strict=True)


def assemble(
    loaded: LoadedModel,
    sources: Sequence[str],
    options: InputOptions,
    note: Note,
    *,
    layers: str | None = None,
    stdin: BinaryIO | None = None,
    binding: bool = True,
    decoding: Callable[[int], None] | None = None,
) -> UnlearningInputs:
    """List and decode the forget images and settle what was not said: size, channels, labels and
    normalisation. `note` hears of each with its evidence. `layers` says what is to train, as for
    `trained_parameters`; nothing is by default.

    With `binding` the network's answers have to agree with the folders' names. An evaluation is
    not bound, since its network may have forgotten these images; if its metadata say that it has,
    they tell the label and its answers do not. Raises ImageError where no class would be left.
    """
    listed = list_groups(sources, stdin)
    size = resolve_size(listed, options, loaded, note)
    channels = options.channels or loaded.network.channels
    loaded = tried(loaded, channels, size, options)
    network = loaded.network
    trained, head = (
        trained_parameters(network.module, network.builder, layers) if layers else ([], [])
    )
    groups, named = groups_by_class(listed, options, loaded)
    images = decode(
        groups, channels=channels, size=size, skip_bad=options.skip_bad, progress=decoding
    )
    others = sum(len(group.ignored) for group in listed)
    folders = "1 folder" if len(groups) == 1 else f"{len(groups)} folders"
    note("images", f"{len(images.pixels)} in {folders}", f"{others} other files ignored")
    given = given_labels(options, groups, loaded)
    known = [n if g is None else g for g, n in zip(given, named, strict=True)]
    module, device = network.module, loaded.device
    # An evaluation compares networks, the same one with itself too: all of them as they are.
    crops = find_crops(module, images.pixels[:2].to(device) / 255) if trained else NO_CROPS
    with cropped(module, crops):
        preprocessing = resolve_normalisation(loaded, images, known, options, note)
        split_point = _affordable_split_point(loaded, trained, images, preprocessing)
        rounds = batches(images.pixels, images.group, preprocessing, options.batch_size, device)
        features, answers = extract(module, split_point, (inputs for inputs, _ in rounds))
    if not bool(answers.isfinite().all()):
        raise unsound(loaded)
    best = answers.argmax(dim=1).cpu()
    labels = [
        resolve_label(
            group.name,
            given[k],
            named[k],
            best[images.group == k],
            binding=binding,
            forgotten=() if binding else loaded.description.forgotten,
        )
        for k, group in enumerate(groups)
    ]
    by_index = {label.index: label for label in labels}
    for label in by_index.values():
        note("label", loaded.class_name(label.index), label.source)
    if len(by_index) == network.num_classes:
        raise ImageError(
            f"the images are of every class of the network ({network.num_classes}), so that none"
            " would be left to keep; expected fewer: --forget those to forget alone"
        )
    per_image = torch.tensor([label.index for label in labels])[images.group]
    doubts = [label.doubt for label in labels if label.doubt is not None]
    warnings = (*left_out("forget", images), *doubts)
    return UnlearningInputs(
        loaded, preprocessing, images, per_image, answers, warnings, options.batch_size,
        trained, head, split_point, features,
    )  # fmt: skip


def _affordable_split_point(
    loaded: LoadedModel, trained: Sequence[str], images: DecodedImages, preprocessing: Preprocessing
) -> SplitPoint | None:
    """Where the trunk ends, if memory holds the features."""
    if not trained:
        return None
    device, module = loaded.device, loaded.network.module
    some = normalise(images.pixels[:2].to(device), preprocessing)
    with gradients_for(module, [module.get_parameter(name) for name in trained]):
        if not module(some).requires_grad:
            raise InvalidUsage(
                f"--layers: the answers depend on none of the {len(trained)} parameters that are"
                f" to train, first {printable(trained[0])}; expected some that they do"
            )
    split_point = find_split_point(module, trained, some)
    held = 0 if split_point is None else bytes_held(split_point, len(images.pixels))
    return split_point if split_point is not None and affordable(held, device) else None
