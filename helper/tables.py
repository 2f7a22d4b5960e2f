"""Tables of results: what summary.json says of a run, and rows as markdown and CSV."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from . import checkpoint


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, with the accuracies of the test set where --val_split set one apart, and a list of the teachers'.

    Raises OSError, ValueError, KeyError or TypeError where the file is not as a run leaves it.
    """
    told = json.loads((folder / "summary.json").read_text())
    last, best, teachers = told["last_acc"], told["best_acc"], told.get("teacher_acc", [])
    told["last_acc"], told["best_acc"] = float(told.get("test_acc", last)), float(told.get("best_test_acc", best))
    told["teacher_acc"] = teachers if isinstance(teachers, list) else [teachers]
    return told


def text(value: Any) -> str:
    """A cell: a list without brackets, nothing for None."""
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with a column for each key of the first row."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([text(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """A column for each key of any line; None is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    checkpoint.atomically(path, lambda whole: whole.write(file.getvalue().encode()))
