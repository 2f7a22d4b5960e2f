"""Summarises the runs below folders: a markdown table, the same as CSV, training curves, pictures of what was learned.

python scripts/summarize.py save
python scripts/summarize.py save --out results/mine --runs --figures

A row is all runs that differ in nothing but trial, seed, names, folders and device (probes: those of their students
included): mean ± sample deviation of the last epoch. The gain is over `none` with the same network, data and training
options, with its 95 % interval; `over kd` likewise over KD with its published weights. * is a difference at 5 % by
Welch's t-test, corrected by Holm over all rows with the same reference. Minutes are the mean of a run.
Published numbers (results/published.csv) say whether they are the last epoch's or the best one's, or that this is
unstated. `over published` compares like with like, and is empty where it is unstated.
What goes to --out is there to be published: absolute paths of this machine are shortened.
"""

import argparse
import contextlib
import csv
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
from helper.util import OneLineParser, UserError, as_user_error, command, one_line  # noqa: E402
from scripts import page  # noqa: E402
from scripts.published import Published, read_published  # noqa: E402
from scripts.significance import LEVEL, Difference, difference, holm  # noqa: E402

KINDS = ("teachers", "students", "probes")
REPEATED = options.FREE | {"trial", "seed", "run_name", "device"}  # what the runs of a row may differ in
METHOD = {"distill", "gamma", "alpha", "beta", "path_t", "model_t"}
METHOD |= {"init_epochs", "init_learning_rate", "init_lr_decay_epochs", "standardise", "ea_weights"}
REFERENCES = ("none", "kd")  # what the others are compared with
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
                last, best = summary["last_acc"], summary["best_acc"]
                self.last = float(summary.get("test_acc", last))  # with --val_split
                self.best = float(summary.get("best_test_acc", best))
                self.seconds, self.parameters = summary.get("seconds"), summary.get("parameters")
            self.device = text(told.get("device"))
            if self.device == "cpu":
                self.device = text(told.get("host", {}).get("cpu"))
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


