"""What a Fisher file gives away of the forget images.

    python -m tests.measure.fisher_leak [--data DIR]

1. An MLP and one image: the correlation of the image with the root of its first layer's diagonal.
2. ResNet-20 on CIFAR-10 (`../shared`): an attacker has the file and 100 candidate ships, of which
   one was among the n images that it was measured on. Every candidate gets a score, the cosine of
   its own diagonal with the file's. Shown are the mean rank of the right one (1 is the best, 50.5
   is chance) and how often it is first, over 10 draws, for the diagonal of the first layer, of the
   last stage (what `pbu fisher` writes by default) and of all layers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pbu_cli.data.normalization_inference import NORMALISATIONS
from pbu_cli.data.preprocessing import normalise
from pbu_cli.fisher.diagonal import fisher_diagonal
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.settings import InputOptions, Preprocessing
from tests.measure.archives import SHARED, unpack

CANDIDATES, DRAWS = 100, 10
PARTS = {"first layer": "conv1.", "last stage": "layer3.", "all layers": ""}
LABEL = 8  # ship


def part(diagonal: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([v.flatten().double() for n, v in diagonal.items() if n.startswith(prefix)])


def dense(image: Tensor) -> float:
    """Correlation of an image with the root of its diagonal, in an MLP's first layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(image.numel(), 64), nn.ReLU(), nn.Linear(64, 10))
    diagonal = fisher_diagonal(net.eval(), [(image[None], torch.tensor([LABEL]))])
    root = diagonal["1.weight"].sqrt().mean(0)
    return float(torch.corrcoef(torch.stack([root, image.abs().flatten()]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the unpacked CIFAR-10")
    given = parser.parse_args()
    options = InputOptions(arch="tests/networks/cifar_resnet.py:resnet20", device="cpu")
    path = SHARED / "checkpoints" / "cifar10_resnet20_original.safetensors"
    module = load_model(path, options, InferenceLog()).network.module
    with tempfile.TemporaryDirectory() as place:
        data = given.data or unpack(SHARED / "data" / "cifar10.tar.xz", Path(place))
        (group,) = list_groups([str(data / "train" / "ship")])
        images = decode([type(group)("", group.paths[:1000], group.root)], channels=3).pixels
    x = normalise(images, Preprocessing((32, 32), *NORMALISATIONS["CIFAR-10"]))

    def diagonal(chosen: Tensor) -> dict[str, Tensor]:
        labels = torch.full((len(chosen),), LABEL)
        return fisher_diagonal(module, zip(x[chosen].split(64), labels.split(64), strict=True))

    print(f"dense first layer, one image: correlation {dense(images[0].float() / 255):.3f}")
    each = [diagonal(torch.tensor([k])) for k in range(CANDIDATES)]
    for count in (1, 10, 130):
        ranks: dict[str, list[int]] = {name: [] for name in PARTS}
        for draw in range(DRAWS):
            others = CANDIDATES + torch.randperm(900, generator=torch.Generator().manual_seed(draw))
            member = 7 * draw
            file = diagonal(torch.cat([torch.tensor([member]), others[: count - 1]]))
            for name, prefix in PARTS.items():
                of_file = part(file, prefix)
                scores = [torch.cosine_similarity(part(d, prefix), of_file, 0) for d in each]
                ranks[name].append(1 + sum(bool(score > scores[member]) for score in scores))
        for name, found in ranks.items():
            mean, first = sum(found) / DRAWS, sum(rank == 1 for rank in found)
            print(f"{count:>4} images  {name:<12} mean rank {mean:5.1f}, first {first} of {DRAWS}")


if __name__ == "__main__":
    main()
