"""Published accuracies (results/published.csv), and the methods that have one for a pair.

python scripts/published.py cifar100 resnet32x4 resnet8x4   prints these as --sweep takes them
"""

import csv
import functools
import operator
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import crd  # noqa: E402, F401  registers its methods
from distiller_zoo import find_method  # noqa: E402
from helper.util import OneLineParser, command  # noqa: E402

PATH = ROOT / "results" / "published.csv"
FLAGS = {"kd": "-a 1", "dot": "--dot 0.075"}  # DOT's value on CIFAR


class Published(NamedTuple):
    accuracy: float  # %
    epoch: str  # last, best or unstated


@functools.cache
def read_published() -> dict[tuple[str, str, str, str], Published]:
    """By (data set, method, teacher, student). Networks alone are `none` without a teacher."""
    key = operator.itemgetter("data", "method", "teacher", "student")
    rows = csv.DictReader(PATH.read_text().splitlines())
    return {key(row): Published(float(row["accuracy"]), row["epoch"]) for row in rows}


def items(data: str, teacher: str, student: str) -> list[str]:
    """`none`, and each method with a number for the pair, as --sweep takes it: `crd+kd` is `crd -a 1`."""
    found = ["none"]
    for d, words, t, s in read_published():
        if (d, t, s) == (data, teacher, student):
            method, *more = words.split("+")
            kd_is_own = find_method(method).weights[1] > 0
            flags = [FLAGS.get(word, f"--{word}") for word in more if not (word == "kd" and kd_is_own)]
            found.append(" ".join([method, *flags]))
    return list(dict.fromkeys(found))


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="data set, as in results/published.csv")
    parser.add_argument("teacher", help="its network")
    parser.add_argument("student", help="its network")
    opt = parser.parse_args(argv)
    print("; ".join(items(opt.data, opt.teacher, opt.student)))


if __name__ == "__main__":
    main()
