"""A checkpoint with its network, loaded on a device and validated on images of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pbu_cli.data.class_index import read_class_index
from pbu_cli.errors import CheckpointError, InvalidUsage, PbuError, printable
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.inputs.resizing import with_preset, with_processor
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.io.model_folder import read
from pbu_cli.models.inference import largest_layer
from pbu_cli.models.kernels.channels_last import put_channels_last
from pbu_cli.models.load import load_network
from pbu_cli.models.model_config import Description, describe
from pbu_cli.models.network import TRIAL, Network, try_out
from pbu_cli.runtime.device import (
    choose_device,
    compute_deterministically,
    compute_in_float32,
    memory,
)
from pbu_cli.settings import InputOptions

# No layer of a usual network is this many times as large as its image. Where even so much memory
# is there, nothing has to be estimated.
LAYER_OVER_INPUT = 256
NAMES_SHOWN = 8  # of tensors or state dicts in a line


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint, what its config.json and metadata say, and its network on the device."""

    checkpoint: Checkpoint
    description: Description
    network: Network
    device: torch.device

    def class_name(self, index: int) -> str:
        """The class as messages show it: its index and, where it is known, its name."""
        names = self.description.label_names
        return f"{index} {names[index]}" if names and index < len(names) else str(index)


def load_model(path: Path, options: InputOptions, log: InferenceLog) -> LoadedModel:
    """Read a checkpoint and build its network; see `load_network` for the errors."""
    checkpoint = read(path, options.state_dict)
    description = describe(path, checkpoint.metadata)
    network = load_network(checkpoint, options.arch, description, options.size)
    checkpoint = checkpoint.under(network.prefix, network.renamed, network.unused)
    _log_what_is_beside(checkpoint, options, log)
    log.add(Inferred("architecture", network.name, network.source))
    device = choose_device(options.device)
    compute_in_float32()
    if options.deterministic:
        compute_deterministically(device)
    network.module.to(device)
    description = with_preset(description, network, options)
    description = with_processor(description, network, options)
    if options.class_index is not None:
        description = with_class_index(description, Path(options.class_index))
    return LoadedModel(checkpoint, description, network, device)


def _log_what_is_beside(checkpoint: Checkpoint, options: InputOptions, log: InferenceLog) -> None:
    """Say which state dicts of the file are not read, and which tensors the network does not
    use."""
    if others := checkpoint.other_state_dicts:
        source = "the key of a network" if options.state_dict is None else "--state-dict"
        source += f"; not in the output: {_some(others)}"
        log.add(Inferred("state dict", printable(checkpoint.state_dict, 80), source))
    if rest := checkpoint.left_over:
        log.warn(
            [
                f"{len(rest)} of {len(checkpoint.stored)} tensors are no part of the network; an"
                f" output keeps them as they are: {_some(rest)}"
            ]
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 80) for name in names[:NAMES_SHOWN])
    return shown + (", ..." if len(names) > NAMES_SHOWN else "")


def with_class_index(description: Description, path: Path) -> Description:
    """The description with the class names and ids of a class-index file, which the user states."""
    index = read_class_index(path)
    sources = {**description.sources, "label_names": f"--class-index {printable(path)}"}
    return replace(description, label_names=index.names, label_ids=index.ids, sources=sources)


def validated(
    loaded: LoadedModel, channels: int, size: tuple[int, int], options: InputOptions
) -> LoadedModel:
    """The same model after a forward pass on images of this shape, which tells its classes.

    Raises what `try_out` raises, and CheckpointError where config.json or the metadata disagree
    with the number of classes that the network gives logits for.
    """
    flagged = options.size is not None or options.channels is not None
    network = try_out(loaded.network, channels, size, flagged=flagged)
    put_channels_last(network.module, channels, size)
    description = loaded.description
    names = description.label_names
    for key, count in (
        ("num_classes", description.num_classes),
        ("label_names", None if names is None else len(names)),
    ):
        if key == "label_names" and options.class_index and count != network.num_classes:
            raise InvalidUsage(
                f"{description.sources[key]}: {count} classes, the network has"
                f" {network.num_classes}; expected one entry for each class of the network"
            )
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
    return replace(loaded, network=network)


def check_memory(
    loaded: LoadedModel, images: int, channels: int, size: tuple[int, int], options: InputOptions
) -> None:
    """Raise PbuError where one layer needs more for a batch than the machine's memory holds.

    A GPU is left to find out for itself: it does a batch that it cannot hold again in halves.
    """
    batch, most = max(TRIAL, min(options.batch_size, images)), memory()
    inputs = 4 * batch * channels * size[0] * size[1]
    if loaded.device.type != "cpu" or LAYER_OVER_INPUT * inputs < most:
        return
    each = largest_layer(loaded.network.module, (channels, *size))
    if batch * each > most:
        fitting = int(most / 4 / each)
        advice = (
            f"--batch-size {fitting} or a smaller --size"
            if fitting >= TRIAL
            else "a smaller --size"
        )
        raise PbuError(
            f"out of memory: one layer needs {batch * each / 1e9:.0f} GB for {batch} images of"
            f" {channels}x{size[0]}x{size[1]}; expected at most {most / 1e9:.0f} GB: pass {advice}"
        )


def not_finite(loaded: LoadedModel) -> CheckpointError:
    """The error for a network whose logits are not all finite numbers."""
    return CheckpointError(
        f"{printable(loaded.checkpoint.path)}: gives NaN or infinity for the images; expected"
        " finite logits: check the weights, --mean and --std"
    )
