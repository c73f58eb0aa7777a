"""Draw the README's picture, `ship.svg`, from the audit of class ship in `results/audit_ship.csv`.

    pip install matplotlib
    python -m tests.measure.picture

matplotlib is needed here alone and is not a dependency of pbu. The background is opaque, so that
the picture can be read on light and on dark pages, and each bar carries its number. The colours are
from Okabe and Ito, "Color Universal Design" (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import csv
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = FOLDER / "results" / "audit_ship.csv"
PICTURE = FOLDER / "ship.svg"
# network in the table -> (name in the picture, colour)
NETWORKS = {
    "original": ("original", "#b0b0b0"),
    "head mask": ("head mask", "#b0b0b0"),
    "fine-tuned on all images of the others, 5 epochs": ("fine-tuned", "#b0b0b0"),
    "pbu unlearn": ("pbu unlearn", "#0072b2"),
    "retrained": ("retrained without ships", "#e69f00"),
}
# column in the table -> title of the panel
PANELS = {
    "A_Df": "A_Df: ships still\ncalled ship (%)",
    "A_Dr": "A_Dr: other classes\nrecognised (%)",
    "probe_balanced": "linear probe finds\nships (%)",
    "relearnt": "A_Df after relearning\nfrom 10 images (%)",
}
INK = "#222222"


def read_networks(path: Path = TABLE) -> dict[str, dict[str, float]]:
    """The shown columns of the shown networks, in percent, in the order of `NETWORKS`."""
    with path.open(encoding="utf-8") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    return {name: {key: float(rows[name][key]) for key in PANELS} for name in NETWORKS}


def draw(networks: dict[str, dict[str, float]], path: Path = PICTURE) -> None:
    """Write one panel per measure and one bar per network as SVG; the same bytes every time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "pbu", "svg.fonttype": "path", "font.size": 10, "text.color": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 2.7), facecolor="white", layout="constrained")
        axes = figure.subplots(1, len(PANELS), sharey=True)
        names = [label for label, _ in NETWORKS.values()]
        colours = [colour for _, colour in NETWORKS.values()]
        for panel, (key, title) in zip(axes, PANELS.items(), strict=True):
            values = [measured[key] for measured in networks.values()]
            bars = panel.barh(names, values, color=colours, height=0.7)
            panel.bar_label(bars, [f"{value:.1f}" for value in values], padding=5, color=INK)
            panel.axvline(values[-1], color="#e69f00", linestyle="--", linewidth=1.2, zorder=0)
            panel.set_title(title, fontsize=10, color=INK, loc="left")
            panel.set_xlim(0, 125)
            panel.set_xticks([])
            panel.tick_params(axis="y", length=0, labelcolor=INK)
            panel.spines[["top", "right", "bottom"]].set_visible(False)
        axes[0].invert_yaxis()
        figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(read_networks())
    print(f"wrote {PICTURE}")
