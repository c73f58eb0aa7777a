"""What the networks of a comparison predict for the retained images, batch by batch.

Each batch is decoded once, read by every network and dropped. What stays is a class for each image
and network, and the images of the audit's sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbu_cli.evaluation.outputs import Controls, NetworkOutputs, Reader, images_at_once
from pbu_cli.evaluation.retained.audit_sample import sample_size, stratified_sample
from pbu_cli.evaluation.retained.source import RetainedSource
from pbu_cli.images.streaming import FilesRead, ImageStream
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.settings import InputOptions

PREDICTIONS = "retain_predictions"


@dataclass(frozen=True)
class Sample:
    """The retained images that an audit reads: all of them, or some of every class.

    index: int64 [k], which of the retained images they are. pixels: uint8 [k, c, h, w].
    labels: int64 [k].
    """

    index: Tensor
    pixels: Tensor
    labels: Tensor

    def only(self, chosen: Tensor) -> Sample:
        """Those of the images that the mask of all retained images names, bool [n]."""
        mine = chosen[self.index]
        place = chosen.cumsum(dim=0) - 1  # of each retained image among those that stay
        pixels = self.pixels if bool(mine.all()) else self.pixels[mine]
        return Sample(place[self.index[mine]], pixels, self.labels[mine])


@dataclass(frozen=True)
class RetainedImages:
    """The retained images that could be read, in the order of their files.

    labels: int64 [n]. index: int64 [n], which of the listed files each is. files: what there is to
    say of them. sample: None outside an audit.
    """

    labels: Tensor
    index: Tensor
    files: FilesRead
    sample: Sample | None = None

    def only(self, chosen: Tensor) -> RetainedImages:
        """Those of the images that the mask names, bool [n]."""
        sample = None if self.sample is None else self.sample.only(chosen)
        return replace(self, labels=self.labels[chosen], index=self.index[chosen], sample=sample)


@dataclass(frozen=True)
class Networks:
    """How the networks of a comparison read images, and what they give for the forget images.

    outputs: of the networks and of the controls, by name. controls: None without an original.
    """

    readers: Mapping[str, Reader]
    outputs: Mapping[str, NetworkOutputs]
    controls: Controls | None


def predict_retained(
    source: RetainedSource,
    prepared: UnlearningInputs,
    options: InputOptions,
    log: InferenceLog,
    networks: Networks,
    *,
    seed: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[RetainedImages, dict[str, NetworkOutputs]]:
    """Run every network on the retained images, and the controls on what the original gives.

    Returns the outputs of `networks` with what was found for the retained images. seed: of the
    audit's sample; None without an audit. progress: called with the number of files done so far.
    Raises what `ImageStream.batches` and the readers raise.
    """
    channels, size = prepared.images.pixels.shape[1], prepared.preprocessing.size
    stream = ImageStream(
        source.groups,
        channels=channels,
        size=size,
        skip_bad=options.skip_bad,
        exif_rotation=options.exif_rotation,
        fit=prepared.fit,
    )
    labels = source.of_files(source.labels)
    collected = _Collected(len(labels), (channels, *size))
    if seed is not None:
        room = sample_size(len(labels), channels * size[0] * size[1])
        collected.sample(stratified_sample(labels, room, seed))
    forget = {_digest(image) for image in prepared.images.pixels}
    repeated = 0
    for pixels, index in stream.batches(images_at_once(prepared, audit=seed is not None), progress):
        repeated += sum(_digest(image) in forget for image in pixels)
        rows = collected.add(pixels, index)
        for name, read in networks.readers.items():
            found = NetworkOutputs(*read(pixels))
            collected.add_outputs(name, found, rows)
            if name == "original" and networks.controls is not None:
                for control, changed in networks.controls.of(found).items():
                    collected.add_outputs(control, changed, rows[:0])
    read_index = torch.cat(collected.index)
    images = RetainedImages(labels[read_index], read_index, stream.files)
    if seed is not None:
        images = replace(images, sample=collected.sampled(images.labels))
    log.add(_counted(source, images))
    log.warn(_repeated(repeated, len(images.labels)))
    return images, collected.outputs(networks)


class _Collected:
    """What stays of the batches."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.index: list[Tensor] = []
        self._shape = shape
        self._chosen = torch.zeros(count, dtype=torch.bool)  # the files of the sample
        self._pixels = torch.empty((0, *shape), dtype=torch.uint8)
        self._filled = 0
        self._parts: dict[str, dict[str, list[Tensor]]] = {}  # by network and field

    def sample(self, chosen: Tensor) -> None:
        """Keep the pixels, logits and features of these files, int64 [k]."""
        self._chosen[chosen] = True
        self._pixels = torch.empty((len(chosen), *self._shape), dtype=torch.uint8)

    def add(self, pixels: Tensor, index: Tensor) -> Tensor:
        """Keep what the sample has of a batch, and return which of the batch's rows that is."""
        rows = self._chosen[index].nonzero().flatten()
        self._pixels[self._filled : self._filled + len(rows)] = pixels[rows]
        self._filled += len(rows)
        self.index.append(index)
        return rows

    def add_outputs(self, name: str, found: NetworkOutputs, rows: Tensor) -> None:
        """Keep the predictions for a batch and, of these rows, logits and features."""
        parts = self._parts.setdefault(name, {})
        kept = {
            PREDICTIONS: found.forget_logits.argmax(dim=1).cpu(),
            "retain_logits": found.forget_logits[rows.to(found.forget_logits.device)],
        }
        if found.forget_features is not None:
            kept["retain_features"] = found.forget_features[rows]
        for key, tensor in kept.items():
            if key == PREDICTIONS or len(tensor):
                parts.setdefault(key, []).append(tensor)

    def sampled(self, labels: Tensor) -> Sample:
        """The sample. labels: int64 [n], of all images that could be read."""
        index = self._chosen[torch.cat(self.index)].nonzero().flatten()
        return Sample(index, self._pixels[: self._filled], labels[index])

    def outputs(self, networks: Networks) -> dict[str, NetworkOutputs]:
        """The outputs of all networks and controls, with what was kept for the retained images."""
        found = {
            name: replace(outputs, **{key: torch.cat(t) for key, t in self._parts[name].items()})
            for name, outputs in networks.outputs.items()
            if name in networks.readers
        }
        if networks.controls is None:
            return found
        controls = networks.controls.of(found["original"])
        return found | {
            name: replace(outputs, retain_predictions=torch.cat(self._parts[name][PREDICTIONS]))
            for name, outputs in controls.items()
        }


def _counted(source: RetainedSource, images: RetainedImages) -> Inferred[int]:
    count, classes = len(images.labels), len(images.labels.unique())
    left_out = f"; {source.left_out} forgotten left out" if source.left_out else ""
    return Inferred(
        "retained", count, source.source + left_out, f"{count} images of {classes} classes"
    )


def _repeated(count: int, images: int) -> list[str]:
    """A warning of retained images that have the same pixels as a forget image."""
    if not count:
        return []
    return [
        f"{count} of {images} retained images are --forget images too, under another"
        " label: A_Dr and A_Df contradict each other there; remove them from one of the two"
    ]


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()
