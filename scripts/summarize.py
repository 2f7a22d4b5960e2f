"""Summarises the runs below folders: a markdown table, the same as CSV, training curves, pictures of what was learned.

python scripts/summarize.py save
python scripts/summarize.py save --out results/mine --runs --figures

A row is all runs that differ in nothing but trial, seed, names, folders and device (probes: those of their students
included): mean ± sample deviation of the last epoch. The gain is over `none` with the same network, data and training
options, with its 95 % interval; `over kd` likewise over KD with its published weights. * is a difference at 5 % by
Welch's t-test, corrected by Holm over all rows with the same reference. Minutes are the mean of a run.
Published numbers (results/published.csv) say whether they are the last epoch's or the best one's, or that this is
unstated. `over published` compares like with like, and is empty where it is unstated.
Failed runs are listed with their reason. What goes to --out is there to be published: absolute paths are shortened.
With --runs, its table is of all runs that it holds (collect.py says which are refused).
"""

import argparse
import importlib.util
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helper.tables import markdown, text, write_csv  # noqa: E402
from helper.util import OneLineParser, UserError, as_user_error, command  # noqa: E402
from scripts import collect, page, runs_table  # noqa: E402
from scripts.runs_table import KINDS, STUDENT, Row, Run, deviation  # noqa: E402
from scripts.significance import LEVEL, Difference  # noqa: E402


def over(row: Row, method: str) -> dict[str, float | None]:
    """The columns that compare the row with a method."""
    found, p = row.over.get(method, (Difference(None), None))
    name = "gain" if method == "none" else f"over_{method}"
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": p}


def cells(row: Row) -> dict[str, Any]:
    """The row in table.csv, by column; None is empty."""
    shown = ("gamma", "alpha", "beta")  # in columns of their own
    told = runs_table.published(row)
    own = {"last": row.last, "best": row.best}.get(told.epoch) if told else None  # like with like
    return {
        **row.pair,
        "method": row.method,
        **row.weights,
        "other_options": " ".join(f"{k}={v}" for k, v in row.other.items() if k.removeprefix(STUDENT) not in shown),
        "seeds": len(row.runs),
        "last_mean": statistics.mean(row.last),
        "last_deviation": deviation(row.last),
        **{key: value for method in runs_table.REFERENCES for key, value in over(row, method).items()},
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


def failed_cells(run: Run, home: Path) -> dict[str, Any]:
    """The same of a run that has no result."""
    reason = f"seed {run.options['seed']}: {collect.portable_words(run.failed, home)}"
    return {**run.pair, "method": run.method, **run.weights, "seeds": 0, "failed": reason}


def place(run: Run) -> str:
    return f"{run.folder}: {len(run.curve)} of {run.options['epochs']} epochs"


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
    told = runs_table.published(row)
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
        "options": {key: collect.portable(value, home) for key, value in row.runs[0].options.items()},
    }


def as_markdown(table: list[dict[str, Any]], lists: dict[str, list[str]]) -> str:
    """A table for each kind of run, without its empty columns, then what is not in the tables."""
    blocks = []
    for kind in KINDS:
        rows = [printed(cell) for cell in table if cell["kind"] == kind]
        if rows:
            used = [key for key in rows[0] if any(row[key] for row in rows)]
            table_of_kind = markdown([{key: row[key] for key in used} for row in rows])
            blocks.append(f"### {kind.capitalize()}\n\n{table_of_kind}")
    blocks += ["\n".join([f"{title}:\n", *(f"- {line}" for line in lines)]) for title, lines in lists.items() if lines]
    return "\n\n".join(blocks)


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="where the runs are, at any depth")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write table.md, table.csv and curves.csv there")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one page to look at, sort and filter")
    parser.add_argument("--runs", action="store_true", help="also add the runs to DIR/runs: options, summary, logs")
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
    runs, broken = runs_table.find_runs(opt.folders)
    home = Path(os.path.commonpath([os.path.abspath(folder) for folder in opt.folders]))
    names = {folder: os.path.relpath(folder, home.parent) for folder in opt.folders}
    if opt.runs:
        places, others, unreadable = collect.join(runs, opt.out, home)
        runs, broken, names = runs + others, broken + unreadable, names | {opt.out: opt.out.name}
    rows, twice = runs_table.make_rows([run for run in runs if run.finished])
    runs_table.compare(rows)
    failed = [run for run in runs if run.failed]
    told_lists = {
        "Failed": [f"{place(run)}: {collect.portable_words(run.failed, home)}" for run in failed],
        "Unfinished": [place(run) for run in runs if not run.finished and not run.failed],
        "Left out": twice,
        "Cannot be read": broken,
    }
    lists = {title: [collect.shown(line, names) for line in lines] for title, lines in told_lists.items()}
    table = [cells(row) for row in rows]
    written = as_markdown(table, lists)
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
            (opt.out / "table.md").write_text(written + "\n")
            write_csv(opt.out / "table.csv", table + [failed_cells(run, home) for run in failed])
            write_csv(opt.out / "curves.csv", curves)
            if opt.runs:
                collect.copy_runs(places, home)
    print(written)
    if opt.figures:
        from scripts import figures  # its packages are optional

        figures.draw(rows, opt.out)


if __name__ == "__main__":
    main()
