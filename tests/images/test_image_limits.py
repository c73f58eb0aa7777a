"""What one image may take is bounded by its header, before anything is decoded."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from pbu_cli.errors import ImageError
from pbu_cli.images import image_limits
from tests.images.made_images import noise, read, save


@pytest.mark.parametrize(
    ("kind", "mode", "options", "most"),
    [
        ("PNG", "RGB", {}, 100_000_000),
        ("JPEG", "RGB", {}, 100_000_000),
        ("JPEG", "RGB", {"progressive": True}, 70_800_000),
        ("WEBP", "RGB", {}, 50_000_000),
        ("AVIF", "RGB", {}, 50_000_000),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}, 70_800_000),
        ("TIFF", "RGB", {}, 100_000_000),
        ("PPM", "RGB", {}, 100_000_000),
    ],
)
def test_the_limit_of_pixels_follows_from_the_memory_that_the_format_needs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mode: str,
    options: dict[str, object],
    most: int,
) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(noise(40, 50, 3)), format=kind, **options)
    assert read(path).shape == (40, 50, 3)
    part = 2000 / most
    # The limits are scaled down, so that an image of 2,000 pixels is at the limit.
    monkeypatch.setattr(image_limits, "MAX_PIXELS", round(1.01 * part * 100_000_000))
    monkeypatch.setattr(image_limits, "FILE_HELD", {})
    monkeypatch.setattr(image_limits, "FILE_KEPT", {})
    monkeypatch.setattr(image_limits, "MAX_IMAGE_BYTES", 1.01 * part * 850_000_000)
    assert read(path).shape == (40, 50, 3)
    monkeypatch.setattr(image_limits, "MAX_PIXELS", round(0.99 * part * 100_000_000))
    monkeypatch.setattr(image_limits, "MAX_IMAGE_BYTES", 0.99 * part * 850_000_000)
    with pytest.raises(ImageError, match="expected at most"):
        read(path)


def test_images_that_python_code_decodes_have_fewer_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P3 2 1 255\n1 2 3 4 5 6\n")
    assert read(path).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    monkeypatch.setattr(image_limits, "MAX_SLOW_PIXELS", 1)
    with pytest.raises(ImageError, match="in a PPM of this kind"):
        read(path)


def test_a_tiff_with_millions_of_numbers_in_its_tags_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow makes a Python integer of each."""
    path = save(tmp_path / "x.tif")
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    struct.pack_into("<HHII", data, at + 2, 256, 3, 1 << 30, 8)
    path.write_bytes(data)

    def opened(*args: object, **named: object) -> ImageFile.ImageFile:
        pytest.fail("Pillow read the tags")

    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(ImageError, match="numbers in tags; expected at most"):
        read(path, size=(4, 4))
