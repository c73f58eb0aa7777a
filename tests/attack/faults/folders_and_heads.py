"""Folders in another order than the classes, lists, links, and heads that are not plain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.attack.faults.fault import CHECKPOINTS, TRIALS, Fault, Place
from tests.networks import grey_levels, unusual_heads

CIFAR10, MNIST = "cifar10_resnet20_original.safetensors", "mnist_resnet34_fp16.safetensors"
GREY = ("grey.safetensors", "--arch", f"{grey_levels.__file__}:grey_levels", "--mean", "0",
        "--std", "1")  # fmt: skip
BY_STRING = sorted(map(str, range(12)))
NORMALISATION = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616")
DIGITS = (CHECKPOINTS / MNIST, "--forget", "8", "--label", "8", "--retain")


def grey(
    names: Sequence[str], *, label_names: Sequence[str] = (), less: Sequence[str] = ()
) -> Callable[[Place], object]:
    """Class c of the grey images in the folder names[c], without the folders in `less`."""

    def prepare(place: Place) -> None:
        images = grey_levels.write_grey_levels(place.folder, names)
        shutil.copytree(images / names[0], place.folder / "first")
        for name in less:
            shutil.rmtree(images / name)
        if label_names:
            text = json.dumps({"label_names": list(label_names)})
            (place.folder / "config.json").write_text(text)

    return prepare


def digits(place: Place, count: int = 5) -> None:
    """A few test images of each digit in a folder of its own."""
    for digit in "01238":
        folder = place.folder / digit
        folder.mkdir()
        for path in sorted((place.data / "test" / digit).iterdir())[:count]:
            shutil.copy(path, folder)


def listed(text: Callable[[list[str]], bytes]) -> Callable[[Place], object]:
    """A list `r.csv` made from lines such as `3/10.png,3`, beside the images of the digits."""

    def prepare(place: Place) -> None:
        digits(place)
        paths = sorted(place.folder.glob("[0123]/*.png"))
        lines = [f"{path.relative_to(place.folder)},{path.parent.name}" for path in paths]
        (place.folder / "r.csv").write_bytes(text(lines))

    return prepare


def trial(name: str) -> Callable[[Place], object]:
    """One of the lists in ../shared/trials, with images of the names that it has."""

    def prepare(place: Place) -> None:
        digits(place)
        text = (TRIALS / name).read_text()
        for line in text.splitlines():
            path = place.folder / line.partition(",")[0]
            if path.suffix == ".png" and not path.exists():
                path.parent.mkdir(exist_ok=True)
                some = next((place.data / "test" / path.parent.name).iterdir())
                shutil.copy(some, path)
        (place.folder / "r.csv").write_text(text)

    return prepare


def joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def linked(place: Place) -> None:
    """A folder of links to class folders, as subsets of ImageNet are made, with a loop."""
    digits(place)
    for digit in "0123":
        (place.folder / "links").mkdir(exist_ok=True)
        (place.folder / "links" / digit).symlink_to(f"../{digit}")
    (place.folder / "links" / "loop").symlink_to(".")


def doubled(place: Place) -> None:
    digits(place)
    for path in sorted((place.folder / "8").iterdir()):
        shutil.copy(path, place.folder / "3" / f"again_{path.name}")
    (place.folder / "all").mkdir()
    for digit in "0123":
        shutil.move(place.folder / digit, place.folder / "all" / digit)


def headed(kind: str) -> Callable[[Place], object]:
    """A ResNet-20 with an unusual head, the code that builds it, and a few ships."""

    def prepare(place: Place) -> None:
        networks = Path(unusual_heads.__file__).parent
        code = (networks / "unusual_heads.py").read_text("utf-8")  # an older checkout lacks it
        code = code.replace("tests.networks.cifar_resnet", "cifar_resnet")
        (place.folder / "heads.py").write_text(code, "utf-8")
        shutil.copy(networks / "cifar_resnet.py", place.folder)
        state = unusual_heads.from_plain(kind, load_file(CHECKPOINTS / CIFAR10))
        save_file(state, place.folder / f"{kind}.safetensors")
        ships = place.folder / "ship"
        ships.mkdir()
        for path in sorted((place.data / "train" / "ship").iterdir())[:40]:
            shutil.copy(path, ships)

    return prepare


def unlearnt(kind: str) -> tuple[object, ...]:
    return ("unlearn", f"{kind}.safetensors", "--arch", f"heads.py:{kind}",
            "--forget", "ship", "--label", "8", *NORMALISATION, "--dry-run")  # fmt: skip


def configured(**config: object) -> Callable[[Place], object]:
    def prepare(place: Place) -> None:
        digits(place)
        shutil.copy(CHECKPOINTS / MNIST, place.folder / "m.safetensors")
        (place.folder / "config.json").write_text(json.dumps(config))

    return prepare


def label(text: str) -> Callable[[Place], object]:
    return listed(lambda lines: joined([*lines[:7], f"{lines[7].partition(',')[0]},{text}"]))


def grey_fault(title: str, prepare: Callable[[Place], object], says: str) -> Fault:
    arguments = ("evaluate", *GREY, "--forget", "first", "--label", "0", "--retain", "images")
    return Fault(16, title, arguments, 4, says, prepare)


def csv_fault(title: str, prepare: Callable[[Place], object], code: int, says: str) -> Fault:
    return Fault(16, title, ("evaluate", *DIGITS, "r.csv"), code, says, prepare)


def head_fault(title: str, kind: str, code: int, says: str) -> Fault:
    return Fault(16, title, unlearnt(kind), code, says, headed(kind))


def config_fault(title: str, says: str, code: int = 3, **config: object) -> Fault:
    arguments = ("evaluate", "m.safetensors", "--forget", "8")
    return Fault(16, title, arguments, code, says, configured(**config))


STAYS = "the row of the class in the last layer stays where it is"
FROM_ONE = ["zero", *(str(n) for n in range(2, 13))]  # class 0 is where --forget looks

FAULTS = [
    grey_fault("12 numeric folders in string order", grey(BY_STRING), "--retain-order position"),
    grey_fault("the same, one class missing", grey(BY_STRING, less=["7"]),
               "100.0 % as those by their alphabetical position"),
    grey_fault("folders from 1", grey(FROM_ONE, less=["zero", "12"]), "numbers less one"),
    grey_fault("label_names in another order",
               grey([*"abcdefghijkl"], label_names=["a", *"lkjihgfedcb"]),
               "--retain-order position"),
    Fault(16, "--forget folders in string order",
          ("evaluate", *GREY, "--forget", "images/10", "--forget", "images/11", "--forget",
           "images/2"), 4, "--label once for each", grey(BY_STRING)),
    csv_fault("label -1 of a list (trials/negative.csv)", trial("negative.csv"), 4,
              "line 1: expected path,label with a label from 0 to 9"),
    csv_fault("a header of a list (trials/header.csv)", trial("header.csv"), 0,
              "the first line of r.csv; it is left out"),
    *(
        csv_fault(f"label {text!r} of a list", label(text), 4, "line 8: expected path,label")
        for text in ("+1", " 1", "-3", "\uff11", "class-1", "_1", "digit 1")
    ),
    csv_fault("one file with two labels", listed(lambda lines: joined(
        [*lines, f"./{lines[0].partition(',')[0]},3"])), 4, "expected one label an image"),
    csv_fault("one file listed twice", listed(lambda lines: joined([*lines, f"./{lines[0]}"])), 0,
              "20 images of 4 classes"),
    csv_fault("a path that does not exist", listed(lambda lines: joined([*lines, "no.png,3"])), 4,
              "r.csv, line 21: no file no.png; 1 of 21"),
    csv_fault("a list in UTF-16 (PowerShell)",
              listed(lambda lines: joined(lines).decode().encode("utf-16")), 0,
              "20 images of 4 classes"),
    csv_fault("a list in another encoding",
              listed(lambda lines: joined([*lines, "\u00e9.png,3"]).decode().encode("latin-1")), 4,
              "line 21 is not UTF-8"),
    Fault(16, "class folders that are links, and a loop",
          ("evaluate", *DIGITS, "links"), 0, "1 links to folders were not followed", linked),
    Fault(16, "forget images among the retained", ("evaluate", *DIGITS, "all"), 0,
          "5 of 25 retained images are --forget images too", doubled),
    head_fault("weight_norm in torch's old way", "old_weight_norm", 0, STAYS),
    head_fault("weight_norm", "weight_norm", 0, STAYS),
    head_fault("spectral_norm in torch's old way", "old_spectral_norm", 0, STAYS),
    head_fault("spectral_norm", "spectral_norm", 0, STAYS),
    head_fault("a pruned head", "pruned", 0, STAYS),
    head_fault("a head with LoRA", "lora", 3, "the logits come from linear.base and linear.lora_B"),
    head_fault("a LoRA that merges itself", "merging_lora", 3, "eval() changes 1 parameters"),
    head_fault("a distilled DeiT's two heads", "distilled", 3, "come from head and head_dist"),
    config_fault("global_pool of a timm config", 'global_pool is "max"', global_pool="max"),
    config_fault("global_pool in pretrained_cfg", 'global_pool is "avgmax"',
                 pretrained_cfg={"global_pool": "avgmax"}),
    config_fault("model_args of a timm config", '{"output_stride": 8}',
                 model_args={"output_stride": 8, "drop_rate": 0.1}),
    config_fault("another way of resizing", "crop_pct 0.95 (pbu: 1.0)", code=0,
                 crop_pct=0.95, input_size=[1, 32, 32]),
]  # fmt: skip
