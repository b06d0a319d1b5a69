"""Draws the CSV files in results/ into docs/figures/, each from its newest measurement.

    python benchmarks/lib/plot.py                       every figure whose CSV file is there
    python benchmarks/lib/plot.py --commit 1a2b3c4      the newest measurement of that commit
    python benchmarks/lib/plot.py --results FOLDER --out FOLDER

sweep_cpu.svg    the step on the CPU against batch, vocabulary, members and k     (sweep_cpu.csv, bench_sweep.py)
step_cuda.svg    the same on a GPU, as far as it was measured                     (step_cuda.csv, bench_step.py)
decode_cpu.svg   the decode loop outside the forward passes, against text length  (decode_cpu.csv, bench_decode.py)
decode_cuda.svg  the same on a GPU                                                (decode_cuda.csv)

The same CSV gives the same bytes with one version of matplotlib. Needs `pip install matplotlib`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, to find lib

from lib.records import Rows, duration, measured_on, pick_measurement, read_rows

ROOT = Path(__file__).resolve().parents[2]
STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "unite_ext",
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": "#9a9a9a", "axes.labelcolor": "#333333",
    "axes.spines.top": False, "axes.spines.right": False, "xtick.color": "#9a9a9a", "ytick.color": "#9a9a9a",
    "xtick.labelcolor": "#333333", "ytick.labelcolor": "#333333", "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "lines.solid_capstyle": "round",
}  # fmt: skip
OURS = "#0b5394"
GREY = "#666666"


@dataclass(frozen=True)
class Look:
    """How a line is drawn; colours are told apart by colour-blind readers, and dark enough for text on white."""

    label: str
    color: str
    marker: str = "o"
    width: float = 1.3
    dashes: str = "-"


LOOKS = {
    "reference": Look("reference", "#8e2a7c", "s"),
    "dictionary": Look("dictionaries", "#b8540a", "^"),
    "topk": Look("torch.topk", "#0d7c66", "D"),
    "unite_step": Look("unite_step", OURS, "o", 2.8),
    "amax": Look("floor (amax)", GREY, "", 1.3, (0, (4, 2))),
}


@dataclass(frozen=True)
class Panel:
    """An axis of the sweep and how it is shown."""

    axis: str
    title: str
    label: str
    scale: str = "log"


PANELS = (
    Panel("batch", "Batch", "rows in the batch, B"),
    Panel("vocabulary", "Vocabulary", "logits per member"),
    Panel("members", "Members", "number of members", "linear"),
    Panel("k", "Proposals", "k, the tokens that each member proposes"),
)
LINES_NOTE = "Lines: medians, bands: p10 to p90."
STEP_NOTE = (
    "reference: the step in plain PyTorch; dictionaries: in the style of research scripts; torch.topk: one call per "
    "member; floor: one amax over the logits."
)
BASE = {"members": "2", "k": "10"}


class MissingData(Exception):
    """Nothing to draw a figure from."""


def load(path: Path, commit: str) -> Rows:
    """The measurement to draw. Raises MissingData."""
    if not path.exists():
        raise MissingData(f"there is no {path}")
    try:
        return pick_measurement(read_rows(path), commit)
    except ValueError as error:
        raise MissingData(f"{path}: {error}") from error


def draw_line(axes: Axes, rows: Rows, x: str, look: Look) -> tuple[float, float]:
    """Medians of `rows` against column `x` with a band from p10 to p90, in seconds; the last point."""
    points = {float(row[x]): [float(row[name]) / 1e6 for name in ("p10_us", "p50_us", "p90_us")] for row in rows}
    xs = sorted(points)
    low, middle, high = zip(*(points[value] for value in xs))
    axes.fill_between(xs, low, high, color=look.color, alpha=0.18, linewidth=0)
    ours = look.width > 2
    axes.plot(
        xs, middle, color=look.color, linewidth=look.width, linestyle=look.dashes, marker=look.marker,
        markersize=5.5 if ours else 3.5, zorder=4 if ours else 3,
    )  # fmt: skip
    return xs[-1], middle[-1]


def label_lines(axes: Axes, ends: list[tuple[Look, tuple[float, float]]], gap: float) -> None:
    """Each line's name to the right of the panel at the height of its end, moved apart to `gap` of the panel."""
    to_panel = axes.transData + axes.transAxes.inverted()
    placed = sorted(((*to_panel.transform(end), look) for look, end in ends), key=lambda item: item[1])
    for (x, y, look), height in zip(placed, spread([y for _, y, _ in placed], gap)):
        axes.plot(  # dotted where the line ends early, so that it is not taken for data
            [x + 0.012, 1.035], [y, height], color=look.color, linewidth=0.6, linestyle="-" if x > 0.9 else ":",
            clip_on=False, transform=axes.transAxes,
        )  # fmt: skip
        bold = "bold" if look.width > 2 else "normal"
        axes.text(
            1.045, height, look.label, color=look.color, fontweight=bold, fontsize=9, va="center",
            transform=axes.transAxes,
        )  # fmt: skip


