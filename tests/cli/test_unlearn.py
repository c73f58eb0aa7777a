"""`pbu unlearn` on a real checkpoint."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pbu_cli.benchmark.demo_digits import DemoFiles
from pbu_cli.images.decoding import decode
from pbu_cli.images.image_folders import list_groups, split_by_subfolder
from pbu_cli.settings import DEFAULT
from pbu_cli.settings import FAST as FAST_SETTINGS
from pbu_cli.unlearning.model_inversion import synthesise_anchors
from tests.cli.conftest import FAST, sha256
from tests.conftest import Ran

UNHEARD = """
from torch.nn.functional import linear
from pbu_cli.benchmark.demo_digits import ARCHITECTURE
from pbu_cli.models.sources.torchvision_build import build
def unheard():
    network = build(ARCHITECTURE)
    *body, head = network.children()
    def forward(x):
        for layer in body:
            x = layer(x)
        return linear(x.flatten(1), head.weight, head.bias)
    network.forward = forward
    return network
"""


NAMED = """
from torch import Tensor, nn


class Named(nn.Module):
    '''Calls its layers by the names of their arguments.'''

    def __init__(self, layer: str):
        super().__init__()
        self.layer = layer
        self.spare = nn.Linear(2, 2)
        self.conv = nn.Conv2d(1, 8, 3, 2, 1)
        self.bn = nn.BatchNorm2d(8)
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def call(self, name: str, x: Tensor) -> Tensor:
        layer = getattr(self, name)
        return layer(input=x) if name == self.layer else layer(x)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.call("bn", self.call("conv", x)).relu()
        return self.call("fc", self.call("layer4", maps).mean((2, 3)))


