"""Whether a device computes the same however its steps are launched: recorded or not, stopped or not, alone or at once.

python benchmarks/gpu_check.py --parts recorded resumed --out save/gpu_check

recorded: all methods, float32 and bf16: the losses of recorded steps against those of steps that run as they are, and
which methods were recorded; on a CPU none is. resumed: with --deterministic, a sweep that SIGTERM stops twice, and its
runs alone, against the same sweep undisturbed, bit for bit. Prints a table a part, and ends with 1 where a row fails.
"""

import argparse
import csv
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import noise  # noqa: F401  registers the data set, and finds the project
import torch

import train_student
import train_teacher
from distiller_zoo import find_method, method_names
from helper import checkpoint, parsing, util
from helper.captured import Captured
from helper.trainee import Trainee

CLOSE = {"off": 1e-3, "bf16": 3e-2}  # losses of a first epoch, relative
RESUMED = "kd; crd -a 1; at; sskd --init_epochs 1"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = util.OneLineParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is checked")
    add("--device", default="cuda", help="cpu, cuda, cuda:1, ...")
    add("--methods", type=parsing.names_of(find_method), default=method_names(), help="of `recorded`; default: all")
    add(
        "--pair",
        default="resnet32x4:resnet8x4",
        metavar="TEACHER:STUDENT",
        help="the networks",
    )
    add("--data_folder", help="images as train/<class>/* and val/<class>/*; left out, noise")
    add("--images", type=parsing.count, default=1200, help="of the training set")
    add("--batch_size", type=parsing.count, default=64, help="images of a step")
    add("--options", default="", help="more options of the scripts, in one string")
    add("--out", type=Path, default=Path("save/gpu_check"), help="folder of the results")
    return parser.parse_args(argv)


class Runs:
    """Calls of the scripts, in folders of their own."""

    def __init__(self, opt: argparse.Namespace, folder: Path) -> None:
        teacher, self.student = opt.pair.split(":")
        data = ["--dataset", "folder", "--data_folder", opt.data_folder] if opt.data_folder else ["--dataset", "random"]
        if opt.data_folder:
            data += ["--limit_train", str(opt.images)]
        self.folder, self.common = folder, [*data, "--device", opt.device, "--batch_size", str(opt.batch_size)]
        self.common += opt.options.split()
        os.environ["IMAGES"] = str(opt.images)
        self.call(train_teacher.main, "teacher", "--model", teacher, "--epochs", "1")
        self.teacher = str(folder / "teacher" / "models" / "t" / "last.pth")

    def call(self, script: Any, name: str, *flags: str) -> None:
        more = [] if "--sweep" in flags else ["--run_name", "t"]
        with open(self.folder / "said", "a") as said, redirect_stdout(said), redirect_stderr(said):
            script([*self.common, "--save_folder", str(self.folder / name), *more, *flags])

    def student_of(self, name: str, *flags: str) -> dict[str, Path]:
        """The folders of the runs, by the method and its weights."""
        self.call(train_student.main, name, "--path_t", self.teacher, "--model_s", self.student, *flags)
        return {path.name: path for path in (self.folder / name / "student_model").iterdir()}


@contextmanager
def watching(finished: dict[str, bool]) -> Iterator[None]:
    """Notes of each student that ends whether its steps were recorded."""
    finish = Trainee.finish

    def noted(trainee: Trainee, *given: Any) -> None:
        calls = trainee.compute.calls.values() if isinstance(trainee.compute, Captured) else ()
        finished[trainee.run.folder.name] = any(call.recorded for call in calls)
        finish(trainee, *given)

    Trainee.finish = noted
    try:
        yield
    finally:
        Trainee.finish = finish


@contextmanager
def stopped(step: int) -> Iterator[None]:
    """SIGTERM after so many steps."""
    real, left = Trainee.step, [step]

    def stepped(trainee: Trainee, *given: Any) -> None:
        real(trainee, *given)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainee.step = stepped
    try:
        yield
    except SystemExit as end:
        if end.code != 128 + signal.SIGTERM:
            raise
    finally:
        Trainee.step = real


