"""Tables of the procedures in scripts/*.sh, made of the run folders in SAVE/student_model.

python scripts/procedures.py table --save save --seeds 1 2 3 --out save/tables/mine --row alone NAME --row taught NAME

A NAME stands for its runs NAME_1, NAME_2, ..., one a seed; runs that are not finished are left out.
"""

import argparse
import csv
import itertools
import random
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import models  # noqa: E402
from helper import checkpoint, parsing  # noqa: E402
from helper.tables import markdown, text, write_csv  # noqa: E402
from helper.util import OneLineParser, UserError, as_user_error, command  # noqa: E402
from scripts.compare_predictions import compare, read  # noqa: E402
from scripts.runs_table import Run, deviation  # noqa: E402

Cells = list[dict[str, Any]]  # rows of a table by column; None is empty


def find(opt: argparse.Namespace, name: str) -> list[Run]:
    folders = [opt.save / "student_model" / f"{name}_{seed}" for seed in opt.seeds]
    return [Run(folder) for folder in folders if (folder / "summary.json").is_file()]


def both(values: list[float], form: str = ".2f") -> str:
    """mean ± sample deviation"""
    spread = deviation(values)
    return format(statistics.mean(values), form) + ("" if spread is None else f" ± {spread:.2f}")


def teachers_accuracy(runs: list[Run]) -> list[float] | None:
    """Of each teacher, mean over the runs: an assistant is another one for each seed."""
    return [statistics.mean(accs) for accs in zip(*(run.teacher_acc for run in runs), strict=True)] or None


def make_table(opt: argparse.Namespace) -> tuple[Cells, Cells, list[str]]:
    """A line for each row of runs: in full for the CSV, and as printed."""
    rows = [(what, runs) for what, name in opt.row if (runs := find(opt, name))]
    alone = {
        runs[0].options["model_s"]: statistics.mean(run.last for run in runs)
        for _, runs in rows
        if runs[0].options["distill"] == ["none"]
    }
    full: Cells = []
    shown: Cells = []
    for what, runs in rows:
        told, last, best = runs[0].options, [run.last for run in runs], [run.best for run in runs]
        accuracy = teachers_accuracy(runs)
        gain = statistics.mean(last) - alone[told["model_s"]] if told["model_s"] in alone and told["model_t"] else None
        start = {"student": what, "network": told["model_s"], "teacher": "+".join(told["model_t"] or [])}
        full.append(
            start
            | {"teacher_acc": text(accuracy), "distill": text(told["distill"]), "seeds": len(runs)}
            | {"last_mean": statistics.mean(last), "last_deviation": deviation(last), "gain": gain}
            | {"best_mean": statistics.mean(best), "best_deviation": deviation(best)}
            | {f"last_seed_{run.options['seed']}": run.last for run in runs}
        )
        shown.append(
            start
            | {"teacher's accuracy": ", ".join(f"{acc:.2f}" for acc in accuracy or []), "seeds": len(runs)}
            | {
                "last epoch": both(last),
                "gain over alone": "" if gain is None else f"{gain:+.2f}",
            }
            | {"best epoch": both(best)}
        )
    taught = [line for line in full if line["teacher"]]
    notes = []
    if opt.best and taught:
        first = max(taught, key=lambda line: line["last_mean"])
        notes.append(f"Best: {first['student']}, {first['last_mean']:.2f}")
    return full, shown, notes


def make_grid(opt: argparse.Namespace) -> tuple[Cells, Cells, list[str]]:
    """T across and alpha down."""
    key = {"kd": "alpha", "ce": "gamma"}[opt.alpha_weighs]
    found = {(runs[0].options[key], runs[0].options["kd_T"]): runs for name in opt.names if (runs := find(opt, name))}
    alphas, temperatures = (sorted(set(values)) for values in zip(*found, strict=True)) if found else ([], [])
    full: Cells = [
        {"alpha": alpha, "T": t, "seeds": len(runs), "last_mean": statistics.mean(last), "last_deviation": spread}
        for (alpha, t), runs in sorted(found.items())
        for last in [[run.last for run in runs]]
        for spread in [deviation(last)]
    ]
    shown: Cells = [
        {"alpha \\ T": f"{alpha:g}"}
        | {f"{t:g}": both([r.last for r in found[alpha, t]]) if (alpha, t) in found else "" for t in temperatures}
        for alpha in alphas
    ]
    notes = [f"alpha weighs {'KD' if opt.alpha_weighs == 'kd' else 'the cross entropy'}; accuracy of the last epoch"]
    if full:
        first = max(full, key=lambda line: line["last_mean"])
        notes.append(f"Best: T {first['T']:g}, alpha {first['alpha']:g}, {first['last_mean']:.2f}")
    return full, shown, notes


