"""Accuracy over latency, as report_model.py draws it. Needs matplotlib."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

# told apart without colours
MARKS = (("o", "black"), ("s", "white"), ("^", "0.7"), ("D", "black"), ("v", "white"))
AWAY = (9, 16, 26, 38, 52, 70)  # points between a label and its mark
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
HALF = 5  # of a mark's side, in points


class Point(NamedTuple):
    network: str
    engine: str
    ms: float
    accuracy: float  # in percent


def draw(title: str, points: list[Point]) -> Figure:
    """A mark for each network and way of running it; a network's marks are joined, and labelled once."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)  # knows how large texts are
    ax = figure.subplots()
    for engine, (mark, fill) in zip(dict.fromkeys(p.engine for p in points), MARKS, strict=False):
        xy = [(p.ms, p.accuracy) for p in points if p.engine == engine]
        ax.scatter(*zip(*xy, strict=True), s=4 * HALF**2 / 2, marker=mark, fc=fill, ec="black", zorder=3, label=engine)
    networks = {p.network: sorted((q.ms, q.accuracy) for q in points if q.network == p.network) for p in points}
    for xy in networks.values():
        ax.plot(*zip(*xy, strict=True), color="0.6", lw=0.8)
    ax.set_xscale("log")
    ax.set(title=title, xlabel="latency of a single image, ms (logarithmic)", ylabel="top-1, %")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="0.92")
    ax.margins(0.2)
    figure.legend(loc="outside lower center", ncols=len(MARKS), frameon=False)
    figure.canvas.draw()  # from here on, what lies where is settled
    place_labels(ax, networks)
    return figure


def place_labels(ax: Any, networks: dict[str, list[tuple[float, float]]]) -> None:
    """Each beside one of its network's marks, where it hides no mark, no line and no other label, if there is room."""
    unit = ax.figure.dpi / 72
    pixels = {name: ax.transData.transform(xy) for name, xy in networks.items()}
    taken = [box(xy, HALF * unit) for several in pixels.values() for xy in several]
    for several in pixels.values():
        for a, b in zip(several, several[1:], strict=False):
            taken += [box(xy, unit) for xy in np.linspace(a, b, 50)]
    for name, several in pixels.items():
        text = ax.text(0.5, 0.5, name, transform=ax.transAxes, fontsize=9)
        size = text.get_window_extent().size
        text.remove()
        spots = list(candidates(several, size, unit))
        cost = [
            (not (ax.bbox.contains(*spot.min) and ax.bbox.contains(*spot.max)), spot.count_overlaps(taken), n)
            for n, (_, spot) in enumerate(spots)
        ]
        (mark, spot), far = spots[min(cost)[2]], min(cost)[2] >= len(several) * len(SIDES)
        ax.annotate(
            name, ax.transData.inverted().transform(several[mark]), (spot.min - several[mark]) / unit,
            textcoords="offset points", fontsize=9, arrowprops={"arrowstyle": "-", "lw": 0.6} if far else None,
        )  # fmt: skip
        taken.append(spot)


def candidates(marks: np.ndarray, size: np.ndarray, unit: float) -> Iterator[tuple[int, Bbox]]:
    """Places for a label of that size, the nearest to its marks first: which mark, and where, in pixels."""
    for away in AWAY:
        for side in SIDES:
            for n, xy in enumerate(marks):
                centre = xy + np.array(side) * (away * unit + size / 2)
                yield n, Bbox.from_bounds(*(centre - size / 2), *size)


def box(xy: np.ndarray, half: float) -> Bbox:
    return Bbox.from_extents(*(xy - half), *(xy + half))
