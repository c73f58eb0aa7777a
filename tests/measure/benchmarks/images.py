"""The cost of reading images, from a folder of JPEG files to normalised tensors.

    python -m tests.measure.benchmarks.images [--help]

The unit is the loop that most people write: PIL's `convert("RGB")` and torchvision's Resize 256,
CenterCrop 224 (for images that are not used in their own size), ToTensor and Normalize. It is
compared with the same in a pool of threads, with a DataLoader of two workers, and with pbu, which
decodes to uint8 once and normalises batch by batch on the device. All take turns in one run, and
medians are shown.

    CPU          processor time of one image, over all threads and workers; other work on the
                 machine hardly changes it
    difference   the largest difference of a pixel from the unit's, in steps of 1/255; pbu crops
                 before it resizes, so that its grid is up to half a pixel off
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pbu_cli.data.preprocessing import batches
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.settings import Preprocessing
from tests.measure.archives import SHARED, unpack

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
PHOTO = (512, 384)


class Files(Dataset[Tensor]):
    """The unit: the images of a folder, one by one."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths = sorted(folder.iterdir())
        resized = [transforms.Resize(256), transforms.CenterCrop(224)] if size == 224 else []
        self.transform = transforms.Compose(
            [*resized, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            found: Tensor = self.transform(image.convert("RGB"))
        return found


def loop(folder: Path, size: int, device: torch.device) -> list[Tensor]:
    files = Files(folder, size)
    return [
        torch.stack([files[j] for j in range(k, min(k + BATCH, len(files)))]).to(device)
        for k in range(0, len(files), BATCH)
    ]


def pool(folder: Path, size: int, device: torch.device) -> list[Tensor]:
    files = Files(folder, size)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(files.__getitem__, range(len(files))))
    return [torch.stack(found[k : k + BATCH]).to(device) for k in range(0, len(found), BATCH)]


def loader(folder: Path, size: int, device: torch.device) -> list[Tensor]:
    return [x.to(device) for x in DataLoader(Files(folder, size), BATCH, num_workers=2)]


def read_by_pbu(
    folder: Path, size: int, device: torch.device, workers: int | None = None
) -> list[Tensor]:
    groups = list_groups([str(folder)])
    pixels = decode(groups, channels=3, size=(size, size), workers=workers).pixels
    how = Preprocessing((size, size), MEAN, STD)
    return [x for x, _ in batches(pixels, torch.zeros(len(pixels)), how, BATCH, device)]


READERS: dict[str, Callable[[Path, int, torch.device], list[Tensor]]] = {
    "PIL loop": loop,
    "PIL, threads": pool,
    "DataLoader, 2 workers": loader,
    "pbu, 1 thread": partial(read_by_pbu, workers=1),
    "pbu": read_by_pbu,
}


def photos(folder: Path, count: int) -> Path:
    """Write JPEG files of smooth colours with noise, about as large and detailed as photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    width, height = PHOTO
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + random.integers(-12, 13, (height, width, 1), dtype=np.int16)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05}.jpg", quality=90)
    return folder


def cifar(place: Path, count: int) -> Path:
    def ships(archive: Iterable[tarfile.TarInfo]) -> Iterable[tarfile.TarInfo]:
        return islice((m for m in archive if "/ship/" in f"/{m.name}"), count)

    unpack(SHARED / "data" / "cifar10.tar.xz", place, ships)
    return next(place.rglob("ship"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=int, default=2000, help="images of CIFAR-10, not resized")
    parser.add_argument("--large", type=int, default=300, help="images of 512x384, to 224x224")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    where = f"{platform.machine()}, {os.cpu_count()} cores, {datetime.date.today()}"
    table = Table(
        "images", "reader", "images/s", "of the loop", "CPU ms", "difference", title=where
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        cases = [(photos(place / "photos", given.large), 224), (cifar(place, given.small), 32)]
        for folder, size in cases:
            took: dict[str, list[float]] = {name: [] for name in READERS}
            spent: dict[str, list[float]] = {name: [] for name in READERS}
            found = {}
            for _ in range(given.rounds):
                for name, read in READERS.items():
                    start, before = time.perf_counter(), sum(os.times()[:4])
                    found[name] = torch.cat(read(folder, size, device))
                    took[name].append(time.perf_counter() - start)
                    spent[name].append(sum(os.times()[:4]) - before)
            unit = median(took["PIL loop"])
            for name, times in took.items():
                apart = (found[name] - found["PIL loop"]).abs().amax((0, 2, 3)).cpu()
                table.add_row(
                    f"{len(found[name])} to {size}x{size}", name,
                    f"{len(found[name]) / median(times):.0f}", f"{unit / median(times):.2f}",
                    f"{1e3 * median(spent[name]) / len(found[name]):.2f}",
                    f"{float((apart * torch.tensor(STD)).max()) * 255:.1f}",
                )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
