"""Kills training at random moments, starts the same command again, and compares with the run that nobody disturbed.

python tests/kill_harness.py --kills 30 --seed 0 --out kills.txt

In turn each case is killed (SIGKILL) at a random moment, then each while a checkpoint is being written; half as many
runs get SIGTERM or SIGINT, and must end by themselves; as many as the first are killed, and something happens to what
surrounds them (`DISTURBANCES`) before the command is started again. What must be equal bit for bit: all that is in
last.pth, every log but for times and memory, summary.json but for times, the names of the files, an exported network's
weights. A line a kill, `N passed, M failed` last. Takes some 5 s a kill on a free core. Training runs in forks of this
process, which has torch loaded.
"""

import argparse
import csv
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dataset  # noqa: E402
from helper import checkpoint  # noqa: E402

DIGITS = "--dataset digits --limit_train 100 --limit_val 50".split()
QUICK = "--batch_size 32 --device cpu".split()
CASES = {
    "crd": "--distill crd --nce_k 64 -a 1",
    "rrd": "--distill rrd --nce_k 64",
    "ab": "--distill ab --init_epochs 2",
    "sskd": "--distill sskd --init_epochs 2",
    "mcl": "--distill kd --mcl_tau 0.9 --mcl_every 3",
    "cache": "--distill kd --cache_teacher {place}/save/cache",
    "recipe": "--distill kd --opt adamw --clip_grad 1 --accumulate 3 --ema 0.9 --early_stop 2 --val_split 20",
}
DISTURBED = {
    "tree": "--distill kd --dataset folder --num_workers 1",
    "again": "--distill kd --export torchscript --resume never",
}
EARLIER = "--distill ab --init_epochs 1 --epochs 1 --save_freq 1 --export torchscript --save_predictions"


def command(case: str, place: Path) -> list[str]:
    own = [word.format(place=place) for word in (CASES | DISTURBED)[case].split()]
    return [*QUICK, *([] if "--dataset" in own else DIGITS), "--path_t", f"{place}/teacher.pth", "--model_s", "resnet8",
            "--epochs", "3", "--lr_decay_epochs", "2", "--save_freq", "2", "--save_steps", "2",
            "--data_folder", f"{place}/data", "--save_folder", f"{place}/save", "--run_name", "r", *own]  # fmt: skip


def run_folder(place: Path) -> Path:
    return place / "save" / "student_model" / "r"


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def results(folder: Path) -> tuple[dict, dict, dict, list[str]]:
    """All that must not depend on interruptions: everything but times and memory."""
    state = torch.load(folder / "last.pth", weights_only=True)
    for place in ("save_folder", "data_folder", "cache_teacher"):
        state["options"].pop(place, None)
    texts = {path.name: path.read_text() for path in sorted(folder.glob("*log.csv"))}
    assert state.pop("logs") == texts, f"{folder}: last.pth has other logs than the files"
    timing = ("train_seconds", "images_per_second", "peak_memory_mb")
    logs = {
        name: [{k: v for k, v in row.items() if k not in timing} for row in csv.DictReader(text.splitlines())]
        for name, text in texts.items()
    }
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("seconds", "images_per_second"):
        summary.pop(key)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events"))
    return state, logs, summary, files


def start(main: Callable[[list[str]], None], arguments: list[str], said: Path) -> int:
    """Number of the process that runs the command; what it prints goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        main(arguments)
        code = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before main could see it
        code = 130
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def ended(child: int) -> int | None:
    """The exit status, negative for a signal; None: it is running."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def half_written(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp") and ".pth." in name] if folder.is_dir() else []


def moments(child: int, folder: Path) -> Iterator[None]:
    """One for each checkpoint that is being written, as long as the process is there."""
    before: list[str] = []
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        now = half_written(folder)
        if now and now != before:
            yield
        before = now


def exports(folder: Path) -> bool:
    """Whether the exported network, if there is one, has the weights of last.pth, and student.json says so."""
    if not (folder / "student.pt").exists():
        return True
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        found = dict(torch.jit.load(folder / "student.pt").state_dict())
    state = checkpoint.load(folder / "last.pth")
    said = json.loads((folder / "student.json").read_text())["weights"]
    return equal(found, state["model"]) and said == checkpoint.digest(state)


