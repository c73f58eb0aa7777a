"""A network with the checkpoint's weights, and the trial pass that it has to stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage, is_out_of_memory, printable
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.models.layer_order import NO_LAYOUT, Layout
from pbu_cli.models.layer_trace import traced
from pbu_cli.models.parameter_groups import find_layout
from pbu_cli.models.tensor_shapes import Difference, Shapes

COUNTER = "num_batches_tracked"  # BatchNorm's counter, which files of old torch versions lack
# Images in the trial pass: a module that drops the batch axis of a single image is only noticed
# with two.
TRIAL = 2
DIFFERENCES_SHOWN = 4
RGB = 3  # assumed channels of a network without a convolution


@dataclass(frozen=True)
class Network:
    """A module in eval mode, in float32, with the checkpoint's weights.

    name: what the user is shown. library: `torchvision`, `timm` or `transformers`, empty for the
    user's own module. builder: its torchvision name, None for a module of another source.
    num_classes: for a module that is not torchvision's this is the width of the last layer defined,
    until `try_out` has seen logits. image_size: the only size that the module takes, None for any.
    prefix: what precedes the module's tensor names in the file. renamed: the module's name of every
    tensor that the library renames on loading, by its name in the file without the prefix. unused:
    the names in the file of tensors that the network does not have. source: what told the
    architecture. small_stem: whether it is a ResNet with a 3x3 stem, which exists
    with and without a max-pool after it. layout: its last stage and its head, which `try_out`
    finds.
    """

    module: nn.Module
    name: str
    builder: str | None
    num_classes: int
    channels: int
    image_size: int | None
    prefix: str
    source: str
    small_stem: bool = False
    layout: Layout = NO_LAYOUT
    library: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


@torch.no_grad()
def try_out(network: Network, channels: int, size: tuple[int, int], *, flagged: bool) -> Network:
    """Run the network once on black images; returns it with its number of classes and its layout.

    This is the one place that notices images that the network does not take, or output that is not
    logits. For the user's own module it then raises CheckpointError. For a library's module it
    raises InvalidUsage if flags say what the images are (`flagged`), and ImageError otherwise.
    """
    device = next(network.module.parameters()).device
    images = torch.zeros(TRIAL, channels, *size, device=device)
    shape = "x".join(map(str, images.shape[1:]))
    own = not network.library
    subject = f"--arch {printable(network.name)}" if own else network.name
    try:
        with traced(network.module) as trace:
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
    classes = logits.shape[1]
    layout = find_layout(network.module, network.builder, trace, classes)
    return replace(network, num_classes=classes, layout=layout)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the module, cast to the module's own dtypes.

    BatchNorm counters may be missing, as in old files; they become 0. Raises RuntimeError if names
    or shapes differ, and CheckpointError where weights are whole numbers, which would be computed
    with as they stand.
    """
    expected = model.state_dict()
    whole = [
        name
        for name, tensor in tensors.items()
        if name in expected
        and expected[name].is_floating_point()
        and not tensor.is_floating_point()
    ]
    if whole:
        raise CheckpointError(
            f"{len(whole)} weights are whole numbers ({tensors[whole[0]].dtype}), first"
            f" {printable(whole[0])}; expected floating-point weights, which a quantised checkpoint"
            " has lost: use the checkpoint from before it was quantised"
        )
    # MNASNet refuses a state without the version that `state_dict()` keeps as an attribute and
    # that safetensors files do not carry. Only the version of the module itself is given: without
    # theirs, the BatchNorms in it accept files from before `num_batches_tracked`.
    state = _VersionedState(tensors)
    state._metadata = {"": {"version": model._version}}
    model.load_state_dict(state)


class _VersionedState(dict[str, Tensor]):
    """A state dict with the version table that `Module.load_state_dict` looks for."""

    _metadata: dict[str, dict[str, int]]


def classes_and_channels(module: nn.Module, subject: str) -> tuple[int, int]:
    """The width of the last layer defined, and the channels that the first convolution takes."""
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise CheckpointError(
            f"{subject}: the module has no Linear or Conv2d; expected an image classifier"
        )
    return layers[-1].weight.shape[0], RGB if convolution is None else convolution.in_channels


def tensor_differences(expected: Shapes, found: Shapes) -> list[Difference]:
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


def does_not_fit(checkpoint: Checkpoint, shown: str, found: list[Difference]) -> str:
    return (
        f"{printable(checkpoint.path)}: does not fit {shown}: {len(found)} tensors differ:"
        f" {'; '.join(map(str, found[:DIFFERENCES_SHOWN]))}"
        + ("; ..." if len(found) > DIFFERENCES_SHOWN else "")
    )
