"""Folders that timm and transformers save, through pbu, and back into the library that saved them.

    python -m tests.measure.library_round_trips [FAMILY ...] [--csv FILE] [--images FOLDER]

Each network has random weights, scaled so that the logits differ by about 1 from image to image.
The library itself saves it, `pbu unlearn FOLDER --fast --steps 5` infers everything but the label,
and the library loads what pbu wrote. For both folders the logits of pbu are compared with those of
the library's own pipeline, image by image. The images are ships of CIFAR-10, enlarged to odd sizes.
With `--csv` the families that the file has already are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pbu_cli.__main__ import run
from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import prepare_inputs
from pbu_cli.settings import InputOptions
from tests.measure.archives import SHARED, unpack
from tests.measure.registry_table import disturb
from tests.networks.tiny_transformers import TINY

CLASSES, LABEL = 7, 3  # seven is no layer's width, so that it marks the heads
NAMES = [f"c{index}" for index in range(CLASSES)]
COUNT = 12  # images
CLOSE = 1e-3  # of logits that differ by about 1
LOAD = InputOptions(device="cpu")
Pipeline = Callable[[Path], Callable[[Image.Image], Tensor]]


@dataclass(frozen=True)
class Family:
    """One network of one library, and how it is saved.

    name: timm's name, or the class of transformers. options: of timm's constructor, or of the
    configuration. side: of the network's images. dtype: of the file. shards: the size of one, for
    transformers. processor: the image processor and its options. data: for timm, what
    pretrained_cfg says of the images. safe: safetensors, and no pickled file.
    """

    library: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    dtype: torch.dtype = torch.float32
    shards: str = "5GB"
    processor: tuple[str, dict[str, Any]] = ("", {})
    data: dict[str, Any] = field(default_factory=dict)
    safe: bool = True


@dataclass(frozen=True)
class Row:
    """before, after: the largest difference of pbu's logits and the library's. scale: the standard
    deviation of the logits over the images."""

    family: str
    library: str
    inferred: str
    before: float
    after: float
    scale: float
    exit: int
    faults: str
    seconds: float


def timm_family(name: str, side: int, **options: Any) -> Family:
    return Family("timm", name, side=side, **options)


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def cropped(shortest: int, side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": shortest}, "crop_size": {"height": side, "width": side}}


def hf(
    name: str, kind: str, processor: str, made: dict[str, Any], side: int, **options: Any
) -> Family:
    return Family(
        "transformers",
        name,
        {"kind": kind, **TINY[kind]},
        side,
        processor=(processor, made),
        **options,
    )


SIZED = {"img_size": 112}
FAMILIES = [
    timm_family("resnet18", 96),
    timm_family("resnet50", 64, data={"crop_pct": 1.0, "interpolation": "bilinear"}, safe=False),
    timm_family("vit_tiny_patch16_224", 224, dtype=torch.bfloat16),
    timm_family("deit_tiny_distilled_patch16_224", 112, options=SIZED),
    timm_family("convnext_atto", 64, dtype=torch.float16),
    timm_family("efficientnet_b0", 64),
    timm_family("efficientnet_lite0", 64, data={"crop_mode": "squash"}),
    timm_family("mobilenetv3_small_100", 96),
    timm_family("swin_tiny_patch4_window7_224", 112, options=SIZED),
    timm_family("regnety_002", 64),
    timm_family("densenet121", 64, dtype=torch.bfloat16),
    timm_family("mixer_s32_224", 224),
    timm_family("eva02_tiny_patch14_224", 56, options={"img_size": 56}),
    timm_family("vit_small_patch14_dinov2", 56, options={"img_size": 56}),
    timm_family("tf_efficientnetv2_b0", 64),
    hf("ViTForImageClassification", "vit", "ViTImageProcessor", square(32), 32, shards="40KB"),
    hf("SwinForImageClassification", "swin", "ViTImageProcessor", square(32), 32,
       dtype=torch.bfloat16),
    hf("BeitForImageClassification", "beit", "BeitImageProcessor",
       {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True}, 32),
    hf("ConvNextForImageClassification", "convnext", "ConvNextImageProcessor",
       {"size": {"shortest_edge": 48}, "crop_pct": 0.875}, 48, dtype=torch.float16),
    hf("ResNetForImageClassification", "resnet", "ConvNextImageProcessor",
       {"size": {"shortest_edge": 64}, "crop_pct": 0.95}, 64, shards="40KB"),
    hf("DeiTForImageClassificationWithTeacher", "deit", "DeiTImageProcessor",
       {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}, 32),
    hf("Dinov2ForImageClassification", "dinov2", "BitImageProcessor", cropped(36, 32), 32),
    hf("MobileNetV2ForImageClassification", "mobilenet_v2", "MobileNetV2ImageProcessor",
       cropped(72, 64), 64),
    hf("MobileViTForImageClassification", "mobilevit", "MobileViTImageProcessor",
       cropped(72, 64), 64),
    hf("EfficientNetForImageClassification", "efficientnet", "EfficientNetImageProcessor",
       square(64), 64),
    hf("SegformerForImageClassification", "segformer", "SegformerImageProcessor", square(64), 64),
    hf("SiglipForImageClassification", "siglip", "SiglipImageProcessor", square(32), 32,
       shards="30KB", dtype=torch.bfloat16),
    hf("CLIPForImageClassification", "clip", "CLIPImageProcessor", cropped(32, 32), 32),
    hf("RegNetForImageClassification", "regnet", "ConvNextImageProcessor",
       {"size": {"shortest_edge": 64}}, 64),
    Family("transformers", "TimmWrapperForImageClassification", {"kind": "timm_wrapper"}, 64),
]  # fmt: skip


def enlarge(ships: Path, folder: Path) -> list[Path]:
    """COUNT images of the folder `ships` as PNG, of sizes that no network has."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, path in enumerate(sorted(ships.iterdir())[:COUNT]):
        size = 90 + number, 70 + 2 * number
        made.append(folder / f"{number:02d}.png")
        Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(made[-1])
    return made


