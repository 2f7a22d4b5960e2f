"""Training curves, as summarize.py and evaluate_kd.py draw them. Needs matplotlib.

Nothing is smoothed: a curve ends where the table's last epoch is, and the legend says that number.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from cycler import cycler  # comes with matplotlib
from matplotlib.figure import Figure

# colour-blind safe: Okabe and Ito's without the yellow, too pale for a line
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (6, 1, 1, 1, 1, 1)))
FEW = 5  # epochs: fewer of them show nothing on a scale of their own


class Curve(NamedTuple):
    label: str
    accuracy: Sequence[float]  # of each epoch, in percent
    deviation: Sequence[float] = ()  # likewise, over the seeds


def draw(title: str, legend: str, curves: list[Curve]) -> Figure:
    """All epochs, and beside them the last quarter, where methods part; legend: what stands above its numbers."""
    longest = max(len(curve.accuracy) for curve in curves)
    starts = [0, longest * 3 // 4] if longest - longest * 3 // 4 >= FEW else [0]
    figure = Figure(figsize=(11, max(4.5, 1 + 0.21 * len(curves))), layout="constrained")
    panels = figure.subplots(1, len(starts), squeeze=False)[0]
    for ax, start in zip(panels, starts, strict=True):
        ax.set_prop_cycle(cycler(linestyle=DASHES) * cycler(color=LINES))
        for label, accuracy, deviation in curves:
            shown, epochs = accuracy[start:], np.arange(start, len(accuracy)) + 1
            points = range(len(shown)) if longest < 8 else [len(shown) - 1]
            name = f"{accuracy[-1]:.2f}  {label}"
            (line,) = ax.plot(epochs, shown, label=name, marker=".", markevery=points, lw=1.2)
            if deviation:
                low, high = np.subtract(shown, deviation[start:]), np.add(shown, deviation[start:])
                ax.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, lw=0)
        ax.set(title="last quarter" if start else "all epochs", xlabel="epoch", ylabel="validation accuracy, %")
        ax.grid(axis="y", color="0.9")
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", title=legend, fontsize=9)
    figure.suptitle(title, wrap=True)
    return figure
