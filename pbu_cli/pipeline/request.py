"""What `pbu unlearn` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pbu_cli.data.label_inference import MAJORITY, OVERWHELMING, LabelRules
from pbu_cli.errors import printable
from pbu_cli.io.atomic_files import check_new_folder, check_output
from pbu_cli.io.model_folder import other_files
from pbu_cli.pipeline.fisher import default_output
from pbu_cli.records.places import RecordFiles
from pbu_cli.settings import DEFAULT, SAFETENSORS, InputOptions, UnlearningSettings

NAMES_SHOWN = 5  # in a warning


@dataclass(frozen=True)
class UnlearningRequest:
    """What `pbu unlearn` is asked for.

    output: by default a file beside the checkpoint. fisher: a Fisher file to use instead of
    measuring. again: run also where the class was forgotten already. accept_vote: take the class
    that most images are predicted as, without an overwhelming majority, where nothing else tells
    the label.
    """

    checkpoint: Path
    forget: tuple[str, ...]
    output: Path | None = None
    settings: UnlearningSettings = DEFAULT
    options: InputOptions = field(default_factory=InputOptions)
    fisher: Path | None = None
    record: RecordFiles = field(default_factory=RecordFiles)
    force: bool = False
    again: bool = False
    accept_vote: bool = False

    @property
    def rules(self) -> LabelRules:
        return LabelRules(vote=MAJORITY if self.accept_vote else OVERWHELMING)

    @property
    def place(self) -> Path:
        ending = ".unlearned" if self.writes_folder else f".unlearned{SAFETENSORS}"
        return self.output or default_output(self.checkpoint, ending)

    @property
    def writes_folder(self) -> bool:
        """Whether the output is a folder, as it is of a folder that a library saved."""
        return self.checkpoint.is_dir()

    def check_output(self, *, sources: tuple[Path, ...] = (), size: int = 0) -> None:
        """Refuse an output that cannot or must not be written, before any work is done."""
        if self.writes_folder:
            check_new_folder(self.place, size=size)
        else:
            check_output(
                self.place, force=self.force, sources=sources, size=size, suffix=SAFETENSORS
            )

    def settings_entry(self) -> dict[str, Any]:
        """The settings as records, metadata and `--json` have them; their names there stay."""
        settings = self.settings
        return {
            "weights": vars(settings.weights),
            "schedule": vars(settings.schedule),
            "anchors": settings.anchors,
            "layers": settings.layers,
            "estimator": settings.estimator,
            "draws": settings.draws,
            "wanted": self.options.entry(),
        }


def left_out_of(folder: Path) -> list[str]:
    """A warning that names what an output folder does not have of the folder that was read."""
    _, left_out = other_files(folder)
    if not left_out:
        return []
    shown = ", ".join(printable(name, 80) for name in left_out[:NAMES_SHOWN])
    return [
        f"{printable(folder)}: {len(left_out)} files and folders that may hold the old weights are"
        f" not copied to the output: {shown}{', ...' if len(left_out) > NAMES_SHOWN else ''}"
    ]
