"""Resolve what the user did not say: input size, class folders, labels and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from pbu_cli.data.decoding import DecodedImages, common_size
from pbu_cli.data.image_folders import Group, split_by_subfolder
from pbu_cli.data.label_inference import label_from_name, parse_label
from pbu_cli.data.normalization_inference import rank_normalisations
from pbu_cli.errors import CheckpointError, InvalidUsage
from pbu_cli.inputs.inferred import Note
from pbu_cli.inputs.loaded_model import LoadedModel
from pbu_cli.settings import SMALL, InputOptions, Preprocessing

USUAL_SIZE = 224
USUAL_SIZES = {"inception_v3": 299}


def left_out(which: str, images: DecodedImages) -> list[str]:
    """A warning of the images that `--skip-bad` has left out, if there are any."""
    if not images.bad:
        return []
    return [f"{len(images.bad)} unreadable {which} images were left out, first {images.bad[0]}"]


def resolve_normalisation(
    loaded: LoadedModel,
    images: DecodedImages,
    labels: Sequence[int | None],
    options: InputOptions,
    note: Note,
) -> Preprocessing:
    """Mean and std from the flags, else config or metadata, else the images' own evidence."""
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
        settled = Preprocessing(size, *(v * (channels // len(v)) for v in (mean, std)))
        note("normalisation", _mean_and_std(settled), source)
        return settled
    ranking = rank_normalisations(
        loaded.network.module, images.pixels, images.group, labels, options.batch_size
    )
    best, second = ranking[0], ranking[1]
    note(
        "normalisation",
        f"{best.name}: {_mean_and_std(best.preprocessing)}",
        f"{best.recognised:.1f} % of the images recognised, BatchNorm mismatch"
        f" {best.mismatch:.3f}; next {second.name}: {second.recognised:.1f} %,"
        f" {second.mismatch:.3f}",
    )
    return best.preprocessing


def groups_by_class(
    groups: Sequence[Group], options: InputOptions, loaded: LoadedModel
) -> tuple[tuple[Group, ...], list[int | None]]:
    """The groups of images that share a label, and the label that each one's name gives.

    A folder that names no class itself may be a folder of class folders; names of subfolders are
    read strictly, since `part1` and `batch2` are common and no classes.
    """
    names, classes = loaded.description.label_names, loaded.network.num_classes
    found: list[tuple[Group, int | None]] = []
    for group in groups:
        label = label_from_name(group.name, names, classes)
        if options.labels or label is not None:
            found.append((group, label))
            continue
        found += [
            (inner, label_from_name(inner.name, names, classes, strict=True))
            for inner in split_by_subfolder(group)
        ]
    return tuple(group for group, _ in found), [label for _, label in found]


def given_labels(
    options: InputOptions, groups: Sequence[Group], loaded: LoadedModel
) -> list[int | None]:
    """`--label` once for all groups, or once for each --forget; None where it was not given."""
    if not options.labels:
        return [None] * len(groups)
    if len(options.labels) not in (1, len(groups)):
        raise InvalidUsage(
            f"--label given {len(options.labels)} times for {len(groups)} --forget; expected once,"
            " or once for each"
        )
    names, classes = loaded.description.label_names, loaded.network.num_classes
    labels: list[int | None] = [
        parse_label(text, "--label", names, classes) for text in options.labels
    ]
    return labels * (len(groups) // len(labels))


def resolve_size(
    groups: Sequence[Group], options: InputOptions, loaded: LoadedModel, note: Note
) -> tuple[int, int]:
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
        if own is not None and max(own) <= SMALL:
            size, source = own, "the images' own size, the same for all"
        else:
            usual = USUAL_SIZES.get(network.builder or "", USUAL_SIZE)
            size, source = (usual, usual), "the usual size; images are resized and cropped to it"
    if fixed is not None and size != fixed:
        raise InvalidUsage(
            f"{source}: {size[0]}x{size[1]}; {network.builder} of this checkpoint takes only"
            f" {fixed[0]}x{fixed[1]}"
        )
    note("input size", f"{size[0]}x{size[1]}", source)
    return size


def _mean_and_std(preprocessing: Preprocessing) -> str:
    mean, std = preprocessing.mean, preprocessing.std
    return f"mean {','.join(f'{m:g}' for m in mean)} std {','.join(f'{s:.4g}' for s in std)}"
