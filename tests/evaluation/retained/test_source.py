"""Retained images: folders of classes, lists of paths and labels, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pbu_cli.benchmark.demo_digits import DemoFiles
from tests.conftest import Ran
from tests.networks import grey_levels


def test_a_list_of_paths_and_labels_gives_the_scores_of_the_folders(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    lines = [f"{p},{p.parent.name}\n" for p in sorted(digits.test.rglob("*.png"))]
    listed = tmp_path / "retain.csv"
    listed.write_text("".join(lines))
    scores = [
        json.loads(
            pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain", retain,
                "--json").out
        )["scores"]
        for retain in (digits.test, listed)
    ]  # fmt: skip
    assert scores[0] == scores[1]


@pytest.mark.parametrize("line", ["x.png", "x.png,ten", "x.png,10", "a,b,3", "\0"])
def test_a_list_that_cannot_be_understood_is_an_error_of_one_line(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, line: str
) -> None:
    (tmp_path / "retain.csv").write_text(line)
    done = pbu("evaluate", digits.checkpoint, "--forget", digits.test / "8", "--retain",
               tmp_path / "retain.csv", "-q")  # fmt: skip
    assert done.code == 4
    assert len(done.err.strip().splitlines()) == 1


def test_a_list_may_start_with_a_bom_and_an_impossible_path_is_an_error(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    image = next((digits.test / "3").iterdir())
    listed = tmp_path / "list.csv"
    listed.write_bytes(b"\xef\xbb\xbf" + f"{image},3\n".encode())
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q", "--retain"]
    assert pbu(*command, listed).code == 0
    listed.write_bytes(f"{image},3\nno\0name.png,3\n".encode())
    done = pbu(*command, listed)
    assert done.code == 4, done.err
    assert (
        "line 2: expected path,label" in done.err or "NUL" in done.err
    )  # up to Python 3.10 csv refuses it
    done = pbu(*command, "x" * 5000)
    assert done.code == 4
    assert "unexpected error" not in done.err


def test_folders_without_class_names_are_labelled_in_alphabetical_order(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    names = "abcdefghij"
    real = tmp_path / "real"
    for digit, name in enumerate(names):
        shutil.copytree(digits.test / str(digit), real / name)
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "--json", "-q"]
    by_name = json.loads(pbu(*command, "--retain", digits.test).out)["scores"]
    by_alphabet = json.loads(pbu(*command, "--retain", real).out)
    assert by_alphabet["scores"] == by_name
    assert ("retained", "classes 0 to 9 are a to j") in {
        (entry["what"], entry["value"]) for entry in by_alphabet["inferred"]
    }
    (real / "d").rename(real / "8")
    done = pbu(*command, "--retain", real)  # in alphabetical order it would be 0
    assert done.code == 4
    assert "8 names class 8 but would be 0" in done.err
    (real / "8").rename(real / "d")
    shutil.rmtree(real / "a")
    done = pbu(*command, "--retain", real)
    assert done.code == 4
    assert "alphabetical" in done.err


def evaluated(pbu: Callable[..., Ran], folder: Path, *more: object) -> Ran:
    """`pbu evaluate` on the grey images of 12 classes, of which class 0 is to be forgotten."""
    network = Path(grey_levels.__file__)
    return pbu("evaluate", folder / "grey.safetensors", "--arch", f"{network}:grey_levels",
               "--mean", "0", "--std", "1", "--forget", folder / "images" / FIRST, "--label", "0",
               "--json", *more)  # fmt: skip


FIRST = "0"  # the folder of class 0
BY_STRING = sorted(map(str, range(12)))  # as torchvision's ImageFolder numbers the folders


def a_dr(done: Ran) -> float:
    assert done.code == 0, done.err
    value: float = json.loads(done.out)["scores"][0]["a_dr"]
    return value


def test_numeric_folders_in_string_order_are_noticed(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    images = grey_levels.write_grey_levels(tmp_path, BY_STRING)
    done = evaluated(pbu, tmp_path, "--retain", images, "-q")
    assert done.code == 4, done.out
    assert "recognises 0.0 % of the images of 10 folders" in done.err
    assert "100.0 % as those by their alphabetical position" in done.err
    assert "pass --retain-order position, or --retain-order name" in done.err
    assert a_dr(evaluated(pbu, tmp_path, "--retain", images, "--retain-order", "position")) == 100
    kept = evaluated(pbu, tmp_path, "--retain", images, "--retain-order", "name")
    assert a_dr(kept) == pytest.approx(100 / 11)
    listed = tmp_path / "own.csv"
    lines = [f"images/{n}/{k}.png,{c}\n" for c, n in enumerate(BY_STRING) for k in range(3)]
    listed.write_text("".join(lines))
    assert a_dr(evaluated(pbu, tmp_path, "--retain", listed)) == 100
    shutil.rmtree(images / "7")  # not all classes have a folder
    assert "pass --retain-order position" in evaluated(pbu, tmp_path, "--retain", images).err
    assert a_dr(evaluated(pbu, tmp_path, "--retain", images, "--retain-order", "position")) == 100


def test_folders_numbered_from_one_are_noticed(pbu: Callable[..., Ran], tmp_path: Path) -> None:
    """Class 0, to be forgotten, has its images elsewhere; class 11 has none."""
    names = [FIRST, *(f"{n + 1:02}" for n in range(1, 12))]
    images = grey_levels.write_grey_levels(tmp_path, names)
    retain = tmp_path / "retain"
    for n in range(2, 12):
        shutil.copytree(images / f"{n:02}", retain / str(n))
    done = evaluated(pbu, tmp_path, "--retain", retain)
    assert done.code == 4
    assert "100.0 % as those by their numbers less one" in done.err
    settled = evaluated(pbu, tmp_path, "--retain", retain, "--retain-order", "one-based")
    assert a_dr(settled) == 100


def test_labels_of_a_list_that_start_at_one_are_noticed(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    images = grey_levels.write_grey_levels(tmp_path, BY_STRING)
    listed = tmp_path / "from_one.csv"
    lines = [f"{images}/{name}/0.png,{c + 1}\n" for c, name in enumerate(BY_STRING[1:11], start=1)]
    listed.write_text("path,label\n" + "".join(lines))
    done = evaluated(pbu, tmp_path, "--retain", listed)
    assert done.code == 4
    assert "100.0 % as those by their numbers less one: pass --retain-order one-based" in done.err
    settled = evaluated(pbu, tmp_path, "--retain", listed, "--retain-order", "one-based")
    assert a_dr(settled) == 100
    assert ("header", "path,label") in {
        (entry["what"], entry["value"]) for entry in json.loads(settled.out)["inferred"]
    }


def test_class_names_in_another_order_than_the_folders_are_noticed(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    names = [FIRST, *"bcdefghijkl"]
    images = grey_levels.write_grey_levels(tmp_path, names)
    (tmp_path / "config.json").write_text(json.dumps({"label_names": [FIRST, *names[:0:-1]]}))
    done = evaluated(pbu, tmp_path, "--retain", images)
    assert done.code == 4
    assert "--retain-order position" in done.err
    assert a_dr(evaluated(pbu, tmp_path, "--retain", images, "--retain-order", "position")) == 100


def test_an_order_that_does_not_fit_the_folders_is_refused(
    pbu: Callable[..., Ran], digits: DemoFiles
) -> None:
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "-q", "--retain",
               digits.test, "--retain-order"]  # fmt: skip
    done = pbu(*command, "one-based")
    assert done.code == 4
    assert "expected name or position" in done.err
    assert pbu(*command, "position").code == 0


def test_forget_folders_in_string_order_are_noticed(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    """Without --original the predictions do not bind a single folder, but an order is an order."""
    images = grey_levels.write_grey_levels(tmp_path, BY_STRING)
    command = ["evaluate", tmp_path / "grey.safetensors", "--mean", "0", "--std", "1", "--arch",
               f"{grey_levels.__file__}:grey_levels", "-q"]  # fmt: skip
    several = [word for name in ("10", "11", "2") for word in ("--forget", images / name)]
    done = pbu(*command, *several)
    assert done.code == 4
    assert "--forget: the network recognises 0.0 %" in done.err
    settled = [word for label in ("2", "3", "4") for word in ("--label", label)]
    assert pbu(*command, *several, *settled).code == 0
    chosen = tmp_path / "chosen"
    for name in ("10", "11", "2"):
        shutil.copytree(images / name, chosen / name)
    assert pbu(*command, "--forget", chosen).code == 4


def test_a_forget_image_among_the_retained_ones_is_a_warning(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    shutil.copytree(digits.test, tmp_path / "test")
    for number, path in enumerate(sorted((digits.test / "8").iterdir())[:2]):
        (tmp_path / "test" / "3" / f"eight{number}.png").symlink_to(path)
    command = ["evaluate", digits.checkpoint, "--forget", digits.test / "8", "--json", "--retain"]
    found = json.loads(pbu(*command, tmp_path / "test").out)["warnings"]
    assert [text[:40] for text in found] == ["2 of 408 retained images are --forget im"]
    assert json.loads(pbu(*command, digits.test).out)["warnings"] == []


def test_class_folders_that_are_links_are_retained(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    for digit in range(10):
        (tmp_path / str(digit)).symlink_to(digits.test / str(digit))
    command = ["evaluate", digits.checkpoint, "--json", "-q"]
    linked = pbu(*command, "--forget", tmp_path / "8", "--retain", tmp_path)
    real = pbu(*command, "--forget", digits.test / "8", "--retain", digits.test)
    assert json.loads(linked.out)["scores"] == json.loads(real.out)["scores"]
    (tmp_path / "again").symlink_to(tmp_path)
    done = pbu(*command, "--forget", tmp_path / "8", "--retain", tmp_path)
    assert json.loads(done.out)["scores"] == json.loads(real.out)["scores"]
    assert json.loads(done.out)["warnings"][0].startswith("1 links to folders were not followed")


def test_members_in_string_order_are_noticed(pbu: Callable[..., Ran], tmp_path: Path) -> None:
    """Folders 2, 3 and 8 are named like the forgotten classes and hold classes 4, 5 and 10."""
    images = grey_levels.write_grey_levels(tmp_path, BY_STRING)
    forget = [("10", "2"), ("11", "3"), ("6", "8")]  # folder and class
    done = pbu("evaluate", tmp_path / "grey.safetensors", "--mean", "0", "--std", "1", "--arch",
               f"{grey_levels.__file__}:grey_levels", "-q", "--audit",
               *(word for folder, label in forget
                 for word in ("--forget", images / folder, "--label", label)),
               *(word for name in "238" for word in ("--members", images / name)))  # fmt: skip
    assert done.code == 4, done.err
    assert "--members: the network recognises 0.0 % of the images of 3 folders" in done.err


def test_a_right_order_is_not_doubted(pbu: Callable[..., Ran], tmp_path: Path) -> None:
    """The folders are numbered by class, as `--retain` takes them."""
    images = grey_levels.write_grey_levels(tmp_path, list(map(str, range(12))))
    assert a_dr(evaluated(pbu, tmp_path, "--retain", images)) == 100


IDS = [f"n{1000 + 7 * c:08}" for c in range(12)]  # in the order of the classes, as WordNet ids are


def class_index(folder: Path) -> Path:
    path = folder / "index.json"
    path.write_text(json.dumps({str(c): [IDS[c], f"grey {c % 11}"] for c in range(12)}))
    return path


def test_folders_of_all_wordnet_ids_are_the_classes_in_their_order(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    images = grey_levels.write_grey_levels(tmp_path, ["0", *IDS[1:]])
    (images / "0").rename(images / IDS[0])
    (images / "0").symlink_to(images / IDS[0])
    retain = tmp_path / "retain"
    retain.mkdir()
    for name in IDS:
        (retain / name).symlink_to(images / name)
    assert a_dr(evaluated(pbu, tmp_path, "--retain", retain)) == 100


def test_folders_of_some_wordnet_ids_need_a_class_index(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    images = grey_levels.write_grey_levels(tmp_path, ["0", *IDS[1:]])
    retain = tmp_path / "retain"
    for c in (2, 5, 11):
        shutil.copytree(images / IDS[c], retain / IDS[c])
    done = evaluated(pbu, tmp_path, "--retain", retain, "-q")
    assert done.code == 4
    assert f"{IDS[2]} names no class, and neither do 2 others" in done.err
    assert "or pass --class-index FILE" in done.err
    assert len(done.err.splitlines()) == 1
    index = ("--class-index", class_index(tmp_path))
    found = evaluated(pbu, tmp_path, "--retain", retain, *index)
    assert a_dr(found) == 100
    assert set(json.loads(found.out)["scores"][0]["per_class"]) == {"0", "2", "5", "11"}
    (retain / IDS[5]).rename(retain / "grey 5")
    assert a_dr(evaluated(pbu, tmp_path, "--retain", retain, *index)) == 100
    listed = tmp_path / "list.csv"
    listed.write_text(f"retain/{IDS[2]}/0.png,{IDS[2]}\nretain/{IDS[11]}/1.png,11\n")
    assert a_dr(evaluated(pbu, tmp_path, "--retain", listed, *index)) == 100
    (retain / "grey 5").rename(retain / "grey 0")  # the name of classes 0 and 11
    done = evaluated(pbu, tmp_path, "--retain", retain, *index, "-q")
    assert done.code == 4
    assert "grey 0 names no class" in done.err
    assert "--class-index" not in done.err
    assert len(done.err.splitlines()) == 1


def test_a_class_index_of_another_network_is_a_usage_error(
    pbu: Callable[..., Ran], tmp_path: Path
) -> None:
    images = grey_levels.write_grey_levels(tmp_path, list(map(str, range(12))))
    index = tmp_path / "index.txt"
    index.write_text("\n".join(IDS[:10]))
    done = evaluated(pbu, tmp_path, "--retain", images, "--class-index", index, "-q")
    assert done.code == 2
    assert "10 classes, the network has 12" in done.err
