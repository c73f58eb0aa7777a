"""Points 6, 7, 9 and 16: the benchmark's data sets and cells, and images that are not whole."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.attack.faults.fault import CHECKPOINTS, TRIALS, Fault, Place
from tests.networks import cifar_resnet

NETWORK = CHECKPOINTS / "cifar10_resnet20.safetensors"
ARCH = f"{Path(cifar_resnet.__file__)}:resnet20"
DRY = ("unlearn", NETWORK, "--arch", ARCH, "--forget", "ship", "--label", "8", "--fast",
       "-o", "out.safetensors", "--dry-run")  # fmt: skip
EOI = b"\xff\xd9"


def ships(place: Place, count: int = 20) -> Path:
    folder = place.folder / "ship"
    folder.mkdir()
    for path in sorted((place.data / "train" / "ship").iterdir())[:count]:
        shutil.copy(path, folder)
    return folder


def with_image(name: str, make: Callable[[Path], bytes]) -> Callable[[Place], None]:
    """Ships with one more image, made from the first of them."""

    def prepare(place: Place) -> None:
        folder = ships(place)
        (folder / name).write_bytes(make(sorted(folder.iterdir())[0]))

    return prepare


def short_jpeg(path: Path) -> bytes:
    """Thirty bytes of the scan, and the marker at the end."""
    data = path.read_bytes()
    return data[: data.index(b"\xff\xda") + 14 + 30].rstrip(b"\xff") + EOI


def jpeg_without_scans(path: Path) -> bytes:
    file = io.BytesIO()
    Image.open(path).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[: data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)] + EOI


def short_png(path: Path) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = np.asarray(Image.open(path).convert("RGB"))[:8]
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)),
         chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    )  # fmt: skip


def short_tiff(path: Path) -> bytes:
    """An uncompressed TIFF whose strip has half the bytes that its rows need."""
    file = io.BytesIO()
    Image.open(path).save(file, "TIFF")
    data = bytearray(file.getvalue())
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 279:
            struct.pack_into("<I", data, entry + 8, 32 * 32 * 3 // 2)
    return bytes(data)


def large(kind: str, **options: object) -> Callable[[Path], bytes]:
    """One image of 99 million pixels that takes few bytes in a file."""

    def make(path: Path) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (11_000, 9_000), (90, 120, 30)).save(file, kind, **options)
        return file.getvalue()

    return make


def food(place: Place, bad: Callable[[Path], object]) -> None:
    folder = place.folder / "data" / "food-101"
    (folder / "meta").mkdir(parents=True)
    names = {name: [f"{name}/{n}" for n in range(3)] for name in ("cake", "soup")}
    for name, images in names.items():
        (folder / "images" / name).mkdir(parents=True)
        for image in images:
            Image.new("RGB", (40, 30), (90, 30, 0)).save(folder / "images" / f"{image}.jpg")
    for which in ("train", "test"):
        (folder / "meta" / f"{which}.json").write_text(json.dumps(names))
    bad(folder)


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return replace


def eps(path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 30, 0)).save(file, "EPS")
    path.write_bytes(file.getvalue())


FOOD = ("benchmark", "--dataset", "food101", "--data-root", "data", "--size", "32", "--model",
        "resnet18", "--methods", "head-mask", "--dry-run")  # fmt: skip
MNIST = ("benchmark", "--dataset", "mnist", "--data-root", "data", "--model", "resnet18",
         "--methods", "head-mask", "--dry-run")  # fmt: skip
CELLS = ("benchmark", "--dataset", "folder", "--data-root", "data", "--model", "resnet18",
         "--methods", "head-mask", "--epochs", "1", "--out", "results",
         "--device", "cpu")  # fmt: skip


def mnist(bad: Callable[[Path], object]) -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        raw = place.folder / "data" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for which in ("train", "t10k"):
            for kind, shape in (("images-idx3", (20, 28, 28)), ("labels-idx1", (20,))):
                head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
                body = bytes(int(np.prod(shape)) - 20) + bytes(range(10)) * 2
                (raw / f"{which}-{kind}-ubyte").write_bytes(head + body)
        path = raw / "train-images-idx3-ubyte"
        path.unlink()
        bad(path)

    return prepare


def made_large(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 20, 28, 28))
        file.truncate(64 << 30)


def measured(change: Callable[[Path], object]) -> Callable[[Place], None]:
    """A finished grid of two cells, then a change in its folder."""

    def prepare(place: Place) -> None:
        for which in ("train", "test"):
            for name in ("3", "8"):
                folder = place.folder / "data" / which / name
                folder.mkdir(parents=True)
                for path in sorted((place.data / which / name).iterdir())[:8]:
                    shutil.copy(path, folder)
        done = place.pbu(*CELLS)
        assert done.returncode == 0, done.stderr
        (results,) = (place.folder / "results").iterdir()
        change(results)

    return prepare


def cell(results: Path) -> Path:
    return results / "seed0-class0-head-mask.json"


def made_fifo(results: Path) -> None:
    cell(results).unlink()
    os.mkfifo(cell(results))


def made_zero(results: Path) -> None:
    cell(results).unlink()
    cell(results).symlink_to("/dev/zero")


def edited(results: Path) -> None:
    document = json.loads(cell(results).read_text())
    document["outcomes"][0]["measures"]["a_dr"] = 99.99
    cell(results).write_text(json.dumps(document))


def wrong_shape(results: Path) -> None:
    document = json.loads(cell(results).read_text())
    document["outcomes"][0]["measures"] = [1]
    cell(results).write_text(json.dumps(document))


def other_original(results: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = results / "original-seed0.safetensors"
    save_file(
        {name: tensor * 0.5 for name, tensor in load_file(path).items()},
        path,
        {"seconds": "1", "images": "1"},
    )
    cell(results).unlink()


def image_fault(title: str, make: Callable[[Path], bytes], name: str = "zz.jpg") -> Fault:
    return Fault(9, title, DRY, 4, "1 of 21 images cannot be read", with_image(name, make))


def mixed(place: Place) -> None:
    """JPEG files, 40 of which are named .heic."""
    shutil.copytree(TRIALS / "mixed" / "ship", place.folder / "ship")


def heic(place: Place) -> None:
    """The same with the first bytes of a HEIC file."""
    mixed(place)
    for path in (place.folder / "ship").glob("*.heic"):
        path.write_bytes(b"\0\0\0\x18ftypheic" + path.read_bytes())


def turned(place: Place) -> None:
    """Ships that say they lie on their side, as a phone that was held upright stores them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in ships(place).iterdir():
        Image.open(path).save(path, quality=95, exif=exif)


