"""Summarises the runs below folders: a markdown table, the same as CSV, training curves, pictures of what was learned.

python scripts/summarize.py save
python scripts/summarize.py save --out results/mine --figures

A row is all runs that differ in nothing but trial, seed, names and folders (probes: those of their students included):
mean ± sample deviation of the last epoch. The gain is over `none` with the same network, data and training options.
Published numbers (results/published.csv) are those of the last of 240 epochs on CIFAR-100.

The class-logit matrices follow the convention of 2403.01427's published code: each image's logits minus their mean,
over their sample deviation, averaged over the test images of each true class (row) to C x C; |T - S| with a zero
diagonal, colours from 0 to 3, its mean over all C x C entries. These are no correlation coefficients; lower means that
the student rates the wrong classes more as its teacher does.

t-SNE is of the pooled features, 1000 iterations; `--tsne logits` is the published variant, of the logits with 300
iterations (2407.11802). Perplexity is 40; above 20 classes the first 20 are also embedded on their own.
"""

import argparse
import csv
import functools
import importlib.util
import io
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import dataset  # noqa: E402
import models  # noqa: E402
from helper import checkpoint, options  # noqa: E402
from helper.util import UserError, choose_device, command, mendable  # noqa: E402

KINDS = ("teachers", "students", "probes")
REPEATED = options.FREE | {"trial", "seed", "run_name"}  # what the runs of a row may differ in
METHOD = {"distill", "gamma", "alpha", "beta", "path_t", "model_t", "init_epochs", "init_learning_rate"}
STUDENT = "student's "  # goes before the options of the run whose network is probed
DATA = ("dataset", "data_folder", "image_size", "limit_train", "limit_val")
# colour-blind safe: Okabe and Ito's without the yellow, too pale for a line; Tol's "muted" and black
LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CLASSES = ("#CC6677 #332288 #DDCC77 #117733 #88CCEE #882255 #44AA99 #999933 #AA4499 #000000").split()
PERPLEXITY, ITERATIONS = 40, {"pooled": 1000, "logits": 300}

Published = dict[tuple[str, str, str], float]  # (method, teacher, student) -> accuracy
Cells = dict[str, Any]  # a line of a CSV file by column; None is empty


# ---- reading ----


@dataclass
class Run:
    """A run's folder, read. `source` is the run whose network a probe reads, where its folder is still there."""

    folder: Path
    options: dict[str, Any]
    summary: dict[str, Any] | None  # None: unfinished
    curve: list[float]  # validation accuracy in percent, epoch by epoch
    source: "Run | None" = None

    @property
    def kind(self) -> str:
        return "students" if "distill" in self.options else "teachers" if "model" in self.options else "probes"

    def settings(self) -> dict[str, Any]:
        """What the runs of a row have in common."""
        own = {k: v for k, v in self.options.items() if k not in REPEATED}
        own["device"] = str(own.get("device")).partition(":")[0]  # a sweep may be spread over cuda:0 and cuda:1
        if self.source:
            own["path_s"] = Path(own["path_s"]).name
            own |= {STUDENT + k: v for k, v in self.source.settings().items()}
        return own

    def progress(self) -> str:
        init_log = self.folder / "init_log.csv"
        if not self.curve and init_log.is_file():
            return f"{len(read_csv(init_log))} of {self.options['init_epochs']} epochs of its initialisation"
        return f"{len(self.curve)} of {self.options['epochs']} epochs"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_run(folder: Path) -> Run:
    """Raises UserError with the reason where the files are not as a run leaves them."""
    try:
        found = json.loads((folder / "options.json").read_text())["options"]
        missing = [key for key in ("dataset", "epochs", "seed") if key not in found]
        if missing or not {"model", "model_s"} & found.keys():
            raise ValueError(f"options.json lacks {', '.join(missing or ['the network'])}")
        path, log, summary = folder / "summary.json", folder / "log.csv", None
        if path.is_file():
            summary = json.loads(path.read_text())
            summary |= {key: float(summary[key]) for key in ("last_acc", "best_acc", "seconds")}
        curve = [float(row["val_acc"]) for row in read_csv(log)] if log.is_file() else []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{folder}: {what}") from None
    run = Run(folder, found, summary, curve)
    if run.kind == "probes":
        try:
            run.source = read_run(Path(found["path_s"]).parent)
        except UserError:  # a bare checkpoint, or moved: its path alone tells what is probed
            pass
    return run


