"""Run the networks of a comparison on the same forget and retained images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from pbu_cli.data.label_inference import LabelRules
from pbu_cli.errors import InvalidUsage
from pbu_cli.evaluation.outputs import (
    HEAD_MASK,
    ROW_SHIFT,
    NetworkOutputs,
    controls_of,
    forget_outputs,
    head_warnings,
    reader,
)
from pbu_cli.evaluation.reference_networks import (
    doubts_about_normalisation,
    known_to_original,
    pairs_of_same_weights,
    require_comparable,
    require_equal,
)
from pbu_cli.evaluation.retained.predictions import (
    Networks,
    RetainedImages,
    Sample,
    predict_retained,
)
from pbu_cli.evaluation.retained.source import RetainedSource, check_order, find_retained_images
from pbu_cli.inputs.fit import fit_stem
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.labels import in_fixed_order
from pbu_cli.inputs.loaded_model import (
    LoadedModel,
    check_memory,
    load_model,
    validated,
)
from pbu_cli.inputs.prepare import UnlearningInputs, prepare_inputs
from pbu_cli.settings import InputOptions

SHOWN = ("checkpoint", "original", HEAD_MASK, ROW_SHIFT, "retrained")  # in this order

# Shows how far a phase is: its name and length -> what takes the number done and a remark.
OpenProgress = Callable[[str, int | None], AbstractContextManager[Callable[[int, str], None]]]


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

    @property
    def sample(self) -> Sample | None:
        """The retained images that an audit reads; None without an audit or retained images."""
        return None if self.retained is None else self.retained.sample

    @property
    def sampled(self) -> str:
        """The sample in words, where it is not all of the retained images; else empty."""
        if self.retained is None or self.retained.sample is None:
            return ""
        count, of = len(self.retained.sample.labels), len(self.retained.labels)
        return f"{count:,} of {of:,} retained images" if count < of else ""


def compare(
    request: ComparisonRequest,
    options: InputOptions,
    log: InferenceLog,
    *,
    stdin: BinaryIO | None = None,
    audit_seed: int | None = None,
    progress: OpenProgress = lambda what, total: nullcontext(lambda done, remark: None),
) -> Comparison:
    """Run a checkpoint, and the networks that it is compared with, on the same images.

    Where the original is given, images, labels and normalisation are inferred with it, because a
    checkpoint that has forgotten a class cannot tell its label. What pbu recorded in the
    checkpoint when it unlearned, normalisation and size, has precedence over what the original
    suggests. Left out of the retained images are the classes that the user asks about, with
    `forget` or `forgotten`, and those that the original had forgotten already. What the checkpoint
    says of itself leaves nothing out.

    The original brings the free controls: the head mask and, for an audit, the row shift.
    audit_seed: which retained images an audit reads; with it the input of the head is read too.
    None without an audit.
    """
    if request.forgotten and request.retain is None:
        raise InvalidUsage("--forgotten: classes that A_Dr leaves out; it needs --retain")
    audit = audit_seed is not None
    forget, options = in_fixed_order(request.forget, options)
    request = replace(request, forget=forget)
    models, prepared = _load(request, options, log, stdin)
    source = None
    if request.retain is not None:
        source = find_retained_images(
            request.retain, prepared, options, log, request.forgotten, request.retain_order
        )
        channels, size = prepared.images.pixels.shape[1], prepared.preprocessing.size
        for loaded in models.values():
            check_memory(loaded, len(source), channels, size, options)
    if audit:
        log.warn(head_warnings(models, prepared))
    readers = {name: reader(loaded, prepared, features=audit) for name, loaded in models.items()}
    outputs = {
        name: forget_outputs(loaded, prepared, readers[name], features=audit)
        for name, loaded in models.items()
    }
    controls = None
    if "original" in models:
        controls = controls_of(models["original"], outputs["original"], prepared)
        outputs |= controls.of(outputs["original"])
    retained = None
    if source is not None:
        with progress("evaluating", len(source)) as show:
            retained, outputs = predict_retained(
                source,
                prepared,
                options,
                log,
                Networks(readers, outputs, controls),
                seed=audit_seed,
                progress=lambda count: show(count, ""),
            )
        retained, outputs = _of_known_classes(source, retained, outputs, prepared.loaded, log)
    shown = {name: outputs[name] for name in SHOWN if name in outputs}
    shift = None if controls is None else controls.shift
    same = pairs_of_same_weights(models)
    found = Comparison(prepared, models, shown, retained, shift, same)
    if found.sampled:
        source_of_it = f"drawn by class with --seed {audit_seed}; A_Dr is of all"
        log.add(Inferred("audit sample", found.sampled, source_of_it))
    return found


def _of_known_classes(
    source: RetainedSource,
    retained: RetainedImages,
    outputs: dict[str, NetworkOutputs],
    original: LoadedModel,
    log: InferenceLog,
) -> tuple[RetainedImages, dict[str, NetworkOutputs]]:
    """The retained images of classes that the original knew, and the outputs for them.

    Raises ImageError where the predictions fit another order of the classes, or no class is left.
    """
    best = outputs["original" if "original" in outputs else "checkpoint"].retain_predictions
    assert best is not None
    check_order(source, best, retained.labels, retained.index)
    if "original" in outputs:
        known = known_to_original(retained.labels, best, original, log)
        sampled = None if retained.sample is None else known[retained.sample.index]
        retained = retained.only(known)
        outputs = {name: found.only_retained(known, sampled) for name, found in outputs.items()}
    return retained, outputs


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
