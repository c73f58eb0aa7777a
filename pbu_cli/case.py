"""A case: the network, the forget images and everything inferred from them, ready to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pbu_cli.checkpoint import Checkpoint, read
from pbu_cli.crops import WHOLE, cropped, find_crops
from pbu_cli.description import Description, describe
from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage, PbuError, printable
from pbu_cli.evidence import (
    label_from_name,
    parse_label,
    rank_normalisations,
    settle_label,
)
from pbu_cli.folders import Group, list_groups, split_by_subfolder
from pbu_cli.images import SMALL, Images, common_size, decode
from pbu_cli.logits import batches, normalise
from pbu_cli.machine import compute_alike, compute_in_float32, free_memory, memory
from pbu_cli.memory_format import put_channels_last
from pbu_cli.network import Network, load_network, try_out
from pbu_cli.settings import Preprocessing
from pbu_cli.stages import trained_parameters
from pbu_cli.trunk import Cut, bytes_held, find_cut, look, only_trained

USUAL_SIZE = 224
USUAL_SIZES = {"inception_v3": 299}

Note = Callable[[str, str, str], None]  # what was inferred, its value, the evidence


@dataclass(frozen=True)
class Wanted:
    """What the user said about network and images; None or empty is for pbu to infer."""

    arch: str | None = None
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    device: str = "auto"
    batch_size: int = 256
    skip_bad: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class Subject:
    """A checkpoint, what is written about it, and its network on the device."""

    checkpoint: Checkpoint
    description: Description
    network: Network
    device: torch.device

    def class_name(self, index: int) -> str:
        names = self.description.label_names
        return f"{index} {names[index]}" if names and index < len(names) else str(index)


@dataclass(frozen=True)
class Case:
    """A subject with its forget images.

    images: uint8 pixels on the CPU. image_labels: int64 [n]. answers: the subject's logits on the
    images, float32 [n, c], on the device. warnings: what the user should know of them.
    batch_size: images per forward pass. trained, head: names of the parameters that are to train,
    and of the head's among them. cut, features: where the frozen trunk before those ends, and what
    it makes of the images, where memory holds that.
    """

    subject: Subject
    preprocessing: Preprocessing
    images: Images
    image_labels: Tensor
    answers: Tensor
    warnings: tuple[str, ...]
    batch_size: int
    trained: list[str]
    head: list[str]
    cut: Cut | None
    features: Tensor | None

    @property
    def forgotten(self) -> Tensor:
        """bool [c], true for the classes to forget; on the device."""
        mask = torch.zeros(self.subject.network.num_classes, dtype=torch.bool)
        mask[self.image_labels] = True
        return mask.to(self.subject.device)

    @property
    def staying(self) -> Tensor:
        """bool [c], true for the classes that are forgotten neither now nor, as the metadata say,
        before; where they say so of all others, for those all the same. On the device."""
        staying = ~self.forgotten
        before = list(self.subject.description.forgotten)
        left = staying.clone()
        left[before] = False
        return left if bool(left.any()) else staying

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels), in order: features for the network `beyond` the cut, else images."""
        device = self.subject.device
        if self.features is None:
            yield from batches(
                self.images.pixels, self.image_labels, self.preprocessing, size, device
            )
        else:
            labels = self.image_labels.to(device)
            yield from zip(self.features.split(size), labels.split(size), strict=True)


def load_subject(path: Path, wanted: Wanted, note: Note) -> Subject:
    """Read a checkpoint and build its network; see `load_network` for the errors."""
    checkpoint = read(path)
    description = describe(path, checkpoint.metadata)
    network = load_network(checkpoint, wanted.arch, description)
    note("architecture", network.name, network.source)
    device = choose_device(wanted.device)
    compute_in_float32()
    if wanted.deterministic:
        compute_alike(device)
    network.module.to(device)
    return Subject(checkpoint.under(network.prefix), description, network, device)


