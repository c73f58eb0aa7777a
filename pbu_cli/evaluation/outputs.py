"""What a network computes on the images of an evaluation, and the two controls made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pbu_cli.data.preprocessing import model_inputs, normalise
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.evaluation import metrics
from pbu_cli.inputs.loaded_model import LoadedModel, not_finite
from pbu_cli.inputs.prepare import UnlearningInputs
from pbu_cli.models.features import layers_of_logits, read_head
from pbu_cli.models.inference import predict
from pbu_cli.runtime.batch_size_retry import BatchSizeRetry

HEAD_MASK, ROW_SHIFT = "original, head mask", "original, row shift"  # the controls
AUDIT_BATCH = 64  # images per forward pass of an audit: so few stay in the cache of a core

# A batch of images, uint8 [n, k, h, w] -> logits [n, c] and, for an audit, features [n, d].
Reader = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class NetworkOutputs:
    """What one network computes: its logits, its predictions and, for an audit, the input of its
    head.

    forget_logits: on the forget images, [n, c]. forget_features: the input of the head for them,
    [n, d]; None outside an audit. retain_predictions: the class predicted for each retained image,
    int64 [m] on the CPU; None where no retained images were given. retain_logits, retain_features:
    on the audit's sample of the retained images, [k, c] and [k, d]; None outside an audit.
    """

    forget_logits: Tensor
    forget_features: Tensor | None = None
    retain_predictions: Tensor | None = None
    retain_logits: Tensor | None = None
    retain_features: Tensor | None = None

    def only_retained(self, known: Tensor, sampled: Tensor | None) -> NetworkOutputs:
        """The same with those of the retained images alone that the masks name: bool [m] of all of
        them, and bool [k] of the sample."""

        def of(mask: Tensor | None, tensor: Tensor | None) -> Tensor | None:
            return None if mask is None or tensor is None else tensor[mask.to(tensor.device)]

        return replace(
            self,
            retain_predictions=of(known, self.retain_predictions),
            retain_logits=of(sampled, self.retain_logits),
            retain_features=of(sampled, self.retain_features),
        )


@dataclass(frozen=True)
class Controls:
    """The controls that are made from the original, which forget nothing.

    forgotten: bool [c], true for the forgotten classes. shift: what the row shift subtracts from
    their rows of the head, [d]; None without that control.
    """

    forgotten: Tensor
    shift: Tensor | None

    def of(self, original: NetworkOutputs) -> dict[str, NetworkOutputs]:
        """The outputs of the controls, by name, from the logits and features of the original.

        Their predictions for the retained images follow from logits that are not kept: none.
        """
        found = {HEAD_MASK: head_masked(original, self.forgotten)}
        if self.shift is not None:
            found[ROW_SHIFT] = row_shifted(original, self.forgotten, self.shift)
        return found


def controls_of(
    loaded: LoadedModel, original: NetworkOutputs, prepared: UnlearningInputs
) -> Controls:
    """The controls of the original network. The row shift needs features and a linear head."""
    forgotten = prepared.forgotten.to(original.forget_logits.device)
    network, features = loaded.network, original.forget_features
    head = network.layout.head_layer
    if features is None or head is None:
        return Controls(forgotten, None)
    if not isinstance(network.module.get_submodule(head), nn.Linear):
        return Controls(forgotten, None)
    return Controls(forgotten, metrics.row_shift(original.forget_logits, features, forgotten))


def head_masked(outputs: NetworkOutputs, forgotten: Tensor) -> NetworkOutputs:
    """The head mask control: the same network with the forgotten logits at minus infinity."""
    forget, retain = outputs.forget_logits, outputs.retain_logits
    return replace(
        outputs,
        forget_logits=metrics.head_mask(forget, forgotten),
        retain_predictions=None,
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
        retain_predictions=None,
        retain_logits=shifted(outputs.retain_logits, outputs.retain_features),
    )


def images_at_once(prepared: UnlearningInputs, *, audit: bool) -> int:
    """Images per forward pass."""
    return min(AUDIT_BATCH, prepared.batch_size) if audit else prepared.batch_size


def audit_batches(pixels: Tensor, prepared: UnlearningInputs) -> Iterator[Tensor]:
    """uint8 images [n, k, h, w] as an audit's batches of model inputs, in order, on the device."""
    for part in pixels.split(images_at_once(prepared, audit=True)):
        yield model_inputs(part, prepared.preprocessing, prepared.loaded.device)


def reader(loaded: LoadedModel, prepared: UnlearningInputs, *, features: bool) -> Reader:
    """How a network reads a batch: its logits and, with `features`, the input of its head.

    With `features` both are on the CPU. Raises CheckpointError for a network without a head whose
    input can be read; the reader raises it where something is not finite. NaN has an argmax too,
    and would count as forgotten.
    """
    network, retry = loaded.network, BatchSizeRetry()
    head = network.layout.head_layer
    if features and head is None:
        raise CheckpointError(
            f"--audit: {printable(network.name)} has no linear or convolutional layer in its head;"
            " expected one whose input can be read"
        )

    def read(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        found: Tensor | None = None
        if features and head is not None:
            inputs = model_inputs(pixels, prepared.preprocessing, prepared.loaded.device)
            found, logits = read_head(network.module, head, [inputs], retry=retry)
        else:
            inputs = normalise(pixels.to(loaded.device, non_blocking=True), prepared.preprocessing)
            logits = predict(network.module, [inputs], retry=retry).logits
        for tensor in (logits, found):
            if tensor is not None and not bool(tensor.isfinite().all()):
                raise not_finite(loaded)
        return logits, found

    return read


def forget_outputs(
    loaded: LoadedModel, prepared: UnlearningInputs, read: Reader, *, features: bool
) -> NetworkOutputs:
    """What a network computes for the forget images. features: with the input of the head."""
    if loaded is prepared.loaded and not features:
        return NetworkOutputs(prepared.logits)
    parts = [
        read(p) for p in prepared.images.pixels.split(images_at_once(prepared, audit=features))
    ]
    logits = torch.cat([logits for logits, _ in parts])
    of_head = [found for _, found in parts if found is not None]
    return NetworkOutputs(logits, torch.cat(of_head) if of_head else None)


def head_warnings(models: Mapping[str, LoadedModel], prepared: UnlearningInputs) -> list[str]:
    """A warning for each network whose logits do not come from its head alone."""
    some = next(audit_batches(prepared.images.pixels[:AUDIT_BATCH], prepared))
    warnings = []
    for name, loaded in models.items():
        network = loaded.network
        head = network.layout.head_layer or ""
        layers = layers_of_logits(network.module, head, some)
        if layers not in ((), (head,)):
            warnings.append(
                f"--audit: the logits of the {name} come from {printable(' and '.join(layers))},"
                f" but the audit reads the input of {printable(head)} alone: its probe, row shift"
                " and relearning miss what the other layers see"
            )
    return warnings
