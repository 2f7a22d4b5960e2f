"""Compares two networks' predictions for the same test set: what the second one gained and lost.

python scripts/compare_predictions.py save/student_model/BEFORE save/student_model/AFTER --teacher save/models/TEACHER
python scripts/compare_predictions.py save/student_model/AFTER

A place is a CSV file or a run folder; runs write their predictions with --save_predictions. One place alone is a run
that began at --path_s: compared are its start and its end, and its first teacher.
Terms as in Fantastic Gains and Where to Find Them, Roth et al. 2024, https://arxiv.org/abs/2310.17653: gained, wrong
before and right after; lost, the reverse; positive flips, the teacher right and the student before it wrong; transfer
rate, the share of the positive flips that was gained.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helper.util import OneLineParser, UserError, as_user_error, command, one_line  # noqa: E402

COLUMNS = ["index", "label", "prediction", "confidence"]


def read(place: Path, name: str = "predictions.csv") -> tuple[np.ndarray, np.ndarray]:
    """labels [N], predictions [N] of a file, or of the file of that name in a run folder."""
    path = place / name if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"{path}: no such file; runs write it with --save_predictions")
    with open(path, newline="", errors="surrogateescape") as file:
        try:
            rows = csv.DictReader(file)
            if (rows.fieldnames or [])[: len(COLUMNS)] != COLUMNS:
                raise ValueError(f"expected the columns {','.join(COLUMNS)}")
            pairs = np.array([(int(row["label"]), int(row["prediction"])) for row in rows], np.int64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError, csv.Error) as error:
            raise UserError(f"{path}: {error}") from None
    if not len(pairs):
        raise UserError(f"{path}: no predictions in there")
    return pairs[:, 0], pairs[:, 1]


def class_names(place: Path) -> dict[str, str]:
    """The name of each label of `read`'s file; {} where it has none, as those of before."""
    path = place / "predictions.csv" if place.is_dir() else place
    with open(path, newline="", errors="surrogateescape") as file:
        return {row["label"]: row["label_name"] for row in csv.DictReader(file) if row.get("label_name")}


def compare(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, teacher: np.ndarray | None
) -> dict[str, float | int | None]:
    """Shares are in percent of the samples, the transfer rate in percent of the positive flips (None without any)."""
    was, now = before == labels, after == labels
    result: dict[str, float | int | None] = {
        "samples": len(labels),
        "before": 100 * was.mean(),
        "after": 100 * now.mean(),
        "delta": 100 * (now.mean() - was.mean()),
        "gained": 100 * (now & ~was).mean(),
        "lost": 100 * (was & ~now).mean(),
        "agreement": 100 * (before == after).mean(),
    }
    if teacher is not None:
        flips = (teacher == labels) & ~was
        result["teacher"] = 100 * (teacher == labels).mean()
        result["positive_flips"] = 100 * flips.mean()
        result["transfer_rate"] = 100 * now[flips].mean() if flips.any() else None
        result["agreement_with_teacher"] = 100 * (after == teacher).mean()
    return result


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", metavar="PLACE", nargs="+", type=Path, help="before and after, or one run with both")
    parser.add_argument("--teacher", metavar="PLACE", type=Path, help="whose knowledge the second one was to take over")
    parser.add_argument("--per_class", action="store_true", help="a line for each true class too, by its name")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the lines there too")
    opt = parser.parse_args(argv)
    if len(opt.places) > 2:
        raise UserError(f"expected one place or two, found {len(opt.places)}")
    last = opt.places[-1]
    found = {"after": read(last)}
    found["before"] = read(opt.places[0]) if len(opt.places) == 2 else read(last, "predictions_start.csv")
    if opt.teacher or len(opt.places) == 1:
        found["teacher"] = read(opt.teacher) if opt.teacher else read(last, "predictions_teacher1.csv")
    labels = found["after"][0]
    for name, (other, _) in found.items():
        if not np.array_equal(labels, other):
            raise UserError(f"{name}: its labels are not those of {last}, so it saw another test set")

    groups = [("all", np.ones(len(labels), bool))]
    if opt.per_class:
        names = class_names(last)
        groups += [(names.get(str(c), str(c)), labels == c) for c in np.unique(labels)]
    predictions = {name: prediction for name, (_, prediction) in found.items()}
    lines = []
    for group, chosen in groups:
        parts = [predictions[name][chosen] for name in ("before", "after")]
        teacher = predictions["teacher"][chosen] if "teacher" in predictions else None
        lines.append({"class": group, **compare(labels[chosen], *parts, teacher)})
    header = list(lines[0])
    printed = [[f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in x.values()] for x in lines]
    if opt.csv:
        with as_user_error(f"--csv {opt.csv}"), open(opt.csv, "w", newline="", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    for row in [header, ["---"] * len(header), *printed]:
        print(f"| {' | '.join(map(one_line, row))} |")


if __name__ == "__main__":
    main()
