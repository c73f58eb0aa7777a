"""A checkpoint with its network, loaded on a device and validated on images of one shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.inputs.inferred import InferenceLog, Inferred
from pbu_cli.io.checkpoint import Checkpoint, read
from pbu_cli.models.channels_last import put_channels_last
from pbu_cli.models.load import Network, load_network, try_out
from pbu_cli.models.model_config import Description, describe
from pbu_cli.runtime.device import choose_device, compute_deterministically, compute_in_float32
from pbu_cli.settings import InputOptions


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
    checkpoint = read(path)
    description = describe(path, checkpoint.metadata)
    network = load_network(checkpoint, options.arch, description)
    log.add(Inferred("architecture", network.name, network.source))
    device = choose_device(options.device)
    compute_in_float32()
    if options.deterministic:
        compute_deterministically(device)
    network.module.to(device)
    return LoadedModel(checkpoint.under(network.prefix), description, network, device)


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


def not_finite(loaded: LoadedModel) -> CheckpointError:
    """The error for a network whose logits are not all finite numbers."""
    return CheckpointError(
        f"{printable(loaded.checkpoint.path)}: gives NaN or infinity for the images; expected"
        " finite logits: check the weights, --mean and --std"
    )