class Harness:
    def __init__(self, folder: Path, seed: int, out: Any) -> None:
        import torch._dynamo  # noqa: F401  an optimiser's first step loads it

        import train_student
        import train_teacher

        torch.set_num_threads(1)  # a process with more of them cannot be forked
        gc.freeze()
        self.folder, self.random, self.out, self.main = folder, random.Random(seed), out, train_student.main
        self.said = folder / "said"
        self.whole: dict[str, tuple[tuple, float]] = {}
        arguments = [
            *QUICK,
            *DIGITS,
            "--model",
            "resnet14",
            "--epochs",
            "1",
            "--save_folder",
            str(folder),
            "--run_name",
            "t",
        ]
        self.finish(start(train_teacher.main, arguments, self.said), "the teacher")
        self.project = folder / "project"
        self.project.mkdir()
        shutil.copy(folder / "models" / "t" / "last.pth", self.project / "teacher.pth")
        self.write_images(self.project / "data")

    def write_images(self, folder: Path) -> None:
        """The digits as files."""
        data = dataset.load("digits", folder, limit_train=100, limit_val=50)
        for part, images, labels in (
            ("train", data.train_images, data.train_labels), ("val", data.val_images, data.val_labels)
        ):  # fmt: skip
            for n, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                path = folder / part / data.classes[label] / f"{n}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

    def finish(self, child: int, what: str) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise RuntimeError(f"{what} ended with {status}: {self.said.read_text()[-2000:]}")

    def undisturbed(self, case: str) -> tuple[tuple, float]:
        """Results and seconds."""
        if case not in self.whole:
            place, begin = shutil.copytree(self.project, self.folder / case), time.monotonic()
            self.finish(start(self.main, command(case, place), self.said), case)
            seconds = time.monotonic() - begin
            self.whole[case] = self.results(place), seconds
        return self.whole[case]

    def results(self, place: Path) -> tuple:
        found = results(run_folder(place))
        found[0]["options"].pop("path_t")
        return *found, exports(run_folder(place))

    def start_to_kill(self, case: str, place: Path, in_write: bool, has_begun: bool) -> int:
        """Number of a process whose moment has come. has_begun: a checkpoint and a row of a log are there."""
        _, seconds = self.undisturbed(case)
        for attempt in range(20):  # it may be over before its moment has come
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(self.project, place)
            if case == "again":
                self.finish(start(self.main, [*command(case, place), *EARLIER.split()], self.said), "the earlier run")
            child, folder = start(self.main, command(case, place), self.said), run_folder(place)
            if in_write:
                which = self.random.randint(1, 6) if attempt < 3 else 1 + has_begun
                for _, _ in zip(range(which), moments(child, folder), strict=False):
                    pass
            else:
                # within a fork's first moments Python itself swallows a Ctrl-C
                time.sleep(max(0.05, self.random.uniform(0, seconds)))
            if ended(child) is None:
                finished = (folder / "summary.json").exists() and case != "again"  # which has the earlier run's
                begun = (folder / "last.pth").exists() and any(folder.glob("*log.csv"))
                if not finished and (begun or not has_begun or case == "again"):
                    return child
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            else:
                seconds *= 0.8  # the machine may have been slower when they were measured
        raise RuntimeError(f"{case}: no moment to kill it was found")

    def kill(self, n: int, case: str, number: int, in_write: bool, disturbance: str = "") -> bool:
        """One run, killed and continued. Whether it ended as the other one."""
        expected, _ = self.undisturbed(case)
        place = self.folder / f"{n}"
        child = self.start_to_kill(case, place, in_write, bool(disturbance))
        os.kill(child, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        folder = run_folder(place)
        rows = {path.name: len(path.read_text().splitlines()) - 1 for path in sorted(folder.glob("*log.csv"))}
        left = half_written(folder)
        # before training begins, SIGTERM ends a process as it does by default
        allowed = {signal.SIGKILL: [-9], signal.SIGTERM: [143, -15], signal.SIGINT: [130]}[number]
        problem, then = "" if status in allowed else f"it ended with {status}", ""
        if not problem:
            try:
                arguments = command(case, place)
                if disturbance:
                    then, arguments = DISTURBANCES[disturbance](self, case, place)
                self.finish(start(self.main, arguments, self.said), "the continued run")
                place = Path(arguments[arguments.index("--save_folder") + 1]).parent
                parts = "last.pth", "logs", "summary.json", "files", "export"
                compared = zip(parts, self.results(place), expected, strict=True)
                problem = ", ".join(name for name, found, wanted in compared if not equal(found, wanted))
            except (RuntimeError, OSError) as error:
                problem = str(error)
        where = ", ".join(f"{name} has {count} rows" for name, count in rows.items()) or "no row"
        where += (f", {left[0]} half written" if left else "") + (f"; then {then}" if then else "")
        said = f"FAILED: {problem}" if problem else "equal"
        name = signal.Signals(number).name
        print(f"{n + 1:3} {case:5} {name:7} status {status:4}: {where}: {said}", file=self.out, flush=True)
        shutil.rmtree(place, ignore_errors=True)
        return not problem

    # ---- what happens after a kill: in words, and the command that goes on ----

    def refused(self, arguments: list[str], place: Path, *expected: str) -> None:
        """Raises RuntimeError where the command is not refused in one line that has these words, or writes anything."""
        before = {path: path.stat().st_mtime_ns for path in run_folder(place).iterdir()}
        status = os.waitstatus_to_exitcode(os.waitpid(start(self.main, arguments, self.said), 0)[1])
        said = self.said.read_text()
        if status != 2 or said.count("\n") != 1 or not all(words in said for words in expected):
            raise RuntimeError(f"expected to be refused with {expected}; ended with {status}: {said[-2000:]}")
        if before != {path: path.stat().st_mtime_ns for path in run_folder(place).iterdir()}:
            raise RuntimeError("what was refused has written into the folder")

    def edit_logs(self, case: str, place: Path) -> tuple[str, list[str]]:
        edits: dict[str, Callable[[bytes], bytes]] = {
            "cut": lambda text: text[: self.random.randrange(len(text))],
            "glued": lambda text: text.replace(b"\n", b"", 2),
            "garbled": lambda text: text[:9] + self.random.randbytes(40) + text[9:],
            "edited": lambda text: text.replace(b"0", b"1"),
            "made twice as long": lambda text: text * 2,
            "emptied": lambda text: b"",
        }
        how = self.random.choice(list(edits))
        for log in run_folder(place).glob("*log.csv"):
            log.write_bytes(edits[how](log.read_bytes()))
        return f"the logs {how}", command(case, place)

    def swap_teacher(self, case: str, place: Path) -> tuple[str, list[str]]:
        file = place / "teacher.pth"
        state, content = checkpoint.load(file), file.read_bytes()
        other = state | {"model": state["model"] | {"fc.bias": state["model"]["fc.bias"] + 1}}
        torch.save(other, file)
        self.refused(command(case, place), place, "--path_t", checkpoint.digest(other), checkpoint.digest(state))
        file.write_bytes(content)
        return "another teacher (refused), put back", command(case, place)

    def alter_images(self, case: str, place: Path) -> tuple[str, list[str]]:
        data, how = place / "data", self.random.choice(["added", "replaced", "removed", "class renamed"])
        images = sorted(data.glob("*/*/*.bmp"))
        image, other = self.random.sample(images, 2)
        data.rename(place / "kept")
        shutil.copytree(place / "kept", data)
        if how == "class renamed":
            for part in ("train", "val"):
                (data / part / image.parent.name).rename(data / part / "x")
        elif how == "removed":
            image.unlink()
        else:
            target = image if how == "replaced" else image.with_name("more.bmp")
            Image.fromarray(255 - np.asarray(Image.open(other))).save(target)
        self.refused(command(case, place), place, "holds a run on other data: ", f"--data_folder {data}")
        shutil.rmtree(data)
        (place / "kept").rename(data)
        return f"images {how} (refused), put back", command(case, place)

    def move_project(self, case: str, place: Path) -> tuple[str, list[str]]:
        return "the project moved", command(case, place.rename(place.with_name(f"{place.name} elsewhere")))

    def move_data(self, case: str, place: Path) -> tuple[str, list[str]]:
        moved = (place / "data").rename(place / "images")
        return "the data moved", [*command(case, place), "--data_folder", str(moved)]

    def start_again(self, case: str, place: Path) -> tuple[str, list[str]]:
        """The run has an earlier one's folder, which it begins afresh."""
        options, arguments = run_folder(place) / "options.json", command(case, place)
        if options.exists() and json.loads(options.read_text())["options"]["epochs"] == 3:
            return "gone on", [*arguments, "--resume", "auto"]
        return "the earlier run is still there", arguments


DISTURBANCES = {
    "logs": Harness.edit_logs,
    "teacher": Harness.swap_teacher,
    "images": Harness.alter_images,
    "moved": Harness.move_project,
    "data": Harness.move_data,
    "again": Harness.start_again,
}
ON_TREES = {"images", "data"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    opt = parser.parse_args(argv)
    cases = opt.cases.split(",")
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), opt.seed, opt.out)
        found = []
        for n in range(opt.kills):
            found.append(harness.kill(n, cases[n % len(cases)], signal.SIGKILL, in_write=n // len(cases) % 2 == 1))
        for n in range(opt.kills // 2):
            number = (signal.SIGTERM, signal.SIGINT)[n % 2]
            found.append(harness.kill(opt.kills + n, cases[n % len(cases)], number, in_write=False))
        for n in range(opt.kills, opt.kills * 2):
            what, in_write = list(DISTURBANCES)[n % len(DISTURBANCES)], harness.random.random() < 0.5
            case = "again" if what == "again" else "tree" if what in ON_TREES else harness.random.choice(cases)
            found.append(harness.kill(n + opt.kills // 2, case, signal.SIGKILL, in_write, what))
    print(f"{sum(found)} passed, {len(found) - sum(found)} failed", file=opt.out, flush=True)
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
