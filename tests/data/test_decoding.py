"""Listing and decoding against plain Pillow and numpy; every file is real, in tmp_path."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from pbu_cli.data import decoding
from pbu_cli.data.decoding import common_size, decode
from pbu_cli.data.image_files import MOST_PIXELS
from pbu_cli.data.image_folders import Group, list_groups
from pbu_cli.errors import ImageError

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(noise(4, 4))).save(path, **options)
    return path


def group(*paths: Path) -> Group:
    return Group("", paths)


def read(path: Path, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """One image as uint8 [h, w, c]."""
    images = decode([group(path)], channels=channels, size=size)
    assert images.pixels.dtype == torch.uint8
    return images.pixels[0].permute(1, 2, 0).numpy()


def listing(*paths: Path | str | bytes, end: bytes = b"\n") -> io.BytesIO:
    return io.BytesIO(b"".join(os.fsencode(path) + end for path in paths))


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG by hand: RGB, with whatever pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


# Formats and modes


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".TIFF"])
def test_lossless_colour(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7, 3)
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels), **options)
    assert (read(path) == pixels).all()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_grey(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7)
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels))
    assert (read(path, 1)[..., 0] == pixels).all()
    assert (read(path, 3) == pixels[..., None]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPE", ".jfif", ".webp"])
def test_lossy_as_pillow_decodes_it(tmp_path: Path, suffix: str) -> None:
    kind = "WEBP" if suffix == ".webp" else "JPEG"
    path = save(tmp_path / f"x{suffix}", Image.fromarray(noise(16, 24, 3)), format=kind)
    with Image.open(path) as image:
        assert (read(path) == np.asarray(image)).all()


def test_colour_to_grey_is_luma(tmp_path: Path) -> None:
    pixels = noise(6, 6, 3)
    path = save(tmp_path / "x.png", Image.fromarray(pixels))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(path, 1)[..., 0] - luma).max() <= 0.51


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_dropped_or_kept_but_never_blended(tmp_path: Path, suffix: str) -> None:
    pixels = noise(6, 6, 4)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels), **options)
    assert (read(path, 3) == pixels[..., :3]).all()
    assert (read(path, 4) == pixels).all()


def test_grey_with_alpha(tmp_path: Path) -> None:
    pixels = noise(6, 6, 2)
    path = save(tmp_path / "x.png", Image.fromarray(pixels, "LA"))
    assert (read(path, 1)[..., 0] == pixels[..., 0]).all()
    assert (read(path, 3) == pixels[..., :1]).all()


def test_no_alpha_is_opaque(tmp_path: Path) -> None:
    pixels = noise(3, 3, 3)
    path = save(tmp_path / "x.png", Image.fromarray(pixels))
    assert (read(path, 4) == np.dstack([pixels, np.full((3, 3), 255)])).all()


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_palette(tmp_path: Path, transparency: int | bytes | None) -> None:
    palette, index = noise(16, 3), RANDOM.integers(0, 16, (5, 5), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "x.png", image, **options)
    assert (read(path) == palette[index]).all()


def test_one_bit(tmp_path: Path) -> None:
    bits = noise(9, 9) > 128
    path = save(tmp_path / "x.png", Image.fromarray(bits))
    assert (read(path, 1)[..., 0] == bits * 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = save(tmp_path / f"x{suffix}", Image.fromarray(samples))
    expected = np.round(samples / 257)
    assert (read(path, 1)[..., 0] == expected).all()
    assert (read(path, 3) == expected[..., None]).all()


def test_sixteen_bit_big_endian_tiff(tmp_path: Path) -> None:
    samples = np.array([[0, 257], [257 * 200, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 2), samples.tobytes())
    path = save(tmp_path / "x.tif", image)
    assert read(path, 1)[..., 0].tolist() == [[0, 1], [200, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_samples_are_refused(tmp_path: Path, kind: type) -> None:
    path = save(tmp_path / "x.tif", Image.fromarray(np.zeros((2, 2), kind)))
    with pytest.raises(ImageError, match="32 bits a sample; expected 8 or 16"):
        read(path, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    """Pillow writes CMYK JPEG inverted and marked so, as Adobe does."""
    ink = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # magenta and yellow: red
    path = save(tmp_path / f"x{suffix}", Image.fromarray(ink, "CMYK"))
    assert np.abs(read(path).astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(read(path, 1).astype(int) - 76).max() <= 3


TURNS = {  # EXIF orientation -> what undoes it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_rotation(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels, exif = noise(5, 7, 3), Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels), exif=exif, **options)
    upright = TURNS[orientation](pixels)
    assert common_size([group(path)]) == upright.shape[:2]
    assert (read(path) == upright).all()


def test_exif_rotation_of_a_jpeg(tmp_path: Path) -> None:
    pixels, exif = np.zeros((16, 32, 3), np.uint8), Image.Exif()
    pixels[:, :16] = 255
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", Image.fromarray(pixels), exif=exif)
    assert common_size([group(path)]) == (32, 16)
    assert read(path)[:16].min() > 200
    assert read(path)[16:].max() < 50


def test_broken_exif_does_not_cost_the_image(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = noise(4, 6, 3)
    path = save(tmp_path / "x.png", Image.fromarray(pixels), exif=b"Exif\0\0no TIFF header here")
    assert common_size([group(path)]) in (None, (4, 6))
    assert (read(path, size=(4, 6)) == pixels).all()
    assert capfd.readouterr() == ("", "")


def test_only_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(3, 3, 3)) for _ in range(3)]
    for suffix in (".tif", ".webp", ".png"):
        options = {"lossless": True} if suffix == ".webp" else {}
        path = save(
            tmp_path / f"x{suffix}",
            frames[0],
            save_all=True,
            append_images=frames[1:],
            **options,
        )
        assert (read(path) == np.asarray(frames[0])).all()


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3)
    path = save(tmp_path / "x.jpg", Image.fromarray(pixels), format="PNG")
    assert (read(path) == pixels).all()


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "PDF", "EPS"])
def test_other_formats_are_refused_under_any_name(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (16, 16)), format=kind)
    with pytest.raises(ImageError, match="not PNG, JPEG, WebP, BMP or TIFF"):
        read(path)


# Size


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resize_is_the_usual_evaluation_transform(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(300, 300, 3)).convert(mode)
    path = save(tmp_path / "x.png", image)
    usual = np.asarray(Compose([Resize(256), CenterCrop(224)])(image))
    found = read(path, len(mode), (224, 224))
    assert (found == usual.reshape(found.shape)).all()


@pytest.mark.parametrize(("height", "width"), [(300, 437), (511, 260), (120, 90)])
def test_resize_of_an_oblong_image_keeps_its_centre(
    tmp_path: Path, height: int, width: int
) -> None:
    """torchvision rounds the longer side to whole pixels, so the match is to half a pixel."""
    y, x = np.mgrid[:height, :width]
    smooth = np.uint8(127 + 120 * np.sin(y / 40) * np.cos(x / 30))
    path = save(tmp_path / "x.png", Image.fromarray(smooth))
    usual = np.asarray(Compose([Resize(256), CenterCrop(224)])(Image.fromarray(smooth)))
    assert np.abs(read(path, 1, (224, 224))[..., 0].astype(int) - usual).max() <= 3


def test_small_sizes_have_no_margin(tmp_path: Path) -> None:
    image = Image.fromarray(noise(64, 48, 3))
    path = save(tmp_path / "x.png", image)
    centre = image.crop((0, 8, 48, 56)).resize((32, 32), Image.Resampling.BILINEAR)
    found = read(path, size=(32, 32)).astype(int)
    assert np.abs(found - np.asarray(centre))[1:-1].max() <= 1  # the crop's edge sees beyond it


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    own=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    channels=st.sampled_from([1, 3, 4]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_to_any_size(
    tmp_path: Path, size: tuple[int, int], own: tuple[int, int], channels: int
) -> None:
    path = save(tmp_path / "x.png", Image.new("RGBA", own[::-1], (10, 10, 10, 255)))
    found = read(path, channels, size)
    assert found.shape == (*size, channels)
    assert (found[..., :3] == 10).all()  # nothing is padded
    if own == size:
        with Image.open(path) as image:
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
            assert (found == np.asarray(image.convert(mode)).reshape(found.shape)).all()


def test_without_a_size_all_must_agree(tmp_path: Path) -> None:
    first = save(tmp_path / "a.png", Image.new("L", (7, 5)))
    second = save(tmp_path / "b.png", Image.new("L", (7, 5)))
    assert common_size([group(first), group(second)]) == (5, 7)
    assert decode([group(first, second)], channels=1).pixels.shape == (2, 1, 5, 7)
    third = save(tmp_path / "c.png", Image.new("L", (5, 7)))
    assert common_size([group(first, second, third)]) is None
    with pytest.raises(ImageError, match=r"a\.png 5x7, .*c\.png 7x5 .*--size"):
        decode([group(first, second, third)], channels=1)


def test_too_much_for_the_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="need 3000000 GB of memory; expected at most"):
        read(path, 3, (10**6, 10**9))


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_channels_that_no_image_has(tmp_path: Path, channels: int) -> None:
    with pytest.raises(ImageError, match=f"{channels} channels asked for; expected 1"):
        read(save(tmp_path / "x.png"), channels)


# Decoding many


def test_small_files_are_decoded_by_one_thread_and_large_ones_by_all(tmp_path, monkeypatch):
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr("pbu_cli.data.decoding.ThreadPoolExecutor", Pool)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    for side, workers in ((8, 1), (64, 3)):
        pixels = noise(5, side, side, 3)
        files = [
            save(tmp_path / f"{side}-{n}.png", Image.fromarray(p)) for n, p in enumerate(pixels)
        ]
        decode(
            [group(*files, tmp_path / "absent.png")], channels=3, size=(side, side), skip_bad=True
        )
        assert asked.pop() == workers


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    pixels = noise(150, 6, 6, 3)
    paths = [
        save(tmp_path / f"{index:03d}.png", Image.fromarray(pixels[index])) for index in range(150)
    ]
    paths[70].write_bytes(b"")
    left = np.delete(pixels, 70, axis=0).transpose(0, 3, 1, 2)
    for workers in (None, 1, 2, 7, 64):
        done: list[int] = []
        images = decode(
            [group(*paths[:100]), group(*paths[100:])],
            channels=3,
            size=(6, 6),
            workers=workers,
            skip_bad=True,
            progress=done.append,
        )
        assert (images.pixels.numpy() == left).all()
        assert images.group.tolist() == [0] * 99 + [1] * 50
        assert images.group.dtype == torch.int64
        assert [fault.path for fault in images.bad] == [paths[70]]
        assert done == list(range(1, 151))


def test_one_corrupt_image_is_named(tmp_path: Path) -> None:
    for index in range(5):
        save(tmp_path / f"{index}.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (found,) = list_groups([str(tmp_path)])
    with pytest.raises(ImageError, match=r"^1 of 5 images cannot be read: .*3\.png.*--skip-bad"):
        decode([found], channels=1)
    images = decode([found], channels=1, skip_bad=True)
    assert len(images.pixels) == len(images.group) == 4
    assert [fault.path.name for fault in images.bad] == ["3.png"]


def test_all_faults_are_counted_and_three_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png")
    bad = [tmp_path / f"{index}.png" for index in range(5)]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(ImageError) as caught:
        decode([group(*bad, good)], channels=1)
    message = str(caught.value)
    assert message.startswith("5 of 6 images cannot be read: ")
    assert message.count("(not PNG, JPEG, WebP, BMP or TIFF)") == 3
    assert "2.png" in message
    assert " and 2 more; " in message
    assert "\n" not in message


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_group_of_bad_images_only(tmp_path: Path, skip_bad: bool) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_text("no image")
    (found,) = list_groups([str(tmp_path)])
    with pytest.raises(ImageError, match="none of 2 images can be read"):
        decode([found], channels=1, skip_bad=skip_bad)
    if skip_bad:
        whole = group(save(tmp_path / "other" / "x.png"))
        with pytest.raises(ImageError, match="none of 2 images can be read"):
            decode([whole, found], channels=1, skip_bad=True)


# Order


# Listing


# Hostile content


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (found,) = list_groups([str(tmp_path)])
    assert [path.name for path in found.ignored] == ["pipe.png"]
    (listed,) = list_groups(["-"], listing(*found.paths, tmp_path / "pipe.png"))
    assert common_size([listed]) == (4, 4)
    images = decode([listed], channels=1, skip_bad=True)
    assert {fault.path.name: fault.reason for fault in images.bad} == dict.fromkeys(
        ("link.png", "pipe.png", "zero.png"), "not a regular file"
    )


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    assert side * side > MOST_PIXELS
    bomb, good = tmp_path / "bomb.png", save(tmp_path / "good.png")
    bomb.write_bytes(png(side, side, bytes(10_000_000)))
    with pytest.raises(ImageError, match=r"1 of 2 .*bomb\.png \(.* pixels"):
        decode([group(bomb, good)], channels=3, size=(4, 4))


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at a time where they are small: they wait for each other inside."""
    paths = [save(tmp_path / f"{number}.png") for number in range(4)]
    inside, convert = threading.Barrier(4), decoding._in_eight_bits

    def met(image: Image.Image) -> Image.Image:
        inside.wait(timeout=10)
        return convert(image)

    monkeypatch.setattr(decoding, "_in_eight_bits", met)
    assert len(decode([group(*paths)], channels=3, workers=4).pixels) == 4

    held, most = 0, 0

    def counted(image: Image.Image) -> Image.Image:
        nonlocal held, most
        held, most = held + 1, max(most, held + 1)
        time.sleep(0.02)
        held -= 1
        return convert(image)

    monkeypatch.setattr(decoding, "_in_eight_bits", counted)
    monkeypatch.setattr(decoding, "LARGE", 1)
    assert len(decode([group(*paths)], channels=3, workers=4).pixels) == 4
    assert most == 1