def tried(subject: Subject, channels: int, size: tuple[int, int], wanted: Wanted) -> Subject:
    """The subject, its network tried out on images of this shape and its classes as described.

    Raises what `try_out` raises, and CheckpointError where config.json or metadata disagree.
    """
    flagged = wanted.size is not None or wanted.channels is not None
    network = try_out(subject.network, channels, size, flagged=flagged)
    put_channels_last(network.module, channels, size)
    description = subject.description
    names = description.label_names
    for key, count in (
        ("num_classes", description.num_classes),
        ("label_names", None if names is None else len(names)),
    ):
        if count not in (None, network.num_classes):
            raise CheckpointError(
                f"{description.sources[key]}: {key} for {count} classes, the network has"
                f" {network.num_classes}; mend it or move it away"
            )
    unknown = [c for c in description.forgotten if not 0 <= c < network.num_classes]
    if unknown:
        raise CheckpointError(
            f"{description.sources['forgotten']}: forgotten class {unknown[0]}, the network has 0"
            f" to {network.num_classes - 1}; expected the metadata as pbu wrote them: restore the"
            " file, or save it without them"
        )
    return replace(subject, network=network)


def assemble(
    subject: Subject,
    sources: Sequence[str],
    wanted: Wanted,
    note: Note,
    *,
    layers: str | None = None,
    stdin: BinaryIO | None = None,
    binding: bool = True,
    decoding: Callable[[int], None] | None = None,
) -> Case:
    """List and decode the forget images and settle what was not said: size, channels, labels and
    normalisation. `note` hears of each with its evidence. `layers` says what is to train, as for
    `trained_parameters`; nothing is by default.

    With `binding` the network's answers have to agree with the folders' names. An evaluation is
    not bound, since its network may have forgotten these images; if its metadata say that it has,
    they tell the label and its answers do not. Raises ImageError where no class would be left.
    """
    listed = list_groups(sources, stdin)
    size = _size(listed, wanted, subject, note)
    channels = wanted.channels or subject.network.channels
    subject = tried(subject, channels, size, wanted)
    network = subject.network
    trained, head = (
        trained_parameters(network.module, network.builder, layers) if layers else ([], [])
    )
    groups, named = _by_class(listed, wanted, subject)
    images = decode(
        groups, channels=channels, size=size, skip_bad=wanted.skip_bad, progress=decoding
    )
    others = sum(len(group.ignored) for group in listed)
    folders = "1 folder" if len(groups) == 1 else f"{len(groups)} folders"
    note("images", f"{len(images.pixels)} in {folders}", f"{others} other files ignored")
    given = _given_labels(wanted, groups, subject)
    known = [n if g is None else g for g, n in zip(given, named, strict=True)]
    module, device = network.module, subject.device
    # An evaluation compares networks, the same one with itself too: all of them as they are.
    crops = find_crops(module, images.pixels[:2].to(device) / 255) if trained else WHOLE
    with cropped(module, crops):
        preprocessing = settle_preprocessing(subject, images, known, wanted, note)
        cut = _affordable_cut(subject, trained, images, preprocessing)
        rounds = batches(images.pixels, images.group, preprocessing, wanted.batch_size, device)
        features, answers = look(module, cut, (inputs for inputs, _ in rounds))
    if not bool(answers.isfinite().all()):
        raise unsound(subject)
    best = answers.argmax(dim=1).cpu()
    labels = [
        settle_label(
            group.name,
            given[k],
            named[k],
            best[images.group == k],
            binding=binding,
            forgotten=() if binding else subject.description.forgotten,
        )
        for k, group in enumerate(groups)
    ]
    by_index = {label.index: label for label in labels}
    for label in by_index.values():
        note("label", subject.class_name(label.index), label.source)
    if len(by_index) == network.num_classes:
        raise ImageError(
            f"the images are of every class of the network ({network.num_classes}), so that none"
            " would be left to keep; expected fewer: --forget those to forget alone"
        )
    per_image = torch.tensor([label.index for label in labels])[images.group]
    doubts = [label.doubt for label in labels if label.doubt is not None]
    warnings = (*left_out("forget", images), *doubts)
    return Case(
        subject, preprocessing, images, per_image, answers, warnings, wanted.batch_size,
        trained, head, cut, features,
    )  # fmt: skip


def unsound(subject: Subject) -> CheckpointError:
    return CheckpointError(
        f"{printable(subject.checkpoint.path)}: answers the images with NaN or infinity; expected"
        " finite logits: check the weights, --mean and --std"
    )


def _affordable_cut(
    subject: Subject, trained: Sequence[str], images: Images, preprocessing: Preprocessing
) -> Cut | None:
    """Where the trunk ends, if memory holds the features."""
    if not trained:
        return None
    device, module = subject.device, subject.network.module
    some = normalise(images.pixels[:2].to(device), preprocessing)
    with only_trained(module, [module.get_parameter(name) for name in trained]):
        if not module(some).requires_grad:
            raise InvalidUsage(
                f"--layers: the answers depend on none of the {len(trained)} parameters that are"
                f" to train, first {printable(trained[0])}; expected some that they do"
            )
    cut = find_cut(module, trained, some)
    held = 0 if cut is None else bytes_held(cut, len(images.pixels))
    return cut if cut is not None and affordable(held, device) else None


