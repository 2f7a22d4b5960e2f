"""Prints a markdown table of the finished runs below a folder: last-epoch accuracy, mean and deviation over trials.

python scripts/table.py save
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

HEADER = ("network", "teacher", "method", "r", "a", "b", "seeds", "last epoch", "best epoch", "seconds a run")


def rows(folder: Path) -> list[tuple]:
    """A row for each set of runs that differ in nothing but trial and seed; the best last, kinds of run apart."""
    groups = defaultdict(list)
    for path in sorted(folder.rglob("summary.json")):
        options = json.loads((path.parent / "options.json").read_text())["options"]
        same = json.dumps({k: v for k, v in options.items() if k not in ("trial", "seed", "run_name")}, sort_keys=True)
        groups[path.parent.parent.name, same].append(json.loads(path.read_text()))
    table = []
    for (_, same), runs in sorted(groups.items(), key=lambda item: (item[0][0], statistics.mean(last(item[1])))):
        options = json.loads(same)
        weights = (options.get("gamma", ""), options.get("alpha", ""), ",".join(map(str, options.get("beta", ""))))
        names = (options.get("model_s") or options["model"], options.get("model_t") or "")
        seconds = statistics.median(run["seconds"] for run in runs)
        best = mean_and_deviation([run["best_acc"] for run in runs])
        method = ",".join(options.get("distill", ["alone"]))
        table.append((*names, method, *weights, len(runs), mean_and_deviation(last(runs)), best, f"{seconds:.0f}"))
    return table


def last(runs: list[dict]) -> list[float]:
    return [run["last_acc"] for run in runs]


def mean_and_deviation(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    table = rows(parser.parse_args().folder)
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for row in table:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