def make_history(opt: argparse.Namespace) -> tuple[Cells, Cells, list[str]]:
    """A line for each teacher of a sequence; changes are those against the student before all of them."""
    full: Cells = []
    for seed in opt.seeds:
        folders = [opt.save / "student_model" / f"{name}_{seed}" for name in opt.names]
        done = itertools.takewhile(lambda folder: (folder / "summary.json").is_file(), folders)
        for step, run in enumerate(map(Run, done), 1):
            labels, after = read(run.folder)
            if step == 1:
                _, first = read(run.folder, "predictions_start.csv")
                before = 100 * (first == labels).mean()
                full.append({"seed": seed, "step": 0, "teacher": "", "top1": before})
            found = compare(labels, first, after, read(run.folder, "predictions_teacher1.csv")[1])
            full.append(
                {"seed": seed, "step": step, "teacher": text(run.options["model_t"])}
                | {"teacher_top1": found["teacher"], "top1": found["after"], "step_delta": found["after"] - before}
                | {key: found[key] for key in ("delta", "gained", "lost", "positive_flips", "transfer_rate")}
            )
            before = found["after"]

    shown: Cells = []
    for step in sorted({line["step"] for line in full}):
        lines = [line for line in full if line["step"] == step]

        def mean(key: str, form: str = ".2f", lines: Cells = lines) -> str:
            values = [line[key] for line in lines if line.get(key) is not None]
            return both(values, form) if values else ""

        shown.append(
            {"teachers": step, "the last": lines[0]["teacher"], "its top-1": mean("teacher_top1"), "seeds": len(lines)}
            | {"top-1": mean("top1"), "delta": mean("delta", "+.2f"), "of this step": mean("step_delta", "+.2f")}
            | {"gained": mean("gained"), "lost": mean("lost"), "transfer rate": mean("transfer_rate")}
        )
    return full, shown, []


def list_teachers(opt: argparse.Namespace) -> None:
    """Prints the files of a list's teachers: all of them or N drawn, as listed or drawn, or by their accuracy."""
    with as_user_error(str(opt.list)), open(opt.list, newline="") as file:
        rows = csv.DictReader(file)
        if not {"path", "modeltop1"} <= set(rows.fieldnames or ()):
            raise ValueError("expected the columns modelname, modeltype, modelparams, modeltop1, path")
        rows = list(rows)
        for row in rows:
            row["path"], row["modeltop1"] = opt.list.parent / row["path"], float(row["modeltop1"])
    if opt.n:
        if opt.n > len(rows):
            raise UserError(f"{opt.list}: has {len(rows)} teachers, {opt.n} are asked for")
        rows = random.Random(opt.t_seed).sample(rows, opt.n)
    if opt.curriculum != "none":
        rows.sort(key=lambda row: row["modeltop1"], reverse=opt.curriculum == "desc")
    for row in rows:
        print(row["path"])


def print_network(opt: argparse.Namespace) -> None:
    """Prints the network of a checkpoint."""
    found = checkpoint.find_name(checkpoint.load(opt.file), opt.file, models.is_model)
    if not found:
        raise UserError(f"{opt.file}: neither the file nor its folder's name says its network")
    print(found)


def publish(path: Path, full: Cells, shown: Cells, notes: list[str]) -> None:
    table = "\n\n".join([markdown(shown) if shown else "no finished run", *notes])
    with as_user_error(f"--out {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".md").write_text(table + "\n")
        write_csv(path.with_name(path.name + ".csv"), full)
    print(table)


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True)

    def add(name: str, make: Any, what: str) -> OneLineParser:
        sub = subparsers.add_parser(name, help=what)
        sub.set_defaults(make=make)
        sub.add_argument("--save", metavar="DIR", type=Path, required=True, help="folder of all runs")
        sub.add_argument("--seeds", nargs="+", required=True, help="of the runs NAME_SEED")
        sub.add_argument("--out", metavar="PATH", type=Path, required=True, help="written are PATH.md and PATH.csv")
        return sub

    sub = add("table", make_table, "a line for each NAME")
    row = {"metavar": ("LABEL", "NAME"), "nargs": 2, "action": "append", "required": True}
    sub.add_argument("--row", **row, help="a line, and the runs that it is of")
    sub.add_argument("--best", action="store_true", help="name the best of the taught")
    sub = add("grid", make_grid, "temperature across, alpha down")
    sub.add_argument("--alpha_weighs", choices=["kd", "ce"], default="kd", help="the term that alpha weighs")
    sub.add_argument("names", metavar="NAME", nargs="+", help="runs, without their seeds")
    sub = add("history", make_history, "a line for each teacher of a sequence")
    sub.add_argument("names", metavar="NAME", nargs="+", help="runs, without their seeds")
    sub = subparsers.add_parser("teachers", help="the files of a list with the columns modelname, modeltop1 and path")
    sub.set_defaults(make=list_teachers)
    sub.add_argument("list", metavar="CSV", type=Path, help="its paths are relative to its own folder")
    sub.add_argument("--n", type=parsing.whole, default=0, help="draw so many; 0: all in their order")
    sub.add_argument("--t_seed", type=int, default=1234, help="of that draw")
    sub.add_argument("--curriculum", choices=["none", "asc", "desc"], default="none", help="in the order of modeltop1")
    sub = subparsers.add_parser("network", help="the network of a checkpoint")
    sub.set_defaults(make=print_network)
    sub.add_argument("file", metavar="FILE", help="the checkpoint")
    opt = parser.parse_args(argv)
    made = opt.make(opt)
    if made:
        publish(opt.out, *made)


if __name__ == "__main__":
    main()
