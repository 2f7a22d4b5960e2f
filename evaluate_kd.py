"""Distils one student in many ways, one after the other, and sets them side by side.

python evaluate_kd.py --mode nokd kd takd --teacher resnet26 --student resnet8 --dataset cifar10 --epochs 100

The modes and options of The State of Knowledge Distillation for Classification, Ruffy, Chahal, 2019,
https://arxiv.org/abs/1912.10850. It runs train_teacher.py and train_student.py, whose data, training and run flags it
passes on (--limit_train, --device, --amp, ...). Interrupted, the same command goes on; finished runs are passed over.
"""

import importlib.util
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dataset
import train_student
import train_teacher
from helper import checkpoint, parsing
from helper.parsing import first
from helper.run import parsed
from helper.tables import markdown, read_summary, write_csv
from helper.util import UserError, command

KD = "-r 0.5 -a 0.5 --kd_T 5"  # lambda and temperature there
SINGLE = {  # modes of one run
    "nokd": "none",
    "kd": f"kd {KD}",
    "triplet": "triplet -r 0 -a 0.5 -b 0.5 --kd_T 5",
    "uda": f"uda {KD}",
    "ab": f"ab {KD} -b 0 --init_epochs 10",
    "oh": "ofd -r 1 -a 0 -b 0.001",
    "rkd": f"rkd {KD} -b 1",
    "pkd": f"pkd {KD} -b 10",
    "sfd": "sfd -r 1 -a 0 -b 1",
}
MODES = "nokd kd allkd kdparam triplet multikd uda takd ab oh rkd pkd sfd".split()


def parse(argv: list[str] | None) -> tuple[Namespace, list[str]]:
    passed_on = "Flags of train_student.py on data, training and runs are passed on: train_student.py --help_all."
    parser = parsing.BriefParser(__doc__, passed_on)
    add = parser.add_argument_group("what is trained").add_argument
    modes = f"{', '.join(MODES)}; or fd: sfd"
    any_of = {"type": str.lower, "choices": [*MODES, "fd"], "metavar": "MODE"}
    first(add("--mode", nargs="+", default=["nokd", "kd"], **any_of, help=modes))
    first(add("--teacher", type=parsing.network, default="resnet26", help="the teacher's network"))
    first(add("--student", type=parsing.network, default="resnet8", help="the student's network"))
    first(add("--teacher-checkpoint", metavar="FILE", help="left out, the teacher is trained first"))
    add = parser.add_argument_group("training").add_argument
    data_set = "data set, as --dataset of train_student.py"
    first(add("--dataset", type=parsing.known(dataset.find_dataset), default="cifar10", help=data_set))
    first(add("--epochs", type=parsing.count, default=100, help="epochs of every network"))
    first(add("--batch-size", "--batch_size", type=parsing.count, default=128, help="images of a step"))
    rate = "learning rate of the first epoch"
    first(add("--learning-rate", "--learning_rate", type=parsing.above_zero, default=0.1, help=rate))
    add("--momentum", type=parsing.above_zero, default=0.9, help="Nesterov's momentum")
    add("--weight-decay", "--weight_decay", type=parsing.weight, default=5e-4, help="the optimiser's, of all weights")
    add("--optimizer", choices=["sgd"], default="sgd", help="there is no other")
    schedules = {"multisteplr": "x 0.1 at 33 and 66 %%", "steplr": "x 0.1 every 50 epochs", "constant": "as it is"}
    rates = "; ".join(f"{name}: {fall}" for name, fall in schedules.items())
    first(add("--scheduler", choices=schedules, default="multisteplr", help=f"how the rate falls; {rates}"))
    add = parser.add_argument_group("run").add_argument
    first(add("--results-dir", default="./save/evaluate_kd", help="runs and tables go to its folder of the data set"))
    first(add("-t", "--trial", type=parsing.whole, default=1, help="number of this repetition, and its seed"))
    add = parser.add_argument_group("modes that train several").add_argument
    allkd = "resnet8 resnet14 resnet20 resnet26 resnet32 resnet44 resnet56".split()
    add("--allkd-teachers", nargs="+", type=parsing.network, default=allkd, help="allkd: a student of each")
    temperatures, alphas = "kdparam: temperatures of KD", "kdparam: shares of KD's term"
    add("--kdparam-temperatures", nargs="+", type=parsing.above_zero, default=[1, 5, 10, 15, 20], help=temperatures)
    add("--kdparam-alphas", nargs="+", type=parsing.share, default=[0.1, 0.4, 0.5, 0.7, 1], help=alphas)
    add("--multikd-teachers", nargs="+", type=parsing.network, default=["wrn_22_4"], help="multikd: beside --teacher")
    assistants = "takd: from the teacher down"
    add("--takd-assistants", nargs="+", type=parsing.network, default=["resnet20"], help=assistants)
    opt, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    opt.mode = list(dict.fromkeys("sfd" if mode == "fd" else mode for mode in opt.mode))
    for flag in {argument.split("=")[0] for argument in rest} & {"--run_name", "--save_folder", "--model", "--config"}:
        raise UserError(f"{flag}: every run has its own; --results-dir says where they are")
    return opt, rest


