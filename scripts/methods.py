"""The methods that can distil a teacher into a student from its first epoch on, as --sweep takes them.

python scripts/methods.py resnet32x4 resnet8x4

Each one is built for the pair, on made-up labels. Those that refuse it are told, as are those whose student is to be
trained before; both are left out.
"""

import functools
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import crd  # noqa: E402, F401  registers its methods
import models  # noqa: E402
from distiller_zoo import Pair, find_method, method_names  # noqa: E402
from helper import parsing  # noqa: E402
from helper.util import OneLineParser, command  # noqa: E402

CLASSES = 10


def refusals(teacher: str, student: str) -> dict[str, str]:
    """Why a method is not for the pair, "" for those that are, by name; `none` and `kd` first."""
    anew = functools.partial(models.create_model, student, CLASSES)
    networks = anew(), models.create_model(teacher, CLASSES)
    with torch.no_grad():
        outputs = [models.probe(network, torch.zeros(1, 3, 32, 32)) for network in networks]
    pair = Pair(*outputs, *networks, torch.arange(20 * CLASSES) % CLASSES, anew=anew)
    found = dict.fromkeys(("none", "kd"), "")
    for name in method_names():
        found[name] = "wants a trained student (--path_s)" if find_method(name).trained_student else ""
        try:
            find_method(name)(pair)
        except ValueError as error:
            found[name] = str(error)
    return found


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=parsing.network, help="its network")
    parser.add_argument("student", type=parsing.network, help="its network")
    opt = parser.parse_args(argv)
    found = refusals(opt.teacher, opt.student)
    print("; ".join(name for name, reason in found.items() if not reason))
    for name, reason in found.items():
        if reason:
            print(f"left out: {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