class Row:
    """Finished runs that differ in nothing but what REPEATED names."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = sorted(runs, key=lambda run: run.options["seed"])
        run = self.runs[0]
        self.kind, self.settings, self.teacher_file = run.kind, run.settings, run.teacher
        network = run.options.get("model") or run.options["model_s"]
        self.pair = {"kind": run.kind, "data": data_of(run.options), "network": network}
        self.pair["teacher"] = text(run.told.get("model_t"))
        self.method = text(run.told.get("distill") or ("alone" if "model" in run.told else short(run.told["path_s"])))
        self.weights = {"r": run.told.get("gamma"), "a": run.told.get("alpha"), "b": text(run.told.get("beta"))}
        self.last, self.best = [run.last for run in self.runs], [run.best for run in self.runs]
        seconds = [run.seconds for run in self.runs if run.seconds is not None]
        self.minutes = statistics.mean(seconds) / 60 if seconds else None
        self.devices = ", ".join(dict.fromkeys(run.device for run in self.runs if run.device))
        self.parameters = run.parameters
        self.over: dict[str, tuple[Difference, float | None]] = {}  # by method: over that one, and Holm's probability
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


def data_of(options: dict[str, Any]) -> str:
    """The data set; a folder of images is called as the folder is, and counts as the data set of that name."""
    folder = options["dataset"] == "folder" and Path(options.get("data_folder") or "").name
    return f"{folder} (folder)" if folder else options["dataset"]


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


def reference(row: Row, rows: list[Row], method: str) -> Row | None:
    """`none`, or `kd` as published, with the same network, data and options: of the same teacher where there is one."""
    weights = {"r": 1, "a": 0} if method == "none" else {"r": 0.1, "a": 0.9}

    def fits(other: Row) -> bool:
        plain = (
            other.kind == row.kind and other.method == method and all(other.weights[k] == weights[k] for k in weights)
        )
        common = [
            key for key in other.settings if key.removeprefix(STUDENT) not in METHOD | ({"kd_T"} - row.settings.keys())
        ]
        return plain and other is not row and all(row.settings.get(key) == other.settings[key] for key in common)

    by_teacher = {other.teacher_file: other for other in rows if fits(other)}
    return by_teacher.get(row.teacher_file) or (by_teacher.get("") if method == "none" else None)


def compare(rows: list[Row]) -> None:
    """Notes how each row differs from `none` and `kd`; probabilities are corrected over all rows with the same one."""
    for method in REFERENCES:
        families: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if (other := reference(row, rows, method)) is not None:
                row.over[method] = difference(row.last, other.last), None
                families[id(other)].append(row)
        for family in families.values():
            tested = [row for row in family if row.over[method][0].p is not None]
            for row, p in zip(tested, holm([row.over[method][0].p for row in tested]), strict=True):
                row.over[method] = row.over[method][0], p


def published(row: Row) -> Published | None:
    if row.kind == "probes":
        return None
    method = "none" if row.method == "alone" else row.method
    method += "+kd" if row.weights["a"] and method != "kd" else ""
    plug_ins = ("standardise", "ea_weights", "dot")  # a method's numbers are not those of what is put in front of it
    method += "".join(f"+{key}" for key in plug_ins if row.runs[0].told.get(key) not in (None, False))
    teacher = "" if method == "none" else row.pair["teacher"].partition("@")[0]  # the size is ImageNet's own
    return read_published().get((row.pair["data"].removesuffix(" (folder)"), method, teacher, row.pair["network"]))


def over(row: Row, method: str) -> dict[str, float | None]:
    """The columns that compare the row with a method."""
    found, p = row.over.get(method, (Difference(None), None))
    name = "gain" if method == "none" else f"over_{method}"
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": p}


def cells(row: Row) -> dict[str, Any]:
    """The row in table.csv, by column; None is empty."""
    shown = ("gamma", "alpha", "beta")  # in columns of their own
    told = published(row)
    own = {"last": row.last, "best": row.best}.get(told.epoch) if told else None  # like with like
    return {
        **row.pair,
        "method": row.method,
        **row.weights,
        "other_options": " ".join(f"{k}={v}" for k, v in row.other.items() if k.removeprefix(STUDENT) not in shown),
        "seeds": len(row.runs),
        "last_mean": statistics.mean(row.last),
        "last_deviation": deviation(row.last),
        **{key: value for method in REFERENCES for key, value in over(row, method).items()},
        "published": told and told.accuracy,
        "published_epoch": told and told.epoch,
        "over_published": statistics.mean(own) - told.accuracy if own else None,
        "best_mean": statistics.mean(row.best),
        "best_deviation": deviation(row.best),
        "minutes": row.minutes,
        "device": row.devices,
        "parameters": row.parameters,
        **{f"last_seed_{run.options['seed']}": run.last for run in row.runs},
    }


def printed(cell: dict[str, Any]) -> dict[str, str]:
    """A row of the markdown table, by column."""

    def number(name: str, form: str = ".2f") -> str:
        return "" if cell[name] is None else format(cell[name], form)

    def compared(name: str) -> str:
        interval = f" [{number(f'{name}_low', '+.2f')}, {number(f'{name}_high', '+.2f')}]"
        mark = " *" if cell[f"{name}_p"] is not None and cell[f"{name}_p"] < LEVEL else ""
        return number(name, "+.2f") + (interval if cell[f"{name}_low"] is not None else "") + mark

    return {key: text(cell[key]) for key in ("data", "network", "teacher", "method", *"rab")} | {
        "other options": cell["other_options"],
        "seeds": str(cell["seeds"]),
        "last epoch": " ± ".join(filter(None, [number("last_mean"), number("last_deviation")])),
        "gain over none": compared("gain"),
        "over kd": compared("over_kd"),
        "published": " ".join(filter(None, [number("published"), cell["published_epoch"]])),
        "over published": number("over_published", "+.2f"),
        "best epoch": " ± ".join(filter(None, [number("best_mean"), number("best_deviation")])),
        "minutes": number("minutes", ".1f"),
        "device": cell["device"],
    }


def page_row(row: Row, home: Path, where: Path) -> dict[str, Any]:
    """What the page shows of a row; where: the page's folder, from which its links lead to the runs."""

    def over(method: str) -> dict[str, Any] | None:
        if method not in row.over:
            return None
        found, p = row.over[method]
        return found._asdict() | {"significant": p is not None and p < LEVEL}

    runs = [
        {"seed": run.options["seed"], "last": run.last, "best": run.best, "folder": os.path.relpath(run.folder, where)}
        for run in row.runs
    ]
    told = published(row)
    kind, data, network, teacher = row.pair.values()
    pair = f"{data}, {kind}" if kind == "teachers" else f"{data}: {f'{teacher} > ' if teacher else ''}{network}, {kind}"
    return {
        "pair": pair,
        "method": row.method,
        "label": row.label,
        "seeds": len(row.runs),
        "last": statistics.mean(row.last),
        "last_deviation": deviation(row.last),
        "best": statistics.mean(row.best),
        "best_deviation": deviation(row.best),
        "over_none": over("none"),
        "over_kd": over("kd"),
        "published": told and told.accuracy,
        "published_epoch": told and told.epoch,
        "minutes": row.minutes,
        "device": row.devices,
        "parameters": row.parameters,
        "curve": [[each["val_acc_mean"], each["val_acc_deviation"]] for each in row.curve()],
        "runs": runs,
        "options": {key: portable(value, home) for key, value in row.runs[0].options.items()},
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
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one page to look at, sort and filter")
    parser.add_argument("--runs", action="store_true", help="also copy the finished runs' options, summaries and logs")
    parser.add_argument(
        "--figures",
        action="store_true",
        help="also draw PNGs there, those of docs/figures.md (needs matplotlib, scikit-learn)",
    )
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
    compare(rows)
    table = [cells(row) for row in rows]
    unfinished = [f"{r.folder}: {len(r.curve)} of {r.options['epochs']} epochs" for r in runs if not r.finished]
    home = Path(os.path.commonpath([os.path.abspath(folder) for folder in opt.folders]))
    told_lists = {"Unfinished": unfinished, "Left out": twice, "Cannot be read": broken}
    lists = {title: [shown(line, opt.folders, home) for line in lines] for title, lines in told_lists.items()}
    markdown = as_markdown(table, lists)
    if opt.html:
        where = opt.html.absolute().parent
        with as_user_error(f"--html {opt.html}"):
            opt.html.parent.mkdir(parents=True, exist_ok=True)
            opt.html.write_text(page.render([page_row(row, home, where) for row in rows], lists))
    if opt.out:
        curves = [
            {**row.pair, "method": row.label, "seeds": len(row.runs), "epoch": epoch, **accuracy}
            for row in rows
            for epoch, accuracy in enumerate(row.curve(), 1)
        ]
        with as_user_error(f"--out {opt.out}"):
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