class Teacher(NamedTuple):
    label: str  # part of its students' names
    network: str
    path: str


class Suite:
    """Runs the modes. Each is a dict: what tells a run from the mode's others -> the run's folder."""

    def __init__(self, opt: Namespace, rest: list[str]) -> None:
        self.opt, self.folder = opt, Path(opt.results_dir) / opt.dataset
        n = opt.epochs
        decay = {"multisteplr": {n * 33 // 100, n * 66 // 100}, "steplr": range(50, n, 50), "constant": ()}
        self.common = [
            *f"--dataset {opt.dataset} --epochs {n} --batch_size {opt.batch_size}".split(),
            *f"--learning_rate {opt.learning_rate} --momentum {opt.momentum} --nesterov".split(),
            *f"--weight_decay {opt.weight_decay}".split(),
            f"--lr_decay_epochs={','.join(str(epoch) for epoch in sorted(decay[opt.scheduler]) if epoch)}",
            *("--save_folder", str(self.folder), *rest),
        ]
        self.seen: set[Path] = set()

    def run(self, script: Callable, kind: str, name: str, trial: int, arguments: list[str]) -> Path:
        """Trains, or goes on, or finds it done. Returns the run's folder."""
        folder = self.folder / kind / f"{name}_{trial}"
        if folder not in self.seen:
            print(f"\n== {folder.name}")
            script([*arguments, "--trial", str(trial), "--run_name", folder.name, *self.common])
            self.seen.add(folder)
        return folder

    def alone(self, network: str, n: int = 0) -> Teacher:
        """A network trained alone, the n-th of its kind; the given checkpoint where it is that."""
        if network == self.opt.teacher and self.opt.teacher_checkpoint and not n:
            return Teacher(network, network, self.opt.teacher_checkpoint)
        folder = self.run(train_teacher.main, "models", network, self.opt.trial + n, ["--model", network])
        return Teacher(network, network, str(folder / "last.pth"))

    def given(self) -> Teacher:
        return self.alone(self.opt.teacher)

    def distil(self, how: str, *teachers: Teacher, into: str | None = None) -> Path:
        student = into or self.opt.student
        arguments = ["--model_s", student, "--distill", *how.split()]
        name = "_".join([student, *(part.lstrip("-") for part in how.split())])
        if teachers:
            labels, networks, paths = zip(*teachers, strict=True)
            arguments += ["--path_t", *paths, "--model_t", *networks]
            name += "_by_" + "+".join(labels)
        return self.run(train_student.main, "student_model", name, self.opt.trial, arguments)

    def single(self, mode: str) -> dict[str, Path]:
        return {"": self.distil(SINGLE[mode], *([] if mode == "nokd" else [self.given()]))}

    def allkd(self) -> dict[str, Path]:
        return {f"by {name}": self.distil(SINGLE["kd"], self.alone(name)) for name in self.opt.allkd_teachers}

    def kdparam(self) -> dict[str, Path]:
        cells = [(T, alpha) for T in self.opt.kdparam_temperatures for alpha in self.opt.kdparam_alphas]
        flags = "kd -r {:g} -a {:g} --kd_T {:g}"
        return {f"T {T:g}, alpha {a:g}": self.distil(flags.format(1 - a, a, T), self.given()) for T, a in cells}

    def multikd(self) -> dict[str, Path]:
        teachers, count = [], Counter()
        for network in [self.opt.teacher, *self.opt.multikd_teachers]:
            teachers.append(self.alone(network, count[network]))
            count[network] += 1
        return {"by " + ", ".join(teacher.label for teacher in teachers): self.distil(SINGLE["kd"], *teachers)}

    def takd(self) -> dict[str, Path]:
        teacher = self.given()
        for network in self.opt.takd_assistants:
            folder = self.distil(SINGLE["kd"], teacher, into=network)
            teacher = Teacher(f"{network}-by-{teacher.label}", network, str(folder / "last.pth"))
        return {"by " + teacher.label.replace("-by-", " by "): self.distil(SINGLE["kd"], teacher)}


class Result(NamedTuple):
    mode: str
    run: str
    teacher_acc: str
    last_acc: float
    best_acc: float
    best_epoch: int
    folder: Path

    @classmethod
    def read(cls, mode: str, run: str, folder: Path) -> "Result":
        told = read_summary(folder)
        teachers = ", ".join(f"{acc:.2f}" for acc in told["teacher_acc"])
        return cls(mode, run, teachers, *(told[key] for key in ("last_acc", "best_acc", "best_epoch")), folder)


def table(results: list[Result], chosen: list[Result]) -> str:
    alone = next((r.last_acc for r in chosen if r.mode == "nokd"), None)
    rows = []
    for r in chosen:
        runs = sum(other.mode == r.mode for other in results)
        what = r.run + (f" (highest last epoch of {runs})" if runs > 1 else "")
        gain = "" if alone is None or r.mode == "nokd" else f"{r.last_acc - alone:+.2f}"
        row = {"mode": r.mode, "run": what, "teacher": r.teacher_acc, "last epoch": f"{r.last_acc:.2f}"}
        rows.append(row | {"gain over nokd": gain, "best epoch": f"{r.best_acc:.2f}"})
    return markdown(rows) + "\n"


def curve(last: Path) -> list[float]:
    """The accuracy after each epoch, which the run's checkpoint knows."""
    state = checkpoint.load(last, "the run's")
    try:
        return [row["val_acc"] for row in parsed(state["logs"]["log.csv"])]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"the run's {last}: lacks the accuracy of each epoch") from None


def draw(path: str, title: str, curves: dict[str, list[float]]) -> None:
    """Each mode's accuracy in every epoch, to .pdf and .png."""
    from scripts.curves import Curve, draw  # needs matplotlib

    figure = draw(f"{title}: validation accuracy", "last epoch, %", [Curve(*curve) for curve in curves.items()])
    for kind in ("pdf", "png"):
        figure.savefig(f"{path}.{kind}", dpi=150)


def report(results: list[Result], title: str, path: str) -> None:
    """Prints the table; writes it, every run as CSV, and the curves of the table's runs as CSV and plot."""
    modes = dict.fromkeys(r.mode for r in results)
    chosen = [max((r for r in results if r.mode == mode), key=lambda r: r.last_acc) for mode in modes]
    text = table(results, chosen)
    print(f"\n{title}\n\n{text}")
    checkpoint.atomically(Path(f"{path}.md"), lambda file: file.write(text.encode()))
    write_csv(Path(f"{path}.csv"), [r._asdict() for r in results])
    curves = {r.mode: curve(r.folder / "last.pth") for r in chosen}
    epochs = enumerate(zip(*curves.values(), strict=True), 1)
    lines = [{"epoch": epoch, **dict(zip(curves, accs, strict=True))} for epoch, accs in epochs]
    write_csv(Path(f"{path}_curves.csv"), lines)
    if importlib.util.find_spec("matplotlib"):
        draw(path, title, curves)
    else:
        print("no plot: matplotlib is not installed (requirements-extra.txt); with it, the same command draws one")
    print(f"written: {path}.*")


@command
def main(argv: list[str] | None = None) -> None:
    opt, rest = parse(argv)
    suite = Suite(opt, rest)
    train_teacher.parse(["--model", opt.teacher, *suite.common])  # a wrong flag ends it here
    if opt.teacher_checkpoint:
        checkpoint.load(opt.teacher_checkpoint, "--teacher-checkpoint")
    elif not {"nokd", "allkd"}.issuperset(opt.mode):
        suite.given()
    results, failed = [], []
    for mode in opt.mode:
        try:
            runs = suite.single(mode) if mode in SINGLE else getattr(suite, mode)()
        except SystemExit as stop:
            if stop.code not in (2, 3):
                raise
            failed.append(mode)  # refused for this pair, or diverged: the others go on
        else:
            results += [Result.read(mode, run, folder) for run, folder in runs.items()]
    if results:
        title = f"{opt.dataset}, {opt.teacher} > {opt.student}, {opt.epochs} epochs, trial {opt.trial}"
        report(results, title, str(suite.folder / f"{opt.teacher}_{opt.student}_{opt.trial}"))
    if failed:
        print(f"not run, for the reason above: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1 if results else 2)


if __name__ == "__main__":
    main()
