"""Images batch by batch against all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pbu_cli.errors import ImageError
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import Group
from pbu_cli.images.streaming import ImageStream
from tests.images.made_images import noise, save

COUNT = 11


def groups(folder: Path, bad: tuple[int, ...] = ()) -> list[Group]:
    """Two groups of 11 images in all, those with the numbers `bad` broken; one is a GIF."""
    paths = []
    for number in range(COUNT):
        name = f"{number:02}.gif" if number == 7 else f"{number:02}.png"
        path = save(folder / name, Image.fromarray(noise(6, 5)))
        if number == 7:
            frames = [Image.fromarray(noise(6, 5)) for _ in range(2)]
            frames[0].save(path, save_all=True, append_images=frames[1:])
        if number in bad:
            path.write_bytes(b"\x89PNG")
        paths.append(path)
    return [Group("a", tuple(paths[:4])), Group("b", tuple(paths[4:]))]


@pytest.mark.parametrize("size", [1, 4, 11, 256])
@pytest.mark.parametrize("bad", [(), (0, 5, 10)])
def test_the_batches_are_those_of_all_images_at_once(
    tmp_path: Path, size: int, bad: tuple[int, ...]
) -> None:
    found = groups(tmp_path, bad)
    whole = decode(found, channels=1, size=(6, 5), skip_bad=True)
    stream = ImageStream(found, channels=1, size=(6, 5), skip_bad=True)
    done: list[int] = []
    batches = list(stream.batches(size, done.append))
    expected = whole.pixels.split(size)
    assert [len(pixels) for pixels, _ in batches] == [len(pixels) for pixels in expected]
    assert all(torch.equal(a, b) for (a, _), b in zip(batches, expected, strict=True))
    index = torch.cat([index for _, index in batches])
    assert index.tolist() == [k for k in range(COUNT) if k not in bad]
    owners = torch.tensor([0] * 4 + [1] * 7)
    assert torch.equal(owners[index], whole.group)
    assert stream.files.bad == whole.bad
    assert stream.files.animated == whole.animated == (found[1].paths[3],)
    assert done == sorted(done)
    assert done[-1] == COUNT


@pytest.mark.parametrize("skip_bad", [False, True])
def test_unreadable_images_give_the_error_of_all_images_at_once(
    tmp_path: Path, skip_bad: bool
) -> None:
    """Without --skip-bad any is an error that counts them all; with it, a group without any."""
    found = groups(tmp_path, bad=(0, 1, 2, 3, 9))
    with pytest.raises(ImageError) as expected:
        decode(found, channels=1, size=(6, 5), skip_bad=skip_bad)
    stream = ImageStream(found, channels=1, size=(6, 5), skip_bad=skip_bad)
    taken: list[int] = []
    with pytest.raises(ImageError) as error:
        taken.extend(len(pixels) for pixels, _ in stream.batches(2))
    assert str(error.value) == str(expected.value)
    assert bool(taken) == skip_bad


def test_networks_of_two_channels_have_no_images(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="2 channels asked for"):
        ImageStream(groups(tmp_path), channels=2, size=(6, 5))