def conv(): return Named("conv")
def bn(): return Named("bn")
def layer4(): return Named("layer4")
def fc(): return Named("fc")
"""


def test_the_shortest_call_forgets_the_class_and_keeps_the_others(
    pbu: Callable[..., Ran], digits: DemoFiles, unlearned: Any
) -> None:
    done = pbu(
        "evaluate", unlearned, "--forget", digits.test / "8", "--retain", digits.test,
        "--original", digits.checkpoint, "--json",
    )  # fmt: skip
    assert done.code == 0
    scores = {score["name"]: score for score in json.loads(done.out)["scores"]}
    assert scores["original"]["a_df"] > 90
    assert scores["checkpoint"]["a_df"] <= 2.5  # one of 44
    assert scores["checkpoint"]["a_dr"] >= scores["original"]["a_dr"] - 1
    assert scores["original, head mask"]["a_df"] == 0


def test_the_output_keeps_names_shapes_dtypes_and_every_buffer(
    digits: DemoFiles, unlearned: Any
) -> None:
    before, after = load_file(digits.checkpoint), load_file(unlearned)
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("layer4.", "fc.")) for name in moved)
    assert not any("running" in name or "num_batches" in name for name in moved)
    others = torch.arange(10) != 8  # of the head, the class's row alone
    assert torch.equal(before["fc.weight"][others], after["fc.weight"][others])
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    assert all(before[n].dtype == after[n].dtype for n in before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_they_came(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, dtype: Any
) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(digits.checkpoint).items()
    }
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source, {"author": "someone"})
    done = pbu(
        "unlearn", "--fast", source, "--forget", digits.train / "8", "-o", output, "--json", "-q"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["result"]["a_df"] <= 0.5
    after = load_file(output)
    for name, tensor in tensors.items():
        assert after[name].dtype == tensor.dtype
        if not name.startswith(("layer4.", "fc.")):
            assert torch.equal(after[name], tensor), name


def test_a_wrapped_pickle_with_a_prefix_keeps_its_names(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    tensors = {f"module.{name}": t for name, t in load_file(digits.checkpoint).items()}
    torch.save({"state_dict": tensors, "best": 0.9}, tmp_path / "model.th")
    done = pbu("unlearn", tmp_path / "model.th", "--forget", digits.train / "8", *FAST, "-q")
    assert done.code in (0, 5)
    assert load_file(tmp_path / "model.unlearned.safetensors").keys() == tensors.keys()


@pytest.mark.slow
def test_the_same_command_and_any_order_of_the_list_write_the_same_bytes(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = digits.train / "8"
    paths = sorted(folder.iterdir())
    sums = set()
    for number, order in enumerate((None, None, paths, paths[::-1], paths[40:] + paths[:40])):
        output = tmp_path / f"{number}.safetensors"
        if order is not None:
            lines = io.BytesIO("".join(f"{path}\n" for path in order).encode())
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
        source = folder if order is None else "-"
        done = pbu("unlearn", digits.checkpoint, "--forget", source, "-o", output, *FAST, "-q",
                   "--label", "8")  # fmt: skip
        assert done.code in (0, 5), done.err
        sums.add(sha256(output))
    assert len(sums) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "preset", "anchors"),
    [([], DEFAULT, DEFAULT.anchors), (["--fast"], FAST_SETTINGS, 0),
     (["--delta", "0"], FAST_SETTINGS, 0),
     (["--anchors", "100", "--zeta", "1"], DEFAULT, 100)],
)  # fmt: skip
def test_what_goes_together_is_chosen_together(
    pbu: Callable[..., Ran],
    digits: DemoFiles,
    tmp_path: Path,
    flags: list[str],
    preset: Any,
    anchors: Any,
) -> None:
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--json",
               "-o", tmp_path / "o.safetensors", "--steps", "5", *flags)  # fmt: skip
    settings = json.loads(done.out)["settings"]
    assert settings["anchors"] == anchors
    assert settings["layers"] == preset.layers
    assert settings["schedule"]["tau"] == preset.schedule.tau
    asked = dict(zip((flag[2:] for flag in flags[::2]), flags[1::2], strict=False))
    for name, value in vars(preset.weights).items():
        assert settings["weights"][name] == float(asked.get(name, value))


@pytest.mark.parametrize(
    "flags",
    [["--fast", "--anchors", "9"], ["--delta", "0", "--zeta", "1"], ["--anchors", "0"],
     ["--epsilon", "0", "--zeta", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_anchors_and_their_weights_go_together(
    pbu: Callable[..., Ran], digits: DemoFiles, flags: list[str]
) -> None:
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", *flags)
    assert done.code == 2
    assert "--fast" in done.err


@pytest.mark.parametrize("count", [1, 15])
def test_fewer_anchors_than_have_statistics_are_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, count: int
) -> None:
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--anchors", count)
    assert done.code == 2
    assert f"--anchors {count}: expected 0 or at least 16" in done.err


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_head_that_is_never_called_is_said_before_anything_is_made(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "own.py").write_text(UNHEARD)
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "-o",
               tmp_path / "o.safetensors", "--arch", f"{tmp_path / 'own.py'}:unheard"]  # fmt: skip
    done = pbu(*command, *flags)
    assert done.code == 3
    assert "fc is called 0 times" in done.err
    assert "anchors" not in done.err
    assert pbu(*command, "--dry-run", "--fast").code == 0


@pytest.mark.slow
def test_two_classes_by_two_folders_and_by_one_folder_of_folders(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    both = tmp_path / "gone"
    for digit in "38":
        shutil.copytree(digits.train / digit, both / digit)
    sums = set()
    for number, flags in enumerate(
        (["--forget", both / "3", "--forget", both / "8"], ["--forget", both])
    ):
        output = tmp_path / f"{number}.safetensors"
        done = pbu("unlearn", digits.checkpoint, *flags, "-o", output, "--json", "-q")
        assert done.code == 0, done.err
        assert json.loads(done.out)["result"]["a_df"] <= 0.5
        sums.add(sha256(output))
    assert len(sums) == 1


@pytest.mark.slow
def test_a_second_class_is_forgotten_and_the_first_stays_so(
    pbu: Callable[..., Ran],
    digits: DemoFiles,
    unlearned: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No anchor is made of a class that is gone: the first run recorded it."""
    asked: list[list[int]] = []

    def spied(model: Any, head: Any, seeds: Any, retained_classes: Any, **more: Any) -> Any:
        asked.append(retained_classes.nonzero().flatten().tolist())
        return synthesise_anchors(model, head, seeds, retained_classes, **more)

    monkeypatch.setattr("pbu_cli.pipeline.anchors.synthesise_anchors", spied)
    output = tmp_path / "second.safetensors"
    done = pbu("unlearn", unlearned, "--forget", digits.train / "3", "-o", output, "-q")
    assert done.code == 0, done.err
    assert asked == [[0, 1, 2, 4, 5, 6, 7, 9]]
    for digit in "38":
        done = pbu("evaluate", output, "--forget", digits.test / digit, "--label", digit,
                   "--require", "A_Df<=0.5")  # fmt: skip
        assert done.code == 0, done.out


