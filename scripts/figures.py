"""Draws for `summarize.py --figures`: training curves, and what the networks of a row's first run say of the test set.

docs/figures.md says of every figure what it shows, and whose convention that is.
"""

import functools
import re
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import softmax  # comes with scikit-learn
from sklearn.manifold import TSNE
from torch import Tensor

import dataset
from helper import checkpoint, networks
from helper.devices import choose_device
from helper.loading import images_of
from helper.util import UserError, as_user_error, one_line
from helper.worth import BINS, calibration_error, halves, temperature

from . import curves
from .cka import cka, gram
from .runs_table import Row, Run

# colour-blind safe: Tol's "muted" and black
CLASSES = ("#CC6677 #332288 #DDCC77 #117733 #88CCEE #882255 #44AA99 #999933 #AA4499 #000000").split()
MARKERS = "os^Dv<>PX*"
DATA = ("dataset", "data_folder", "image_size", "limit_train", "limit_val")
SHOWN = 20  # classes that an embedding shows at most; of more, 10 of them
POINTS = 2000  # images in an embedding at most
BATCH, BATCHES = 256, 10  # of CKA, at most
FEWEST = 5  # images that can be placed in a plane by their neighbours

load_data = functools.lru_cache(maxsize=1)(dataset.load)


@dataclass
class Outputs:
    """What a network says of the test set, in a random order that is the same for every network."""

    logits: np.ndarray  # [N, C]
    pooled: np.ndarray  # [N, D]
    labels: np.ndarray  # [N]
    classes: tuple[str, ...]
    grams: tuple[Tensor, ...] = ()  # of CKA's batches: [stem, stages, pooled; n, n]

    @property
    def accuracy(self) -> float:
        return 100 * float((self.logits.argmax(1) == self.labels).mean())

    def class_means(self) -> np.ndarray:
        """z-scored logits, averaged over the images of each true class (row): [C, C]."""
        z = (self.logits - self.logits.mean(1, keepdims=True)) / self.logits.std(1, ddof=1, keepdims=True)
        return np.stack([z[self.labels == c].mean(0) for c in range(len(self.classes))])

    @property
    def shown(self) -> list[int]:
        """The classes of an embedding."""
        n = len(self.classes)
        return [n * i // 10 for i in range(10)] if n > SHOWN else list(range(n))

    @functools.cached_property
    def points(self) -> np.ndarray:
        """Places of the images of an embedding."""
        return np.flatnonzero(np.isin(self.labels, self.shown))[:POINTS]

    @functools.cached_property  # a teacher's serves all its students
    def tsne(self) -> np.ndarray:
        """Of the points' pooled features: [points, 2]."""
        perplexity = min(40, len(self.points) - 1)
        return TSNE(perplexity=perplexity, max_iter=1000, random_state=0).fit_transform(self.pooled[self.points])

    @functools.cached_property
    def umap(self) -> np.ndarray:
        """Likewise."""
        from umap import UMAP  # optional, and slow to import

        neighbours = min(15, len(self.points) - 1)
        threads = torch.get_num_threads()
        found = UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(self.pooled[self.points])
        torch.set_num_threads(threads)  # numba has changed OpenMP's
        return found


@functools.lru_cache(maxsize=2)  # a student's and its teacher's, which the next student mostly shares
@torch.no_grad()
def outputs(path: Path, name: str, *data_options: str | int | None) -> Outputs:
    """Of the network in this checkpoint, on the data set of options DATA. Raises UserError where it cannot be read."""
    state = checkpoint.load(path)  # before the data, which may begin with a download
    with as_user_error(f"{name} on {data_options[0]}"):
        data = load_data(*data_options)
    network = networks.restore(name, state, "checkpoint", path, len(data.classes), images_of(data))
    device = choose_device(None)
    network.to(device).eval()
    n = len(data.val_labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # a batch of one class would mislead CKA
    images, labels = data.val_images[order], data.val_labels[order]
    size = -(-n // -(-n // BATCH))  # no last batch of a few
    parts, grams = [], []
    for batch in dataset.ValBatches(images, labels, size, data.mean, data.std, device=device):
        said = network(batch.images, is_feat=True)
        parts.append((said.logits, said.pooled))
        if len(grams) < BATCHES and len(batch.labels) >= FEWEST:
            grams.append(torch.stack([gram(feat) for feat in (*said.feats, said.pooled)]).cpu())
    logits, pooled = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return Outputs(logits, pooled, labels.cpu().numpy(), data.classes, tuple(grams))


def save(figure: Figure, folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150)
    print(path)


def plain(name: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)


def draw_curves(rows: list[Row], out: Path) -> None:
    """A plot for each pair of teacher and student, and for the teachers of each data set."""
    plots = defaultdict(list)
    for row in reversed(rows):  # the best of each pair first
        names = tuple(filter(None, row.pair.values()))
        if row.curve():
            plots[names[:2] if row.kind == "teachers" else names].append(row)
    for names, members in plots.items():
        members.sort(key=lambda row: row.method != "none")  # `none` is always black
        drawn = []
        for row in members:
            mean, deviation = zip(*(epoch.values() for epoch in row.curve()), strict=True)
            label = f"{row.label} ({len(row.runs)})"
            drawn.append(curves.Curve(label, mean, deviation if len(row.runs) > 1 else ()))
        title = f"{', '.join(names)}: validation accuracy, mean ± deviation over the seeds"
        save(curves.draw(title, "last epoch, % (seeds)", drawn), out, plain("_".join(["curves", *names])))


def matrices(teacher: Outputs, student: Outputs) -> Figure:
    t, s = teacher.class_means(), student.class_means()
    gap = np.abs(t - s)
    np.fill_diagonal(gap, 0)
    print(f"|T - S| max {gap.max():.3f}, mean {gap.mean():.3f}: ", end="")
    low, high = min(t.min(), s.min()), max(t.max(), s.max())
    signed, positive = {"cmap": "viridis", "vmin": low, "vmax": high}, {"cmap": "Greys", "vmin": 0, "vmax": 3}
    panels = [
        (t, signed, "teacher (T)"),
        (s, signed, "student (S)"),
        (gap, positive, f"|T − S|\nmax {gap.max():.2f}, mean {gap.mean():.2f}"),
    ]
    figure = Figure(figsize=(curves.PAGE, 2.9), layout="constrained")
    figure.suptitle(f"mean z-scored logits by true class, {len(teacher.labels)} test images")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (values, colours, title) in zip(axes, panels, strict=True):
        image = ax.imshow(values, **colours)
        if ax is not axes[0]:  # the first two have the same colours
            figure.colorbar(image, ax=ax, shrink=0.8)
        ax.set(title=title, xlabel="class of the logit")
        if len(t) <= 20:
            names = [one_line(name, 12) for name in teacher.classes]
            ax.set_yticks(range(len(t)), names, fontsize=5)
            ax.set_xticks(range(len(t)), names, fontsize=5, rotation=90)
    axes[0].set_ylabel("true class")
    return figure


def embedding(kind: str, teacher: Outputs, student: Outputs) -> Figure:
    """kind: "t-SNE" or "UMAP"."""
    names = [one_line(teacher.classes[c], 16) for c in teacher.shown]
    columns = curves.columns(names, curves.COLUMN)
    figure = Figure(figsize=(curves.COLUMN, 2.2 + 0.13 * -(-len(names) // columns)), layout="constrained")
    few = f" of {len(names)} of {len(teacher.classes)} classes" if len(names) < len(teacher.classes) else ""
    figure.suptitle(f"{kind} of pooled features, {len(teacher.points)} test images{few}")
    axes = figure.subplots(1, 2)
    for ax, who, said in zip(axes, ("teacher", "student"), (teacher, student), strict=True):
        places, labels = getattr(said, kind.lower().replace("-", "")), said.labels[said.points]
        for n, (c, name) in enumerate(zip(said.shown, names, strict=True)):
            colour = CLASSES[n % 10]
            face = {"color": colour, "lw": 0} if n < 10 else {"edgecolors": colour, "facecolors": "none", "lw": 0.6}
            ax.scatter(*places[labels == c].T, s=6, marker=MARKERS[n % 10], label=name, alpha=0.8, **face)
        ax.set(title=who, xticks=[], yticks=[])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, markerscale=1.5)
    return figure


def tsne(teacher: Outputs, student: Outputs) -> Figure:
    return embedding("t-SNE", teacher, student)


def umap(teacher: Outputs, student: Outputs) -> Figure:
    return embedding("UMAP", teacher, student)


def stages(teacher: Outputs, student: Outputs) -> Figure:
    """CKA of each of the student's (column) with each of the teacher's (row)."""
    values = cka(teacher.grams, student.grams).numpy()
    names = [["stem", *map(str, range(1, n - 1)), "pooled"] for n in values.shape]
    figure = Figure(figsize=(curves.COLUMN, 3), layout="constrained")
    n = sum(batch.shape[-1] for batch in teacher.grams)
    figure.suptitle(f"linear CKA of features, unbiased, {n} test images in batches of {teacher.grams[0].shape[-1]}")
    ax = figure.subplots()
    figure.colorbar(ax.imshow(values, cmap="Greys", vmin=0, vmax=1), ax=ax)
    ax.set(xlabel="student's stage", ylabel="teacher's stage")
    ax.set_yticks(range(len(names[0])), names[0])
    ax.set_xticks(range(len(names[1])), names[1], rotation=0 if len(names[1]) <= 8 else 90)
    for (row, column), value in np.ndenumerate(values) if max(values.shape) <= 8 else ():
        colour = "white" if value > 0.5 else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    return figure


def calibration(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean confidence in each of BINS equally wide bins of the confidence; nan in an empty one.

    A bin holds its upper end, as in `calibration_error`.
    """
    confidence, right = softmax(logits, 1).max(1), logits.argmax(1) == labels
    places = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS) - 1
    count = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return np.bincount(places, right, BINS) / count, np.bincount(places, confidence, BINS) / count


def reliability(teacher: Outputs, student: Outputs) -> Figure:
    """Before and after temperature scaling, which every other image of each class fits and the others measure."""
    figure = Figure(figsize=(curves.COLUMN, 4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    edges = np.arange(BINS) / BINS
    for row, who, said in zip(axes, ("teacher", "student"), (teacher, student), strict=True):
        logits, labels = torch.from_numpy(said.logits), torch.from_numpy(said.labels)
        fitted, measured = halves(labels)
        t = temperature(logits[fitted], labels[fitted])
        for ax, scale, what in zip(row, (1, t), (who, f"{who}, T = {t:.2f}"), strict=True):
            scaled, right = logits[measured] / scale, labels[measured]
            accuracy, confidence = calibration(scaled.numpy(), right.numpy())
            gap, error = confidence - accuracy, 100 * calibration_error(scaled, right)
            bars = {"width": 1 / BINS, "align": "edge", "lw": 0.5}
            ax.bar(edges, accuracy, **bars, color="#88CCEE", edgecolor="black", label="accuracy")
            ax.bar(
                edges,
                gap,
                bottom=accuracy,
                **bars,
                fc="none",
                ec="#882255",
                hatch="/////",
                label="gap to the confidence",
            )
            ax.plot([0, 1], [0, 1], "k--", lw=0.6)
            ax.set(title=f"{what}\nECE {error:.1f} %", xlim=(0, 1), ylim=(0, 1))
            ax.set_box_aspect(1)
        row[0].set_ylabel("accuracy")
    for ax in axes[1]:
        ax.set_xlabel("confidence")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"reliability, {len(measured)} test images, T fitted on the other {len(fitted)}")
    return figure


PICTURES = {"correlation": matrices, "tsne": tsne, "umap": umap, "cka": stages, "reliability": reliability}


def read_networks(run: Run) -> tuple[Outputs, Outputs]:
    """The teacher's and the student's. Raises UserError."""
    o = run.options
    if len(o["path_t"] or []) != 1:
        raise UserError("not a student of one teacher")
    data = [o.get(key) for key in DATA]
    teacher = outputs(Path(o["path_t"][0]), o["model_t"][0], *data)
    if len(teacher.labels) < FEWEST:
        raise UserError(f"expected {FEWEST} test images or more, found {len(teacher.labels)}")
    return teacher, outputs(run.folder / "last.pth", o["model_s"], *data)


@matplotlib.rc_context(curves.STYLE)
def draw(rows: list[Row], out: Path) -> None:
    """Writes PNGs of the rows: curves; PICTURES of the first run of each whose checkpoints can be read."""
    draw_curves(rows, out)
    pictures = dict(PICTURES)
    if find_spec("umap") is None:
        print("no UMAP: it needs the package umap-learn (pip install umap-learn)")
        del pictures["umap"]
    drawn = set()
    for row in rows:
        for run in row.runs if row.kind == "students" else ():
            try:
                teacher, student = read_networks(run)
            except UserError as error:
                print(f"no pictures of {run.folder}: {error}")
                continue
            o, name = run.options, plain(run.folder.name)
            while name in drawn:  # runs of the same name in different folders
                name += "_"
            drawn.add(name)
            pair = f"{o['model_s']} ({student.accuracy:.1f} %) from {o['model_t'][0]} ({teacher.accuracy:.1f} %)"
            what = f"{','.join(o['distill'])}, {pair} on {o['dataset']}, seed {o['seed']}"
            for kind, picture in pictures.items():
                figure = picture(teacher, student)
                curves.set_title(figure, f"{what}: {figure.get_suptitle()}")
                save(figure, out, f"{kind}_{name}")
            break