def find_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs below the folders, and a line for each that cannot be read."""
    places = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        for name in ("options.json", "summary.json", "log.csv"):
            places |= {path.parent.resolve(): path.parent for path in folder.rglob(name)}
    runs, broken = [], []
    for place in sorted(places.values()):
        try:
            runs.append(read_run(place))
        except UserError as error:
            broken.append(str(error))
    if not places:
        raise UserError(f"{', '.join(map(str, folders))}: no run in there")
    return runs, broken


def read_published() -> Published:
    """Networks alone are `none` without a teacher."""
    with mendable("results/published.csv"):
        rows = read_csv(ROOT / "results" / "published.csv")
        return {(row["method"], row["teacher"], row["student"]): float(row["accuracy"]) for row in rows}


# ---- rows ----


class Row:
    """Finished runs that differ in nothing but trial, seed, names and folders."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.options["seed"])
        run = self.runs[0]
        told = (run.source or run).options  # these say method and teacher
        self.settings = run.settings()
        self.method = text(told.get("distill") or ("alone" if "model" in told else short(told["path_s"])))
        self.names = {
            "kind": run.kind,
            "data": run.options["dataset"],
            "network": run.options.get("model") or run.options["model_s"],
            "teacher": text(told.get("model_t")),
        }
        self.weights = {"r": text(told.get("gamma")), "a": text(told.get("alpha")), "b": text(told.get("beta"))}
        self.with_kd = bool(told.get("alpha"))
        self.last, self.best = ([run.summary[key] for run in self.runs] for key in ("last_acc", "best_acc"))
        self.other: dict[str, str] = {}  # options that tell this row from those of the same names and method

    @property
    def kind(self) -> str:
        return self.names["kind"]

    @property
    def label(self) -> str:
        """What tells its line in a plot of one pair, or of one data set's teachers."""
        what = self.names["network"] if self.kind == "teachers" else self.method
        return " ".join([what, *(f"{key}={value}" for key, value in self.other.items())])

    def teacher_file(self) -> str | None:
        return self.settings.get("path_t", self.settings.get(STUDENT + "path_t"))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sample deviation (one run: 0) of the validation accuracy, [epochs] each."""
        epochs = min(len(run.curve) for run in self.runs)
        curves = np.array([run.curve[:epochs] for run in self.runs])
        return curves.mean(0), curves.std(0, ddof=1) if len(curves) > 1 else np.zeros(epochs)


def text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def short(value: Any) -> str:
    """Paths by their last two names, a run and its checkpoint."""
    return "/".join(text(value).split("/")[-2:])


def make_rows(runs: list[Run]) -> tuple[list[Row], list[str]]:
    """The rows, the best of each pair last, and a line for each run that repeats the options and seed of another."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    twice = []
    for run in runs:
        seeds = found[json.dumps([run.kind, run.settings()], sort_keys=True)]
        first = seeds.setdefault(run.options["seed"], run)
        if first is not run:
            twice.append(f"{run.folder}: same options and seed as {first.folder}")
    rows = [Row(list(seeds.values())) for seeds in found.values()]
    rows.sort(key=lambda row: (KINDS.index(row.kind), *row.names.values(), statistics.mean(row.last)))
    alike = defaultdict(list)
    for row in rows:
        alike[*row.names.values(), row.method].append(row)
    for several in alike.values():
        for key in sorted({key for row in several for key in row.settings}):
            having = [row for row in several if key in row.settings]
            if len({text(row.settings[key]) for row in having}) > 1:
                for row in having:
                    row.other[key] = short(row.settings[key])
    return rows, twice


