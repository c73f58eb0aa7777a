"""From a checkpoint to a network with the checkpoint's weights.

The architecture comes from the first of these that tells it: `--arch`, config.json or the
checkpoint's metadata, the names and shapes of the tensors. Which library's network a name stands
for is decided by the tensors. Code is imported only if the user names it with `--arch`: nothing
inside a checkpoint or beside it is ever run.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from torch import nn

from pbu_cli.errors import CheckpointError, printable
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.models.model_config import Description
from pbu_cli.models.network import (
    Network,
    classes_and_channels,
    does_not_fit,
    load_tensors,
    tensor_differences,
)
from pbu_cli.models.sources import timm, timm_registry, transformers
from pbu_cli.models.sources.construction import without_caches
from pbu_cli.models.sources.own import user_network
from pbu_cli.models.sources.torchvision_build import build, built_otherwise
from pbu_cli.models.sources.torchvision_inference import fits, infer, infer_as
from pbu_cli.models.sources.torchvision_registry import Architecture, registry

NAMES_SHOWN = 6
# Tensors that files of some versions of timm and transformers hold and that no classifier uses:
# what its constructor computes, and layers for other tasks.
SUPERFLUOUS = (
    r"(^|\.)(relative_position_index|relative_coords_table|attn_mask|position_ids|mask_token"
    r"|bias_idxs|attention_bias_idxs|pooler\..*|logit_scale|text_model\..*|text_projection\..*)$"
)
Size = tuple[int, int]


def load_network(
    checkpoint: Checkpoint, arch: str | None, description: Description, size: Size | None = None
) -> Network:
    """Build the checkpoint's network in float32 and load its weights.

    arch: the value of `--arch`. size: (height, width) that the user states, which some networks of
    timm are built for. Raises CheckpointError where the tensors fit no architecture, or not the
    one that is named; InvalidUsage where `--arch` names nothing that can be built.
    """
    size = size or description.size
    if arch is not None and arch.startswith(timm.PREFIX):
        return _timm_network(
            checkpoint, arch.removeprefix(timm.PREFIX), description, size, "--arch"
        )
    if arch is not None and ":" in arch:
        return user_network(checkpoint, arch)
    if arch is not None:
        return _named_network(checkpoint, arch, description)
    if description.transformers:
        return _transformers_network(checkpoint, description)
    if description.architecture is not None:
        return _described_network(checkpoint, description.architecture, description, size)
    return _recognised_network(checkpoint, description, size)


def _named_network(checkpoint: Checkpoint, arch: str, description: Description) -> Network:
    """torchvision's network of this name. Raises CheckpointError that names timm's, if it is."""
    if arch not in registry() and timm_registry.known(arch):
        raise CheckpointError(
            f"--arch {printable(arch, 80)}: not a classifier of torchvision; timm has one of this"
            f" name: pass --arch {timm.PREFIX}{arch}"
        )
    return _torchvision_network(
        checkpoint, infer_as(arch, checkpoint.shapes), description, "--arch"
    )


def _recognised_network(
    checkpoint: Checkpoint, description: Description, size: Size | None
) -> Network:
    """The network that the names and shapes of the tensors tell, torchvision's before timm's.

    Raises CheckpointError where several networks of timm have these tensors and differ in more.
    """
    source = f"names and shapes of {len(checkpoint.tensors)} tensors"
    try:
        architecture = infer(checkpoint.shapes)
    except CheckpointError:
        found = timm_registry.infer(checkpoint.shapes)
        if found is None:
            raise
        if len(found.kinds) > 1:
            names = [kind[0] for kind in found.kinds]
            shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            raise CheckpointError(
                f"architecture ambiguous: {len(names)} networks of timm have these tensors and"
                f" compute something else: {shown}; choose one with --arch {timm.PREFIX}NAME"
            ) from None
        return _timm_network(checkpoint, found.names[0], description, size, source)
    return _torchvision_network(checkpoint, architecture, description, source)


def _described_network(
    checkpoint: Checkpoint, name: str, description: Description, size: Size | None
) -> Network:
    """The network that a file names: torchvision's where its tensors and its options are
    torchvision's, and otherwise timm's of this name."""
    source = description.sources["architecture"]
    arguments, pools = description.model_args, description.global_pools
    of_torchvision = fits(name, checkpoint.shapes) and not built_otherwise(name, pools, arguments)
    if not of_torchvision and timm_registry.known(name.partition(".")[0]):
        try:
            return _timm_network(checkpoint, name, description, size, source)
        except CheckpointError:
            if name not in registry() or timm_registry.infer(checkpoint.shapes) is not None:
                raise
    architecture = infer_as(name, checkpoint.shapes, f"{source}:")
    return _torchvision_network(checkpoint, architecture, description, source)


def _torchvision_network(
    checkpoint: Checkpoint, architecture: Architecture, description: Description, source: str
) -> Network:
    require_buildable(description, architecture.name)
    module = build(architecture)
    load_tensors(module, checkpoint.tensors)
    return Network(
        module.eval(),
        _shown(architecture),
        architecture.name,
        architecture.num_classes,
        architecture.in_channels,
        architecture.image_size,
        checkpoint.prefix,
        source,
        architecture.small_stem,
        library="torchvision",
    )


def _timm_network(
    checkpoint: Checkpoint, name: str, description: Description, size: Size | None, source: str
) -> Network:
    arguments = dict(description.model_args)
    for pool in description.global_pools[:1]:
        arguments.setdefault("global_pool", pool)
    subject = f"{source}: {name}" if source != "--arch" else f"--arch {timm.PREFIX}{name}"
    module, image_size = timm.build(name, checkpoint.shapes, arguments, size, subject)
    network = _filled(module, checkpoint, f"timm's {name}", "timm", source)
    return replace(network, image_size=image_size)


def _transformers_network(checkpoint: Checkpoint, description: Description) -> Network:
    stored = {name: tuple(tensor.shape) for name, tensor in checkpoint.stored.items()}
    module, renamed = transformers.build(description.transformers, stored)
    checkpoint = checkpoint.under("", renamed)
    shown = f"transformers' {type(module).__name__}"
    return _filled(module, checkpoint, shown, "transformers", "config.json")


def require_buildable(description: Description, name: str) -> None:
    """Raise CheckpointError where timm would build another network than torchvision's `name`."""
    found = built_otherwise(name, description.global_pools, description.model_args)
    if found is not None:
        (key, value), sources = found, description.sources
        source = sources.get("global_pools" if key == "global_pool" else "model_args")
        raise CheckpointError(
            f"{source or sources['model_args']}: {key} is {printable(json.dumps(value), 80)}; pbu"
            f" builds torchvision's {name} without it, which would be another network: pass --arch"
            " FILE.py:FUNCTION with a function that builds yours, or remove the key if it is wrong"
        )


