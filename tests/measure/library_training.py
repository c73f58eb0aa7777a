"""Networks trained on CIFAR-10 and saved by timm and transformers, before and after `pbu unlearn`.

    python -m tests.measure.library_training [NAME ...] --work FOLDER [--data FOLDER] [--csv FILE]

Each network is trained for a few epochs and saved by its library. `pbu unlearn FOLDER --forget
train/ship` then runs without any other flag. A_Df and A_Dr are of the CIFAR-10 test images, and
computed by the library alone: its own loader, its own transform or image processor, and its own
forward pass. What is in the work folder already is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tests.measure.archives import SHARED, unpack
from tests.measure.library_round_trips import timm_transform
from tests.measure.results import CIFAR_CLASSES

SHIP = CIFAR_CLASSES.index("ship")
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
EPOCHS, BATCH, PEAK = 3, 128, 4e-3  # PEAK: the highest learning rate
Predict = Callable[[list[Image.Image]], Tensor]


def files(split: Path) -> tuple[list[Path], Tensor]:
    """All images of train/ or test/, and their classes."""
    listed = [
        (p, c) for c, name in enumerate(CIFAR_CLASSES) for p in sorted((split / name).glob("*"))
    ]
    return [path for path, _ in listed], torch.tensor([label for _, label in listed])


def pictures(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def train(model: nn.Module, split: Path) -> None:
    """Train on mirrored and shifted images, with one cycle of the learning rate."""
    paths, labels = files(split)
    pixels = torch.from_numpy(np.stack([np.array(each) for each in pictures(paths)]))
    pixels = pixels.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.02)
    steps = EPOCHS * (len(paths) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(paths))[: len(paths) // BATCH * BATCH].split(BATCH):
            x = (pixels[chosen].float() / 255 - mean) / std
            x = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x.flip(3), x)
            dy, dx = (int(n) for n in torch.randint(0, 9, (2,)))
            x = nn.functional.pad(x, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
            output = model(x)
            logits = getattr(output, "logits", output)
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def train_timm(split: Path, folder: Path) -> None:
    timm: Any = import_module("timm")
    seen = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": MEAN, "std": STD}
    model = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay=seen)
    train(model, split)
    import_module("timm.models._hub").save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(CIFAR_CLASSES)},
        safe_serialization=True,
    )


def train_transformers(split: Path, folder: Path) -> None:
    transformers: Any = import_module("transformers")
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1],
        layer_type="basic", num_labels=10, id2label=dict(enumerate(CIFAR_CLASSES)),
        label2id={name: index for index, name in enumerate(CIFAR_CLASSES)},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config)
    train(model, split)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)


def timm_predict(folder: Path) -> Predict:
    timm: Any = import_module("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm_transform(model)
    return lambda images: model(torch.stack([transform(image) for image in images]))


def transformers_predict(folder: Path) -> Predict:
    transformers: Any = import_module("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return lambda images: model(**processor(images, return_tensors="pt")).logits


NETWORKS: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], Predict]]] = {
    "timm test_resnet": (train_timm, timm_predict),
    "transformers ResNetForImageClassification": (train_transformers, transformers_predict),
}


@torch.no_grad()
def accuracies(predict: Predict, split: Path) -> tuple[float, float]:
    """A_Df and A_Dr in percent."""
    paths, labels = files(split)
    found = [
        predict(pictures(paths[start : start + 500])).argmax(dim=1)
        for start in range(0, len(paths), 500)
    ]
    right = (torch.cat(found) == labels).double() * 100
    return right[labels == SHIP].mean().item(), right[labels != SHIP].mean().item()


def measure(name: str, data: Path, work: Path) -> dict[str, object]:
    """Train, unlearn and evaluate one network."""
    make, load = NETWORKS[name]
    folder = work / name.replace(" ", "_")
    output = folder.with_name(f"{folder.name}.unlearned")
    start = time.perf_counter()
    if not folder.exists():
        torch.manual_seed(0)
        make(data / "train", folder)
    trained = time.perf_counter() - start
    before = accuracies(load(folder), data / "test")
    print(f"{name}: {before}", file=sys.stderr, flush=True)
    said = work / f"{folder.name}.json"
    if not output.exists():
        command = ["unlearn", str(folder), "--forget", str(data / "train" / "ship"), "--json"]
        start = time.perf_counter()
        with said.open("w") as out:
            whole = [sys.executable, "-m", "pbu_cli", *command]
            code = subprocess.run(whole, stdout=out, check=False).returncode
        seconds = time.perf_counter() - start
        (work / f"{folder.name}.exit").write_text(f"{code} {seconds:.0f}")
    ended = (work / f"{folder.name}.exit").read_text().split()
    result = json.loads(said.read_text())["result"]
    after = accuracies(load(output), data / "test")
    return {
        "network": name,
        "a_df_before": f"{before[0]:.2f}",
        "a_df": f"{after[0]:.2f}",
        "a_dr_before": f"{before[1]:.2f}",
        "a_dr": f"{after[1]:.2f}",
        "estimated_loss_at_most": f"{result['damage']['high']:.1f}",
        "steps": result["steps"],
        "stopped": result["reason"],
        "exit": ended[0],
        "training_seconds": f"{trained:.0f}",
        "seconds": ended[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--work", type=Path, required=True, help="where the folders are kept")
    parser.add_argument("--data", type=Path, help="CIFAR-10 unpacked; from ../shared by default")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    data = given.data or given.work / "cifar10"
    if not data.exists():
        unpack(SHARED / "data" / "cifar10.tar.xz", data)
    rows = []
    for name in given.names or NETWORKS:
        rows.append(measure(name, data, given.work))
        print(rows[-1], flush=True)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