def losses(folder: Path) -> list[float]:
    rows = []
    for path in sorted(folder.glob("*log.csv")):
        with open(path, newline="") as file:
            rows += [float(row["train_loss"]) for row in csv.DictReader(file)]
    return rows


def recorded(opt: argparse.Namespace, runs: Runs) -> list[list[str]]:
    """A row a method and precision: recorded or not, and the largest relative difference of its epochs' losses."""
    table = []
    for amp in ("off", "bf16"):
        sweep = ["--sweep", "; ".join(opt.methods), "--amp", amp, "--epochs", "1", "--init_epochs", "1"]
        sweep += ["--learning_rate", "1e-3", "--init_learning_rate", "1e-3", "--at_once", "1000"]
        plain = tolerant(runs, f"plain {amp}", *sweep, "--graph", "off")
        finished: dict[str, bool] = {}
        with watching(finished):
            found = tolerant(runs, f"recorded {amp}", *sweep)
        for name in opt.methods:
            (key,) = [key for key in plain if f"_{name}_r-" in key]
            pairs = list(zip(losses(plain[key]), losses(found[key]), strict=True))
            difference = max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)
            was = finished.get(key, False)
            good = difference <= CLOSE[amp] and was == (find_method(name).capturable and "cuda" in opt.device)
            row = [f"{name} {amp}".replace("off", "float32"), "yes" if was else "no", f"{difference:.1e}"]
            table.append([*row, "ok" if good else "FAILED"])
    return [["method", "recorded", "difference", ""], *table]


def tolerant(runs: Runs, *flags: str) -> dict[str, Path]:
    try:
        return runs.student_of(*flags)
    except SystemExit as end:  # 1: some of the students have no result; the table shows which
        if end.code != 1:
            raise
    return {path.name: path for path in (runs.folder / flags[0] / "student_model").iterdir()}


def resumed(opt: argparse.Namespace, runs: Runs) -> list[list[str]]:
    """A row a comparison: how many tensors of last.pth differ."""
    flags = ["--epochs", "2", "--lr_decay_epochs", "1", "--amp", "bf16", "--deterministic", "--at_once", "100"]
    whole = runs.student_of("whole", "--sweep", RESUMED, *flags)
    for step in (11, 60):
        with stopped(step):
            runs.student_of("stopped", "--sweep", RESUMED, *flags)
    parts = {"a sweep that was stopped twice": runs.student_of("stopped", "--sweep", RESUMED, *flags)}
    alone = {}
    for item in RESUMED.split("; "):
        words = ["--sweep", item, *flags[:-2], "--at_once", "1"]
        alone |= runs.student_of("alone", *words)
    parts["its runs alone"] = alone
    table = []
    for part, folders in parts.items():
        for key, folder in folders.items():
            states = [torch.load(run / "last.pth", weights_only=True) for run in (whole[key], folder)]
            pairs = [
                (states[0][kind][name], states[1][kind][name])
                for kind in ("model", "criterion") for name, x in states[0][kind].items() if isinstance(x, torch.Tensor)
            ]  # fmt: skip
            differing = sum(not torch.equal(a, b) for a, b in pairs)
            row = [key.partition("_T:")[2], part, f"{differing} of {len(pairs)}"]
            table.append([*row, "FAILED" if differing else "ok"])
    return [["run", "against", "tensors that differ", ""], *table]


PARTS = {"recorded": recorded, "resumed": resumed}


@util.command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    opt.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(opt, Path(folder))
        for part in opt.parts:
            table = PARTS[part](opt, runs)
            table.insert(1, ["---"] * len(table[0]))
            text = "".join(f"| {' | '.join(row)} |\n" for row in table)
            checkpoint.atomically(opt.out / f"{part}.md", lambda file, text=text: file.write(text.encode()))
            print(text, flush=True)
            failed += [row[0] for row in table if row[-1] == "FAILED"]
    if failed:
        raise util.Failed(f"{len(failed)} rows failed: {', '.join(failed)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
