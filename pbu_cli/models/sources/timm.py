"""timm's classifiers, built from their names in timm's own registry.

What a name leaves open follows from the tensors: the number of classes from the head, the channels
from the first convolution, the image size of networks with position embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import nn

from pbu_cli.errors import CheckpointError, InvalidUsage, printable
from pbu_cli.models.sources.construction import bounded
from pbu_cli.models.sources.extras import library, one_line
from pbu_cli.models.tensor_shapes import Shapes

PREFIX = "timm:"  # of an --arch
ODD_CLASSES = 1009  # a prime that is no layer's width, so that it marks the heads
# What config.json may pass on to the constructor: sizes and switches, and never a path, a weight
# file or another library's name. `img_size`, `num_classes` and `in_chans` follow from the tensors.
ARGUMENTS = {
    "global_pool", "embed_dim", "embed_dims", "depth", "depths", "dims", "num_heads",
    "mlp_ratio", "window_size", "patch_size", "qkv_bias", "qk_norm", "class_token",
    "reg_tokens", "no_embed_class", "init_values", "fc_norm", "pre_norm", "final_norm",
    "dynamic_img_size", "pos_embed", "act_layer", "norm_layer", "head_init_scale",
    "head_norm_first", "conv_mlp", "use_grn", "ls_init_value", "stem_type", "stem_width",
    "base_width", "cardinality", "avg_down", "width_mult", "channel_multiplier", "kernel_size",
    "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate",
    "output_stride", "patch_drop_rate", "block_args",
}  # fmt: skip
MOST_SIZES = 12  # image sizes that are tried
HARMLESS = {"pretrained", "num_classes", "in_chans", "img_size", "weight_init", "zero_init_last"}


def build(
    name: str,
    shapes: Shapes,
    arguments: Mapping[str, Any],
    size: tuple[int, int] | None,
    subject: str = "timm",
) -> tuple[nn.Module, int | None]:
    """timm's module `name` for a checkpoint's tensors, in eval mode, with random weights, and the
    one image size that it takes (None: any).

    shapes: of the tensors. arguments: `model_args` of a config.json. size: (height, width) that the
    user or a file states. subject: what named the network, for messages. Raises InvalidUsage for a
    name that timm does not have, CheckpointError for arguments that pbu does not pass on and for
    tensors that no image size makes fit.
    """
    timm = library("timm", f"{PREFIX}{printable(name, 80)}")
    name = name.partition(".")[0]  # a tag such as .in1k names weights, not a network
    if name not in timm.list_models():
        raise InvalidUsage(
            f"--arch {PREFIX}{printable(name, 80)}: not one of the architectures of timm"
            f" {printable(timm.__version__, 20)}; see timm.list_models()"
        )
    options = _passed_on(name, arguments)
    with torch.random.fork_rng(devices=[]), one_line(subject):
        sketch = _on_meta(timm, name, subject, shapes, {**options, "num_classes": ODD_CLASSES})
        options |= _classes_and_channels(sketch, shapes)
        for image_size in _image_sizes(sketch, shapes, size):
            sized = options if image_size is None else {**options, "img_size": image_size}
            try:
                fits = _fits(_on_meta(timm, name, subject, shapes, sized), shapes)
            except (TypeError, AssertionError, ValueError):  # it takes no size, or not this one
                continue
            if fits:
                options = sized
                break
        with bounded(subject, len(shapes), _numbers(shapes)):
            model = timm.create_model(name, pretrained=False, **options).float()
    return model.eval(), _only_size(model)


def _passed_on(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a config.json that the constructor gets."""
    stated = {k: v for k, v in arguments.items() if v is not None and k not in HARMLESS}
    for key, value in stated.items():
        if key not in ARGUMENTS or not _is_plain(value):
            raise CheckpointError(
                f"config.json: model_args has {printable(key, 40)}, which pbu does not pass on to"
                f" timm's {name}; expected sizes and switches: pass --arch FILE.py:FUNCTION with a"
                " function that builds the network"
            )
    return stated


