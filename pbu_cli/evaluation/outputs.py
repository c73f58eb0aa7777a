"""What a network computes on the images of an evaluation, and the two controls made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from pbu_cli.data.preprocessing import image_logits, model_inputs
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.evaluation import metrics
from pbu_cli.images.decoding import DecodedImages
from pbu_cli.inputs.loaded_model import LoadedModel, not_finite
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import read_head

AUDIT_BATCH = 64  # images per forward pass of an audit: so few stay in the cache of a core


@dataclass(frozen=True)
class NetworkOutputs:
    """The logits of one network and, for an audit, the input of its head.

    forget_logits: on the forget images, [n, c]. retain_logits: on the retained images, [m, c], or
    None where no retained images were given. forget_features, retain_features: the input of the
    head for the same images, [n, d] and [m, d]; None outside an audit.
    """

    forget_logits: Tensor
    retain_logits: Tensor | None = None
    forget_features: Tensor | None = None
    retain_features: Tensor | None = None

    def with_retained(self, chosen: Tensor) -> NetworkOutputs:
        """The same with those of the retained images alone that the mask names, bool [m]."""

        def of_chosen(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[chosen.to(tensor.device)]

        return replace(
            self,
            retain_logits=of_chosen(self.retain_logits),
            retain_features=of_chosen(self.retain_features),
        )


def head_masked(outputs: NetworkOutputs, forgotten: Tensor) -> NetworkOutputs:
    """The head mask control: the same network with the forgotten logits at minus infinity."""
    forget, retain = outputs.forget_logits, outputs.retain_logits
    return replace(
        outputs,
        forget_logits=metrics.head_mask(forget, forgotten),
        retain_logits=None if retain is None else metrics.head_mask(retain, forgotten),
    )


def row_shifted(outputs: NetworkOutputs, forgotten: Tensor, shift: Tensor) -> NetworkOutputs:
    """The row shift control: the same network with the forgotten rows of its head moved by `shift`.

    The outputs have to hold the features, which only an audit reads.
    """

    def shifted(logits: Tensor | None, features: Tensor | None) -> Tensor | None:
        if logits is None or features is None:
            return None
        return metrics.shift_rows(logits, features, forgotten, shift)

    forget_logits = shifted(outputs.forget_logits, outputs.forget_features)
    assert forget_logits is not None
    return replace(
        outputs,
        forget_logits=forget_logits,
        retain_logits=shifted(outputs.retain_logits, outputs.retain_features),
    )


def audit_batches(pixels: Tensor, prepared: UnlearningInputs) -> Iterator[Tensor]:
    """uint8 images [n, k, h, w] as an audit's batches of model inputs, in order, on the device."""
    for part in pixels.split(min(AUDIT_BATCH, prepared.batch_size)):
        yield model_inputs(part, prepared.preprocessing, prepared.loaded.device)


def network_outputs(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> NetworkOutputs:
    """The logits of a network on the forget images and, if there are any, the retained ones."""

    def logits(images: DecodedImages) -> Tensor:
        return image_logits(
            loaded.network.module, images.pixels, prepared.preprocessing, prepared.batch_size
        )

    known = loaded is prepared.loaded
    return _finite(
        loaded,
        NetworkOutputs(
            forget_logits=prepared.logits if known else logits(prepared.images),
            retain_logits=None if retained is None else logits(retained),
        ),
    )


def outputs_with_features(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> NetworkOutputs:
    """The same with the input of the head.

    Raises CheckpointError for a network without a head whose input can be read.
    """
    network = loaded.network
    head = network.layout.head_layer
    if head is None:
        raise CheckpointError(
            f"--audit: {printable(network.name)} has no linear or convolutional layer in its head;"
            " expected one whose input can be read"
        )

    def read(images: DecodedImages) -> tuple[Tensor, Tensor]:
        return read_head(network.module, head, audit_batches(images.pixels, prepared))

    forget_features, forget_logits = read(prepared.images)
    retain_features, retain_logits = (None, None) if retained is None else read(retained)
    return _finite(
        loaded, NetworkOutputs(forget_logits, retain_logits, forget_features, retain_features)
    )


def _finite(loaded: LoadedModel, outputs: NetworkOutputs) -> NetworkOutputs:
    """The outputs, if all are finite. NaN has an argmax too, and would count as forgotten."""
    for tensor in vars(outputs).values():
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise not_finite(loaded)
    return outputs
