"""Resolve what the user did not say: input size, class folders, normalisation and labels.

Each function takes what is known so far and returns the value together with its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pbu_cli.data.decoding import DecodedImages, common_size
from pbu_cli.data.image_folders import Group, split_by_subfolder
from pbu_cli.data.label_inference import Label, label_from_name, parse_label, resolve_label
from pbu_cli.data.normalization_inference import rank_normalisations
from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.settings import SMALL_IMAGE, InputOptions, Preprocessing

USUAL_SIZE = 224
USUAL_SIZES = {"inception_v3": 299}


@dataclass(frozen=True)
class ClassFolder:
    """Images that share one label, and the label that the folder's name gives, if it gives one."""

    group: Group
    named: int | None


def resolve_size(
    groups: Sequence[Group], options: InputOptions, loaded: LoadedModel
) -> Inferred[tuple[int, int]]:
    """(height, width) from --size, the network's one size, config or metadata, or the images."""
    network, description = loaded.network, loaded.description
    fixed = None if network.image_size is None else (network.image_size, network.image_size)
    if options.size is not None:
        size, source = options.size, "--size"
    elif fixed is not None:
        size, source = fixed, f"the one size {network.builder} takes"
    elif description.size is not None:
        size, source = description.size, description.sources["size"]
    else:
        own = common_size(groups)
        if own is not None and max(own) <= SMALL_IMAGE:
            size, source = own, "the images' own size, the same for all"
        else:
            usual = USUAL_SIZES.get(network.builder or "", USUAL_SIZE)
            size, source = (usual, usual), "the usual size; images are resized and cropped to it"
    if fixed is not None and size != fixed:
        raise InvalidUsage(
            f"{source}: {size[0]}x{size[1]}; {network.builder} of this checkpoint takes only"
            f" {fixed[0]}x{fixed[1]}"
        )
    return Inferred("input size", size, source, f"{size[0]}x{size[1]}")


def resolve_class_folders(
    groups: Sequence[Group], options: InputOptions, loaded: LoadedModel
) -> list[ClassFolder]:
    """The folders whose images share a label, one for each class folder.

    A folder whose own name says no class may be a folder of class folders. The names of its
    subfolders are read strictly, since `part1` and `batch2` are common names and no classes.
    """
    names, classes = loaded.description.label_names, loaded.network.num_classes
    found: list[ClassFolder] = []
    for group in groups:
        label = label_from_name(group.name, names, classes)
        if options.labels or label is not None:
            found.append(ClassFolder(group, label))
            continue
        found += [
            ClassFolder(inner, label_from_name(inner.name, names, classes, strict=True))
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
    labels: list[int | None] = [
        parse_label(text, "--label", names, classes) for text in options.labels
    ]
    return labels * (len(folders) // len(labels))


def resolve_normalisation(
    loaded: LoadedModel,
    images: DecodedImages,
    labels: Sequence[int | None],
    options: InputOptions,
) -> Inferred[Preprocessing]:
    """Mean and std from the flags, else from config or metadata, else inferred from the images.

    labels: the label of each folder as far as it is known before the network has seen an image.
    """
    stated = _stated_normalisation(loaded, images, options)
    if stated is not None:
        return stated
    ranking = rank_normalisations(
        loaded.network.module, images.pixels, images.group, labels, options.batch_size
    )
    best, second = ranking[0], ranking[1]
    return Inferred(
        "normalisation",
        best.preprocessing,
        f"{best.recognised:.1f} % of the images recognised, BatchNorm mismatch"
        f" {best.mismatch:.3f}; next {second.name}: {second.recognised:.1f} %,"
        f" {second.mismatch:.3f}",
        f"{best.name}: {_mean_and_std(best.preprocessing)}",
    )


def _stated_normalisation(
    loaded: LoadedModel, images: DecodedImages, options: InputOptions
) -> Inferred[Preprocessing] | None:
    """Mean and std that the flags, the config or the metadata state, one number a channel."""
    channels = images.pixels.shape[1]
    size = (images.pixels.shape[2], images.pixels.shape[3])
    description = loaded.description
    if (options.mean is None) != (options.std is None):
        raise InvalidUsage("--mean and --std: got one of them; expected both, or neither")
    for mean, std, source in (
        (options.mean, options.std, "--mean, --std"),
        (description.mean, description.std, description.sources.get("mean", "")),
    ):
        if mean is None or std is None:
            continue
        if len(mean) not in (1, channels) or len(std) not in (1, channels):
            kind = InvalidUsage if mean is options.mean else CheckpointError
            raise kind(
                f"{source}: {len(mean)} and {len(std)} numbers; expected {channels}, one a channel"
            )
        stated = Preprocessing(size, *(v * (channels // len(v)) for v in (mean, std)))
        return Inferred("normalisation", stated, source, _mean_and_std(stated))
    return None


def resolve_labels(
    loaded: LoadedModel,
    folders: Sequence[ClassFolder],
    given: Sequence[int | None],
    predictions: Tensor,
    group: Tensor,
    *,
    binding: bool,
) -> list[Label]:
    """The label of every folder, from --label, its name, or what the network predicts for it.

    predictions, group: int64 [n], the predicted class of each image and the index of its folder.
    binding: whether predictions that contradict a folder's name are an error. Without it the
    classes that the metadata call forgotten count instead.
    """
    return [
        resolve_label(
            folder.group.name,
            given[k],
            folder.named,
            predictions[group == k],
            binding=binding,
            forgotten=() if binding else loaded.description.forgotten,
        )
        for k, folder in enumerate(folders)
    ]


def unreadable_images(which: str, images: DecodedImages) -> list[str]:
    """A warning of the images that `--skip-bad` has left out, if there are any."""
    if not images.bad:
        return []
    return [f"{len(images.bad)} unreadable {which} images were left out, first {images.bad[0]}"]


def _mean_and_std(preprocessing: Preprocessing) -> str:
    mean, std = preprocessing.mean, preprocessing.std
    return f"mean {','.join(f'{m:g}' for m in mean)} std {','.join(f'{s:.4g}' for s in std)}"
