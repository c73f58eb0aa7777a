"""A checkpoint as a loaded network: which architecture it is, from the best source there is.

The order is `--arch`, config.json or metadata, the tensors themselves. Code is imported only
when the user names it with `--arch`: nothing inside a checkpoint or beside it is ever run.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pbu_cli.errors import CheckpointError, ImageError, InvalidUsage, is_out_of_memory, printable
from pbu_cli.io.checkpoint import Checkpoint
from pbu_cli.models.architecture_inference import infer, infer_as
from pbu_cli.models.build import build, load
from pbu_cli.models.model_config import Description
from pbu_cli.models.registry import Architecture, Shapes

DIFFERENCES_SHOWN = 4
COUNTER = "num_batches_tracked"  # BatchNorm's counter, which files of old torch lack
RGB = 3  # channels that a network is taken to want that does not tell
TRIAL = 2  # images of the trial: a module that drops the axis of a single one shows with two


@dataclass(frozen=True)
class Network:
    """A module in eval mode, float32, with the checkpoint's weights.

    `builder` is its torchvision name, None for the user's own; `image_size` the one size it takes,
    None where it takes any; `prefix` what the file's names have before the module's. Of the user's
    own, `num_classes` is the width of the last layer defined, until `try_out` has seen an answer.
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
    """Build the checkpoint's network and load its weights, computed in float32.

    Raises CheckpointError where tensors fit no architecture or not the one named, InvalidUsage
    where `--arch` names nothing that can be built.
    """
    if arch is not None and ":" in arch:
        return _own_network(checkpoint, arch)
    if arch is not None:
        architecture, source = infer_as(arch, checkpoint.shapes), "--arch"
    elif description.architecture is not None:
        source = description.sources["architecture"]
        architecture = infer_as(description.architecture, checkpoint.shapes, f"{source}:")
    else:
        architecture = infer(checkpoint.shapes)
        source = f"names and shapes of {len(checkpoint.tensors)} tensors"
    module = build(architecture)
    load(module, checkpoint.tensors)
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
    """The network after one forward pass of black images, with the classes that it answered.

    The one place where images that it does not take, or answers that are no logits, show: raises
    CheckpointError for a module of the user's own; for one of torchvision's InvalidUsage if flags
    say what its images are (`flagged`), else ImageError.
    """
    device = next(network.module.parameters()).device
    images = torch.zeros(TRIAL, channels, *size, device=device)
    shape = "x".join(map(str, images.shape[1:]))
    own = network.builder is None
    subject = f"--arch {printable(network.name)}" if own else network.name
    try:
        logits = network.module(images)
    except (Exception, SystemExit) as error:  # torch raises nearly anything, user code anything
        if is_out_of_memory(error):
            raise
        advice = "--channels, if it takes others" if own else "leave --channels away"
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
            f"{subject}: answers {TRIAL} images of {shape} with {found}; expected logits of shape"
            f" [{TRIAL}, classes]: wrap the module so that it returns them alone"
        )
    return replace(network, num_classes=logits.shape[1])


def _own_network(checkpoint: Checkpoint, arch: str) -> Network:
    module = _call(_imported(arch), arch)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    # `model.` may be of a wrapper, or of this very module: the stored names are tried first.
    prefix = checkpoint.prefix
    prefixes = ["", *(prefix[: dot + 1] for dot, letter in enumerate(prefix) if letter == ".")]
    readings = [checkpoint.under(prefix) for prefix in prefixes]
    checkpoint = min(readings, key=lambda reading: len(_faults(expected, reading.shapes)))
    faults = _faults(expected, checkpoint.shapes)
    if faults:
        raise CheckpointError(
            f"{printable(checkpoint.path)}: does not fit --arch {printable(arch)}:"
            f" {len(faults)} tensors differ: {'; '.join(faults[:DIFFERENCES_SHOWN])}"
            + ("; ..." if len(faults) > DIFFERENCES_SHOWN else "")
        )
    load(module.float(), checkpoint.tensors)
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


def own_module(arch: str) -> nn.Module:
    """What the user's `--arch FILE.py:FUNCTION` or `pkg.mod:FUNCTION` returns, as it is.

    Raises InvalidUsage where it cannot be imported or called, or returns no module.
    """
    return _call(_imported(arch), arch)


def _print_to_stderr(module: nn.Module) -> None:
    """Have what the user's forward prints go to stderr: stdout is for results."""
    held: list[redirect_stdout[Any]] = []

    def enter(*_: Any) -> None:
        held.append(redirect_stdout(sys.stderr))
        held[-1].__enter__()

    def leave(*_: Any) -> None:
        held.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


def _faults(expected: Shapes, found: Shapes) -> list[str]:
    faults = [f"{n} is missing" for n in expected if n not in found and not n.endswith(COUNTER)]
    faults += [f"{printable(n, 80)} is unexpected" for n in found if n not in expected]
    return faults + [
        f"{n} is {list(found[n])}, expected {list(expected[n])}"
        for n in expected
        if n in found and found[n] != expected[n]
    ]


class _SourceAlone(SourceFileLoader):
    """Runs what the file says: bytecode beside it is neither read, since anyone may have put it
    there, nor written, since the folder is the user's."""

    def path_stats(self, path: str | bytes) -> NoReturn:
        raise OSError  # of a source whose age is unknown, importlib keeps no bytecode


def _imported(arch: str) -> Callable[..., Any]:
    place, _, function = arch.rpartition(":")
    shown = printable(arch)
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise InvalidUsage(f"--arch {shown}: no file {printable(place)}")
            name = f"pbu_arch_{path.stem}"
            loader = _SourceAlone(name, place)
            spec = importlib.util.spec_from_file_location(name, place, loader=loader)
            assert spec is not None
            source = importlib.util.module_from_spec(spec)
            sys.modules[name] = source  # dataclasses and pickling look their module up there
            with redirect_stdout(sys.stderr):
                loader.exec_module(source)
        elif re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", place):
            source = importlib.import_module(place)
        else:
            raise InvalidUsage(f"--arch {shown}: expected FILE.py:FUNCTION or pkg.mod:FUNCTION")
        found = getattr(source, function, None)
    except InvalidUsage:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {shown}: importing it raised {type(error).__name__}: {printable(error)}"
        ) from None
    if not callable(found):
        raise InvalidUsage(f"--arch {shown}: {printable(place)} has no function {function}")
    return found  # type: ignore[no-any-return]


def _call(function: Callable[..., Any], arch: str) -> nn.Module:
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            module = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InvalidUsage(
            f"--arch {printable(arch)}: calling it without arguments raised"
            f" {type(error).__name__}: {printable(error)}; expected a function that returns the"
            " module"
        ) from None
    if not isinstance(module, nn.Module):
        raise InvalidUsage(
            f"--arch {printable(arch)}: returned a {type(module).__name__}, expected a"
            " torch.nn.Module"
        )
    return module


def _shown(architecture: Architecture) -> str:
    channels = architecture.in_channels
    parts = [
        f"{architecture.num_classes} classes",
        "1 channel" if channels == 1 else f"{channels} channels",
    ]
    if architecture.small_stem:
        parts.append("small-image stem")
    return f"{architecture.name} ({', '.join(parts)})"