def baseline(row: Row, rows: list[Row]) -> Row | None:
    """`none` with the same network, data and training options: beside the same teacher, else without any."""

    def fits(other: Row) -> bool:
        plain = other.kind == row.kind and other.method == "none" and not other.with_kd and other.weights["r"] == "1.0"
        common = [key for key in other.settings if key.removeprefix(STUDENT) not in METHOD]
        return plain and other is not row and all(row.settings.get(key) == other.settings[key] for key in common)

    found = [other for other in rows if fits(other) and other.teacher_file() in (row.teacher_file(), None)]
    return max(found, key=lambda other: other.teacher_file() is not None, default=None)


def published_of(row: Row, published: Published) -> float | None:
    if row.names["data"] != "cifar100" or row.kind == "probes":
        return None
    method = "none" if row.method == "alone" else row.method
    method += "+kd" if row.with_kd and method != "kd" else ""
    return published.get((method, "" if method == "none" else row.names["teacher"], row.names["network"]))


def cells(row: Row, rows: list[Row], published: Published) -> Cells:
    """The row in table.csv."""
    none = baseline(row, rows)
    several = len(row.runs) > 1
    shown = ("gamma", "alpha", "beta")  # in columns of their own
    return {
        **row.names,
        "method": row.method,
        **row.weights,
        "other_options": " ".join(f"{k}={v}" for k, v in row.other.items() if k.removeprefix(STUDENT) not in shown),
        "seeds": len(row.runs),
        "last_mean": statistics.mean(row.last),
        "last_deviation": statistics.stdev(row.last) if several else None,
        "gain": statistics.mean(row.last) - statistics.mean(none.last) if none else None,
        "published": published_of(row, published),
        "best_mean": statistics.mean(row.best),
        "best_deviation": statistics.stdev(row.best) if several else None,
        "seconds": statistics.median(run.summary["seconds"] for run in row.runs),
        **{f"last_seed_{run.options['seed']}": last for run, last in zip(row.runs, row.last, strict=True)},
    }


def curve_cells(row: Row) -> list[Cells]:
    """The row's epochs in curves.csv."""
    names = row.names | {"method": row.label, "seeds": len(row.runs)}
    epochs = enumerate(zip(*map(np.ndarray.tolist, row.curve()), strict=True), 1)
    several = len(row.runs) > 1
    return [
        names | {"epoch": e, "val_acc_mean": m, "val_acc_deviation": d if several else None} for e, (m, d) in epochs
    ]


# ---- writing ----


def printed(cell: Cells) -> dict[str, str]:
    """A row of the markdown table, by column."""

    def plus_minus(name: str) -> str:
        mean, spread = cell[f"{name}_mean"], cell[f"{name}_deviation"]
        return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"

    return {key: cell[key] for key in ("data", "network", "teacher", "method", *"rab")} | {
        "other options": cell["other_options"],
        "seeds": str(cell["seeds"]),
        "last epoch": plus_minus("last"),
        "gain over none": "" if cell["gain"] is None else f"{cell['gain']:+.2f}",
        "published, 240 epochs": "" if cell["published"] is None else f"{cell['published']:.2f}",
        "best epoch": plus_minus("best"),
        "seconds a run": f"{cell['seconds']:.0f}",
    }


def as_markdown(table: list[Cells], lists: dict[str, list[str]]) -> str:
    """A table for each kind of run, without its empty columns, then what is not in the tables."""
    blocks = []
    for kind in KINDS:
        rows = [printed(cell) for cell in table if cell["kind"] == kind]
        if rows:
            header = [key for key in rows[0] if any(row[key] for row in rows)]
            lines = [header, ["---"] * len(header), *([row[key] for key in header] for row in rows)]
            blocks.append("\n".join([f"### {kind.capitalize()}\n", *(f"| {' | '.join(line)} |" for line in lines)]))
    blocks += ["\n".join([f"{title}:\n", *(f"- {line}" for line in lines)]) for title, lines in lists.items() if lines]
    return "\n\n".join(blocks)


def as_csv(table: list[Cells]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for cell in table for key in cell)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


# ---- figures ----