def spread(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved apart to `gap`, each cluster about its own centre."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while (
            len(clusters) > 1
            and mean(clusters[-1]) - mean(clusters[-2]) < gap * (len(clusters[-1]) + len(clusters[-2])) / 2
        ):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [mean(c) + gap * (i - (len(c) - 1) / 2) for c in clusters for i in range(len(c))]


def short_count(value: float, _: int = 0) -> str:
    """131072 as 128k."""
    return f"{value / 1024:.0f}k" if value >= 8192 and value % 1024 == 0 else f"{value:,.0f}"


def short_duration(seconds: float, _: int = 0) -> str:
    """0.0001 as 100 µs."""
    value, unit = duration(seconds * 1e6).split()
    return f"{float(value):g} {unit}" if seconds else "0"


def set_x_axis(axes: Axes, values: list[float], label: str, scale: str) -> None:
    """Ticks at what was measured, as far as there is room."""
    axes.set_xscale(scale)
    room = values if scale == "linear" or len(values) < 8 else values[::2]
    axes.xaxis.set_major_locator(FixedLocator(room))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(short_count))
    axes.set_xlabel(label)


def panels(lines: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Axes that share their y scale, with room for names to the right of each."""
    width, height = 5 * columns, 1.4 + 2.75 * lines
    figure, grid = plt.subplots(lines, columns, figsize=(width, height), sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.85 / width, right=1 - 1.1 / width, top=1 - 1.0 / height, bottom=1.0 / height,
        wspace=1.9 / 3.1, hspace=0.46,
    )  # fmt: skip
    for axes in grid.flat:
        axes.tick_params(labelleft=True)
        axes.yaxis.set_major_formatter(FuncFormatter(short_duration))
    for axes in grid[:, 0]:
        axes.set_ylabel("time per step")
    return figure, grid


def finish(figure: Figure, title: str, subtitle: str, notes: list[str]) -> Figure:
    """Title above; below, what the names mean and where the figures come from."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.1 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.38 / height, subtitle, color="#333333", va="top")
    for i, note in enumerate(reversed(notes)):
        figure.text(0.012, (0.1 + 0.16 * i) / height, note, color=GREY, fontsize=8, va="bottom")
    return figure


def step_figure(rows: Rows, batch: str, title: str, subtitle: str) -> Figure:
    """Small multiples of the time per step; rows have the column `axis`."""
    shown = {
        panel: own
        for panel in PANELS
        if (own := [r for r in rows if r["axis"] == panel.axis and (panel.axis == "batch" or r["batch"] == batch)])
        and len({row[panel.axis] for row in own}) > 1
    }
    if not shown:
        raise MissingData(f"no row varies the batch, nor anything else at B = {batch}")
    columns = min(2, len(shown))
    figure, grid = panels(-(-len(shown) // columns), columns)
    for axes in grid.flat[len(shown) :]:
        axes.remove()
    ends: dict[Axes, list] = {}
    for axes, (panel, own) in zip(grid.flat, shown.items()):
        for call, look in LOOKS.items():
            of_call = [row for row in own if row["call"] == call]
            if len({row[panel.axis] for row in of_call}) > 1:
                ends.setdefault(axes, []).append((look, draw_line(axes, of_call, panel.axis, look)))
        set_x_axis(axes, sorted({float(row[panel.axis]) for row in own}), panel.label, panel.scale)
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(short_duration))
        axes.set_title(panel.title if panel.axis == "batch" else f"{panel.title}, at B = {batch}")
    for axes, found in ends.items():
        label_lines(axes, found, gap=0.085)
    notes = [STEP_NOTE, f"{LINES_NOTE} Time is on a logarithmic scale. {measured_on(rows)}."]
    return finish(figure, title, subtitle, notes)


def sweep_cpu(results: Path, commit: str) -> Figure:
    """The step on the CPU."""
    rows = load(results / "sweep_cpu.csv", commit)
    subtitle = "Two members with 128,256 and 152,064 logits, k = 10, float32, where not stated otherwise"
    return step_figure(rows, "8", "Time of one UNITE step on the CPU", subtitle)


def step_cuda(results: Path, commit: str) -> Figure:
    """The step on a GPU: graph replay where there is one, cold L2."""
    rows = load(results / "step_cuda.csv", commit)
    wanted = {"dtype": "bfloat16", "logits": "peaked", "cache": "cold"}
    rows = [row for row in rows if wanted.items() <= row.items()]
    replayed = {row["call"] for row in rows if row["mode"] == "graph"}
    rows = [row for row in rows if row["mode"] == "graph" or row["call"] not in replayed]
    batch, along = "64", []
    for axis in ("batch", "members", "k"):
        fixed = {name: value for name, value in {**BASE, "batch": batch}.items() if name != axis}
        along += [row | {"axis": axis} for row in rows if fixed.items() <= row.items()]
    measured = {row["call"] for row in along}
    eager = ", ".join(look.label for call, look in LOOKS.items() if call in measured - replayed)
    subtitle = "Llama-3 and Qwen2 sizes, k = 10, bfloat16, where not stated otherwise; cold L2; CUDA-graph replay"
    subtitle += f" ({eager}: eager)" if eager else ""
    return step_figure(along, batch, "Time of one UNITE step on a GPU", subtitle)


def decode(results: Path, commit: str, device: str) -> Figure:
    """What a step of the decode loop costs besides the forward passes, by batch and members."""
    rows = load(results / f"decode_{device}.csv", commit)
    rows = [row for row in rows if row["call"] == "outside forwards"]
    if len({row["length"] for row in rows}) < 2:
        raise MissingData("no two text lengths were measured")
    members = sorted({row["members"] for row in rows}, key=int)
    batches = sorted({row["batch"] for row in rows}, key=int)
    shades = plt.get_cmap("viridis")
    figure, grid = panels(1, len(members))
    ends: dict[Axes, list] = {}
    for axes, count in zip(grid[0], members):
        for i, batch in enumerate(batches):
            color = matplotlib.colors.to_hex(shades(0.6 * (1 - i / max(1, len(batches) - 1))))
            own = [row for row in rows if (row["members"], row["batch"]) == (count, batch)]
            look = Look(f"B = {batch}", color, width=2)
            if own:
                ends.setdefault(axes, []).append((look, draw_line(axes, own, "length", look)))
        set_x_axis(axes, sorted({float(row["length"]) for row in rows}), "tokens in the text", "log")
        axes.set_title(f"{count} members")
    grid[0, 0].set_ylim(bottom=0)  # for all panels
    for axes, found in ends.items():
        label_lines(axes, found, gap=0.085)
    place = {"cpu": "the CPU", "cuda": "a GPU"}[device]
    title = f"Decode loop on {place}: time per step outside the models' forward passes"
    subtitle = "By length of the text so far and batch B; tokenizers are real, models tiny"
    return finish(figure, title, subtitle, [f"{LINES_NOTE} {measured_on(rows)}."])


FIGURES: dict[str, Callable[[Path, str], Figure]] = {
    "sweep_cpu": sweep_cpu,
    "step_cuda": step_cuda,
    "decode_cpu": lambda results, commit: decode(results, commit, "cpu"),
    "decode_cuda": lambda results, commit: decode(results, commit, "cuda"),
}


def draw(results: Path, out: Path, commit: str = "") -> list[Path]:
    """Writes every figure that there is data for, and says which there is none for."""
    written = []
    for name, figure_of in FIGURES.items():
        with plt.rc_context(STYLE):
            try:
                figure = figure_of(results, commit)
            except MissingData as missing:
                print(f"{name}.svg: not drawn, {missing}")
                continue
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
            plt.close(figure)
        print(f"{path}: written, {path.stat().st_size / 1e3:.0f} kB")
        written.append(path)
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of CSV files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="folder for the figures")
    parser.add_argument("--commit", default="", help="draw the newest measurement of this commit")
    arguments = parser.parse_args()
    if not draw(arguments.results, arguments.out, arguments.commit):
        raise SystemExit("no figure was drawn")


if __name__ == "__main__":
    main()
