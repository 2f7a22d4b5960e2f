"""Training curves, as summarize.py and evaluate_kd.py draw them. Needs matplotlib.

Nothing is smoothed: a curve ends where the table's last epoch is, and the legend says that number. A few curves fit one
column of a paper, more of them two. Dashes and markers tell them apart where there are no colours.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# colour-blind safe: Okabe and Ito's without the yellow, too pale for a line
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^DvXP"
DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (6, 1, 1, 1, 1, 1)))  # 6 and 7 markers make 42 kinds of lines
FEW = 5  # epochs: fewer of them show nothing on a scale of their own
COLUMN, PAGE = 3.3, 7.0  # inches: a column of a paper, and two of them with the space between
LETTERS = 17  # that fit an inch
STYLE = {"font.size": 7, "figure.titlesize": 7, "axes.titlesize": 7, "legend.fontsize": 6, "legend.title_fontsize": 6}
STYLE |= {"xtick.labelsize": 6, "ytick.labelsize": 6, "axes.linewidth": 0.6, "hatch.linewidth": 0.5}


class Curve(NamedTuple):
    label: str
    accuracy: Sequence[float]  # of each epoch, in percent
    deviation: Sequence[float] = ()  # likewise, over the seeds


def columns(labels: list[str], width: float) -> int:
    """How many of a legend fit so many inches beside each other."""
    longest = max(len(line) for label in labels for line in label.splitlines())
    return min(len(labels), max(1, int(width * LETTERS / (longest + 8))))  # 8: the line and the space around


def set_title(figure: Figure, title: str) -> None:
    figure.suptitle(textwrap.fill(title, int(figure.get_figwidth() * LETTERS)))


@matplotlib.rc_context(STYLE)
def draw(title: str, legend: str, curves: list[Curve]) -> Figure:
    """All epochs, and the last quarter, where methods part; legend: what stands above its numbers."""
    longest = max(len(curve.accuracy) for curve in curves)
    starts = [0, longest * 3 // 4] if longest - longest * 3 // 4 >= FEW else [0]
    names = [textwrap.fill(f"{curve.accuracy[-1]:.2f}  {curve.label}", int(LETTERS * PAGE) - 8) for curve in curves]
    narrow = len(curves) <= 8 and columns(names, COLUMN) * COLUMN * LETTERS >= max(map(len, names)) + 8
    width, grid = (COLUMN, (len(starts), 1)) if narrow else (PAGE, (1, len(starts)))
    rows = -(-len(names) // columns(names, width))
    figure = Figure(figsize=(width, 0.8 + (1.8 if narrow else 3.2) * grid[0] + 0.13 * rows), layout="constrained")
    panels = figure.subplots(*grid, squeeze=False).flat
    for ax, start in zip(panels, starts, strict=True):
        for n, (name, (_, accuracy, deviation)) in enumerate(zip(names, curves, strict=True)):
            shown, epochs = accuracy[start:], np.arange(start, len(accuracy)) + 1
            step = max(1, len(shown) // 5)
            marked = sorted({*range(n * step // len(curves), len(shown), step), len(shown) - 1})
            kind = {"color": LINES[n % 7], "marker": MARKERS[n % 7], "ls": DASHES[n % 6], "markevery": marked}
            ax.plot(epochs, shown, label=name, lw=0.9, ms=3, mew=0, **kind)
            if deviation:
                low, high = np.subtract(shown, deviation[start:]), np.add(shown, deviation[start:])
                ax.fill_between(epochs, low, high, color=kind["color"], alpha=0.12, lw=0)
        ax.set(title="last quarter" if start else "all epochs", xlabel="epoch", ylabel="validation accuracy, %")
        ax.grid(axis="y", color="0.9", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=STYLE["xtick.labelsize"])  # ticks are made when they are drawn
        ax.xaxis.get_major_locator().set_params(integer=True)
    handles = panels[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": columns(names, width), "handlelength": 3.5}
    figure.legend(*handles, title=legend, **place)
    set_title(figure, title)
    return figure