def affordable(needed: int, device: torch.device) -> bool:
    """Whether memory holds so many bytes: half of what is free on a GPU, a quarter of the machine's
    elsewhere."""
    free = free_memory(device) / 2 if device.type == "cuda" else memory() / 4
    return needed <= free


def left_out(which: str, images: Images) -> list[str]:
    """A warning of the images that `--skip-bad` has left out, if there are any."""
    if not images.bad:
        return []
    return [f"{len(images.bad)} unreadable {which} images were left out, first {images.bad[0]}"]


def settle_preprocessing(
    subject: Subject,
    images: Images,
    labels: Sequence[int | None],
    wanted: Wanted,
    note: Note,
) -> Preprocessing:
    """Mean and std from the flags, else config or metadata, else the images' own evidence."""
    channels = images.pixels.shape[1]
    size = (images.pixels.shape[2], images.pixels.shape[3])
    description = subject.description
    if (wanted.mean is None) != (wanted.std is None):
        raise InvalidUsage("--mean and --std: got one of them; expected both, or neither")
    for mean, std, source in (
        (wanted.mean, wanted.std, "--mean, --std"),
        (description.mean, description.std, description.sources.get("mean", "")),
    ):
        if mean is None or std is None:
            continue
        if len(mean) not in (1, channels) or len(std) not in (1, channels):
            kind = InvalidUsage if mean is wanted.mean else CheckpointError
            raise kind(
                f"{source}: {len(mean)} and {len(std)} numbers; expected {channels}, one a channel"
            )
        settled = Preprocessing(size, *(v * (channels // len(v)) for v in (mean, std)))
        note("normalisation", _mean_and_std(settled), source)
        return settled
    ranking = rank_normalisations(
        subject.network.module, images.pixels, images.group, labels, wanted.batch_size
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


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU. Raises PbuError where the device is not there."""
    mps = torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InvalidUsage(f"--device {wanted}: expected auto, cpu, cuda, cuda:N or mps") from None
    count = torch.cuda.device_count() if device.type == "cuda" else int(mps)
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidUsage(f"--device {wanted}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type != "cpu" and (device.index or 0) >= count:
        raise PbuError(
            f"--device {wanted}: torch {torch.__version__} sees {count} such devices here; use"
            " --device cpu, or a torch and a driver that see it"
        )
    return device


def _by_class(
    groups: Sequence[Group], wanted: Wanted, subject: Subject
) -> tuple[tuple[Group, ...], list[int | None]]:
    """The groups of images that share a label, and the label that each one's name gives.

    A folder that names no class itself may be a folder of class folders; names of subfolders are
    read strictly, since `part1` and `batch2` are common and no classes.
    """
    names, classes = subject.description.label_names, subject.network.num_classes
    found: list[tuple[Group, int | None]] = []
    for group in groups:
        label = label_from_name(group.name, names, classes)
        if wanted.labels or label is not None:
            found.append((group, label))
            continue
        found += [
            (inner, label_from_name(inner.name, names, classes, strict=True))
            for inner in split_by_subfolder(group)
        ]
    return tuple(group for group, _ in found), [label for _, label in found]


def _given_labels(wanted: Wanted, groups: Sequence[Group], subject: Subject) -> list[int | None]:
    """`--label` once for all groups, or once for each --forget; None where it was not given."""
    if not wanted.labels:
        return [None] * len(groups)
    if len(wanted.labels) not in (1, len(groups)):
        raise InvalidUsage(
            f"--label given {len(wanted.labels)} times for {len(groups)} --forget; expected once,"
            " or once for each"
        )
    names, classes = subject.description.label_names, subject.network.num_classes
    labels: list[int | None] = [
        parse_label(text, "--label", names, classes) for text in wanted.labels
    ]
    return labels * (len(groups) // len(labels))


def _size(groups: Sequence[Group], wanted: Wanted, subject: Subject, note: Note) -> tuple[int, int]:
    """(height, width) from --size, the network's one size, config or metadata, or the images."""
    network, description = subject.network, subject.description
    fixed = None if network.image_size is None else (network.image_size, network.image_size)
    if wanted.size is not None:
        size, source = wanted.size, "--size"
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
