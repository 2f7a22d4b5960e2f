"""The runs below folders, and the rows of a table of them: means over seeds, and how these differ from a reference.

summarize.py prints them; procedures.py makes tables of its own of the same runs.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helper import options
from helper.tables import read_summary, text
from helper.util import UserError
from scripts.published import Published, read_published
from scripts.significance import Difference, difference, holm

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
        log = folder / "log.csv"
        try:
            told = json.loads((folder / "options.json").read_text())
            self.options: dict[str, Any] = told["options"]
            self.made_of: dict[str, Any] = told.get("made_of", {})
            self.digests = digests(self.made_of)
            self.kind = KINDS[0 if "model" in self.options else 1 if "distill" in self.options else 2]
            needed = ["dataset", "epochs", "seed"]
            needed += {"teachers": ["model"], "students": ["model_s"], "probes": ["model_s", "path_s"]}[self.kind]
            if missing := [key for key in needed if key not in self.options]:
                raise ValueError(f"options.json lacks {', '.join(missing)}")
            self.finished = (folder / "summary.json").is_file()
            self.failed = "" if self.finished else text(told.get("failed"))  # why there is no result
            if self.finished:
                summary = read_summary(folder)
                self.last, self.best, self.teacher_acc = (summary[f"{key}_acc"] for key in ("last", "best", "teacher"))
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
        self.settings = {key: value for key, value in self.options.items() if key not in REPEATED} | self.digests
        self.told, self.teacher = self.options, text(self.settings.get("path_t"))  # these say method and teacher
        if self.kind == "probes":
            with contextlib.suppress(UserError):  # a bare checkpoint, or moved: its path alone tells what is probed
                student = Run(Path(self.options["path_s"]).parent)
                self.told, self.teacher = student.told, student.teacher
                self.settings["path_s"] = Path(self.options["path_s"]).name
                self.settings |= {STUDENT + key: value for key, value in student.settings.items()}
        told, network = self.told, self.options.get("model") or self.options["model_s"]
        self.pair = {"kind": self.kind, "data": data_of(self.options), "network": network}
        self.pair["teacher"] = text(told.get("model_t"))
        self.method = text(told.get("distill") or ("alone" if "model" in told else short(told["path_s"])))
        self.weights = {"r": told.get("gamma"), "a": told.get("alpha"), "b": text(told.get("beta"))}


def digests(made_of: dict[str, Any]) -> dict[str, str]:
    """What a run was made of, by option: weights count by their content, whatever their path, and images likewise."""
    found = {key: ",".join(one[:8] for one in several) for key, several in made_of.get("weights", {}).items()}
    if data := made_of.get("data"):
        found["data"] = digest_of(data)
    return found


def digest_of(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()


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
        self.pair, self.method, self.weights = run.pair, run.method, run.weights
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
        path = short(run.options[key]) if key in run.digests and run.options.get(key) else ""
        return f"{path}#{self.settings[key]}" if path else short(self.settings[key])

    def curve(self) -> list[dict[str, float | None]]:
        """Mean and sample deviation of the validation accuracy, epoch by epoch."""
        epochs = zip(*(run.curve for run in self.runs), strict=False)
        return [{"val_acc_mean": statistics.mean(accs), "val_acc_deviation": deviation(accs)} for accs in epochs]


def data_of(options: dict[str, Any]) -> str:
    """The data set; a folder of images is called as the folder is, and counts as the data set of that name."""
    folder = options["dataset"] == "folder" and Path(options.get("data_folder") or "").name
    return f"{folder} (folder)" if folder else options["dataset"]


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
