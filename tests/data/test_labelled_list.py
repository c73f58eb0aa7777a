"""CSV files of paths and labels: what a label may be, headers, doubles, and missing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pbu_cli.data.labelled_list import LabelledList, read_labelled_list
from pbu_cli.errors import ImageError
from tests.images.made_images import save

NAMES = ("cat", "dog", "7", "same", "same")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "images" / name)
    (tmp_path / "images" / "link.png").symlink_to("a.png")
    return tmp_path / "list.csv"


def read(listed: Path, text: str | bytes, skip_missing: bool = False) -> LabelledList:
    listed.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labelled_list(listed, NAMES, 5, skip_missing=skip_missing)


def found(listed: Path, text: str | bytes) -> dict[int, list[str]]:
    result = read(listed, text)
    return {
        label: [path.name for path in group.paths]
        for label, group in zip(result.labels, result.groups, strict=True)
    }


def test_a_label_is_an_index_or_an_exact_name(listed: Path) -> None:
    text = "images/a.png,4\r\nimages/b.png,dog\n\nimages/c.png,7\n"
    assert found(listed, text) == {1: ["b.png"], 2: ["c.png"], 4: ["a.png"]}


@pytest.mark.parametrize(
    "label",
    ["-1", "+1", " 1", "1 ", "1.0", "1e0", "\uff10", "class-1", "class1", "5", "Dog", "", "same",
     "0x1", "1_0", "\u0661", "99999999999999999999", "NaN", "True"],
)  # fmt: skip
def test_anything_else_is_an_error_that_names_the_line(listed: Path, label: str) -> None:
    with pytest.raises(ImageError, match=r"list\.csv, line 2: .*label from 0 to 4") as error:
        read(listed, f"images/a.png,1\nimages/b.png,{label}\n")
    assert f"got images/b.png,{label}" in str(error.value)


@pytest.mark.parametrize("header", ["path,label", "filename,class", "image,label ", "\ufeffp,l"])
def test_a_header_is_left_out_and_kept_for_a_note(listed: Path, header: str) -> None:
    (listed.parent / "image").mkdir()
    result = read(listed, f"{header}\nimages/a.png,1\n")
    assert result.header == header.removeprefix("\ufeff")
    assert result.labels == (1,)


@pytest.mark.parametrize(
    "text",
    ["images/a.png,ship\n", "gone.png,ship\n", "gone.png,9\n", "path,9\n", "path,-1\n",
     "images/a.png,1\npath,label\n", "id,path,label\n"],
)  # fmt: skip
def test_what_may_be_data_is_no_header(listed: Path, text: str) -> None:
    with pytest.raises(ImageError, match=r"line \d: expected path,label"):
        read(listed, f"{text}images/b.png,1\n")


def test_a_file_counts_once_and_has_one_label(listed: Path) -> None:
    double = "images/a.png,1\n./images/../images/a.png,1\nimages/link.png,1\nimages/b.png,0\n"
    assert found(listed, double) == {0: ["b.png"], 1: ["a.png"]}
    for other in ("images/a.png", "images//a.png", "images/link.png"):
        with pytest.raises(ImageError, match=r"line 3: .* has the label 2 here and 1 in line 1"):
            read(listed, f"images/a.png,dog\nimages/b.png,0\n{other},7\n")


def test_missing_paths_are_reported_with_the_list_and_the_line(listed: Path) -> None:
    text = "images/a.png,1\n\ngone/x\x1b.png,2\ngone/y.png,1\n"
    with pytest.raises(ImageError) as error:
        read(listed, text)
    assert str(error.value).startswith(f"{listed}, line 3: no file gone/x\\x1b.png; 2 of 3 paths")
    assert f"relative to {listed.parent}" in str(error.value)
    assert read(listed, text, skip_missing=True).labels == (1, 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_may_have_a_byte_order_mark(listed: Path, encoding: str) -> None:
    assert found(listed, "images/a.png,1\r\n".encode(encoding)) == {1: ["a.png"]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("images/a.png,1\nimages/é.png,1\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("images/a.png,1\n".encode("utf-16-le"), "without a byte-order mark"),
        (b"", "lists no image"),
        (b"path,label\n", "lists no image"),
        (b"images/a\0.png,1\n", ""),
    ],
)
def test_what_is_no_text_of_paths_and_labels_is_named(
    listed: Path, data: bytes, expected: str
) -> None:
    with pytest.raises(ImageError, match=rf"list\.csv.*{expected}"):
        read(listed, data)
