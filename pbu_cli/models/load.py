"""From a checkpoint to a network with the checkpoint's weights.

The architecture comes from the first of these sources that tells it: `--arch`, config.json or the
checkpoint's metadata, the names and shapes of the tensors. Code is imported only if the user names
it with `--arch`: nothing inside a checkpoint or beside it is ever run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage, is_out_of_memory, printable
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.models.architecture_inference import Difference, infer, infer_as
from pbu_cli.models.build import build, user_module
from pbu_cli.models.model_config import Description
from pbu_cli.models.registry import Architecture, Shapes

DIFFERENCES_SHOWN = 4
COUNTER = "num_batches_tracked"  # BatchNorm's counter, which files of old torch versions lack
RGB = 3  # assumed channels of a network without a convolution
# Images in the trial pass: a module that drops the batch axis of a single image is only noticed
# with two.
TRIAL = 2


@dataclass(frozen=True)
class Network:
    """A module in eval mode, in float32, with the checkpoint's weights.

    name: what the user is shown. builder: its torchvision name, None for the user's own module.
    num_classes: for the user's own module this is the width of the last layer defined, until
    `try_out` has seen logits. image_size: the only size that the module takes, None where it takes
    any. prefix: what precedes the module's tensor names in the file. source: what told the
    architecture.
    """

    module: nn.Module
    name: str
    builder: str | None
    num_classes: int
    channels: int
    image_size: int | None
    prefix: str
    source: str


def load_network(checkpoint: Checkpoint, arch: str | None, description: Description) -> Network:
    """Build the checkpoint's network in float32 and load its weights.

    arch: the value of `--arch`. Raises CheckpointError where the tensors fit no architecture, or
    not the one that is named; InvalidUsage where `--arch` names nothing that can be built.
    """
    if arch is not None and ":" in arch:
        return _user_network(checkpoint, arch)
    if arch is not None:
        architecture, source = infer_as(arch, checkpoint.shapes), "--arch"
    elif description.architecture is not None:
        source = description.sources["architecture"]
        architecture = infer_as(description.architecture, checkpoint.shapes, f"{source}:")
    else:
        architecture = infer(checkpoint.shapes)
        source = f"names and shapes of {len(checkpoint.tensors)} tensors"
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
    )


@torch.no_grad()
def try_out(network: Network, channels: int, size: tuple[int, int], *, flagged: bool) -> Network:
    """Run the network once on black images; returns it with the number of classes in its logits.

    This is the one place that notices images that the network does not take, or output that is not
    logits. For the user's own module it then raises CheckpointError. For a torchvision module it
    raises InvalidUsage if flags say what the images are (`flagged`), and ImageError otherwise.
    """
    device = next(network.module.parameters()).device
    images = torch.zeros(TRIAL, channels, *size, device=device)
    shape = "x".join(map(str, images.shape[1:]))
    own = network.builder is None
    subject = f"--arch {printable(network.name)}" if own else network.name
    try:
        logits = network.module(images)
    except (Exception, SystemExit) as error:  # torch and the user's code may raise anything
        if is_out_of_memory(error):
            raise
        advice = "--channels, if it takes others" if own else "omit --channels"
        kind = CheckpointError if own else InvalidUsage if flagged else ImageError
        raise kind(
            f"{subject}: fails on {TRIAL} images of {shape} (channels, height, width):"
            f" {type(error).__name__}: {printable(error)}; expected images it takes: pass --size,"
            f" larger where they are too small for its layers, and {advice}"
        ) from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != TRIAL:
        found = f"a {type(logits).__name__}"
        if isinstance(logits, Tensor):
            found = f"shape {list(logits.shape)}"
        raise CheckpointError(
            f"{subject}: returns {found} for {TRIAL} images of {shape}; expected logits of shape"
            f" [{TRIAL}, classes]: wrap the module so that it returns only the logits"
        )
    return replace(network, num_classes=logits.shape[1])


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the module, cast to the module's own dtypes.

    Raises RuntimeError if names or shapes differ. BatchNorm counters may be missing, as in old
    files; they become 0.
    """
    # MNASNet refuses a state without the version that `state_dict()` keeps as an attribute and
    # that safetensors files do not carry. Only the version of the module itself is given: without
    # theirs, the BatchNorms in it accept files from before `num_batches_tracked`.
    state = _VersionedState(tensors)
    state._metadata = {"": {"version": model._version}}
    model.load_state_dict(state)


class _VersionedState(dict[str, Tensor]):
    """A state dict with the version table that `Module.load_state_dict` looks for."""

    _metadata: dict[str, dict[str, int]]


def _user_network(checkpoint: Checkpoint, arch: str) -> Network:
    module = user_module(arch)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    # A prefix such as `model.` may belong to a wrapper or to this very module, so that the names
    # as stored are tried first.
    prefix = checkpoint.prefix
    prefixes = ["", *(prefix[: dot + 1] for dot, letter in enumerate(prefix) if letter == ".")]
    readings = [checkpoint.under(prefix) for prefix in prefixes]
    checkpoint = min(readings, key=lambda reading: len(_differences(expected, reading.shapes)))
    found = _differences(expected, checkpoint.shapes)
    if found:
        raise CheckpointError(
            f"{printable(checkpoint.path)}: does not fit --arch {printable(arch)}:"
            f" {len(found)} tensors differ: {'; '.join(map(str, found[:DIFFERENCES_SHOWN]))}"
            + ("; ..." if len(found) > DIFFERENCES_SHOWN else "")
        )
    load_tensors(module.float(), checkpoint.tensors)
    _print_to_stderr(module.eval())
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise CheckpointError(
            f"--arch {printable(arch)}: the module has no Linear or Conv2d; expected an image"
            " classifier"
        )
    channels = RGB if convolution is None else convolution.in_channels
    classes = layers[-1].weight.shape[0]
    return Network(module, arch, None, classes, channels, None, checkpoint.prefix, "--arch")


def _print_to_stderr(module: nn.Module) -> None:
    """Send what the user's forward prints to stderr, since stdout is for results."""
    redirections: list[redirect_stdout[Any]] = []

    def enter(*_: Any) -> None:
        redirections.append(redirect_stdout(sys.stderr))
        redirections[-1].__enter__()

    def leave(*_: Any) -> None:
        redirections.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


def _differences(expected: Shapes, found: Shapes) -> list[Difference]:
    """Tensors that are missing, unexpected or of another shape, in this order."""
    missing = [n for n in expected if n not in found and not n.endswith(COUNTER)]
    return [
        *(Difference(name, None, expected[name]) for name in missing),
        *(Difference(name, found[name], None) for name in found if name not in expected),
        *(
            Difference(name, found[name], shape)
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    ]


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
