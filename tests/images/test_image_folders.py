"""Listing of folders and of lists of paths: their order, their groups, and what is ignored."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pbu_cli.errors import ImageError, InvalidUsage
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import Group, list_groups, repeated_folders, split_by_subfolder
from tests.images.made_images import listing, save


def names(found: Group) -> list[str]:
    assert found.root is not None
    return [str(path.relative_to(found.root)) for path in found.paths]


@given(order=st.permutations(range(8)), style=st.sampled_from(["absolute", "dots", "relative"]))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_list_in_any_order_gives_the_group_of_its_folder(
    tmp_path: Path, order: list[int], style: str
) -> None:
    stems = ["10", "9", "a/1", "a-b/1", "B/2", "ä", "z/z/z", "a/10"]
    for stem in stems:
        if not (tmp_path / f"{stem}.png").exists():
            save(tmp_path / f"{stem}.png")
    (folder,) = list_groups([str(tmp_path)])
    base = {
        "absolute": str(tmp_path),
        "dots": f"{tmp_path}//./a/..",
        "relative": os.path.relpath(tmp_path),
    }[style]
    lines = [f"{base}/{stems[index]}.png" for index in order]
    (listed,) = list_groups(["-"], listing(*lines, *lines[:3]))
    assert listed.paths == folder.paths
    assert len(folder.paths) == 8
    assert listed.name == ""


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    stems = [f"{index:03d}" for index in range(60)]
    random.Random(1).shuffle(stems)
    for number, stem in enumerate(stems):
        save(tmp_path / f"{stem}.png", Image.new("L", (1, 1), number))
    (found,) = list_groups([str(tmp_path)])
    assert names(found) == [f"{index:03d}.png" for index in range(60)]
    values = decode([found], channels=1).pixels.flatten().tolist()
    assert [stems[value] for value in values] == sorted(stems)


def test_nested_folders_are_listed_and_clutter_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("b.png", "a/x.JPG", "a/deep/er/y.webp"):
        save(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "._b.png", ".git/x.png", "__MACOSX/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("clutter")
    (tmp_path / "labels.txt").write_text("8")
    (tmp_path / "a" / "notes.md").write_text("notes")
    (tmp_path / "folder.png").mkdir()
    (found,) = list_groups([str(tmp_path)])
    assert names(found) == ["a/deep/er/y.webp", "a/x.JPG", "b.png"]
    assert [path.name for path in found.ignored] == ["notes.md", "labels.txt"]
    assert found.name == tmp_path.name


@pytest.mark.parametrize("source", [".", "../class8", "./", ""])
def test_a_source_is_named_after_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    save(tmp_path / "class8" / "x.png")
    monkeypatch.chdir(tmp_path / "class8")
    if source:
        assert list_groups([source])[0].name == "class8"
    else:
        with pytest.raises(ImageError, match="name is empty"):
            list_groups([source])


def test_a_linked_folder_is_named_as_the_user_names_it(tmp_path: Path) -> None:
    save(tmp_path / "store" / "x.png")
    (tmp_path / "class8").symlink_to("store")
    (found,) = list_groups([str(tmp_path / "class8")])
    assert found.name == "class8"
    assert found.paths == (tmp_path.resolve() / "store" / "x.png",)


def test_several_sources_keep_their_order(tmp_path: Path) -> None:
    for name in ("9/a.png", "10/b.png", "3/c.png"):
        save(tmp_path / name)
    sources = [str(tmp_path / name) for name in ("9", "10", "3")]
    assert [found.name for found in list_groups(sources)] == ["9", "10", "3"]


@pytest.mark.parametrize("other", ["all", "all/8", "link", "-"])
def test_an_image_in_two_sources_is_an_error(tmp_path: Path, other: str) -> None:
    path = save(tmp_path / "all" / "8" / "x.png")
    (tmp_path / "link").symlink_to("all")
    sources = [str(tmp_path / "all"), other if other == "-" else str(tmp_path / other)]
    with pytest.raises(ImageError, match=r"x\.png: in .*all and in"):
        list_groups(sources, listing(path))


def test_a_folder_of_folders_is_split_into_groups(tmp_path: Path) -> None:
    for name in ("2/a.png", "10/b.png", "10/more/c.png", "a-b/d.png"):
        save(tmp_path / name)
    (tmp_path / "10" / "notes.txt").write_text("")
    (tmp_path / "labels.txt").write_text("")
    (found,) = list_groups([str(tmp_path)])
    inner = split_by_subfolder(found)
    assert [g.name for g in inner] == ["10", "2", "a-b"]
    assert [names(g) for g in inner] == [["b.png", "more/c.png"], ["a.png"], ["d.png"]]
    assert [len(g.ignored) for g in inner] == [1, 0, 0]
    assert sorted(p for g in inner for p in g.paths) == sorted(found.paths)
    assert split_by_subfolder(inner[0]) == (inner[0],)  # not split: it has an image beside `more`


def test_flat_folders_and_lists_do_not_split(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    save(tmp_path / "3" / "y.png")
    (flat,) = list_groups([str(tmp_path)])
    (listed,) = list_groups(["-"], listing(path))
    assert split_by_subfolder(flat) == (flat,)
    assert split_by_subfolder(listed) == (listed,)


def test_a_list_may_end_lines_in_any_way(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{index}.png").resolve() for index in range(3)]
    for end in (b"\n", b"\r\n", b"\n\n", b"\0"):
        assert list(list_groups(["-"], listing(*paths, end=end))[0].paths) == paths
    newline = save(tmp_path / "a\nb.png").resolve()
    assert list_groups(["-"], listing(newline, end=b"\0"))[0].paths == (newline,)


def test_a_list_ignores_what_a_folder_ignores(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png")
    lines = [tmp_path, path, tmp_path / ".DS_Store", tmp_path / "._x.png", tmp_path / "l.txt"]
    (found,) = list_groups(["-"], listing(*lines))
    assert found.paths == (path.resolve(),)
    assert len(found.ignored) == 2


@pytest.mark.parametrize(
    ("sources", "stdin"), [(["-"], None), (["-", "-"], io.BytesIO(b"x.png\n"))]
)
def test_stdin_must_be_open_and_named_once(sources: list[str], stdin: io.BytesIO | None) -> None:
    with pytest.raises(InvalidUsage, match="expected once"):
        list_groups(sources, stdin)


def test_a_source_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "la\x1bbels.txt").write_text("")
    file = save(tmp_path / "x.png")
    for source, expected in (
        (tmp_path / "empty", "empty: empty; expected PNG"),
        (tmp_path / "other", r"nothing but 1 other files, first la\\x1bbels\.txt; expected PNG"),
        (tmp_path / "nowhere", "No such file or directory; expected a folder of images, or -"),
        (file, "Not a directory; expected a folder of images, or -"),
        ("-", "stdin: empty; expected PNG"),
        ("a" * 5000, "File name too long; expected a folder"),
    ):
        with pytest.raises(ImageError, match=expected):
            list_groups([str(source)], io.BytesIO(b"\n"))


def test_links_to_files_count_and_dangling_ones_are_bad_images(tmp_path: Path) -> None:
    target = save(tmp_path / "store" / "x.png")
    folder = tmp_path / "forget"
    folder.mkdir()
    (folder / "link.png").symlink_to(target)
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "long").symlink_to("x" * 300)
    (found,) = list_groups([str(folder)])
    assert names(found) == ["dangling.png", "link.png", "loop.png"]
    assert [path.name for path in found.ignored] == ["long"]
    images = decode([found], channels=1, skip_bad=True)
    assert len(images.pixels) == 1
    assert "No such file" in images.bad[0].reason
    assert "loop.png" in str(images.bad[1])


def test_links_to_folders_are_followed_and_make_class_folders(tmp_path: Path) -> None:
    """As subsets of ImageNet are made: a tree of links to the class folders of the whole."""
    for name in ("n01/a.png", "n01/deep/b.png", "n02/c.png", "n03/d.png"):
        save(tmp_path / "whole" / name)
    subset = tmp_path / "subset"
    (subset / "n04").mkdir(parents=True)
    for name in ("n01", "n03"):
        (subset / name).symlink_to(tmp_path / "whole" / name)
    (subset / "n04" / "part").symlink_to(tmp_path / "whole" / "n02")
    (found,) = list_groups([str(subset)])
    assert names(found) == ["n01/a.png", "n01/deep/b.png", "n03/d.png", "n04/part/c.png"]
    assert [inner.name for inner in split_by_subfolder(found)] == ["n01", "n03", "n04"]
    assert found.repeated == () == found.ignored
    assert repeated_folders([found]) == []


@pytest.mark.parametrize("target", [".", "..", "a", "a/b", "../forget", "/", "../up", "../deep/in"])
def test_a_loop_of_links_ends_and_each_folder_is_listed_once(tmp_path: Path, target: str) -> None:
    forget = tmp_path / "forget"
    for name in ("forget/a/b/x.png", "forget/a/y.png", "deep/in/z.png"):
        save(tmp_path / name)
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "deep" / "in" / "back").symlink_to("../../forget")
    (tmp_path / "deep" / "in" / "over").symlink_to("../..")
    (forget / "a" / "b" / "link").symlink_to(forget / target)
    (found,) = list_groups([str(forget)])
    inside = ["a/b/x.png", "a/y.png"]
    through = ["a/b/link/z.png"] if target == "../deep/in" else []
    assert names(found) == sorted(inside + through)
    assert len(found.repeated) == (2 if through else 1)
    assert set(found.repeated) <= set(found.ignored)
    (warning,) = repeated_folders([found])
    assert warning.startswith(f"{len(found.repeated)} links to folders were not followed, first")


def test_a_real_folder_wins_over_a_link_to_it_and_the_first_of_two_links_counts(
    tmp_path: Path,
) -> None:
    save(tmp_path / "all" / "3" / "x.png")
    (tmp_path / "all" / "1").symlink_to("3")
    save(tmp_path / "store" / "y.png")
    for name in ("9", "10"):
        (tmp_path / "all" / name).symlink_to("../store")
    (found,) = list_groups([str(tmp_path / "all")])
    assert names(found) == ["10/y.png", "3/x.png"]
    assert [path.name for path in found.repeated] == ["1", "9"]


def test_an_image_in_two_sources_is_found_behind_links(tmp_path: Path) -> None:
    save(tmp_path / "store" / "x.png")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "8").symlink_to("../store")
    with pytest.raises(ImageError, match=r"x\.png: in .*all and in"):
        list_groups([str(tmp_path / "all"), str(tmp_path / "store")])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_a_list_may_have_a_byte_order_mark_or_be_in_utf_16(
    tmp_path: Path, encoding: str, end: str
) -> None:
    paths = [save(tmp_path / name).resolve() for name in ("a.png", "zéro.png")]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = mark + "".join(f"{path}{end}" for path in paths)
    assert list(list_groups(["-"], io.BytesIO(text.encode(encoding)))[0].paths) == paths


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a.png\nb.png\n".encode("utf-16-le"), "without a byte-order mark"),
        ("a.png\n".encode("utf-16-be"), "without a byte-order mark"),
        (b"\xff\xfea.png\n\0", "line 2 is not UTF-16"),
        (b"\xff\xfe\x00\xd8a\0", "is not UTF-16"),
    ],
)
def test_a_list_in_another_encoding_is_named(data: bytes, expected: str) -> None:
    with pytest.raises(ImageError, match=f"stdin: .*{expected}.*save the list as UTF-8"):
        list_groups(["-"], io.BytesIO(data))


def test_a_list_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbu_cli.images.image_folders.MAX_LIST_BYTES", 1000)
    with pytest.raises(ImageError, match="more than 1,000 bytes"):
        list_groups(["-"], io.BytesIO(b"a.png\n" * 200))
