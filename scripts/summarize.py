"""Summarises the runs below folders: a markdown table, the same as CSV, training curves, pictures of what was learned.

python scripts/summarize.py save
python scripts/summarize.py save --out results/mine --runs --figures

A row is all runs that differ in nothing but trial, seed, names, folders and device (probes: those of their students
included): mean ± sample deviation of the last epoch. The gain is over `none` with the same network, data and training
options. Published numbers (results/published.csv) are those of the last of 240 epochs on CIFAR-100, and on ImageNet
those of torchdistill's recipes (configs/ilsvrc2012), whose best epoch is reported.
What goes to --out is there to be published: absolute paths of this machine are shortened.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib.util
import json
import math
import os
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helper import options  # noqa: E402
from helper.util import OneLineParser, UserError, command, mendable, one_line  # noqa: E402

KINDS = ("teachers", "students", "probes")
REPEATED = options.FREE | {"trial", "seed", "run_name", "device"}  # what the runs of a row may differ in
METHOD = {"distill", "gamma", "alpha", "beta", "path_t", "model_t"}
METHOD |= {"init_epochs", "init_learning_rate", "init_lr_decay_epochs"}
STUDENT = "student's "  # goes before the options of the run whose network is probed


class Run:
    """A run's folder, read. Raises UserError with the reason where the files are not as a run leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        summary_file, log = folder / "summary.json", folder / "log.csv"
        try:
            told = json.loads((folder / "options.json").read_text())
            self.options: dict[str, Any] = told["options"]
            self.made_of = digests(told.get("made_of", {}))
            self.kind = KINDS[0 if "model" in self.options else 1 if "distill" in self.options else 2]
            needed = ["dataset", "epochs", "seed"]
            needed += {"teachers": ["model"], "students": ["model_s"], "probes": ["model_s", "path_s"]}[self.kind]
            if missing := [key for key in needed if key not in self.options]:
                raise ValueError(f"options.json lacks {', '.join(missing)}")
            self.finished = summary_file.is_file()
            if self.finished:
                summary = json.loads(summary_file.read_text())
                self.last, self.best = float(summary["last_acc"]), float(summary["best_acc"])
            epochs = list(csv.DictReader(log.read_text().splitlines() if log.is_file() else []))
            self.curve = [float(epoch["val_acc"]) for epoch in epochs]
            whole = [epoch["epoch"] for epoch in epochs] == [str(n + 1) for n in range(len(epochs))]
            if not whole or not all(map(math.isfinite, self.curve)):
                raise ValueError("log.csv: expected a row with an accuracy for each epoch")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            if isinstance(error, OSError):
                what = f"{os.path.basename(error.filename or '')}: {error.strerror}"
            raise UserError(f"{folder}: {what}") from None
        self.settings = {key: value for key, value in self.options.items() if key not in REPEATED} | self.made_of
        self.told, self.teacher = self.options, text(self.settings.get("path_t"))  # these say method and teacher
        if self.kind == "probes":
            with contextlib.suppress(UserError):  # a bare checkpoint, or moved: its path alone tells what is probed
                student = Run(Path(self.options["path_s"]).parent)
                self.told, self.teacher = student.told, student.teacher
                self.settings["path_s"] = Path(self.options["path_s"]).name
                self.settings |= {STUDENT + key: value for key, value in student.settings.items()}


def digests(made_of: dict[str, Any]) -> dict[str, str]:
    """What a run was made of, by option: weights count by their content, whatever their path, and images likewise."""
    found = {key: ",".join(one[:8] for one in several) for key, several in made_of.get("weights", {}).items()}
    if data := made_of.get("data"):
        found["data"] = hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=4).hexdigest()
    return found


def find_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs below the folders, and a line for each that cannot be read."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    names = ("options.json", "summary.json", "log.csv")
    paths = [path for folder in folders for name in names for path in folder.rglob(name)]
    if not paths:
        raise UserError(f"{', '.join(map(str, folders))}: no run in there")
    runs, broken = [], []
    for place in sorted({path.parent.resolve(): path.parent for path in paths}.values()):
        try:
            runs.append(Run(place))
        except UserError as error:
            broken.append(str(error))
    return runs, broken


@functools.cache
def read_published() -> dict[tuple[str, str, str, str], float]:
    """Accuracy by (data set, method, teacher, student). Networks alone are `none` without a teacher."""
    rows = csv.DictReader((ROOT / "results" / "published.csv").read_text().splitlines())
    return {(r["data"], r["method"], r["teacher"], r["student"]): float(r["accuracy"]) for r in rows}