FAULTS = [
    Fault(6, "Food-101: an EPS named .jpg starts Ghostscript", FOOD, 4, "not PNG, JPEG",
          lambda place: food(place, replaced("images/cake/1.jpg", eps))),
    Fault(6, "Food-101: a FIFO as an image", FOOD, 4, "not a regular file",
          lambda place: food(place, replaced("images/cake/1.jpg", os.mkfifo))),
    Fault(6, "Food-101: a FIFO as a list", FOOD, 4, "not a regular file",
          lambda place: food(place, replaced("meta/train.json", os.mkfifo))),
    Fault(6, "MNIST: a file of 64 GiB", MNIST, 4, "expected at most", mnist(made_large)),
    Fault(7, "a cell that is a FIFO", CELLS, 3, "not a regular file", measured(made_fifo)),
    Fault(7, "a cell that is a link to /dev/zero", CELLS, 3, "not a regular file",
          measured(made_zero)),
    Fault(7, "an edited cell", CELLS, 3, "as pbu wrote it", measured(edited)),
    Fault(7, "a cell whose measures are a list", CELLS, 3, "as pbu wrote it",
          measured(wrong_shape)),
    Fault(7, "a replaced original", CELLS, 3, "restore it", measured(other_original)),
    image_fault("a PNG with 8 of 32 rows", short_png),
    image_fault("a JPEG with 30 bytes of its scan", short_jpeg),
    image_fault("a progressive JPEG with its first scan alone", jpeg_without_scans),
    image_fault("a TIFF with a short strip", short_tiff, "zz.tif"),
    image_fault("a WebP of 99 million pixels: memory", large("WEBP", quality=1, method=0)),
    image_fault("a progressive JPEG of 99 million pixels: memory",
                large("JPEG", progressive=True, subsampling=0, quality=1)),
    Fault(16, "40 of 70 images are named .heic", (*DRY, "-q"), 0, "(40 .heic)", mixed),
    Fault(16, "40 of 70 images are HEIC", (*DRY, "-q"), 4, "(40 .heic)", heic),
    Fault(16, "40 of 70 images are HEIC, --skip-bad", (*DRY, "-q", "--skip-bad"), 0, "(40 .heic)",
          heic),
    Fault(16, "a network trained on images that ImageFolder did not turn",
          (*DRY, "--no-exif-rotation"), 0, "dry run", turned),
]  # fmt: skip