def _is_plain(value: Any) -> bool:
    """A number, a switch, a short word, or a list of such; a word is never a path or an address."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return value.replace("_", "").isalnum() and len(value) <= 40
    return isinstance(value, bool | float) or (type(value) is int and abs(value) < 1 << 16)


def _on_meta(
    timm: Any, name: str, subject: str, shapes: Shapes, options: Mapping[str, Any]
) -> nn.Module:
    """The module without memory for its weights, where timm can build it so."""
    with bounded(subject, len(shapes), _numbers(shapes) + (ODD_CLASSES << 14)):
        try:
            with torch.device("meta"):
                model: nn.Module = timm.create_model(name, pretrained=False, **options)
        except (NotImplementedError, RuntimeError):  # its constructor computes with its weights
            model = timm.create_model(name, pretrained=False, **options)
    return model


def _classes_and_channels(sketch: nn.Module, shapes: Shapes) -> dict[str, int]:
    """The number of classes and of channels that the tensors show, where they show one."""
    found: dict[str, int] = {}
    state = sketch.state_dict()
    for tensor, value in state.items():
        if ODD_CLASSES in value.shape and len(shapes.get(tensor, ())) == value.dim():
            found["num_classes"] = shapes[tensor][list(value.shape).index(ODD_CLASSES)]
    for path in _first_convolutions(sketch):
        weight = f"{path}.weight"
        if weight in state and len(shapes.get(weight, ())) == 4 == state[weight].dim():
            ours, theirs = state[weight].shape[1], shapes[weight][1]
            if ours != theirs:
                found["in_chans"] = theirs
    return found


def _first_convolutions(model: nn.Module) -> tuple[str, ...]:
    found = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _image_sizes(
    sketch: nn.Module, shapes: Shapes, size: tuple[int, int] | None
) -> list[tuple[int, int] | None]:
    """The image sizes to try in this order: what is stated, timm's own (None), and what the lengths
    of position embeddings, of token mixers and of tables of relative positions tell."""
    default = (getattr(sketch, "pretrained_cfg", {}).get("input_size") or (3, 224, 224))[1]
    found: list[tuple[int, int] | None] = [] if size is None else [size]
    found.append(None)
    for tensor, value in sketch.state_dict().items():
        ours, theirs = tuple(value.shape), shapes.get(tensor, ())
        if len(ours) == len(theirs):
            sides = _sides(default, ours, theirs)
            found += [(side, side) for side in sides if (side, side) not in found]
    return found[:MOST_SIZES]


def _sides(default: int, ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[int]:
    """The sides of images that would give `theirs` where the side `default` gives `ours`.

    A grid of g x g patches has g * g positions, with up to two tokens beside them, and a table of
    (2g - 1)^2 relative positions, with up to three entries beside them.

    >>> _sides(224, (1, 197, 192), (1, 5, 192)), _sides(224, (732, 12), (172, 12))
    ([32], [112])
    """
    sides = []
    for one, other in zip(ours, theirs, strict=True):
        for extra in (0, 1, 2, 3) if one != other else ():
            first, second = isqrt(max(one - extra, 0)), isqrt(max(other - extra, 0))
            if first < 2 or first**2 != one - extra or second**2 != other - extra or not second:
                continue
            if extra == 3:
                first, second = (first + 1) // 2, (second + 1) // 2
            sides.append(default * second // first)
    return sides


def _fits(model: nn.Module, shapes: Shapes) -> bool:
    return all(
        shapes.get(n, tuple(v.shape)) == tuple(v.shape) for n, v in model.state_dict().items()
    )


def _only_size(model: nn.Module) -> int | None:
    """The side of the square images that the module takes, None where it takes any size."""
    patches = getattr(model, "patch_embed", getattr(model, "stem", None))
    size = getattr(patches, "img_size", None)
    strict = getattr(patches, "strict_img_size", False)
    if size is None or not strict or getattr(patches, "dynamic_img_pad", False):
        return None
    return int(size[0]) if size[0] == size[1] else None


def _numbers(shapes: Shapes) -> int:
    return sum(int(torch.Size(shape).numel()) for shape in shapes.values())
