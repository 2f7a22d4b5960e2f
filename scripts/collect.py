"""Runs as results/ keeps them: options, summaries and logs, without weights and without the paths of a machine.

Those that are added to a table must have seen its images and learned from its teachers: by the digests in options.json.
"""

import json
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helper import checkpoint
from helper.tables import text
from helper.util import UserError, one_line
from scripts.runs_table import Run, data_of, digest_of, find_runs


def shown(line: str, folders: dict[Path, str]) -> str:
    """A line in which absolute folders stand by their names."""
    for folder, name in folders.items():
        if folder.is_absolute() and folder.name:
            line = line.replace(str(folder), name)
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


def portable_words(sentence: str, home: Path) -> str:
    """The same of what paths are in a sentence."""
    return " ".join(portable(word, home) for word in sentence.split(" "))


def origins(run: Run) -> Iterator[tuple[str, dict[str, str]]]:
    """What must be the same in all runs of a table, and its digests by part; {} where an older version kept none."""
    data, made_of = data_of(run.options), run.made_of
    seen = made_of.get("data", {}).items()
    yield f"{data} of {run.kind}", {k: digest_of(v) if isinstance(v, list) else str(v)[:8] for k, v in seen}
    if run.options.get("path_t"):
        weights = made_of.get("weights", {}).get("path_t")
        of_teacher = {"weights": ",".join(one[:8] for one in weights)} if weights else {}
        yield f"teacher {text(run.options.get('model_t'))} on {data}", of_teacher


def refuse_others(runs: list[Run], kept: list[Run]) -> None:
    """Raises UserError for a run with another digest than those of the table, whose runs are `kept`.

    What is new in the table (another data set, kind of run or teacher's network) has nothing to differ from. Says how
    many runs cannot be compared, because they or all of the table's are older than the digests.
    """
    known: dict[str, list[tuple[Run, dict[str, str]]]] = defaultdict(list)
    for run in kept:
        for what, digests in origins(run):
            known[what].append((run, digests))
    unknown = set()
    for run in runs:
        for what, mine in origins(run):
            theirs = [(other, digests) for other, digests in known[what] if digests]
            if theirs and not any(mine and agree(mine, digests) for _, digests in theirs):
                other, digests = theirs[0]
                key = next((key for key in mine if mine[key] != digests.get(key, mine[key])), next(iter(digests)))
                found = f"{key} {mine.get(key, 'without a digest')}, but {digests[key]}"
                raise UserError(f"{run.folder}: {what}: {found} in {other.folder}; nothing is copied")
            if known[what] and not (mine and theirs):
                unknown.add(run.folder)
    if unknown:
        print(f"no digests to compare with the table's data and teachers: {len(unknown)} runs", file=sys.stderr)


def agree(one: dict[str, str], other: dict[str, str]) -> bool:
    """Of the parts that both have: images that stay in their files have other digests than those in memory."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def six_digits(number: re.Match[str]) -> str:
    return f"{float(number[0]):.6g}"


def join(runs: list[Run], out: Path, home: Path) -> tuple[dict[Run, Path], list[Run], list[str]]:
    """Where in `out` each run goes that has ended, the other runs that are there, a line for each that cannot be read.

    A failed run does not replace one that has a result. Raises UserError for runs that have no place in the table.
    """
    kept, broken = find_runs([out / "runs"]) if any((out / "runs").rglob("options.json")) else ([], [])
    places = {run: out / "runs" / os.path.relpath(run.folder, home) for run in runs if run.finished or run.failed}
    refuse_others(list(places), kept)
    places = {run: place for run, place in places.items() if run.finished or not (place / "summary.json").is_file()}
    again = {folder.resolve() for folder in [*places.values(), *(run.folder for run in runs)]}
    return places, [run for run in kept if run.folder.resolve() not in again], broken


def copy_runs(places: dict[Run, Path], home: Path) -> None:
    """Options, summary and logs of each run, to its place; a log's numbers have six digits there."""
    for run, folder in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        if run.finished:
            shutil.copyfile(run.folder / "summary.json", folder / "summary.json")
        for log in run.folder.glob("*log.csv"):
            (folder / log.name).write_text(re.sub(r"\d+\.\d+(e[-+]?\d+)?", six_digits, log.read_text()))
        told = json.loads((run.folder / "options.json").read_text())
        told["options"] = {key: portable(value, home) for key, value in told["options"].items()}
        told.pop("failed", None)
        if run.failed:
            told["failed"] = portable_words(run.failed, home)
        checkpoint.save_json(folder / "options.json", told)