class Outputs:
    """What a network says of the test set of options DATA: logits and pooled features [N, ...], labels [N].

    Raises UserError where the checkpoint or the data cannot be read.
    """

    @torch.no_grad()
    def __init__(self, name: str, path: str, flag: str, *values: Any) -> None:
        state = checkpoint.load(path, flag)  # before the data, which may begin with a download
        data = test_set(*values)
        with mendable(flag):
            network = models.create_model(name, len(data.classes))
        checkpoint.load_weights(network, name, state, flag, path)
        device = choose_device(None)
        network.to(device).eval()
        batches = dataset.ValBatches(data.val_images, data.val_labels, 256, data.mean, data.std, device=device)
        parts = [(o.logits, o.pooled) for o in (network(batch.images, is_feat=True) for batch in batches)]
        logits, pooled = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
        self.values = {"logits": logits, "pooled": pooled}
        self.labels, self.classes = data.val_labels.cpu().numpy(), data.classes
        self.accuracy = 100 * float((logits.argmax(1) == self.labels).mean())
        self.title = f"{name} ({self.accuracy:.1f} %)"
        self.embeddings: dict[tuple[str, int], np.ndarray] = {}  # a teacher's serve all its students

    def class_means(self) -> np.ndarray:
        """z-scored logits, averaged over the images of each true class (row): [C, C]."""
        logits = self.values["logits"]
        z = (logits - logits.mean(1, keepdims=True)) / logits.std(1, ddof=1, keepdims=True)
        return np.stack([z[self.labels == c].mean(0) for c in range(len(self.classes))])

    def embedding(self, what: str, classes: int) -> np.ndarray:
        """t-SNE of the images of the first classes, [images, 2]. Raises UserError where they are too few."""
        from sklearn.manifold import TSNE  # optional

        if (what, classes) not in self.embeddings:
            values = self.values[what][self.labels < classes]
            if len(values) <= PERPLEXITY:
                raise UserError(f"t-SNE: a perplexity of {PERPLEXITY} needs more test images than {len(values)}")
            tsne = TSNE(perplexity=PERPLEXITY, max_iter=ITERATIONS[what], random_state=0)
            self.embeddings[what, classes] = tsne.fit_transform(values)
        return self.embeddings[what, classes]


@functools.lru_cache(maxsize=1)
def test_set(*values: Any) -> dataset.ImageSet:
    """The data set of options DATA."""
    return options.load_data(argparse.Namespace(**dict(zip(DATA, values, strict=True))))


outputs = functools.lru_cache(maxsize=2)(Outputs)  # a student and its teacher, which the next student mostly shares


