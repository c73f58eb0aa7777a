"""How images of any size become the network's input: as its description states it, or pbu's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pbu_cli.errors import CheckpointError, InvalidUsage, printable
from pbu_cli.images.image_files import MARGIN
from pbu_cli.images.image_folders import Group
from pbu_cli.images.image_sizes import usual_size
from pbu_cli.images.resizing import Resizing, timm_resizing
from pbu_cli.inputs.inferred import Inferred
from pbu_cli.models.model_config import PROCESSOR, Description
from pbu_cli.models.network import Network
from pbu_cli.models.sources.image_processor import default_normalisation, processor_resizing
from pbu_cli.models.sources.resizing_entry import from_entry
from pbu_cli.models.sources.torchvision_build import preset
from pbu_cli.settings import NO_PRESET, SMALL_IMAGE, InputOptions


def with_preset(description: Description, network: Network, options: InputOptions) -> Description:
    """The description with the size, resizing, mean and std of `--preset`.

    Raises InvalidUsage where torchvision has no such weights for the network.
    """
    if options.preset in (None, NO_PRESET):
        return description
    if network.builder is None:
        raise InvalidUsage(
            f"--preset {printable(options.preset, 40)}: names weights of torchvision, and the"
            " network is not torchvision's; expected none, or no --preset: leave it out, or pass"
            " --mean, --std and --size"
        )
    way, mean, std = preset(network.builder, str(options.preset))
    keys = ("mean", "std", "size", "resizing")
    sources = {**description.sources, **dict.fromkeys(keys, f"--preset {options.preset}")}
    return replace(
        description, mean=mean, std=std, size=way.size, resizing=way.entry(), sources=sources
    )


def with_processor(
    description: Description, network: Network, options: InputOptions
) -> Description:
    """The description with the mean and std that an image processor has by default, where
    preprocessor_config.json states none and no flag does."""
    processor = description.transformers.get("processor")
    if not processor or description.mean is not None or options.mean is not None:
        return description
    kind = str(description.transformers["model_type"])
    pair = default_normalisation(processor, kind, network.channels)
    if pair is None:
        return description
    sources = {**description.sources, **dict.fromkeys(("mean", "std"), PROCESSOR)}
    return replace(description, mean=tuple(pair[0]), std=tuple(pair[1]), sources=sources)


def stated_resizing(description: Description, options: InputOptions) -> Inferred[Resizing] | None:
    """The way of resizing that a flag, pbu's own record or a file beside the checkpoint states.

    None where none of them does, and where `--size` or `--preset none` asks for pbu's own way.
    Raises CheckpointError where a file states a way that pbu does not have.
    """
    if options.size is not None or options.preset == NO_PRESET:
        return None
    sources = description.sources
    if description.resizing:
        return Inferred("resizing", from_entry(description.resizing), sources["resizing"])
    processor = description.transformers.get("processor")
    if processor:
        kind = str(description.transformers["model_type"])
        return Inferred("resizing", processor_resizing(processor, kind), PROCESSOR)
    keys = ("crop_pct", "interpolation", "crop_mode")
    stated = [key for key in keys if getattr(description, key) is not None]
    if not stated or description.size is None:
        return None
    try:
        way = timm_resizing(
            description.size,
            description.crop_pct,
            description.interpolation,
            description.crop_mode,
        )
    except ValueError as error:
        raise CheckpointError(
            f"{sources[stated[0]]}: {error}; pass --size to resize the images in pbu's own way"
        ) from None
    return Inferred("resizing", way, sources[stated[0]])


def resizing_warnings(
    groups: Sequence[Group], size: tuple[int, int], description: Description
) -> list[str]:
    """A warning where images are resized to `size` in pbu's own way (bilinear, the centre kept,
    0.875 of it above 96 pixels), and config.json or the metadata state another one.

    Headers are read only where such a way is stated.
    """
    own_crop = 1 - 2 * MARGIN if max(size) > SMALL_IMAGE else 1.0
    own = {"crop_pct": own_crop, "interpolation": "bilinear", "crop_mode": "center"}
    stated = {key: getattr(description, key) for key in own}
    others = [
        f"{key} {printable(value, 40)} (pbu: {own[key]})"
        for key, value in stated.items()
        if value is not None and not _same(value, own[key])
    ]
    usual = usual_size(groups) if others else None
    if not others or (usual is not None and usual.size == size and not usual.odd):
        return []
    sources = sorted({description.sources[key] for key in stated if stated[key] is not None})
    return [
        f"{' and '.join(sources)}: {', '.join(others)}: pbu resizes the images in its own way, so"
        " that accuracies may differ by some points; images that already have the input size are"
        " not resized"
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 0.005  # timm rounds 224 / 256 in several ways
    return one == other
