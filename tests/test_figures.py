"""What the figures of scripts/figures.py show: CKA and calibration against their formulas, and texts that are apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from helper.worth import calibration_error
from scripts.cka import cka, gram, hsic

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from scripts import curves, figures  # noqa: E402


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- CKA ----


def test_hsic_is_the_mean_over_quadruples():
    """The estimator's definition (Song et al. 2012), without its closed form."""
    k, l = (x @ x.T for x in (features(6, 3), features(6, 4, seed=1)))  # noqa: E741  as in the paper
    quadruples = list(itertools.permutations(range(6), 4))
    expected = sum(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples) / len(quadruples)
    torch.testing.assert_close(hsic(k, l), expected)
    shifted = features(6, 3) + 7
    torch.testing.assert_close(hsic(shifted @ shifted.T, l), expected)  # which gram relies on


def plain_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Kornblith et al.'s linear CKA, of all samples at once."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (torch.norm(y.T @ x) ** 2 / (torch.norm(x.T @ x) * torch.norm(y.T @ y))).item()


def batched(x: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [gram(batch)[None] for batch in x.split(size)]


def test_cka_is_that_of_the_paper():
    x = features(4000, 5)
    y = x @ features(5, 8, seed=1) + 2 * features(4000, 8, seed=2) + 3
    expected = plain_cka(x, y)
    assert 0.2 < expected < 0.8
    assert cka(batched(x, 250), batched(y, 250)).item() == pytest.approx(expected, abs=0.02)
    unlike = features(4000, 300, seed=3), features(4000, 300, seed=4)  # the biased one is far above 0 here
    assert plain_cka(*(z[:250] for z in unlike)) > 0.4
    assert abs(cka(*(batched(z, 250) for z in unlike)).item()) < 0.02


def test_cka_of_all_pairs_and_what_it_does_not_see():
    maps = [features(64, 4, 3, 3), features(64, 6, 2, 2, seed=1)]
    layers = [torch.stack([gram(x[part]) for x in maps]) for part in (slice(32), slice(32, 64))]
    found = cka(layers, layers)
    assert torch.allclose(found.diag(), torch.ones(2, dtype=torch.float64)) and found[0, 1] == found[1, 0]
    single = cka(*([gram(x[:32])[None], gram(x[32:])[None]] for x in maps))
    torch.testing.assert_close(found[:1, 1:], single)
    rotation, _ = torch.linalg.qr(features(36, 36, seed=2))
    turned = 0.01 * maps[0].flatten(1) @ rotation
    assert cka([gram(turned)[None]], [gram(maps[1])[None]]).item() == pytest.approx(
        cka([gram(maps[0])[None]], [gram(maps[1])[None]]).item(), rel=1e-5
    )
    stretched = maps[0].flatten(1) * torch.arange(36)
    assert cka([gram(stretched)[None]], [gram(maps[0])[None]]).item() < 0.95  # but it does see this


# ---- calibration ----


def logits_of(confidences: list[float]) -> np.ndarray:
    """Of two classes, the first the likelier."""
    p = np.array(confidences)
    return np.log(np.stack([p, 1 - p], 1))


def test_calibration_by_hand():
    logits = logits_of([0.58, 0.59, 0.95, 0.96, 0.97, 0.98])
    labels = np.array([0, 1, 0, 0, 0, 1])
    accuracy, confidence = figures.calibration(logits, labels)
    filled = [8, 14]  # of (8/15, 9/15] and (14/15, 1]
    assert list(np.flatnonzero(~np.isnan(accuracy))) == filled and len(accuracy) == 15
    assert accuracy[filled] == pytest.approx([0.5, 0.75]) and confidence[filled] == pytest.approx([0.585, 0.965])
    error = np.abs(accuracy - confidence)[filled] @ [2 / 6, 4 / 6]
    assert calibration_error(torch.from_numpy(logits), torch.from_numpy(labels)) == pytest.approx(error)


# ---- figures ----


def made_up(classes: int, seed: int, n: int = 400, stages: int = 5) -> figures.Outputs:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = rng.standard_normal((n, classes)) + 3 * np.eye(classes)[labels]
    grams = tuple(torch.stack([gram(torch.from_numpy(logits[:50]) ** p) for p in range(1, stages + 1)]) for _ in "ab")
    return figures.Outputs(
        logits, logits[:, :8], labels, tuple(f"quite_a_long_name_{c}" for c in range(classes)), grams
    )


def texts(figure: Figure) -> list[Text]:
    """Without the labels of ticks beyond the axes, which are not drawn."""
    found = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    for ax in figure.axes:
        found += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        for axis, limits, place in ((ax.xaxis, ax.get_xlim(), 0), (ax.yaxis, ax.get_ylim(), 1)):
            low, high = sorted(limits)
            found += [label for label in axis.get_ticklabels() if low <= label.get_position()[place] <= high]
    return [text for text in found if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("classes", [3, 10, 20, 100])
@pytest.mark.parametrize("kind", figures.PICTURES)
def test_no_text_hides_another(kind, classes, tmp_path: Path):
    if kind == "umap":
        pytest.importorskip("umap")
    with matplotlib.rc_context(curves.STYLE):
        figure = figures.PICTURES[kind](made_up(classes, 0), made_up(classes, 1, stages=7))
        curves.set_title(figure, f"a method with options, network from another, {figure.get_suptitle()}")
        figures.save(figure, tmp_path, kind)
        figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts(figure)]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


def test_embeddings_show_some_of_many_classes():
    said = made_up(100, 0)
    assert len(said.shown) == 10 and set(said.labels[said.points]) == set(said.shown)
    assert made_up(20, 0).shown == list(range(20))
    assert len(made_up(20, 0, n=3000).points) == figures.POINTS


def test_classes_differ_without_colours():
    kinds = [(figures.MARKERS[n % 10], n < 10) for n in range(figures.SHOWN)]
    assert len(set(kinds)) == len(kinds)
