"""The limits of the layout, what stays out of start-up, and the names of the library.

`[tool.importlinter]` in pyproject.toml states who may import whom; `lint-imports` checks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pbu_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/**/__init__.py"))
COMMANDS = ("benchmark", "demo", "evaluate", "fisher", "unlearn", "verify")

LINES_OF_A_MODULE = 250
LINES_OF_A_FUNCTION = 60
PARAMETERS = 8
MODULES_OF_A_FOLDER = 12

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length_of_body(function: Function) -> int:
    """Lines from the docstring to the end."""
    return (function.end_lineno or 0) - function.body[0].lineno + 1


def parameters(function: Function) -> list[str]:
    """The names of all parameters; `self` and `cls` are not counted."""
    a = function.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [argument.arg for argument in named if argument.arg not in ("self", "cls")]


def is_command(path: Path, function: Function) -> bool:
    """A typer command, whose parameters are its flags."""
    return path.parent.name == "cli" and path.stem == function.name and path.stem in COMMANDS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_functions_and_signatures_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    too_long = [f"{lines} lines"] if lines > LINES_OF_A_MODULE else []
    for function in functions(path):
        if (length := length_of_body(function)) > LINES_OF_A_FUNCTION:
            too_long.append(f"{function.name}: a body of {length} lines")
        if (count := len(parameters(function))) > PARAMETERS and not is_command(path, function):
            too_long.append(f"{function.name}: {count} parameters")
    assert not too_long


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_folders_stay_small(folder: Path) -> None:
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert 0 < len(modules) <= MODULES_OF_A_FOLDER


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_docstring_of_a_folder_says_what_is_in_it_and_what_is_not(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    prose = docstring.partition(">>>")[0]
    sentences = [text for text in re.split(r"(?<=[.!?])\s+", prose.strip()) if text]
    assert len(sentences) >= 2, "one sentence for what is in the folder, one for what is not"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_what_the_docstring_of_a_folder_names_exists(folder: Path) -> None:
    """A word in backticks is a module or name of the folder, another folder, or a command."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    inside = {path.stem for path in folder.glob("*.py")}
    others = {path.name for path in FOLDERS} | {path.stem for path in PACKAGE.glob("*.py")}
    for quoted in re.findall(r"`([^`]+)`", docstring):
        first, _, name = quoted.removeprefix("pbu ").partition(".")
        assert first in {*inside, *others, *COMMANDS}, quoted
        if name:
            assert re.search(rf"\b{name}\b", (folder / f"{first}.py").read_text("utf-8")), quoted


def test_a_folder_imports_only_from_the_folders_below_it() -> None:
    """The contracts in pyproject.toml, which `lint-imports` checks too."""
    run = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    root = PACKAGE.parent
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_every_test_folder_is_of_a_folder_of_the_package() -> None:
    tests = Path(__file__).parent
    found = {path.parent.name for path in tests.glob("*/__init__.py")}
    extra = {"attack", "measure", "networks"}  # scripts that attack and measure; test networks
    assert found - extra <= {path.name for path in FOLDERS}
    assert {path.name for path in FOLDERS if path.parent == PACKAGE} <= found


HELPS = [[], *([command] for command in COMMANDS)]
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
        "assert all(getattr(pbu_cli, name) is not None for name in pbu_cli.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
