"""Training curves as summarize.py and evaluate_kd.py draw them: where a curve ends is what the table says."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_summarize import make_run

import evaluate_kd
from scripts import summarize

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")  # of scripts.figures
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], Figure.savefig

    def kept(self: Figure, *arguments: object, **options: object) -> None:
        save(self, *arguments, **options)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def accuracies(epochs: int, last: float, steepness: float = 4.0) -> list[float]:
    """They rise with some noise, and end with `last`."""
    rise = [last * (1 - math.exp(-steepness * n / epochs)) + 2 * math.sin(5 * n * last) for n in range(1, epochs)]
    return [round(accuracy, 2) for accuracy in [*rise, last]]


def check(figure: Figure, expected: dict[str, list[float]]) -> None:
    """The curves are these, by their labels without the number; the number is their last; no text hides another."""
    longest = max(len(curve) for curve in expected.values())
    assert len(figure.axes) == 1 + (longest - longest * 3 // 4 >= 5)
    legend = [text.get_text().split("  ", 1) for text in figure.legends[0].get_texts()]
    assert {label: float(number) for number, label in legend} == {k: round(v[-1], 2) for k, v in expected.items()}
    for axes, start in zip(figure.axes, (0, longest * 3 // 4), strict=False):
        lines = {line.get_label().split("  ", 1)[1]: line for line in axes.get_lines()}
        assert lines.keys() == expected.keys()
        assert len({(line.get_color(), str(line._dash_pattern)) for line in lines.values()}) == len(lines)
        for label, curve in expected.items():
            assert list(lines[label].get_xdata()) == list(range(start + 1, len(curve) + 1))
            assert list(lines[label].get_ydata()) == pytest.approx(curve[start:])
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure) if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (one, other)


def texts(figure: Figure) -> Iterator[Text]:
    """Without the labels of ticks beyond the axes, which are not drawn."""
    (legend,) = figure.legends
    yield from [figure._suptitle, legend.get_title(), *legend.get_texts()]
    for axes in figure.axes:
        yield from [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high), place in ((axes.xaxis, axes.get_xlim(), 0), (axes.yaxis, axes.get_ylim(), 1)):
            yield from [label for label in axis.get_ticklabels() if low <= label.get_position()[place] <= high]


@pytest.mark.parametrize("epochs", [1, 4, 20, 100])
def test_of_modes(epochs, drawn, tmp_path):
    curves = {mode: accuracies(epochs, 37.78 + n) for n, mode in enumerate(evaluate_kd.MODES)}
    title = f"cifar100, timm:mobilenetv4_conv_small > resnet8x4, {epochs} epochs, trial 1"
    evaluate_kd.draw(str(tmp_path / "c"), title, curves)
    assert (tmp_path / "c.png").is_file() and (tmp_path / "c.pdf").is_file()
    check(drawn[-1], curves)


@pytest.mark.parametrize("epochs", [1, 4, 20, 100])
def test_of_a_table(epochs, drawn, tmp_path: Path, capsys):
    methods = [f"m{n}" for n in range(40)]
    curves = {}
    for n, method in enumerate(methods):
        runs = [accuracies(epochs, last) for last in (30 + n, 30.5 + n)]
        for seed, run in enumerate(runs, 1):
            make_run(tmp_path / f"{method}_{seed}", run, seed, method="kd", distill=[method], epochs=epochs)
        curves[f"{method} (2)"] = [sum(values) / 2 for values in zip(*runs, strict=True)]
    summarize.main([str(tmp_path), "--out", str(tmp_path / "out"), "--figures"])
    check(drawn[0], curves)
    table = capsys.readouterr().out
    assert all(f"| {curve[-1]:.2f} ± 0.35 |" in table for curve in curves.values())
