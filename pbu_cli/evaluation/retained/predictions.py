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
    audit, chosen = seed is not None, None
    if seed is not None:
        room = sample_size(len(labels), channels * size[0] * size[1])
        chosen = stratified_sample(labels, room, seed)
    collected = _Collected(len(labels), (channels, *size), chosen)
    forget = {_digest(image) for image in prepared.images.pixels}
    repeated = 0
    for pixels, index in stream.batches(images_at_once(prepared, audit=audit), progress):
        repeated += sum(_digest(image) in forget for image in pixels)
        collected.add(pixels, index)
        for name, read in networks.readers.items():
            found = NetworkOutputs(*read(pixels))
            collected.add_outputs(name, found, sample=audit)
            if name == "original" and networks.controls is not None:
                for control, changed in networks.controls.of(found).items():
                    collected.add_outputs(control, changed, sample=False)
    images = collected.images(labels, stream.files, sample=audit)
    log.add(_counted(source, images))
    log.warn(_repeated(repeated, len(images.labels)))
    sampled = 0 if images.sample is None else len(images.sample.labels)
    return images, collected.outputs(networks, sampled)


class _Collected:
    """What stays of the batches.

    All of it is allocated at once: small tensors that are made between the large ones of a forward
    pass would keep the memory of these from being used again.
    """

    def __init__(self, count: int, shape: tuple[int, ...], chosen: Tensor | None) -> None:
        """count: of the files. shape: of an image. chosen: int64 [k], the files of the sample."""
        self.index = torch.empty(count, dtype=torch.int64)
        self._chosen = torch.zeros(count, dtype=torch.bool)
        if chosen is not None:
            self._chosen[chosen] = True
        room = 0 if chosen is None else len(chosen)
        self._pixels = torch.empty((room, *shape), dtype=torch.uint8)
        self._tensors: dict[tuple[str, str], Tensor] = {}  # by network and field
        self._read, self._sampled = 0, 0  # images so far
        self._rows = torch.empty(0, dtype=torch.int64)  # of this batch, those of the sample

    def add(self, pixels: Tensor, index: Tensor) -> None:
        """Begin a batch: keep which files it holds, and the pixels of the sample."""
        self._read, self._sampled = self._read + len(index), self._sampled + len(self._rows)
        self._rows = self._chosen[index].nonzero().flatten()
        self.index[self._read - len(index) : self._read] = index
        self._pixels[self._sampled : self._sampled + len(self._rows)] = pixels[self._rows]

    def add_outputs(self, name: str, found: NetworkOutputs, *, sample: bool) -> None:
        """Keep the predictions for this batch and, with `sample`, the sample's logits and
        features."""
        predictions = found.forget_logits.argmax(dim=1)
        self._keep(name, "retain_predictions", predictions, self._read - len(predictions))
        if not sample:
            return
        self._keep(name, "retain_logits", found.forget_logits[self._rows], self._sampled)
        if found.forget_features is not None:
            self._keep(name, "retain_features", found.forget_features[self._rows], self._sampled)

    def _keep(self, name: str, field: str, rows: Tensor, start: int) -> None:
        key = (name, field)
        if key not in self._tensors:
            room = len(self.index) if field == "retain_predictions" else len(self._pixels)
            self._tensors[key] = torch.empty((room, *rows.shape[1:]), dtype=rows.dtype)
        self._tensors[key][start : start + len(rows)] = rows

    def images(self, labels: Tensor, files: FilesRead, *, sample: bool) -> RetainedImages:
        """The images that could be read. labels: int64 [count], one a file."""
        index = self.index[: self._read]
        images = RetainedImages(labels[index], index, files)
        if not sample:
            return images
        chosen = self._chosen[index].nonzero().flatten()
        pixels = self._pixels[: len(chosen)]
        return replace(images, sample=Sample(chosen, pixels, images.labels[chosen]))

    def outputs(self, networks: Networks, sampled: int) -> dict[str, NetworkOutputs]:
        """The outputs of all networks and controls, with what was kept for the retained images.

        sampled: how many images the sample has.
        """

        def kept(name: str) -> dict[str, Tensor]:
            return {
                field: tensor[: self._read if field == "retain_predictions" else sampled]
                for (of, field), tensor in self._tensors.items()
                if of == name
            }

        found = {name: replace(networks.outputs[name], **kept(name)) for name in networks.readers}
        if networks.controls is not None:
            for name, outputs in networks.controls.of(found["original"]).items():
                found[name] = replace(outputs, **kept(name))
        return found


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