class Row:
    """Finished runs that differ in nothing but what REPEATED names."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.options["seed"])
        run = self.runs[0]
        self.kind, self.settings, self.teacher_file = run.kind, run.settings, run.teacher
        network = run.options.get("model") or run.options["model_s"]
        self.pair = {"kind": run.kind, "data": run.options["dataset"], "network": network}
        self.pair["teacher"] = text(run.told.get("model_t"))
        self.method = text(run.told.get("distill") or ("alone" if "model" in run.told else short(run.told["path_s"])))
        self.weights = {"r": run.told.get("gamma"), "a": run.told.get("alpha"), "b": text(run.told.get("beta"))}
        self.last, self.best = [run.last for run in self.runs], [run.best for run in self.runs]
        self.other: dict[str, str] = {}  # options that tell this row from those of the same pair and method

    @property
    def label(self) -> str:
        """What tells its line in a plot of one pair, or of one data set's teachers."""
        what = self.pair["network"] if self.kind == "teachers" else self.method
        return " ".join([what, *(f"{key}={value}" for key, value in self.other.items())])

    def shown(self, key: str) -> str:
        """An option as the table has it. What counts by its content has its digest behind its path."""
        run = self.runs[0]
        path = short(run.options[key]) if key in run.made_of and run.options.get(key) else ""
        return f"{path}#{self.settings[key]}" if path else short(self.settings[key])

    def curve(self) -> list[dict[str, float | None]]:
        """Mean and sample deviation of the validation accuracy, epoch by epoch."""
        epochs = zip(*(run.curve for run in self.runs), strict=False)
        return [{"val_acc_mean": statistics.mean(accs), "val_acc_deviation": deviation(accs)} for accs in epochs]


def text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def short(value: Any) -> str:
    """Paths by their last two names, a run and its checkpoint."""
    return "/".join(text(value).split("/")[-2:])


def deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def make_rows(runs: list[Run]) -> tuple[list[Row], list[str]]:
    """The rows, the best of each pair last, and a line for each run that repeats the options and seed of another."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    twice = []
    for run in runs:
        seeds = found[json.dumps([run.kind, run.settings], sort_keys=True)]
        first = seeds.setdefault(run.options["seed"], run)
        if first is not run:
            twice.append(f"{run.folder}: same options and seed as {first.folder}")
    rows = [Row(list(seeds.values())) for seeds in found.values()]
    rows.sort(key=lambda row: (KINDS.index(row.kind), *row.pair.values(), statistics.mean(row.last)))
    alike = defaultdict(list)
    for row in rows:
        alike[*row.pair.values(), row.method].append(row)
    for several in alike.values():
        for key in sorted({key for row in several for key in row.settings}):
            having = [row for row in several if key in row.settings]
            if len({text(row.settings[key]) for row in having}) > 1:
                for row in having:
                    row.other[key] = row.shown(key)
    return rows, twice


def gain(row: Row, rows: list[Row]) -> float | None:
    """Over `none` with the same network, data and training options: beside the same teacher, else without any."""

    def fits(other: Row) -> bool:
        plain = other.kind == row.kind and other.method == "none" and other.weights["r"] == 1 and not other.weights["a"]
        common = [key for key in other.settings if key.removeprefix(STUDENT) not in METHOD]
        return plain and other is not row and all(row.settings.get(key) == other.settings[key] for key in common)

    by_teacher = {other.teacher_file: other for other in rows if fits(other)}
    none = by_teacher.get(row.teacher_file) or by_teacher.get("")
    return statistics.mean(row.last) - statistics.mean(none.last) if none else None


def published(row: Row) -> float | None:
    if row.kind == "probes":
        return None
    method = "none" if row.method == "alone" else row.method
    method += "+kd" if row.weights["a"] and method != "kd" else ""
    teacher = "" if method == "none" else row.pair["teacher"].partition("@")[0]  # the size is ImageNet's own
    return read_published().get((row.pair["data"], method, teacher, row.pair["network"]))


def cells(row: Row, rows: list[Row]) -> dict[str, Any]:
    """The row in table.csv, by column; None is empty."""
    shown = ("gamma", "alpha", "beta")  # in columns of their own
    return {
        **row.pair,
        "method": row.method,
        **row.weights,
        "other_options": " ".join(f"{k}={v}" for k, v in row.other.items() if k.removeprefix(STUDENT) not in shown),
        "seeds": len(row.runs),
        "last_mean": statistics.mean(row.last),
        "last_deviation": deviation(row.last),
        "gain": gain(row, rows),
        "published": published(row),
        "best_mean": statistics.mean(row.best),
        "best_deviation": deviation(row.best),
        **{f"last_seed_{run.options['seed']}": run.last for run in row.runs},
    }


def printed(cell: dict[str, Any]) -> dict[str, str]:
    """A row of the markdown table, by column."""

    def number(name: str, form: str = ".2f") -> str:
        return "" if cell[name] is None else format(cell[name], form)

    return {key: text(cell[key]) for key in ("data", "network", "teacher", "method", *"rab")} | {
        "other options": cell["other_options"],
        "seeds": str(cell["seeds"]),
        "last epoch": " ± ".join(filter(None, [number("last_mean"), number("last_deviation")])),
        "gain over none": number("gain", "+.2f"),
        "published": number("published"),
        "best epoch": " ± ".join(filter(None, [number("best_mean"), number("best_deviation")])),
    }


def as_markdown(table: list[dict[str, Any]], lists: dict[str, list[str]]) -> str:
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


def shown(line: str, folders: list[Path], home: Path) -> str:
    """A line in which the folders stand as they were typed, or where that is absolute, by their place in `home`."""
    for folder in folders:
        if folder.is_absolute() and folder.name:
            line = line.replace(str(folder), os.path.relpath(folder, home.parent))
    return one_line(line)


def portable(value: Any, home: Path) -> Any:
    """An option without what its absolute paths say of the machine.

    Those below `home` begin with its name; of others the last name is kept, of a file its folder's too.
    """
    if isinstance(value, list):
        return [portable(item, home) for item in value]
    if not isinstance(value, str) or not os.path.isabs(value):
        return value
    path = Path(os.path.abspath(value))
    for place in (home, home.resolve()):
        if path.is_relative_to(place):
            return str(home.name / path.relative_to(place))
    return "/".join(path.parts[1:][-2 if path.suffix else -1 :])


def copy_runs(runs: list[Run], home: Path, out: Path) -> None:
    """Options, summary and logs of each run, to its place below `home` in `out`; no weights."""
    for run in runs:
        folder = out / os.path.relpath(run.folder, home)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (run.folder / "summary.json", *run.folder.glob("*log.csv")):
            shutil.copyfile(path, folder / path.name)
        told = json.loads((run.folder / "options.json").read_text())
        told["options"] = {key: portable(value, home) for key, value in told["options"].items()}
        (folder / "options.json").write_text(json.dumps(told, indent=2) + "\n")


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="where the runs are, at any depth")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write table.md, table.csv and curves.csv there")
    parser.add_argument("--runs", action="store_true", help="also copy the finished runs' options, summaries and logs")
    parser.add_argument("--figures", action="store_true", help="also draw PNGs there (needs matplotlib, scikit-learn)")
    opt = parser.parse_args(argv)
    if opt.runs and not opt.out:
        raise UserError("--runs needs --out DIR, the folder for the copies")
    if opt.figures and not opt.out:
        raise UserError("--figures needs --out DIR, the folder for the pictures")
    for module, package in {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}.items():
        if opt.figures and importlib.util.find_spec(module) is None:
            raise UserError(f"--figures needs the package {package} (pip install {package})")
    runs, broken = find_runs(opt.folders)
    rows, twice = make_rows([run for run in runs if run.finished])
    table = [cells(row, rows) for row in rows]
    unfinished = [f"{r.folder}: {len(r.curve)} of {r.options['epochs']} epochs" for r in runs if not r.finished]
    home = Path(os.path.commonpath([os.path.abspath(folder) for folder in opt.folders]))
    lists = {"Unfinished": unfinished, "Left out": twice, "Cannot be read": broken}
    markdown = as_markdown(
        table, {title: [shown(line, opt.folders, home) for line in lines] for title, lines in lists.items()}
    )
    if opt.out:
        curves = [
            {**row.pair, "method": row.label, "seeds": len(row.runs), "epoch": epoch, **accuracy}
            for row in rows
            for epoch, accuracy in enumerate(row.curve(), 1)
        ]
        with mendable(f"--out {opt.out}"):
            opt.out.mkdir(parents=True, exist_ok=True)
            (opt.out / "table.md").write_text(markdown + "\n")
            write_csv(opt.out / "table.csv", table)
            write_csv(opt.out / "curves.csv", curves)
            if opt.runs:
                copy_runs([run for run in runs if run.finished], home, opt.out / "runs")
    print(markdown)
    if opt.figures:
        from scripts import figures  # its packages are optional

        figures.draw(rows, opt.out)


if __name__ == "__main__":
    main()