def _filled(
    module: nn.Module, checkpoint: Checkpoint, shown: str, library: str, source: str
) -> Network:
    """The network of a module with random weights, with those of the checkpoint."""
    state = module.state_dict()
    # What a constructor computes, such as a table of positions, was saved by some versions of the
    # libraries and is not by others.
    computed = {name: value for name, value in state.items() if not value.is_floating_point()}
    superfluous = frozenset(
        stored
        for stored, name in checkpoint.module_names().items()
        if name not in state and re.search(SUPERFLUOUS, name)
    )
    checkpoint = checkpoint.under(checkpoint.prefix, checkpoint.renamed, superfluous)
    expected = {name: tuple(value.shape) for name, value in state.items()}
    tensors = {**computed, **checkpoint.tensors}
    found = tensor_differences(
        expected, {name: tuple(value.shape) for name, value in tensors.items()}
    )
    if found:
        raise CheckpointError(does_not_fit(checkpoint, shown, found))
    load_tensors(module, tensors)
    without_caches(module)
    classes, channels = classes_and_channels(module, shown)
    name = f"{shown} ({classes} classes, {channels} channel{'s' if channels > 1 else ''})"
    return Network(
        module, name, None, classes, channels, None, checkpoint.prefix, source,
        library=library, renamed=checkpoint.renamed, unused=superfluous,
    )  # fmt: skip


def _shown(architecture: Architecture) -> str:
    """The architecture as the user is shown it."""
    channels = architecture.in_channels
    parts = [
        f"{architecture.num_classes} classes",
        "1 channel" if channels == 1 else f"{channels} channels",
    ]
    if architecture.small_stem:
        parts.append("small-image stem")
    return f"{architecture.name} ({', '.join(parts)})"
