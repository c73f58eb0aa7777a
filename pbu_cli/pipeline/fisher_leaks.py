"""Whether a Fisher file will show much of the images that it is measured on."""

from __future__ import annotations

from torch import nn

from pbu_cli.errors import printable
from pbu_cli.inputs.prepare import UnlearningInputs

FEW_IMAGES = 16  # a diagonal of fewer images is told from others by each of them


def leak_warnings(inputs: UnlearningInputs) -> list[str]:
    """Warnings where the file will show much of single images."""
    count = len(inputs.image_labels)
    found = []
    if count < FEW_IMAGES:
        found.append(
            f"a diagonal of {count} images shows much of each of them: keep the file as private as"
            " the images"
        )
    module = inputs.loaded.network.module
    layers = (n for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    first = next(layers, None)
    shown = [name for name in inputs.trained if name.rpartition(".")[0] == first]
    if shown:
        found.append(
            f"{printable(shown[0])} acts on the pixels, and its part of the diagonal shows the"
            " images: keep the file as private as they are, or pass --layers without it"
        )
    return found
