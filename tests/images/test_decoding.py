"""Decoding of many images: one size, threads, and the report of images that cannot be read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pbu_cli.errors import ImageError
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups
from pbu_cli.images.image_sizes import usual_size
from pbu_cli.inputs.resolve import unreadable_images
from tests.images.made_images import group, listing, noise, own_size, read, save


def test_without_a_size_all_images_must_have_one(tmp_path: Path) -> None:
    first = save(tmp_path / "a.png", Image.new("L", (7, 5)))
    second = save(tmp_path / "b.png", Image.new("L", (7, 5)))
    assert own_size([group(first), group(second)]) == (5, 7)
    assert decode([group(first, second)], channels=1).pixels.shape == (2, 1, 5, 7)
    third = save(tmp_path / "c.png", Image.new("L", (5, 7)))
    assert usual_size([group(first, second, third)]) is None
    with pytest.raises(ImageError, match=r"a\.png 5x7, .*c\.png 7x5 .*--size"):
        decode([group(first, second, third)], channels=1)


def test_more_images_than_memory_holds_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="need 3000000 GB of memory; expected at most"):
        read(path, 3, (10**6, 10**9))


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_a_number_of_channels_that_no_image_has_is_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(ImageError, match=f"{channels} channels asked for; expected 1"):
        read(save(tmp_path / "x.png"), channels)


def test_small_files_are_decoded_by_one_thread_and_large_ones_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr("pbu_cli.images.worker_threads.ThreadPoolExecutor", Pool)
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
    assert message.count("(not PNG, JPEG, WebP, BMP, TIFF, GIF, PPM or AVIF)") == 3
    assert "2.png" in message
    assert " and 2 more; " in message
    assert "\n" not in message


def test_images_of_formats_that_are_not_read_are_counted_by_suffix(tmp_path: Path) -> None:
    """A photograph that pbu cannot read is not one of `other files ignored`."""
    save(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.svg"):
        (tmp_path / name).write_bytes(b"\0\0\0 ftypheic")
    (found,) = list_groups([str(tmp_path)])
    assert not found.ignored
    with pytest.raises(
        ImageError, match=r"3 of 4 images cannot be read \(2 \.heic, 1 \.svg\): "
    ) as e:
        decode([found], channels=1)
    assert "pbu does not read HEIC: convert it to PNG or JPEG" in str(e.value)
    assert "--skip-bad" in str(e.value)
    assert len(decode([found], channels=1, skip_bad=True).bad) == 3


def test_images_of_another_format_than_their_names_say_are_read_and_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.heic", format="PNG")
    images = decode(list_groups([str(tmp_path)]), channels=1)
    assert [path.name for path in images.misnamed] == ["b.heic"]
    (warning,) = unreadable_images("forget", images)
    assert warning.startswith("1 forget images (1 .heic) hold another format than their names say")


def test_gif_files_with_several_frames_are_named(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(4, 4)) for _ in range(3)]
    save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "b.gif", frames[1])
    (found,) = list_groups([str(tmp_path)])
    images = decode([found], channels=1)
    assert [path.name for path in images.animated] == ["a.gif"]
    assert "1 forget images have several frames" in unreadable_images("forget", images)[0]
    assert (images.pixels[0, 0].numpy() == np.asarray(frames[0])).all()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_group_of_only_bad_images_is_an_error(tmp_path: Path, skip_bad: bool) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_text("no image")
    (found,) = list_groups([str(tmp_path)])
    with pytest.raises(ImageError, match="none of 2 images can be read"):
        decode([found], channels=1, skip_bad=skip_bad)
    if skip_bad:
        whole = group(save(tmp_path / "other" / "x.png"))
        with pytest.raises(ImageError, match="none of 2 images can be read"):
            decode([whole, found], channels=1, skip_bad=True)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (found,) = list_groups([str(tmp_path)])
    assert [path.name for path in found.ignored] == ["pipe.png"]
    (listed,) = list_groups(["-"], listing(*found.paths, tmp_path / "pipe.png"))
    assert own_size([listed]) == (4, 4)
    images = decode([listed], channels=1, skip_bad=True)
    assert {fault.path.name: fault.reason for fault in images.bad} == dict.fromkeys(
        ("link.png", "pipe.png", "zero.png"), "not a regular file"
    )


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_are_reported_and_never_crash(tmp_path: Path, data: st.DataObject) -> None:
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
def test_names_are_escaped_in_messages(tmp_path: Path, name: str | bytes) -> None:
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
def test_files_and_folders_without_permission_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read(path)
    tmp_path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        list_groups([str(tmp_path)])
    tmp_path.chmod(0o700)


def test_a_file_that_vanishes_after_listing_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (found,) = list_groups([str(tmp_path)])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png \(No such file or directory\)"):
        decode([found], channels=1)


def test_an_interrupt_is_not_taken_for_a_bad_image(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    paths = [save(tmp_path / f"{index}.png") for index in range(50)]
    with pytest.raises(KeyboardInterrupt):
        decode([group(*paths)], channels=1, skip_bad=True, progress=interrupt)