def make_folder(family: Family, images: list[Path], folder: Path) -> None:
    """The folder that the library saves: of a network whose logits differ by about 1."""
    torch.manual_seed(0)
    (save_timm if family.library == "timm" else save_transformers)(family, images, folder)


def pictures(images: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in images]


def save_timm(family: Family, images: list[Path], folder: Path) -> None:
    timm: Any = import_module("timm")
    save_for_hf = import_module("timm.models._hub").save_for_hf
    seen = {"input_size": (3, family.side, family.side), **family.data}
    model = timm.create_model(
        family.name, num_classes=CLASSES, pretrained_cfg_overlay=seen, **family.options
    )
    disturb(model)
    transform = timm_transform(model)
    scale_logits(model, torch.stack([transform(picture) for picture in pictures(images)]))
    save_for_hf(
        model.to(family.dtype),
        str(folder),
        model_config={"label_names": NAMES},
        model_args=family.options,
        safe_serialization=family.safe,
    )
    (folder / "README.md").write_text("# A network\n")


def save_transformers(family: Family, images: list[Path], folder: Path) -> None:
    transformers: Any = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = dict(family.options)
    kind = options.pop("kind")
    if kind == "timm_wrapper":
        options = {"architecture": "resnet18"}
    config = transformers.CONFIG_MAPPING[kind](num_labels=CLASSES, **options)
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: index for index, name in enumerate(NAMES)}
    model = getattr(transformers, family.name)(config)
    disturb(model)
    if kind == "timm_wrapper":
        seen = {"input_size": (3, family.side, family.side)}
        model.config.pretrained_cfg = {**model.timm_model.pretrained_cfg, **seen}
        model.save_pretrained(folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
    else:
        name, made = family.processor
        processor = getattr(transformers, name)(**made)
    scale_logits(model, processor(pictures(images), return_tensors="pt")["pixel_values"])
    model.to(family.dtype).save_pretrained(folder, max_shard_size=family.shards)
    processor.save_pretrained(folder)


@torch.no_grad()
def scale_logits(model: nn.Module, pixels: Tensor) -> None:
    """Make each logit have mean 0 and on average deviation 1 over the images.

    Convolutions get larger weights, and BatchNorm the statistics of the images. With the libraries'
    own the activations of some networks fade to rounding errors.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(pixels)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    model.eval()
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == CLASSES
    ]
    for head in heads:
        head.weight.normal_()
        if head.bias is not None:
            head.bias.zero_()
    output = model(pixels)
    logits = getattr(output, "logits", output)
    scale = 1 / logits.std(dim=0).mean()
    for head in heads:
        head.weight.mul_(scale)
        if head.bias is not None:
            head.bias.copy_(-logits.mean(dim=0) * scale)


def timm_transform(model: Any) -> Callable[[Image.Image], Tensor]:
    data: Any = import_module("timm.data")
    settings = data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    return data.create_transform(**settings)


def timm_pipeline(folder: Path) -> Callable[[Image.Image], Tensor]:
    """timm's own way from an image to logits [c], in float32."""
    timm: Any = import_module("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    transform = timm_transform(model)
    return lambda image: model(transform(image)[None])[0]


def transformers_pipeline(folder: Path) -> Callable[[Image.Image], Tensor]:
    """transformers' own way from an image to logits [c], in float32."""
    transformers: Any = import_module("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return lambda image: model(processor(image, return_tensors="pt")["pixel_values"]).logits[0]


PIPELINES: dict[str, Pipeline] = {"timm": timm_pipeline, "transformers": transformers_pipeline}


@torch.no_grad()
def library_logits(library: str, folder: Path, images: list[Path]) -> Tensor:
    """[n, c]: what the library gives for the images, one at a time."""
    logits = PIPELINES[library](folder)
    return torch.stack([logits(picture) for picture in pictures(images)])


def own_logits(folder: Path, images: list[Path]) -> tuple[Tensor, str]:
    """[n, c]: what pbu gives for the images; and the network that it inferred."""
    log = InferenceLog()
    loaded = load_model(folder, LOAD, log)
    options = dataclasses.replace(LOAD, labels=(NAMES[LABEL],))
    inputs = prepare_inputs(loaded, [str(images[0].parent)], options, log)
    return inputs.logits, loaded.network.name


def stored(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, str] | None]]:
    """All tensors of a folder, and the metadata of its safetensors files."""
    tensors: dict[str, Tensor] = {}
    metadata = []
    for path in sorted(folder.glob("*.bin")):
        tensors |= torch.load(path, weights_only=True)
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        with safe_open(path, "pt") as file:
            metadata.append(file.metadata())
    return tensors, metadata


def faults(before: Path, after: Path) -> list[str]:
    """What is not as it should be in the folder that pbu wrote."""
    found = []
    (old, _), (new, metadata) = stored(before), stored(after)
    if {n: (t.shape, t.dtype) for n, t in old.items()} != {
        n: (t.shape, t.dtype) for n, t in new.items()
    }:
        found.append("names, shapes or dtypes differ")
    if all(torch.equal(old[name], new[name]) for name in old.keys() & new.keys()):
        found.append("no tensor changed")
    if any((each or {}).get("format") != "pt" for each in metadata):
        found.append("metadata without format pt")
    weights = (".safetensors", ".bin", ".index.json")
    others = {p.name for p in before.iterdir() if not p.name.endswith(weights)}
    if others != {p.name for p in after.iterdir() if not p.name.endswith(weights)}:
        found.append("other files differ")
    elif any((before / n).read_bytes() != (after / n).read_bytes() for n in others):
        found.append("the bytes of other files differ")
    found += indices(after)
    return found


def indices(folder: Path) -> list[str]:
    """What is wrong with the index of a folder's shards, if there is one."""
    for path in folder.glob("*.index.json"):
        table = json.loads(path.read_text())["weight_map"]
        if table != {n: p.name for p in folder.glob("*.safetensors") for n in load_file(p)}:
            return ["the index does not say what the shards hold"]
    return []


def round_trip(family: Family, images: list[Path], place: Path) -> Row:
    """Save, unlearn and load back one family."""
    start = time.perf_counter()
    before, after = place / family.name, place / f"{family.name}.unlearned"
    make_folder(family, images, before)
    expected = library_logits(family.library, before, images)
    found, name = own_logits(before, images)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(["unlearn", str(before), "--forget", str(images[0].parent), "--label",
                    NAMES[LABEL], "--fast", "--steps", "5", "--device", "cpu"])  # fmt: skip
    wrong, difference = [], float("nan")
    if after.is_dir():
        wrong = faults(before, after)
        theirs = library_logits(family.library, after, images)
        difference = float((own_logits(after, images)[0] - theirs).abs().max())
        if torch.equal(theirs, expected):
            wrong.append("the logits did not change")
    else:
        wrong.append(" ".join(said.getvalue().split())[-300:])
    return Row(
        family.name, family.library, name, float((found - expected).abs().max()), difference,
        float(expected.std(dim=0).mean()), code, "; ".join(wrong), time.perf_counter() - start,
    )  # fmt: skip


def passed(row: Row) -> bool:
    """Whether the logits agree, they are no constants, and the folder is as it should be."""
    close = row.before < CLOSE and row.after < CLOSE
    return close and row.scale > 0.3 and row.exit in (0, 5) and not row.faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="names; all by default")
    parser.add_argument("--csv", type=Path, help="what it has already is left out")
    parser.add_argument("--images", type=Path, help="ships of CIFAR-10; from ../shared by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if given.csv and given.csv.is_file():
        with given.csv.open(newline="") as file:
            done = {row["family"] for row in csv.DictReader(file)}
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        ships = given.images or unpack(
            SHARED / "data" / "cifar10.tar.xz", place / "data",
            lambda file: [m for m in file if m.name.startswith("train/ship/")],
        ) / "train" / "ship"  # fmt: skip
        images = enlarge(ships, place / "ships")
        for family in FAMILIES:
            if family.name in done or (given.families and family.name not in given.families):
                continue
            try:
                row = round_trip(family, images, place)
            except Exception as error:  # the other families are measured all the same
                failed += 1
                print("FAIL", family.name, type(error).__name__, str(error)[:500], flush=True)
                continue
            failed += not passed(row)
            print("pass" if passed(row) else "FAIL", row, flush=True)
            if given.csv:
                append(given.csv, row)
    return bool(failed)


def append(path: Path, row: Row) -> None:
    """One more line of a CSV file, with a heading in a new one."""
    cells = {
        key: f"{value:.2g}" if isinstance(value, float) else value
        for key, value in dataclasses.asdict(row).items()
    }
    cells["seconds"] = f"{row.seconds:.0f}"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(cells), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(cells)


if __name__ == "__main__":
    sys.exit(main())
