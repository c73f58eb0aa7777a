"""Folders of timm and transformers from start to end, and those that are refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import get_model_weights, resnet50

from pbu_cli.inputs.inferred import InferenceLog
from pbu_cli.inputs.loaded_model import load_model
from pbu_cli.inputs.prepare import prepare_inputs
from pbu_cli.settings import InputOptions
from tests.cli.test_signals import MARKED, started, wait_for_phase
from tests.conftest import Ran
from tests.measure.library_round_trips import (
    FAMILIES,
    Family,
    library_logits,
    make_folder,
    own_logits,
    passed,
    pictures,
    round_trip,
    timm_family,
)

Run = Callable[..., Ran]
QUICK = ["--label", "c3", "--fast", "--steps", "5", "--device", "cpu", "-q"]
OF_TIMM = timm_family("test_resnet", 64)
OF_TRANSFORMERS = next(each for each in FAMILIES if each.name == "ViTForImageClassification")
ROUND_TRIPS = (
    "convnext_atto", "mobilenetv3_small_100", "eva02_tiny_patch14_224",
    "ViTForImageClassification", "ConvNextForImageClassification",
    "EfficientNetForImageClassification", "TimmWrapperForImageClassification",
)  # fmt: skip
SLOW_MARK = MARKED.replace("    return real(", "    import time; time.sleep(30)\n    return real(")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Coloured clouds of sizes that no network has."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(8):
        cloud = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        size = 90 + number, 70 + 2 * number
        cloud.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


def made(family: Family, images: list[Path], place: Path) -> Path:
    pytest.importorskip(family.library)
    make_folder(family, images, place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def of_timm(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm; not to be written to."""
    return made(OF_TIMM, images, tmp_path_factory.mktemp("timm"))