class Figures:
    """Writes PNGs into a folder. matplotlib is imported here alone, because it is optional."""

    def __init__(self, out: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")  # no display
        from matplotlib import pyplot

        pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
        pyplot.rcParams.update({"axes.titlesize": 10, "figure.titlesize": 11, "savefig.dpi": 150})
        self.plt, self.out, self.names = pyplot, out, set()

    def save(self, figure: Any, *name: str) -> None:
        file_name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, name)))
        while file_name in self.names:  # runs of the same name in different folders
            file_name += "_"
        self.names.add(file_name)
        figure.savefig(self.out / f"{file_name}.png", bbox_inches="tight")
        self.plt.close(figure)
        print(self.out / f"{file_name}.png")

    def curves(self, rows: list[Row]) -> None:
        """A plot for each pair of teacher and student, and for the teachers of each data set: all epochs, the last."""
        plots = defaultdict(list)
        for row in rows:
            names = tuple(row.names.values())
            plots[names[: 2 if row.kind == "teachers" else 4]].append(row)
        for (kind, data, *pair), members in plots.items():
            longest = max(len(row.curve()[0]) for row in members)
            starts = {"all epochs": 0, "last quarter": longest * 3 // 4}  # there methods part: on a scale of its own
            if longest < 8:
                del starts["last quarter"]
            figure, (axes,) = self.plt.subplots(
                1, len(starts), figsize=(1 + 5 * len(starts), 4.5), squeeze=False, layout="constrained"
            )
            legend = []
            members.sort(key=lambda row: (row.method != "none", row.label))  # `none` is always black
            for i, row in enumerate(members):
                mean, spread = row.curve()
                epochs = np.arange(1, len(mean) + 1)
                color, dashes = LINES[i % len(LINES)], ("-", "--", ":", "-.")[i // len(LINES) % 4]
                marker = "." if len(mean) == 1 else None
                for ax, start in zip(axes, starts.values(), strict=True):
                    x, y, d = epochs[start:], mean[start:], spread[start:]
                    (line,) = ax.plot(x, y, dashes, color=color, marker=marker, lw=1.6)
                    ax.fill_between(x, y - d, y + d, color=color, alpha=0.15, lw=0)
                legend.append((statistics.mean(row.last), line, row.label))
            legend.sort(key=lambda entry: -entry[0])
            labels = [f"{last:.1f}  {label}" for last, _, label in legend]
            figure.legend([line for _, line, _ in legend], labels, loc="outside right center", title="last epoch, %")
            for ax, title in zip(axes, starts, strict=True):
                ax.set(title=title, xlabel="epoch", ylabel="validation accuracy, %")
                ax.grid(axis="y", color="0.9")
                ax.xaxis.get_major_locator().set_params(integer=True)
            what = " from ".join(filter(None, pair)) if pair else "teachers"
            probed = ", linear probe" if kind == "probes" else ""
            figure.suptitle(f"{what} on {data}{probed}: validation accuracy, {seeds_in_words(members)}")
            self.save(figure, "curves", kind, data, *pair)

    def matrices(self, run: Run, teacher: Outputs, student: Outputs) -> None:
        t, s = teacher.class_means(), student.class_means()
        gap = np.abs(t - s)
        np.fill_diagonal(gap, 0)
        print(f"{run.folder}: |T - S| max {gap.max():.3f}, mean {gap.mean():.3f}")
        limit = max(np.abs(t).max(), np.abs(s).max())
        signed, positive = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}, {"cmap": "Blues", "vmin": 0, "vmax": 3}
        panels = [
            (t, signed, f"teacher {teacher.title}"),
            (s, signed, f"student {student.title}"),
            (gap, positive, f"|T − S|: max {gap.max():.2f}, mean {gap.mean():.2f}"),
        ]
        figure, axes = self.plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
        for ax, (values, colours, title) in zip(axes, panels, strict=True):
            figure.colorbar(ax.imshow(values, **colours), ax=ax, shrink=0.8)
            ax.set(title=title, xlabel="class of the logit")
            ax.spines[:].set_visible(False)
            if len(t) <= 20:
                ax.set_yticks(range(len(t)), teacher.classes)
                ax.set_xticks(range(len(t)), teacher.classes, rotation=90 if max(map(len, teacher.classes)) > 2 else 0)
        axes[0].set_ylabel("true class")
        figure.suptitle(f"{heading(run)}: z-scored logits, mean by true class, {len(teacher.labels)} test images")
        self.save(figure, "correlation", run.folder.name)

    def tsne(self, run: Run, teacher: Outputs, student: Outputs, what: str) -> None:
        from matplotlib.patheffects import withStroke

        outline = withStroke(linewidth=3, foreground="white")
        n = len(teacher.classes)
        shown = [n] if n <= 20 else [n, 20]
        figure, axes = self.plt.subplots(
            len(shown), 2, figsize=(11, 5 * len(shown)), squeeze=False, layout="constrained"
        )
        for classes, pair in zip(shown, axes, strict=True):
            for said, who, ax in zip((teacher, student), ("teacher", "student"), pair, strict=True):
                points, labels = said.embedding(what, classes), said.labels[said.labels < classes]
                for c in range(classes):
                    style = {"color": CLASSES[c % 10], "marker": "o^sD"[c // 10 % 4], "label": said.classes[c]}
                    part = points[labels == c]
                    ax.scatter(*part.T, s=12, alpha=0.7, lw=0, **style)
                    if classes <= 20 and len(part):  # colours alone do not tell so many classes apart
                        ax.annotate(said.classes[c], np.median(part, 0), weight="bold", path_effects=[outline])
                ax.set_title(f"{who} {said.title}" + ("" if classes == n else f", first {classes} classes"))
                ax.set_axis_off()
        handles, names = axes[-1][1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", title="true class", markerscale=2)
        figure.suptitle(
            f"{heading(run)}: t-SNE of {'logits' if what == 'logits' else 'pooled features'}, "
            f"{len(teacher.labels)} test images, perplexity {PERPLEXITY}"
        )
        self.save(figure, "tsne", what, run.folder.name)


def seeds_in_words(rows: list[Row]) -> str:
    low, high = min(len(row.runs) for row in rows), max(len(row.runs) for row in rows)
    if high == 1:
        return "one seed"
    return f"mean ± deviation over {high if low == high else f'{low} to {high}'} seeds"


def heading(run: Run) -> str:
    o = run.options
    return f"{text(o['distill'])}, {o['model_s']} from {o['model_t']} on {o['dataset']}, one run (seed {o['seed']})"


def draw_run(figures: Figures, run: Run, tsne: str) -> None:
    """Raises UserError where the run has no teacher, or a checkpoint cannot be read."""
    teacher_file = run.options.get("path_t")
    if run.kind != "students" or not isinstance(teacher_file, str):
        raise UserError(f"{run.folder}: not a student of one teacher")
    data = [run.options.get(key) for key in DATA]
    teacher = outputs(run.options["model_t"], teacher_file, "--path_t", *data)
    student = outputs(run.options["model_s"], str(run.folder / "last.pth"), "student", *data)
    figures.matrices(run, teacher, student)
    if tsne != "none":
        figures.tsne(run, teacher, student, tsne)


def check_packages(tsne: str) -> None:
    for module, package in {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}.items():
        if importlib.util.find_spec(module) is None and (tsne != "none" or module == "matplotlib"):
            raise UserError(f"--figures needs the package {package} (pip install {package})")


# ---- the command ----


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="where the runs are, at any depth")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write table.md, table.csv and curves.csv there")
    parser.add_argument("--figures", action="store_true", help="also draw PNGs there (needs matplotlib, scikit-learn)")
    parser.add_argument("--run", metavar="FOLDER", action="append", type=Path, help="matrices, t-SNE of this run alone")
    parser.add_argument("--tsne", choices=["pooled", "logits", "none"], default="pooled", help="of what (pooled)")
    opt = parser.parse_args(argv)
    if opt.figures and not opt.out:
        raise UserError("--figures needs --out DIR, the folder for the pictures")
    if opt.run and not opt.figures:
        raise UserError("--run has no effect without --figures")
    return opt


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    if opt.figures:
        check_packages(opt.tsne)
    named = [read_run(folder) for folder in opt.run or []]
    runs, broken = find_runs(opt.folders)
    rows, twice = make_rows([run for run in runs if run.summary])
    published = read_published()
    table = [cells(row, rows, published) for row in rows]
    unfinished = [f"{run.folder}: {run.progress()}" for run in runs if not run.summary]
    markdown = as_markdown(table, {"Unfinished": unfinished, "Left out": twice, "Cannot be read": broken})
    print(markdown)
    if opt.out:
        with mendable(f"--out {opt.out}"):
            opt.out.mkdir(parents=True, exist_ok=True)
            (opt.out / "table.md").write_text(markdown + "\n")
            (opt.out / "table.csv").write_text(as_csv(table))
            (opt.out / "curves.csv").write_text(as_csv([line for row in rows for line in curve_cells(row)]))
    if opt.figures:
        figures = Figures(opt.out)
        figures.curves([row for row in rows if len(row.curve()[0])])
        for run in named or [run for row in rows if row.kind == "students" for run in row.runs]:
            try:
                draw_run(figures, run, opt.tsne)
            except UserError as error:
                if named:  # asked for
                    raise
                print(f"no pictures of {run.folder}: {error}")


if __name__ == "__main__":
    main()
