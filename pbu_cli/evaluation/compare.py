"""Run the networks of a comparison on the same forget and retained images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor, nn

from pbu_cli.data.decoding import DecodedImages
from pbu_cli.data.preprocessing import image_logits, model_inputs
from pbu_cli.errors import CheckpointError, printable
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.outputs import NetworkOutputs, head_masked, row_shifted
from pbu_cli.evaluation.retained_images import RetainedImages, read_retained_images
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import LoadedModel, load_model, not_finite, validated
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.models.features import read_head
from pbu_cli.models.parameter_groups import head_module
from pbu_cli.settings import InputOptions

HEAD_MASK, ROW_SHIFT = "original, head mask", "original, row shift"  # the controls
AUDIT_BATCH = 64  # images per forward pass of an audit: so few stay in the cache of a core


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, on which images.

    forget: folders of forget images, as for `pbu unlearn`. retain: a folder of class folders or a
    CSV file of `path,label` lines. original: the checkpoint before unlearning. retrained: the
    checkpoint of a network that was trained without the class.
    """

    checkpoint: Path
    forget: Sequence[str]
    retain: str | None = None
    original: Path | None = None
    retrained: Path | None = None

    def checkpoints(self) -> dict[str, Path]:
        """The checkpoints that are given, by their names in the tables."""
        paths = {
            "checkpoint": self.checkpoint,
            "original": self.original,
            "retrained": self.retrained,
        }
        return {name: path for name, path in paths.items() if path is not None}


@dataclass(frozen=True)
class Comparison:
    """The networks, the images that they are compared on, and what they compute for them.

    loaded_models: `checkpoint`, and `original` and `retrained` where given. outputs: those of these
    networks and of the controls, in the order in which they are shown. retained: None where no
    retained images were given. shift: what the row shift subtracts from the head's row, [d]; None
    without that control.
    """

    prepared: UnlearningInputs
    loaded_models: dict[str, LoadedModel]
    outputs: dict[str, NetworkOutputs]
    retained: RetainedImages | None
    shift: Tensor | None


def compare(
    request: ComparisonRequest,
    options: InputOptions,
    log: InferenceLog,
    *,
    stdin: BinaryIO | None = None,
    read_features: bool = False,
) -> Comparison:
    """Run a checkpoint, and the networks that it is compared with, on the same images.

    Where the original is given, images, labels and normalisation are inferred with it, because a
    checkpoint that has forgotten a class cannot tell its label. What pbu recorded in the
    checkpoint when it unlearned, normalisation and size, has precedence over what the original
    suggests. Retained images of a forgotten class are left out.

    The original brings the free controls: the head mask and, with `read_features`, the row shift.
    read_features: read the input of the head too, which an audit needs.
    """
    loaded_models, prepared = _load(request, options, log, stdin)
    retained = None
    if request.retain is not None:
        forgotten_by_metadata = loaded_models["checkpoint"].description.forgotten
        retained = read_retained_images(
            request.retain, prepared, options, log, forgotten_by_metadata
        )
    retained_images = None if retained is None else retained.images
    compute = _outputs_with_features if read_features else _outputs
    outputs = {
        name: compute(loaded, prepared, retained_images) for name, loaded in loaded_models.items()
    }
    shift = None
    if "original" in outputs:
        forgotten = prepared.forgotten.to(outputs["original"].forget_logits.device)
        outputs[HEAD_MASK] = head_masked(outputs["original"], forgotten)
        shift = _row_shift(loaded_models["original"], outputs["original"], forgotten)
        if shift is not None:
            outputs[ROW_SHIFT] = row_shifted(outputs["original"], forgotten, shift)
    order = ("checkpoint", "original", HEAD_MASK, ROW_SHIFT, "retrained")
    shown = {name: outputs[name] for name in order if name in outputs}
    return Comparison(prepared, loaded_models, shown, retained, shift)


def audit_batches(pixels: Tensor, prepared: UnlearningInputs) -> Iterator[Tensor]:
    """uint8 images [n, k, h, w] as an audit's batches of model inputs, in order, on the device."""
    for part in pixels.split(min(AUDIT_BATCH, prepared.batch_size)):
        yield model_inputs(part, prepared.preprocessing, prepared.loaded.device)


def _load(
    request: ComparisonRequest, options: InputOptions, log: InferenceLog, stdin: BinaryIO | None
) -> tuple[dict[str, LoadedModel], UnlearningInputs]:
    """Load all networks, prepare the forget images with one of them, and validate the others.

    What is inferred about the networks to compare with is not logged.
    """
    loaded_models = {
        name: load_model(path, options, log if name == "checkpoint" else InferenceLog())
        for name, path in request.checkpoints().items()
    }
    _require_equal("channels", {n: m.network.channels for n, m in loaded_models.items()})
    reference = "original" if "original" in loaded_models else "checkpoint"
    model = loaded_models[reference]
    recorded = loaded_models["checkpoint"].description
    prepared = prepare_inputs(
        replace(model, description=model.description.processed_like(recorded)),
        request.forget,
        options,
        log,
        stdin=stdin,
        binding=reference == "original",
    )
    channels, size = prepared.images.pixels.shape[1], prepared.preprocessing.size
    for name, other in loaded_models.items():
        loaded_models[name] = (
            prepared.loaded if name == reference else validated(other, channels, size, options)
        )
    _require_equal("classes", {n: m.network.num_classes for n, m in loaded_models.items()})
    return loaded_models, prepared


def _require_equal(what: str, counts: dict[str, int]) -> None:
    expected = counts["checkpoint"]
    for name, count in counts.items():
        if count != expected:
            raise CheckpointError(
                f"--{name}: has {count} {what} where the checkpoint has {expected}, so that they"
                f" cannot be compared; expected a network with as many {what}"
            )


def _outputs(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> NetworkOutputs:
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


def _outputs_with_features(
    loaded: LoadedModel, prepared: UnlearningInputs, retained: DecodedImages | None
) -> NetworkOutputs:
    """Raises CheckpointError for a network without a head whose input can be read."""
    network = loaded.network
    head = head_module(network.module, network.builder)
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


def _row_shift(loaded: LoadedModel, outputs: NetworkOutputs, forgotten: Tensor) -> Tensor | None:
    """The shift of the control; None without features or where the head is not linear."""
    network = loaded.network
    head = head_module(network.module, network.builder)
    if outputs.forget_features is None or head is None:
        return None
    if not isinstance(network.module.get_submodule(head), nn.Linear):
        return None
    return metrics.row_shift(outputs.forget_logits, outputs.forget_features, forgotten)