@pytest.fixture(scope="module")
def of_transformers(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with several shards; not to be written to."""
    return made(OF_TRANSFORMERS, images, tmp_path_factory.mktemp("transformers"))


def copied(folder: Path, place: Path, **changes: Any) -> Path:
    """A copy of the folder with other values in its config.json."""
    copy = place / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def refused(done: Ran, place: Path, says: str) -> None:
    """One line that says why, code 3, and nothing but the copy is there."""
    assert done.code == 3, done.err
    assert done.err.count("\n") == 1
    assert says in done.err
    assert done.out == ""
    assert [path.name for path in place.iterdir()] == ["copy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_logits_and_files_are_those_of_the_library(
    name: str, images: list[Path], tmp_path: Path
) -> None:
    family = next(each for each in FAMILIES if each.name == name)
    pytest.importorskip(family.library)
    row = round_trip(family, images, tmp_path)
    assert passed(row), row


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"auto_map": {"AutoConfig": "configuration.Own"}}, "auto_map asks for code of its own"),
        ({"quantization_config": {"load_in_8bit": True}}, "asks for quantised weights"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000; expected at most"),
        ({"num_hidden_layers": 4000}, "another network than the checkpoint's"),
        ({"model_type": "bert"}, "model_type bert is no image classifier of transformers"),
    ],
)
def test_a_config_of_transformers_that_asks_for_more_than_a_network_is_refused(
    pbu: Run, of_transformers: Path, images: list[Path], tmp_path: Path,
    changes: dict[str, Any], says: str,
) -> None:  # fmt: skip
    folder = copied(of_transformers, tmp_path, **changes)
    done = pbu("unlearn", folder, "--forget", images[0].parent, *QUICK)
    refused(done, tmp_path, says)


@pytest.mark.parametrize(
    "arguments",
    [{"checkpoint_path": "/etc/passwd"}, {"global_pool": "../../etc/passwd"}],
)
def test_arguments_of_timm_that_hold_a_path_are_refused(
    pbu: Run, of_timm: Path, images: list[Path], tmp_path: Path, arguments: dict[str, str]
) -> None:
    folder = copied(of_timm, tmp_path, model_args=arguments)
    done = pbu("unlearn", folder, "--forget", images[0].parent, *QUICK)
    refused(done, tmp_path, next(iter(arguments)))


def test_a_missing_shard_and_an_index_that_leads_out_of_the_folder_are_refused(
    pbu: Run, of_transformers: Path, images: list[Path], tmp_path: Path
) -> None:
    folder = copied(of_transformers, tmp_path)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    command = ["unlearn", folder, "--forget", images[0].parent, *QUICK]
    refused(pbu(*command), tmp_path, f"1 of {len(shards)} shards are missing, first")
    table["weight_map"] = dict.fromkeys(table["weight_map"], "../../etc/passwd")
    index.write_text(json.dumps(table))
    refused(pbu(*command), tmp_path, "names no files of its own folder")


def test_an_output_folder_that_exists_stays_as_it_is(
    pbu: Run, of_transformers: Path, images: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "there"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    command = ["unlearn", of_transformers, "--forget", images[0].parent, *QUICK, "-o", output]
    for flags in ([], ["--force"]):
        done = pbu(*command, *flags)
        assert done.code == 2, done.err
        assert done.err.count("\n") == 1
        assert [path.name for path in output.iterdir()] == ["notes.txt"]
        assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pipeline.sanitize:unlearn", "io.model_folder:write"])
def test_a_signal_leaves_neither_a_folder_nor_a_part_of_it(
    of_transformers: Path, images: list[Path], tmp_path: Path, place: str
) -> None:
    process = started(
        ["-c", SLOW_MARK, place, "unlearn", str(of_transformers), "--forget",
         str(images[0].parent), *QUICK, "-o", str(tmp_path / "out")],
        tmp_path,
    )  # fmt: skip
    wait_for_phase(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_is_recorded_verified_and_evaluated(
    pbu: Run, of_transformers: Path, images: list[Path], tmp_path: Path
) -> None:
    folder, output, record = (
        copied(of_transformers, tmp_path),
        tmp_path / "out",
        tmp_path / "r.json",
    )
    forget = images[0].parent
    done = pbu("unlearn", folder, "--forget", forget, *QUICK, "-o", output, "--record", record)
    assert done.code in (0, 5), done.err
    assert pbu("verify", record).code == 0
    for name in ("c1", "c2"):
        (tmp_path / "retained" / name).mkdir(parents=True)
        for path in images[:3]:
            shutil.copy(path, tmp_path / "retained" / name)
    done = pbu("evaluate", output, "--original", folder, "--forget", forget, "--label", "c3",
               "--retain", tmp_path / "retained", "--device", "cpu", "--json", "-q")  # fmt: skip
    assert done.code == 0, done.err
    found = {score["name"]: score for score in json.loads(done.out)["scores"]}
    assert {"original", "checkpoint"} <= found.keys()
    shard = sorted(output.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, shard, {"format": "pt"})
    assert pbu("verify", record).code == 5


@pytest.mark.parametrize("stated", [{}, {"image_mean": 0.5, "image_std": 0.5}])
def test_a_processor_that_states_no_list_of_means_normalises_as_its_class(
    of_transformers: Path, images: list[Path], tmp_path: Path, stated: dict[str, float]
) -> None:
    folder = copied(of_transformers, tmp_path)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    del config["image_mean"], config["image_std"]
    path.write_text(json.dumps({**config, **stated}))
    found, _ = own_logits(folder, images)
    expected = library_logits("transformers", folder, images)
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_a_bare_state_dict_of_timm_needs_no_folder_and_no_name(
    pbu: Run, of_timm: Path, images: list[Path], tmp_path: Path
) -> None:
    bare = tmp_path / "weights.safetensors"
    shutil.copy(of_timm / "model.safetensors", bare)
    command = ["unlearn", bare, "--forget", images[0].parent, "--label", "3", *QUICK[2:]]
    outputs = []
    for number, flags in enumerate(([], ["--arch", "timm:test_resnet"])):
        outputs.append(tmp_path / f"{number}.safetensors")
        done = pbu(*command, *flags, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
                   "--size", "64", "-o", outputs[-1])  # fmt: skip
        assert done.code in (0, 5), done.err
    first, second = (load_file(path) for path in outputs)
    assert first.keys() == second.keys() == load_file(bare).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_preset_is_torchvisions_own_pipeline(images: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet50(num_classes=7).eval()
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    options = InputOptions(device="cpu", preset="IMAGENET1K_V2", labels=("3",))
    log = InferenceLog()
    loaded = load_model(path, replace(options, labels=()), log)
    found = prepare_inputs(loaded, [str(images[0].parent)], options, log).logits
    preset = get_model_weights("resnet50")["IMAGENET1K_V2"].transforms()
    with torch.no_grad():
        expected = torch.cat([network(preset(picture)[None]) for picture in pictures(images)])
    scale = float(expected.std(dim=0).mean())
    assert torch.allclose(found, expected, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "extra"), [("timm", "timm"), ("transformers", "hf")])
def test_without_the_extra_the_error_names_the_command_that_installs_it(
    request: pytest.FixtureRequest, images: list[Path], tmp_path: Path, library: str, extra: str
) -> None:
    folder = copied(request.getfixturevalue(f"of_{library}"), tmp_path)
    code = f"import sys; sys.modules[{library!r}] = None; from pbu_cli.__main__ import main; main()"
    command = ["unlearn", str(folder), "--forget", str(images[0].parent), *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    refused(Ran(done.returncode, done.stdout, done.stderr), tmp_path, "cannot be imported")
    assert f"pip install 'pbu-cli[{extra}]'" in done.stderr
