"""Save, infer, rebuild and compare every torchvision classifier.

    python -m tests.measure.registry_table [NAME ...]

torchvision makes each network with random weights and statistics. It is saved as safetensors,
inferred from the names and shapes in the file, rebuilt by pbu and loaded. The logits of both
networks for the same images have to be identical. One network is held at a time; the largest takes
2.6 GB twice.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model

from pbu_cli.models.network import load_tensors
from pbu_cli.models.sources.torchvision_build import build
from pbu_cli.models.sources.torchvision_inference import infer
from pbu_cli.models.sources.torchvision_registry import AUXILIARY, Architecture
from tests.measure.make_registry import classifiers

IMAGE_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
IMAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one architecture.

    found: the architecture as inferred. difference: of the logits, the largest. logit: the largest.
    """

    found: Architecture
    difference: float
    logit: float
    tensors: int
    megabytes: float
    infer_ms: float
    seconds: float


def round_trip(asked: Architecture, folder: Path) -> Row:
    """Save `asked` with random weights, infer it, rebuild it, compare logits on two images."""
    start = time.perf_counter()
    path = folder / f"{asked.name}.safetensors"
    size = IMAGE_SIZES.get(asked.name, IMAGE_SIZE)
    images = torch.randn(2, asked.in_channels, size, size, generator=torch.manual_seed(1))
    source = torchvision_model(asked, size)
    expected = _logits(source, images)
    save_file(source.state_dict(), path)
    del source

    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    before = time.perf_counter()
    found = infer(shapes)
    infer_ms = 1000 * (time.perf_counter() - before)
    model = build(found)
    load_tensors(model, load_file(path))
    difference = float((_logits(model, images) - expected).abs().max())
    megabytes = path.stat().st_size / 1e6
    path.unlink()
    logit = float(expected.abs().max())
    seconds = time.perf_counter() - start
    return Row(found, difference, logit, len(shapes), megabytes, infer_ms, seconds)


def torchvision_model(asked: Architecture, image_size: int) -> nn.Module:
    """torchvision's own module in eval mode, with its stem replaced as users do it by hand."""
    options: dict[str, object] = {"num_classes": asked.num_classes}
    if asked.name in AUXILIARY:
        options |= {"aux_logits": asked.aux_logits, "init_weights": False}
    if asked.name.startswith("vit"):
        options["image_size"] = image_size
    model: nn.Module = get_model(asked.name, weights=None, **options)
    if asked.small_stem:
        model.conv1 = nn.Conv2d(asked.in_channels, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif asked.in_channels != 3:
        assert asked.name.startswith("resne"), "only ResNets have a stem that is replaced here"
        model.conv1 = nn.Conv2d(
            asked.in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False
        )
    disturb(model)
    return model.eval()


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Put random values where torchvision starts from constants, so that every tensor matters.

    A ViT's head starts at zero, ConvNeXt's layer scale at 1e-6, and statistics at 0 and 1.
    """
    random = torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.numel() > 1 and tensor.min() == tensor.max():
            if tensor.max() == 0:
                tensor.normal_(0, 0.02, generator=random)
            else:
                tensor.uniform_(0.5, 1.5, generator=random)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    assert isinstance(logits, Tensor)
    return logits


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    head = ("architecture", "tensors", "MB", "infer ms", "|logit|", "max diff", "s", "")
    widths = (20, 7, 8, 8, 9, 9, 6, 4)
    print(" ".join(f"{text:>{width}}" for text, width in zip(head, widths, strict=True)))
    passed = 0
    for name in names:
        asked = Architecture(name, 10, aux_logits=name in AUXILIARY)
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = round_trip(asked, Path(folder))
            except Exception as error:
                print(f"{name:>20} FAIL {type(error).__name__}: {error}")
                continue
        good = row.difference == 0 and row.logit > 0 and row.found.name == name
        passed += good
        cells = [name, row.tensors, f"{row.megabytes:.1f}", f"{row.infer_ms:.0f}"]
        cells += [f"{row.logit:.2g}", f"{row.difference:.2g}", f"{row.seconds:.1f}"]
        cells += ["pass" if good else "FAIL"]
        print(
            " ".join(f"{text:>{width}}" for text, width in zip(cells, widths, strict=True)),
            flush=True,
        )
    print(f"{passed} of {len(names)} pass")
    return 0 if passed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or classifiers()))
