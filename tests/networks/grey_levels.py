"""Twelve classes of plain grey images, and the linear network that tells them apart without fail.

Pass `--arch tests/networks/grey_levels.py:grey_levels --mean 0 --std 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

CLASSES, SIDE, STEP = 12, 8, 20  # STEP: grey values between two classes


def grey_levels() -> nn.Module:
    """Logits 2 m t_c - t_c^2, with m the mean grey of an image and t_c that of class c: the class
    with the nearest grey has the largest."""
    levels = torch.arange(CLASSES) * STEP / 255
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    state = {
        "0.weight": torch.ones(1, 1, 1, 1),
        "0.bias": torch.zeros(1),
        "2.weight": (100 * 2 * levels / SIDE**2)[:, None].repeat(1, SIDE * SIDE),
        "2.bias": -100 * levels.square(),
    }
    network.load_state_dict(state)
    return network


def write_grey_levels(folder: Path, names: Sequence[str], count: int = 3) -> Path:
    """The network as `grey.safetensors`, and a folder `images` with class c as folder names[c]."""
    save_file(grey_levels().state_dict(), folder / "grey.safetensors")
    for index, name in enumerate(names):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(count):
            grey = index * STEP + number - 1 if index else number
            path = folder / "images" / name / f"{number}.png"
            Image.new("L", (SIDE, SIDE), grey).save(path)
    return folder / "images"
