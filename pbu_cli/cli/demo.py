"""`pbu demo`: run the three main commands, one after the other, on a network trained for it."""

from __future__ import annotations

import io
import json
import shlex
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbu_cli.cli.flags.shared import Device, Force, Json, Quiet, Verbose
from pbu_cli.cli.session import finish, open_session
from pbu_cli.errors import CriterionNotMet, InvalidUsage, PbuError

if TYPE_CHECKING:
    from pbu_cli.benchmark.demo_digits import DemoFiles
    from pbu_cli.cli.console import Screen


def demo(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write everything.")
    ] = Path("pbu-demo"),
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a small network on real digits, then run fisher, unlearn and evaluate on it."""
    screen, session = open_session(as_json, quiet, verbose)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not force:
        raise InvalidUsage(f"{output}: not empty; name another folder with --output, or --force")
    files = _write_and_train(screen, output, device)
    hidden = ["--device", device] + ["--json"] * as_json + ["--quiet"] * quiet
    documents: list[dict[str, Any]] = []
    failure = ""
    for command in _commands(files, force):
        screen.echo(shlex.join(["pbu", *command]))
        document, failure = _run(context, [*command, *hidden], as_json)
        if document is not None:
            documents.append(document)
        if failure:
            break
    finish(
        screen,
        {**session.heading("demo"), "output": str(output), "commands": documents},
        failure,
    )


def _write_and_train(screen: Screen, output: Path, device: str) -> DemoFiles:
    """Write the images, train the network on the training images, and write its checkpoint."""
    from pbu_cli.benchmark import demo_digits
    from pbu_cli.images.decoding import decode
    from pbu_cli.images.image_folders import list_groups, split_by_subfolder
    from pbu_cli.runtime.device import choose_device

    try:
        files = demo_digits.write_digits(output)
    except OSError as error:
        raise PbuError(
            f"{output}: cannot be written to: {error.strerror}; name another folder with --output"
        ) from None
    groups = split_by_subfolder(list_groups([str(files.train)], None)[0])
    images = decode(groups, channels=1, size=demo_digits.PREPROCESSING.size)
    count = len(images.pixels)
    with screen.progress("training", demo_digits.total_steps(count)) as bar:
        network = demo_digits.train_digits(
            images.pixels,
            images.group,
            choose_device(device),
            on_step=lambda step: bar(step, f"resnet18 on {count} digits"),
        )
    demo_digits.write_checkpoint(network, files.checkpoint)
    screen.line(f"trained resnet18 on {count} digits: {files.checkpoint}")
    return files


def _commands(files: DemoFiles, force: bool) -> list[list[str]]:
    """The arguments of the three commands, as a user would type them."""
    from pbu_cli.benchmark.demo_digits import FORGET_CLASS

    checkpoint, forget = str(files.checkpoint), str(files.train / str(FORGET_CLASS))
    fisher = str(files.checkpoint.with_suffix(".fisher.safetensors"))
    unlearned = str(files.checkpoint.with_suffix(".unlearned.safetensors"))
    again = ["--force"] if force else []
    return [
        ["fisher", checkpoint, "--forget", forget, "--layers", "last", *again],
        ["unlearn", checkpoint, "--forget", forget, "--fisher", fisher, *again],
        ["evaluate", unlearned, "--original", checkpoint, "--forget",
         str(files.test / str(FORGET_CLASS)), "--retain", str(files.test)],
    ]  # fmt: skip


def _run(
    context: typer.Context, arguments: list[str], as_json: bool
) -> tuple[dict[str, Any] | None, str]:
    """Run another command of the same application in this process.

    Returns its JSON document, if `as_json`, and the message of a criterion that does not hold.
    """
    pbu = context.find_root().command
    printed, failure = io.StringIO(), ""
    try:
        with redirect_stdout(printed) if as_json else nullcontext():
            pbu.main(arguments, prog_name="pbu", standalone_mode=False)
    except CriterionNotMet as error:
        failure = str(error)
    return json.loads(printed.getvalue()) if as_json else None, failure
