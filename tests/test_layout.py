"""The layout: who may import whom, and what stays out of start-up. `pytest -s` prints the order."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pbu_cli"

# A module imports only from modules above it in this list.
ORDER = [
    "errors",
    "settings",
    "json_text",
    "measures",
    "files",
    "signals",
    "machine",
    "pickles",
    "checkpoint",
    "description",
    "architecture",
    "model",
    "network",
    "stages",
    "folders",
    "images",
    "memory_format",
    "portion",
    "replay",
    "logits",
    "layer_rules",
    "kernels",
    "layers",
    "crops",
    "estimators",
    "taps",
    "plan",
    "squares",
    "fisher",
    "objective",
    "descent",
    "stopping",
    "damage",
    "trunk",
    "activations",
    "trained_mean",
    "head_row",
    "anchors",
    "forget_set",
    "unlearning",
    "metrics",
    "roc",
    "probe",
    "membership",
    "similarity",
    "relearning",
    "evidence",
    "case",
    "fisher_file",
    "commands",
    "record",
    "recording",
    "verification",
    "evaluation",
    "audit",
    "tables",
    "criteria",
    "demo",
    "training",
    "baselines",
    "benchmark",
    "console",
    "options",
    "cli",
    "__main__",
]
_FISHER = ORDER[ORDER.index("layer_rules") : ORDER.index("fisher") + 1]
_AUDIT = {"metrics", "roc", "probe", "membership", "similarity", "relearning"}
_LOOP = {"objective", "descent", "stopping", "trunk", "activations", "anchors",
         "head_row", "trained_mean"}  # fmt: skip
NUMERIC = {*_FISHER, *_AUDIT, *_LOOP}
OUTSIDE_NUMERIC = {"typer", "rich", "safetensors", "torchvision", "PIL", "pathlib", "os"}


def imports(module: str) -> tuple[set[str], set[str]]:
    """(modules of the package, top-level modules of others) imported anywhere in a module, or in
    the modules of a subpackage."""
    own, other = set(), set()
    package = PACKAGE / module
    paths = sorted(package.glob("*.py")) if package.is_dir() else [PACKAGE / f"{module}.py"]
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            other |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "pbu_cli":
            own |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pbu_cli."):
            own.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            other.add((node.module or "").partition(".")[0])
    return own - ({module} if package.is_dir() else set()), other


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules | packages == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_modules_import_only_from_above(module: str) -> None:
    own, _ = imports(module)
    print(f"{module:<13} <- {', '.join(sorted(own, key=ORDER.index)) or '-'}")
    below = own & set(ORDER[ORDER.index(module) :])
    assert not below, f"{module} imports {below}, which stand below it"


@pytest.mark.parametrize("module", sorted(NUMERIC))
def test_numeric_modules_know_nothing_of_files_and_screens(module: str) -> None:
    assert not imports(module)[1] & OUTSIDE_NUMERIC


def test_rich_and_typer_stay_in_their_rooms() -> None:
    for name, places in (("rich", ["console"]), ("typer", ["options", "cli"])):
        assert [module for module in ORDER if name in imports(module)[1]] == places


def test_only_the_benchmark_knows_of_the_methods_it_compares_with() -> None:
    users = {module for module in ORDER if "baselines" in imports(module)[0]}
    assert users == {"benchmark", "cli"}
    commands = {
        path.stem for path in (PACKAGE / "cli").glob("*.py") if "baselines" in path.read_text()
    }
    assert commands == {"benchmark"}


HELPS = [[], ["benchmark"], ["fisher"], ["unlearn"], ["evaluate"], ["verify"], ["demo"]]
CHECK = """
import sys
from pbu_cli.__main__ import run
code = run({arguments!r})
heavy = {{"torch", "torchvision", "numpy", "PIL", "sklearn"}} & set(sys.modules)
sys.exit(f"loaded {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize("command", HELPS, ids=lambda command: " ".join(command) or "pbu")
@pytest.mark.parametrize("flag", ["--help", "--nonsense", "--version"])
def test_help_and_usage_errors_load_nothing_heavy(command: list[str], flag: str) -> None:
    if flag == "--version" and command:
        pytest.skip("--version belongs to pbu itself")
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(arguments=[*command, flag])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if flag == "--nonsense" else 0), done.stderr
    assert "loaded" not in done.stderr


def test_importing_the_package_loads_nothing_and_exports_the_library() -> None:
    code = (
        "import sys, pbu_cli; assert 'torch' not in sys.modules;"
        "pbu_cli.fisher_diagonal; assert 'torch' in sys.modules;"
        "assert all(callable(getattr(pbu_cli, name)) for name in pbu_cli.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
