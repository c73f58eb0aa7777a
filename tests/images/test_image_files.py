"""One image file: formats, rotation and size against plain Pillow and numpy, and hostile files.

Every file is real and written to tmp_path.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize

from pbu_cli.errors import ImageError
from pbu_cli.images import image_files
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_files import channels_of
from pbu_cli.images.image_limits import MAX_PIXELS
from tests.images.made_images import RANDOM, group, noise, own_size, png, read, save

# Formats and modes


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".TIFF", ".ppm"])
def test_lossless_colour_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7, 3)
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels), **options)
    assert (read(path) == pixels).all()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".pgm", ".gif"])
def test_lossless_grey_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    pixels = noise(5, 7)
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels))
    assert (read(path, 1)[..., 0] == pixels).all()
    assert (read(path, 3) == pixels[..., None]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPE", ".jfif", ".webp", ".avif"])
def test_lossy_files_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    kind = {".webp": "WEBP", ".avif": "AVIF"}.get(suffix, "JPEG")
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


def test_alpha_of_grey_images_is_dropped(tmp_path: Path) -> None:
    pixels = noise(6, 6, 2)
    path = save(tmp_path / "x.png", Image.fromarray(pixels, "LA"))
    assert (read(path, 1)[..., 0] == pixels[..., 0]).all()
    assert (read(path, 3) == pixels[..., :1]).all()


def test_an_image_without_alpha_is_opaque(tmp_path: Path) -> None:
    pixels = noise(3, 3, 3)
    path = save(tmp_path / "x.png", Image.fromarray(pixels))
    assert (read(path, 4) == np.dstack([pixels, np.full((3, 3), 255)])).all()


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_palette_images_become_colours(tmp_path: Path, transparency: int | bytes | None) -> None:
    palette, index = noise(16, 3), RANDOM.integers(0, 16, (5, 5), dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    path = save(tmp_path / "x.png", image, **options)
    assert (read(path) == palette[index]).all()


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    bits = noise(9, 9) > 128
    path = save(tmp_path / "x.png", Image.fromarray(bits))
    assert (read(path, 1)[..., 0] == bits * 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = save(tmp_path / f"x{suffix}", Image.fromarray(samples))
    expected = np.round(samples / 257)
    assert (read(path, 1)[..., 0] == expected).all()
    assert (read(path, 3) == expected[..., None]).all()


def test_sixteen_bit_big_endian_tiff_is_scaled(tmp_path: Path) -> None:
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
def test_cmyk_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    """Pillow writes CMYK JPEG inverted and marked so, as Adobe does."""
    ink = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # magenta and yellow: red
    path = save(tmp_path / f"x{suffix}", Image.fromarray(ink, "CMYK"))
    assert np.abs(read(path).astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(read(path, 1).astype(int) - 76).max() <= 3


UPRIGHT = {  # EXIF orientation -> the rotation that undoes it
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
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels, exif = noise(5, 7, 3), Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"x{suffix}", Image.fromarray(pixels), exif=exif, **options)
    upright = UPRIGHT[orientation](pixels)
    assert own_size([group(path)]) == upright.shape[:2]
    assert (read(path) == upright).all()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_exif_rotation_can_be_left_out_as_imagefolder_does(tmp_path: Path, suffix: str) -> None:
    pixels, exif = noise(5, 7, 3), Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / "a" / f"x{suffix}", Image.fromarray(pixels), exif=exif, **options)
    found = decode([group(path)], channels=3, exif_rotation=False).pixels[0].permute(1, 2, 0)
    assert own_size([group(path)], exif_rotation=False) == (5, 7)
    assert (found.numpy() == pixels).all()
    image, _ = ImageFolder(str(tmp_path))[0]
    assert (found.numpy() == np.asarray(image)).all()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_tiff_is_not_decoded_to_learn_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.tif", Image.fromarray(noise(5, 7, 3)), exif=exif)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda image: pytest.fail("decoded"))
    turned = orientation > 4
    assert own_size([group(path)]) == ((7, 5) if turned else (5, 7))


def test_exif_rotation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    pixels, exif = np.zeros((16, 32, 3), np.uint8), Image.Exif()
    pixels[:, :16] = 255
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", Image.fromarray(pixels), exif=exif)
    assert own_size([group(path)]) == (32, 16)
    assert read(path)[:16].min() > 200
    assert read(path)[16:].max() < 50


def test_an_image_with_invalid_exif_is_still_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = noise(4, 6, 3)
    path = save(tmp_path / "x.png", Image.fromarray(pixels), exif=b"Exif\0\0no TIFF header here")
    assert own_size([group(path)]) in (None, (4, 6))
    assert (read(path, size=(4, 6)) == pixels).all()
    assert capfd.readouterr() == ("", "")


def test_only_the_first_frame_is_read(tmp_path: Path) -> None:
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


def test_the_format_is_that_of_the_content_not_of_the_suffix(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3)
    path = save(tmp_path / "x.jpg", Image.fromarray(pixels), format="PNG")
    assert (read(path) == pixels).all()


@pytest.mark.parametrize("kind", ["TGA", "ICO", "PDF", "EPS", "JPEG2000", "PCX"])
def test_other_formats_are_refused_under_any_name(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (16, 16)), format=kind)
    with pytest.raises(ImageError, match="not PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or AVIF"):
        read(path)


def test_grey_images_have_one_channel_and_others_three(tmp_path: Path) -> None:
    for number, (mode, channels) in enumerate({"1": 1, "L": 1, "LA": 1, "P": 3, "RGBA": 3}.items()):
        path = save(tmp_path / f"{number}.png", Image.new(mode, (2, 2)))
        assert channels_of(path) == channels
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ImageError, match=r"x\.png: cannot be read \(not PNG"):
        channels_of(tmp_path / "x.png")


# Size


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resizing_is_the_usual_evaluation_transform(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(300, 300, 3)).convert(mode)
    path = save(tmp_path / "x.png", image)
    usual = np.asarray(Compose([Resize(256), CenterCrop(224)])(image))
    found = read(path, len(mode), (224, 224))
    assert (found == usual.reshape(found.shape)).all()


@pytest.mark.parametrize(("height", "width"), [(300, 437), (511, 260), (120, 90)])
def test_resizing_an_oblong_image_keeps_its_centre(tmp_path: Path, height: int, width: int) -> None:
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
    # The first and the last row are left out: resizing also uses the pixels beyond the crop.
    assert np.abs(found - np.asarray(centre))[1:-1].max() <= 1


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    own=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    channels=st.sampled_from([1, 3, 4]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_size_is_resized_to_any_size_without_padding(
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


# Hostile content


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    bomb, good = tmp_path / "bomb.png", save(tmp_path / "good.png")
    bomb.write_bytes(png(side, side, bytes(10_000_000)))
    with pytest.raises(ImageError, match=r"1 of 2 .*bomb\.png \(.* pixels"):
        decode([group(bomb, good)], channels=3, size=(4, 4))


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four small images are decoded at a time: each waits for the other three."""
    paths = [save(tmp_path / f"{number}.png") for number in range(4)]
    inside, convert = threading.Barrier(4), image_files._to_eight_bits

    def wait_for_others(image: Image.Image) -> Image.Image:
        inside.wait(timeout=10)
        return convert(image)

    monkeypatch.setattr(image_files, "_to_eight_bits", wait_for_others)
    assert len(decode([group(*paths)], channels=3, workers=4).pixels) == 4

    held, most = 0, 0

    def counted(image: Image.Image) -> Image.Image:
        nonlocal held, most
        held, most = held + 1, max(most, held + 1)
        time.sleep(0.02)
        held -= 1
        return convert(image)

    monkeypatch.setattr(image_files, "_to_eight_bits", counted)
    monkeypatch.setattr(image_files, "LARGE_PIXELS", 1)
    assert len(decode([group(*paths)], channels=3, workers=4).pixels) == 4
    assert most == 1


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="bytes; expected at most"):
        read(path)


def test_a_text_chunk_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    data = b"k\0\0" + zlib.compress(bytes(100_000_000))
    chunk = pack(">I", len(data)) + b"zTXt" + data + pack(">I", zlib.crc32(b"zTXt" + data))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])
    with pytest.raises(ImageError, match=r"x\.png"):
        read(path)


@pytest.mark.slow
def test_pillow_prints_nothing_and_its_settings_are_not_changed(tmp_path: Path) -> None:
    """Runs in a process of its own, because pytest catches warnings and logs itself."""
    code = f"""
import warnings
from pathlib import Path
from PIL import Image, ImageFile
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
from pbu_cli.images.image_folders import list_groups
from pbu_cli.images.decoding import decode
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
