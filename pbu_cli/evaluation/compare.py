"""Run the networks of a comparison on the same forget and retained images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor, nn

from pbu_cli.data.label_inference import LabelRules
from pbu_cli.errors import InvalidUsage, printable
from pbu_cli.evaluation import metrics
from pbu_cli.evaluation.outputs import (
    AUDIT_BATCH,
    NetworkOutputs,
    audit_batches,
    head_masked,
    network_outputs,
    outputs_with_features,
    row_shifted,
)
from pbu_cli.evaluation.reference_networks import (
    doubts_about_normalisation,
    known_to_original,
    pairs_of_same_weights,
    require_comparable,
    require_equal,
)
from pbu_cli.evaluation.retained_images import RetainedImages, check_order, read_retained_images
from pbu_cli.inputs.fit import fit_stem
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.labels import in_fixed_order
from pbu_cli.inputs.loaded_model import (
    LoadedModel,
    check_memory,
    load_model,
    validated,
)
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.models.features import layers_of_logits
from pbu_cli.settings import InputOptions

HEAD_MASK, ROW_SHIFT = "original, head mask", "original, row shift"  # the controls


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, on which images.

    forget: folders of forget images, as for `pbu unlearn`. retain: a folder of class folders or a
    CSV file of `path,label` lines. original: the checkpoint before unlearning. retrained: the
    checkpoint of a network that was trained without the class. forgotten: further classes, by index
    or name, that were forgotten on purpose, so that A_Dr leaves them out. retain_order: how the
    folders of `retain` stand for the classes; None for what their names say.
    """

    checkpoint: Path
    forget: Sequence[str]
    retain: str | None = None
    original: Path | None = None
    retrained: Path | None = None
    forgotten: tuple[str, ...] = ()
    retain_order: str | None = None

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
    without that control. same_weights: the pairs of networks, by name, that are one network.
    """

    prepared: UnlearningInputs
    loaded_models: dict[str, LoadedModel]
    outputs: dict[str, NetworkOutputs]
    retained: RetainedImages | None
    shift: Tensor | None
    same_weights: tuple[tuple[str, str], ...] = ()


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
    suggests. Left out of the retained images are the classes that the user asks about, with
    `forget` or `forgotten`, and those that the original had forgotten already. What the checkpoint
    says of itself leaves nothing out.

    The original brings the free controls: the head mask and, with `read_features`, the row shift.
    read_features: read the input of the head too, which an audit needs.
    """
    if request.forgotten and request.retain is None:
        raise InvalidUsage("--forgotten: classes that A_Dr leaves out; it needs --retain")
    forget, options = in_fixed_order(request.forget, options)
    request = replace(request, forget=forget)
    loaded_models, prepared = _load(request, options, log, stdin)
    retained = None
    if request.retain is not None:
        retained = read_retained_images(
            request.retain, prepared, options, log, request.forgotten, request.retain_order
        )
        count, channels = retained.images.pixels.shape[:2]
        for loaded in loaded_models.values():
            check_memory(loaded, count, channels, prepared.preprocessing.size, options)
    retained_images = None if retained is None else retained.images
    if read_features:
        log.warn(_head_warnings(loaded_models, prepared))
    compute = outputs_with_features if read_features else network_outputs
    outputs = {
        name: compute(loaded, prepared, retained_images) for name, loaded in loaded_models.items()
    }
    retain_logits = outputs["original" if "original" in outputs else "checkpoint"].retain_logits
    if retained is not None and retain_logits is not None:
        check_order(retained, retain_logits)
    if retained is not None and "original" in outputs:
        known = known_to_original(retained, outputs["original"], prepared.loaded, log)
        retained = retained.only(known)
        outputs = {name: found.with_retained(known) for name, found in outputs.items()}
    shift = None
    if "original" in outputs:
        forgotten = prepared.forgotten.to(outputs["original"].forget_logits.device)
        outputs[HEAD_MASK] = head_masked(outputs["original"], forgotten)
        shift = _row_shift(loaded_models["original"], outputs["original"], forgotten)
        if shift is not None:
            outputs[ROW_SHIFT] = row_shifted(outputs["original"], forgotten, shift)
    order = ("checkpoint", "original", HEAD_MASK, ROW_SHIFT, "retrained")
    shown = {name: outputs[name] for name in order if name in outputs}
    same = pairs_of_same_weights(loaded_models)
    return Comparison(prepared, loaded_models, shown, retained, shift, same)


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
    require_equal("channels", {n: m.network.channels for n, m in loaded_models.items()})
    described = {name: model.description for name, model in loaded_models.items()}
    reference = "original" if "original" in loaded_models else "checkpoint"
    model = loaded_models[reference]
    recorded = loaded_models["checkpoint"].description
    prepared = prepare_inputs(
        replace(model, description=model.description.processed_like(recorded)),
        request.forget,
        options,
        log,
        stdin=stdin,
        rules=LabelRules(binding=reference == "original"),
    )
    channels, size = prepared.images.pixels.shape[1], prepared.preprocessing.size
    for name, other in loaded_models.items():
        if name == reference:
            loaded_models[name] = prepared.loaded
        else:
            check_memory(other, len(prepared.images.pixels), channels, size, options)
            loaded_models[name] = validated(other, channels, size, options)
            fit_stem(other, prepared.images.pixels, prepared.preprocessing, options.batch_size)
    require_comparable(loaded_models)
    log.warn(doubts_about_normalisation(described, prepared, options))
    return loaded_models, prepared


def _head_warnings(loaded_models: dict[str, LoadedModel], prepared: UnlearningInputs) -> list[str]:
    """A warning for each network whose logits do not come from its head alone."""
    some = next(audit_batches(prepared.images.pixels[:AUDIT_BATCH], prepared))
    warnings = []
    for name, loaded in loaded_models.items():
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


def _row_shift(loaded: LoadedModel, outputs: NetworkOutputs, forgotten: Tensor) -> Tensor | None:
    """The shift of the control; None without features or where the head is not linear."""
    network = loaded.network
    head = network.layout.head_layer
    if outputs.forget_features is None or head is None:
        return None
    if not isinstance(network.module.get_submodule(head), nn.Linear):
        return None
    return metrics.row_shift(outputs.forget_logits, outputs.forget_features, forgotten)
