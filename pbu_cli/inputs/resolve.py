"""Resolve what the user did not say: input size, class folders, normalisation and labels.

Each function takes what is known so far and returns the value together with its source.
"""

from __future__ import annotations

from collections.abc import Sequence

from pbu_cli.data.normalization_inference import better_without_labels, rank_normalisations
from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage, printable
from pbu_cli.images.decoding import DecodedImages
from pbu_cli.images.image_faults import counted
from pbu_cli.images.image_folders import Group
from pbu_cli.images.image_sizes import usual_size
from pbu_cli.images.resizing import Resizing
from pbu_cli.images.streaming import FilesRead
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.models.network import Network
from pbu_cli.settings import MAX_STATED_SIZE, SMALL_IMAGE, InputOptions, Preprocessing

USUAL_SIZE = 224
USUAL_SIZES = {"inception_v3": 299}


def resolve_size(
    groups: Sequence[Group],
    options: InputOptions,
    loaded: LoadedModel,
    resizing: Inferred[Resizing] | None = None,
) -> tuple[Inferred[tuple[int, int]], list[str]]:
    """(height, width), and a warning of images that have another size than nearly all.

    The size is from --size, the way of resizing that is stated, the network's one size, config or
    metadata, or the images, in this order.
    """
    network, description = loaded.network, loaded.description
    odd: list[str] = []
    fixed = None if network.image_size is None else (network.image_size, network.image_size)
    if options.size is not None:
        size, source = options.size, "--size"
    elif resizing is not None:
        size, source = resizing.value.size, resizing.source
    elif fixed is not None:
        size, source = fixed, f"the one size {_short_name(network)} takes"
    elif description.size is not None:
        size, source = description.size, description.sources["size"]
    else:
        own = usual_size(groups, exif_rotation=options.exif_rotation)
        if own is not None and max(own.size) <= SMALL_IMAGE:
            size, source = own.size, f"the images' own size, the same for {own.shared_by}"
            if own.odd:
                odd.append(
                    f"{len(own.odd)} of {own.count} images have another size than"
                    f" {size[0]}x{size[1]} and are resized, first {printable(own.odd[0], 200)}"
                )
        else:
            usual = USUAL_SIZES.get(network.builder or "", USUAL_SIZE)
            size, source = (usual, usual), "the usual size; images are resized and cropped to it"
    if options.size is None and max(size) > MAX_STATED_SIZE:
        raise CheckpointError(
            f"{source}: input size {size[0]}x{size[1]}; expected at most {MAX_STATED_SIZE} pixels a"
            f" side where nobody asks for more: pass --size {size[0]}x{size[1]} if it is meant"
        )
    if fixed is not None and size != fixed:
        raise InvalidUsage(
            f"{source}: {size[0]}x{size[1]}; {_short_name(network)} of this checkpoint takes only"
            f" {fixed[0]}x{fixed[1]}"
        )
    return Inferred("input size", size, source, f"{size[0]}x{size[1]}"), odd


def _short_name(network: Network) -> str:
    return network.name.partition(" (")[0]


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
    better = None if options.labels else better_without_labels(ranking)
    if better is not None:
        raise ImageError(
            "the folders' names do not fit the images: the network recognises"
            f" {better.agreeing:.1f} % of them as other classes with the normalisation"
            f" {better.name}, and at most {best.recognised:.1f} % as the classes named, with"
            f" {best.name}: look at the images and pass --label with the class that they show, or"
            " --mean and --std"
        )
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


def unreadable_images(which: str, images: DecodedImages | FilesRead) -> list[str]:
    """Warnings of images that `--skip-bad` left out, were read only in part, or are misnamed."""
    bad, animated, misnamed = images.bad, images.animated, images.misnamed
    found = []
    if bad:
        kinds = counted(fault.path for fault in bad)
        found.append(f"{len(bad)} unreadable {which} images{kinds} were left out, first {bad[0]}")
    if animated:
        found.append(
            f"{len(animated)} {which} images have several frames, of which the first alone is read,"
            f" first {printable(animated[0], 200)}"
        )
    if misnamed:
        found.append(
            f"{len(misnamed)} {which} images{counted(misnamed)} hold another format than their"
            f" names say; they were read, first {printable(misnamed[0], 200)}"
        )
    return found


def _mean_and_std(preprocessing: Preprocessing) -> str:
    mean, std = preprocessing.mean, preprocessing.std
    return f"mean {','.join(f'{m:g}' for m in mean)} std {','.join(f'{s:.4g}' for s in std)}"