def test_a_run_that_does_not_forget_says_so_with_exit_code_5(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    done = pbu("unlearn", "--fast", digits.checkpoint, "--forget", digits.train / "8", "--steps",
               "1", "-o", output)  # fmt: skip
    assert done.code == 5
    assert "still recognised" in done.err
    assert output.exists()


def test_a_folder_that_the_network_knows_nothing_of_is_warned_of(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    """Named 5, holding a few of each other class: no majority that would contradict the name."""
    folder = tmp_path / "5"
    folder.mkdir()
    for digit in "0123789":
        for path in sorted((digits.train / digit).iterdir())[:4]:
            shutil.copy(path, folder)
    done = pbu("unlearn", digits.checkpoint, "--forget", folder, "--dry-run", "--json", "-q",
               "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.code == 0
    assert done.err.startswith("warning: 5: the folder's name says class 5, but the model predicts")
    assert json.loads(done.out)["warnings"][0] in done.err


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv", "bn", "layer4", "fc"])
def test_a_network_may_call_its_layers_by_the_names_of_arguments(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, layer: str
) -> None:
    own = tmp_path / "own.py"
    own.write_text(NAMED)
    torch.manual_seed(0)
    save_file(runpy.run_path(str(own))[layer]().state_dict(), tmp_path / "m.safetensors")
    done = pbu("unlearn", tmp_path / "m.safetensors", "--forget", digits.train / "8",
               "--label", "2", "--arch", f"{own}:{layer}", "--mean", "0.5", "--std", "0.5",
               "--anchors", "16", "--steps", "5", "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.code in (0, 5), done.err
    assert (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("command", ["unlearn", "fisher"])
def test_layers_that_no_answer_depends_on_are_refused(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path, command: str
) -> None:
    own = tmp_path / "own.py"
    own.write_text(NAMED)
    save_file(runpy.run_path(str(own))["conv"]().state_dict(), tmp_path / "m.safetensors")
    done = pbu(command, tmp_path / "m.safetensors", "--forget", digits.train / "8", "--label", "2",
               "--arch", f"{own}:conv", "--layers", "spare")  # fmt: skip
    assert done.code == 2
    assert "depend on none of the 2 parameters" in done.err


def test_what_metadata_call_forgotten_is_said_where_it_steers_the_anchors(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    claims = tmp_path / "claims.safetensors"
    save_file(load_file(digits.checkpoint), claims, {"pbu": '{"forgotten": [0, 1]}'})
    command = ["unlearn", claims, "--forget", digits.train / "2", "--dry-run", "--json", "-q"]
    inferred = {e["what"]: e for e in json.loads(pbu(*command).out)["inferred"]}
    assert inferred["forgotten before"]["value"] == "0, 1"
    inferred = {e["what"]: e for e in json.loads(pbu(*command, "--fast").out)["inferred"]}
    assert "forgotten before" not in inferred


def test_a_link_that_is_replaced_is_said_to_leave_what_it_points_to(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    target = Path(shutil.copy(digits.checkpoint, tmp_path / "target.safetensors"))
    link, before = tmp_path / "link.safetensors", target.read_bytes()
    link.symlink_to(target)
    done = pbu("unlearn", *FAST, link, "--forget", digits.train / "8", "-o", link, "--force", "-q")
    assert done.code in (0, 5)
    assert target.read_bytes() == before
    assert "target.safetensors stays as it is" in done.err


@pytest.mark.slow
def test_a_network_without_a_convolution_is_unlearned_too(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    net, checkpoint = tmp_path / "net.py", tmp_path / "in.safetensors"
    net.write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(),\n"
        "                         nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))\n"
    )
    images = decode(split_by_subfolder(list_groups([str(digits.train)])[0]), channels=1)
    torch.manual_seed(0)
    module = runpy.run_path(str(net))["net"]()
    x = images.pixels.float() / 127.5 - 1
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(x), images.group).backward()
        optimiser.step()
    save_file(module.state_dict(), checkpoint)
    command = ["unlearn", checkpoint, "--forget", digits.train / "8", "--arch", f"{net}:net",
               "--steps", "50", "--json", "-q"]  # fmt: skip
    done = pbu(*command)
    assert done.code == 3
    assert "--channels" in done.err
    done = pbu(*command, "--channels", "1")
    assert done.code == 0, done.err
    assert json.loads(done.out)["result"]["a_df"] == 0


def test_a_dry_run_says_that_memory_does_not_hold_the_anchors(
    pbu: Callable[..., Ran], digits: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbu_cli.pipeline.anchors.affordable", lambda needed, device: needed < 1000)
    done = pbu("unlearn", digits.checkpoint, "--forget", digits.train / "8", "--dry-run", "-q")
    assert done.code == 1
    assert "lower --anchors" in done.err


def test_an_empty_layers_flag_means_the_default_and_the_library_refuses_it(
    pbu: Callable[..., Ran], digits: DemoFiles, tmp_path: Path
) -> None:
    command = ["unlearn", digits.checkpoint, "--forget", digits.train / "8", "--dry-run",
               "-o", tmp_path / "o.safetensors"]  # fmt: skip
    assert "(--layers stage)" in pbu(*command, "--layers", "").err
    done = pbu("fisher", *command[1:], "--layers", "")
    assert done.code == 2
    assert "--layers: got an empty text" in done.err
