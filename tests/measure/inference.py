"""How often pbu takes images for another class: wrong names, votes, and images of another size.

    python -m tests.measure.inference [--images 64] [--split test] [--data DIR] [--csv FILE]

Every class folder of CIFAR-10 and MNIST is given to the networks of `../shared` without a name,
with its right name, with each wrong name, and resized to twice its size. An outcome is `right`
(the label is that of the images), `refused` (ImageError) or `wrong`; `warned` counts those of the
right and wrong ones that come with a warning. The label rules are those of `pbu unlearn`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from pbu_cli.data.label_inference import OVERWHELMING, LabelRules
from pbu_cli.errors import ImageError
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import LoadedModel, load_model
from pbu_cli.inputs.prepare import prepare_inputs
from pbu_cli.settings import InputOptions
from tests.measure.archives import SHARED, unpack

RESNETS = "tests/networks/cifar_resnet.py"
NETWORKS = {
    "cifar10_resnet20": f"{RESNETS}:resnet20",
    "cifar10_resnet32": f"{RESNETS}:resnet32",
    "cifar10_resnet20_original": f"{RESNETS}:resnet20",
    "mnist_resnet34_fp16": None,
}
OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DIGITS = [str(digit) for digit in range(10)]


def outcome(loaded: LoadedModel, folder: Path, options: InputOptions, label: int) -> list[str]:
    """What preparing an unlearning of the images in `folder`, which are of class `label`, does."""
    log = InferenceLog()
    try:
        inputs = prepare_inputs(
            loaded, [str(folder)], options, log, rules=LabelRules(vote=OVERWHELMING)
        )
    except ImageError:
        return ["refused"]
    found = "right" if int(inputs.image_labels[0]) == label else "wrong"
    return [found, "warned"] if log.warnings else [found]


def cases(source: Path, place: Path, label: int, images: int) -> Iterator[tuple[str, Path]]:
    """Folders of images of one class, and what is the matter with each."""
    paths = sorted(source.iterdir())[:images]
    for factor in (1, 2):
        made = place / f"times{factor}"
        made.mkdir()
        for path in paths:
            with Image.open(path) as image:
                width, height = image.size
                larger = image.resize((factor * width, factor * height))
                larger.save(made / f"{path.stem}.png")
        names = {"images": "no name", str(label): "right name"}
        wrong = {str(other): "wrong name" for other in range(10) if other != label}
        for name, kind in (names | (wrong if factor == 1 else {})).items():
            folder = made.rename(place / name)
            yield f"{kind}, twice the size" if factor == 2 else kind, folder
            made = folder.rename(place / f"times{factor}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--split", default="test")
    parser.add_argument("--data", type=Path, help="the unpacked archives, if they are unpacked")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as unpacked:
        data = given.data or Path(unpacked)
        for archive in () if given.data else ("mnist", "cifar10"):
            unpack(SHARED / "data" / f"{archive}.tar.xz", data)
        for network, arch in NETWORKS.items():
            options = InputOptions(arch=arch, device="cpu")
            path = SHARED / "checkpoints" / f"{network}.safetensors"
            loaded = load_model(path, options, InferenceLog())
            seen: dict[str, Counter[str]] = {}
            for label, name in islice(enumerate(OBJECTS if arch else DIGITS), 10):
                with tempfile.TemporaryDirectory() as place:
                    source = data / given.split / name
                    for kind, folder in cases(source, Path(place), label, given.images):
                        seen.setdefault(kind, Counter()).update(
                            [*outcome(loaded, folder, options, label), "cases"]
                        )
            for kind, counts in seen.items():
                keys = ("cases", "right", "refused", "wrong", "warned")
                rows.append({"network": network, "folders": kind, **{k: counts[k] for k in keys}})
                print(*rows[-1].values(), sep="  ", flush=True)
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
