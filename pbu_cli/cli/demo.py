"""`pbu demo`: the three commands one after the other, on a network trained for it."""

from __future__ import annotations

import io
import json
import shlex
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from pbu_cli.cli.options import Device, Force, Json, Quiet
from pbu_cli.cli.session import finish, heading, open_session
from pbu_cli.errors import CriterionNotMet, InvalidUsage, PbuError


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write everything.")
    ] = Path("pbu-demo"),
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small network on real digits, then run fisher, unlearn and evaluate on it."""
    from pbu_cli.benchmark import demo_digits as digits
    from pbu_cli.cli.app import app
    from pbu_cli.data.decoding import decode
    from pbu_cli.data.image_folders import list_groups, split_by_subfolder
    from pbu_cli.runtime.device import choose_device

    screen, log = open_session(as_json, quiet)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not force:
        raise InvalidUsage(f"{output}: not empty; name another folder with --output, or --force")
    try:
        files = digits.write_digits(output)
    except OSError as error:
        raise PbuError(
            f"{output}: cannot be written to: {error.strerror}; name another folder with --output"
        ) from None
    groups = split_by_subfolder(list_groups([str(files.train)], None)[0])
    images = decode(groups, channels=1, size=digits.PREPROCESSING.size)
    with screen.progress("training", digits.total_steps(len(images.pixels))) as bar:
        network = digits.train(
            images.pixels,
            images.group,
            choose_device(device),
            done=lambda step: bar(step, f"resnet18 on {len(images.pixels)} digits"),
        )
    digits.write_checkpoint(network, files.checkpoint)
    screen.line(f"trained resnet18 on {len(images.pixels)} digits: {files.checkpoint}")
    gone = files.train / str(digits.FORGOTTEN)
    diagonal = files.checkpoint.with_suffix(".fisher.safetensors")
    clean = files.checkpoint.with_suffix(".unlearned.safetensors")
    given = str(files.checkpoint)
    again = ["--force"] if force else []
    hidden = ["--device", device] + ["--json"] * as_json + ["--quiet"] * quiet
    documents, failure = [], ""
    for command in (
        ["fisher", given, "--forget", str(gone), "--layers", "last", *again],
        ["unlearn", given, "--forget", str(gone), "--fisher", str(diagonal), *again],
        ["evaluate", str(clean), "--original", given, "--forget",
         str(files.test / str(digits.FORGOTTEN)), "--retain", str(files.test)],
    ):  # fmt: skip
        screen.echo(shlex.join(["pbu", *command]))
        printed = io.StringIO()
        try:
            with redirect_stdout(printed) if as_json else nullcontext():
                app([*command, *hidden], prog_name="pbu", standalone_mode=False)
        except CriterionNotMet as error:
            failure = str(error)
        if as_json:
            documents.append(json.loads(printed.getvalue()))
        if failure:
            break
    document = {**heading("demo", log), "output": str(output), "commands": documents}
    finish(screen, document, failure)
