"""Class-index files: the forms that are read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pbu_cli.data.class_index import ClassIndex, read_class_index
from pbu_cli.data.label_names import label_from_name, parse_label
from pbu_cli.errors import InvalidUsage

IDS, NAMES = ("n01440764", "n01443537", "n02012849"), ("tench", "goldfish", "crane")
BOTH, ALONE = ClassIndex(NAMES, IDS), ClassIndex(NAMES)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        (json.dumps({str(k): [IDS[k], NAMES[k]] for k in (2, 0, 1)}), BOTH),
        (json.dumps([list(pair) for pair in zip(IDS, NAMES, strict=True)]), BOTH),
        (json.dumps({str(k): name for k, name in enumerate(NAMES)}), ALONE),
        (json.dumps({name: k for k, name in enumerate(NAMES)}), ALONE),
        (json.dumps(NAMES), ALONE),
        ("tench\ngoldfish\ncrane\n", ALONE),
        ("tench\r\ngoldfish\r\ncrane", ALONE),
        ("\ufefftench\ngoldfish\ncrane", ALONE),
        ("n01440764 tench\nn01443537 goldfish\nn02012849 crane\n", BOTH),
        ("\n".join(IDS), ClassIndex(IDS)),
        ("tench, Tinca\nwhite shark", ClassIndex(("tench, Tinca", "white shark"))),
    ],
)  # fmt: skip
def test_the_forms_in_which_class_indices_are_published(
    tmp_path: Path, text: str, index: ClassIndex
) -> None:
    path = tmp_path / "index"
    path.write_text(text, encoding="utf-8")
    assert read_class_index(path) == index


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it names no class"),
        (b"{}", "it names no class"),
        (b"tench\n\ncrane", "line 2 is empty"),
        (b'{"0": ["n1", "a"], "2": ["n2", "b"]}', "the keys are not the classes"),
        (b'{"0": ["n1", "a"], "0": ["n2", "b"]}', "the key 0 occurs twice"),
        (b'{"0": ["n1", "a", "b"]}', "more than an id and a name"),
        (b'[["n1", "a"], "b"]', "some have one of them"),
        (b'[["n1", "a"], ["n1", "b"]]', "n1 is class 0 and class 1"),
        (b"[1, 2]", "cannot be read"),
        (b"[[[]]]", "cannot be read"),
        (b'{"0": "a", "1": NaN}', "NaN"),
        (b"[" * 100_000, "nested too deeply"),
        (b"tench\xff\n", "not UTF-8"),
    ],
)
def test_what_is_no_class_index_is_a_usage_error_of_one_line(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    path = tmp_path / "in\x1bdex"
    path.write_bytes(data)
    with pytest.raises(InvalidUsage, match="--class-index") as error:
        read_class_index(path)
    assert reason in str(error.value)
    assert str(error.value).isprintable()


def test_only_a_regular_file_of_a_plausible_size_is_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero"), large):
        with pytest.raises(InvalidUsage, match="--class-index"):
            read_class_index(path)


def test_a_class_is_found_by_its_id_and_a_name_of_two_classes_is_no_class() -> None:
    names = (*NAMES, "crane")
    ids = (*IDS, "n03126707")
    assert label_from_name("n03126707", names, 4, ids=ids) == 3
    assert label_from_name("crane", names, 4, ids=ids) is None
    assert label_from_name("Gold-fish", names, 4, ids=ids) is None
    assert label_from_name("Goldfish", names, 4, ids=ids) == 1
    assert parse_label("n02012849", "--label", names, 4, ids) == 2
    with pytest.raises(InvalidUsage, match="the name of 2 classes, 2, 3; expected one class"):
        parse_label("crane", "--label", names, 4, ids)