def test_a_file_too_large_to_be_an_image(tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="bytes; expected at most"):
        read(path)


def test_text_chunk_bomb(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    data = b"k\0\0" + zlib.compress(bytes(100_000_000))
    chunk = pack(">I", len(data)) + b"zTXt" + data + pack(">I", zlib.crc32(b"zTXt" + data))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])
    with pytest.raises(ImageError, match=r"x\.png"):
        read(path)


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_are_faults_and_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif"]))
    options = {"compression": "tiff_lzw"} if suffix == ".tif" else {}
    path = save(tmp_path / f"x{suffix}", Image.new("RGB", (20, 20), (1, 2, 3)), **options)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 200) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    good = save(tmp_path / "good.png")
    images = decode([group(path, good)], channels=3, size=(4, 4), skip_bad=True)
    assert len(images.pixels) + len(images.bad) == 2
    assert images.group.tolist() == [0] * len(images.pixels)


@pytest.mark.parametrize(
    "name", ["a\nb.png", "\x1b[2J.png", "[red]x[bold].png", b"\xff\xfe.png", "\u202e\u2066.png"]
)
def test_names_reach_no_terminal_raw(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_text("no image")
    (found,) = list_groups([str(tmp_path)])
    for failing in (lambda: decode([found], channels=1), lambda: list_groups([str(path)])):
        with pytest.raises(ImageError) as caught:
            failing()
        assert str(caught.value).isprintable()
    save(path)
    assert len(decode([found], channels=1).pixels) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read(path)
    tmp_path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        list_groups([str(tmp_path)])
    tmp_path.chmod(0o700)


def test_a_file_that_vanishes_after_listing(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (found,) = list_groups([str(tmp_path)])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png \(No such file or directory\)"):
        decode([found], channels=1)


def test_pillow_says_nothing_and_is_left_as_it_was(tmp_path: Path) -> None:
    """In a process of its own: pytest catches warnings and logs by itself."""
    code = f"""
import warnings
from pathlib import Path
from PIL import Image, ImageFile
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
from pbu_cli.folders import list_groups
from pbu_cli.images import decode
filters = list(warnings.filters)  # torch brings its own
groups = list_groups([{str(tmp_path)!r}])
images = decode(groups, channels=3, size=(4, 4), skip_bad=True)
print(len(images.pixels), len(images.bad))
assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
assert filters == list(warnings.filters)
"""
    save(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(png(9_800, 9_800))  # between Pillow's limits: a warning
    many = pack("<2sHIH", b"II", 42, 8, 4) + b"".join(
        pack("<HHII", tag, kind, 1, value)
        for tag, kind, value in ((256, 3, 4), (257, 3, 4), (258, 3, 8), (277, 4, 99_999))
    )
    (tmp_path / "log.tif").write_bytes(many + bytes(64))  # Pillow logs an error
    lzw = save(tmp_path / "lzw.tif", Image.fromarray(noise(64, 64)), compression="tiff_lzw")
    lzw.write_bytes(bytes(b ^ (i % 7 == 3 and i > 200) for i, b in enumerate(lzw.read_bytes())))
    run = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", code], capture_output=True, text=True
    )
    assert run.stderr == ""
    good, bad = map(int, run.stdout.split())
    assert good + bad == 4
    assert bad >= 2


def test_an_interrupt_is_not_a_bad_image(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    paths = [save(tmp_path / f"{index}.png") for index in range(50)]
    with pytest.raises(KeyboardInterrupt):
        decode([group(*paths)], channels=1, skip_bad=True, progress=interrupt)
