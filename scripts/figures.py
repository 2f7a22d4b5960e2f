"""Draws for `summarize.py --figures`: training curves, class-logit matrices, t-SNE of the test images' features.

The class-logit matrices follow the convention of 2403.01427's published code: each image's logits minus their mean,
over their sample deviation, averaged over the test images of each true class (row) to C x C; |T - S| with a zero
diagonal, colours from 0 to 3, its mean over all C x C entries. These are no correlation coefficients; lower means that
the student rates the wrong classes more as its teacher does.

t-SNE is of the pooled features, with a perplexity of 40 and 1000 iterations.
"""

import functools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

import dataset
from helper import checkpoint, networks
from helper.options import images_of
from helper.util import UserError, choose_device, mendable

from . import curves

# colour-blind safe: Tol's "muted" and black
CLASSES = ("#CC6677 #332288 #DDCC77 #117733 #88CCEE #882255 #44AA99 #999933 #AA4499 #000000").split()
DATA = ("dataset", "data_folder", "image_size", "limit_train", "limit_val")

load_data = functools.lru_cache(maxsize=1)(dataset.load)


@dataclass
class Outputs:
    """What a network says of the test set."""

    logits: np.ndarray  # [N, C]
    pooled: np.ndarray  # [N, D]
    labels: np.ndarray  # [N]
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        return 100 * float((self.logits.argmax(1) == self.labels).mean())

    def class_means(self) -> np.ndarray:
        """z-scored logits, averaged over the images of each true class (row): [C, C]."""
        z = (self.logits - self.logits.mean(1, keepdims=True)) / self.logits.std(1, ddof=1, keepdims=True)
        return np.stack([z[self.labels == c].mean(0) for c in range(len(self.classes))])

    @functools.cached_property  # a teacher's serves all its students
    def embedding(self) -> np.ndarray:
        """t-SNE of the pooled features: [N, 2]."""
        perplexity = min(40, len(self.pooled) - 1)
        return TSNE(perplexity=perplexity, max_iter=1000, random_state=0).fit_transform(self.pooled)


@functools.lru_cache(maxsize=2)  # a student's and its teacher's, which the next student mostly shares
@torch.no_grad()
def outputs(path: Path, name: str, *data_options: str | int | None) -> Outputs:
    """Of the network in this checkpoint, on the data set of options DATA. Raises UserError where it cannot be read."""
    state = checkpoint.load(path)  # before the data, which may begin with a download
    with mendable(f"{name} on {data_options[0]}"):
        data = load_data(*data_options)
    network = networks.restore(name, state, "checkpoint", path, len(data.classes), images_of(data))
    device = choose_device(None)
    network.to(device).eval()
    batches = dataset.ValBatches.of(data, 256, device)
    parts = [(said.logits, said.pooled) for said in (network(batch.images, is_feat=True) for batch in batches)]
    logits, pooled = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return Outputs(logits, pooled, data.val_labels.cpu().numpy(), data.classes)


def save(figure: Figure, folder: Path, name: str) -> None:
    path = folder / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    figure.savefig(path, dpi=150)
    print(path)


def draw_curves(rows: list, out: Path) -> None:
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
        save(curves.draw(title, "last epoch, % (seeds)", drawn), out, "_".join(["curves", *names]))


def matrices(teacher: Outputs, student: Outputs) -> Figure:
    t, s = teacher.class_means(), student.class_means()
    gap = np.abs(t - s)
    np.fill_diagonal(gap, 0)
    print(f"|T - S| max {gap.max():.3f}, mean {gap.mean():.3f}: ", end="")
    limit = max(np.abs(t).max(), np.abs(s).max())
    signed, positive = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}, {"cmap": "Blues", "vmin": 0, "vmax": 3}
    panels = [
        (t, signed, "teacher"),
        (s, signed, "student"),
        (gap, positive, f"|T − S|: max {gap.max():.2f}, mean {gap.mean():.2f}"),
    ]
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle("mean z-scored logits by true class")
    axes = figure.subplots(1, 3)
    for ax, (values, colours, title) in zip(axes, panels, strict=True):
        figure.colorbar(ax.imshow(values, **colours), ax=ax, shrink=0.8)
        ax.set(title=title, xlabel="class of the logit")
        if len(t) <= 20:
            ax.set_yticks(range(len(t)), teacher.classes)
            ax.set_xticks(range(len(t)), teacher.classes, rotation=90)
    axes[0].set_ylabel("true class")
    return figure


def tsne(teacher: Outputs, student: Outputs) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle("t-SNE of pooled features")
    for ax, who, said in zip(figure.subplots(1, 2), ("teacher", "student"), (teacher, student), strict=True):
        for c, name in enumerate(said.classes):
            points = said.embedding[said.labels == c]
            ax.scatter(*points.T, s=12, alpha=0.7, lw=0, color=CLASSES[c % 10], marker="o^sD"[c // 10 % 4])
            if len(points) and len(said.classes) <= 20:  # colours alone do not tell so many classes apart
                ax.text(*np.median(points, 0), name, bbox={"fc": "white", "alpha": 0.7, "lw": 0, "pad": 1})
        ax.set_title(who)
        ax.set_axis_off()
    return figure


def draw(rows: list, out: Path) -> None:
    """Writes PNGs of summarize.py's rows: curves; matrices and t-SNE of each student whose checkpoints can be read."""
    draw_curves(rows, out)
    drawn = set()
    for run in [run for row in rows if row.kind == "students" for run in row.runs]:
        o, name = run.options, run.folder.name
        data = [o.get(key) for key in DATA]
        try:
            if len(o["path_t"] or []) != 1:
                raise UserError("not a student of one teacher")
            teacher = outputs(Path(o["path_t"][0]), o["model_t"][0], *data)
            student = outputs(run.folder / "last.pth", o["model_s"], *data)
        except UserError as error:
            print(f"no pictures of {run.folder}: {error}")
            continue
        while name in drawn:  # runs of the same name in different folders
            name += "_"
        drawn.add(name)
        pair = f"{o['model_s']} ({student.accuracy:.1f} %) from {o['model_t'][0]} ({teacher.accuracy:.1f} %)"
        what = f"{','.join(o['distill'])}, {pair} on {o['dataset']}, seed {o['seed']}"
        for kind, picture in (("correlation", matrices), ("tsne", tsne)):
            figure = picture(teacher, student)
            figure.suptitle(f"{what}: {figure.get_suptitle()} of {len(student.labels)} test images")
            save(figure, out, f"{kind}_{name}")
