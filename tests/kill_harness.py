"""Kills training at random moments, starts the same command again, and compares with the run that nobody disturbed.

python tests/kill_harness.py --kills 30 --seed 0 --out kills.txt

In turn each case is killed (SIGKILL) at a random moment, then each while a checkpoint is being written; half as many
runs get SIGTERM or SIGINT, and must end by themselves. What must be equal bit for bit: all that is in last.pth, every
log but for times and memory, summary.json but for times, the names of the files. A line a kill, `N passed, M
failed` last. Takes some 5 s a kill on a free core. Training runs in forks of this process, which has torch loaded.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

QUICK = "--dataset digits --limit_train 100 --limit_val 50 --batch_size 32 --device cpu".split()
CASES = {
    "crd": "--distill crd --nce_k 64 -a 1",
    "rrd": "--distill rrd --nce_k 64",
    "ab": "--distill ab --init_epochs 2",
    "sskd": "--distill sskd --init_epochs 2",
    "mcl": "--distill kd --mcl_tau 0.9 --mcl_every 3",
    "cache": "--distill kd --cache_teacher {save}/cache",
    "recipe": "--distill kd --opt adamw --clip_grad 1 --accumulate 3 --ema 0.9 --early_stop 2 --val_split 20",
}


def command(case: str, teacher: Path, save: Path) -> list[str]:
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2",
            "--save_freq", "2", "--save_steps", "2", "--save_folder", str(save), "--run_name", "r",
            *CASES[case].format(save=save).split()]  # fmt: skip


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
    for place in ("save_folder", "cache_teacher"):
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


class Harness:
    def __init__(self, folder: Path, seed: int, out: Any) -> None:
        import torch._dynamo  # noqa: F401  an optimiser's first step loads it

        import train_student
        import train_teacher

        torch.set_num_threads(1)  # a process with more of them cannot be forked
        gc.freeze()
        self.folder, self.random, self.out, self.main = folder, random.Random(seed), out, train_student.main
        self.teacher = folder / "models" / "t" / "last.pth"
        self.whole: dict[str, tuple[tuple, float]] = {}
        arguments = [*QUICK, "--model", "resnet14", "--epochs", "1", "--save_folder", str(folder), "--run_name", "t"]
        self.finish(start(train_teacher.main, arguments, folder / "said"), "the teacher")

    def finish(self, child: int, what: str) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            raise RuntimeError(f"{what} ended with {status}: {(self.folder / 'said').read_text()[-2000:]}")

    def undisturbed(self, case: str) -> tuple[tuple, float]:
        """Results and seconds."""
        if case not in self.whole:
            save, begin = self.folder / case, time.monotonic()
            self.finish(start(self.main, command(case, self.teacher, save), self.folder / "said"), case)
            self.whole[case] = results(save / "student_model" / "r"), time.monotonic() - begin
        return self.whole[case]

    def kill(self, n: int, case: str, number: int, in_write: bool) -> bool:
        """One run, killed and continued. Whether it ended as the other one."""
        expected, seconds = self.undisturbed(case)
        save = self.folder / f"{n}"
        folder, arguments = save / "student_model" / "r", command(case, self.teacher, save)
        for attempt in range(20):  # it may be over before its moment has come
            child = start(self.main, arguments, self.folder / "said")
            if in_write:
                which = self.random.randint(1, 6) if attempt < 3 else 1
                for _, _ in zip(range(which), moments(child, folder), strict=False):
                    pass
            else:
                # within a fork's first moments Python itself swallows a Ctrl-C
                time.sleep(max(0.05, self.random.uniform(0, seconds)))
            if ended(child) is None:
                if not (folder / "summary.json").exists():
                    break
                os.waitpid(child, 0)
            shutil.rmtree(save)
        os.kill(child, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        rows = {path.name: len(path.read_text().splitlines()) - 1 for path in sorted(folder.glob("*log.csv"))}
        left = half_written(folder)
        # before training begins, SIGTERM ends a process as it does by default
        allowed = {signal.SIGKILL: [-9], signal.SIGTERM: [143, -15], signal.SIGINT: [130]}[number]
        problem = "" if status in allowed else f"it ended with {status}"
        if not problem:
            try:
                self.finish(start(self.main, arguments, self.folder / "said"), "the continued run")
                parts = zip(("last.pth", "logs", "summary.json", "files"), results(folder), expected, strict=True)
                problem = ", ".join(name for name, found, wanted in parts if not equal(found, wanted))
            except (RuntimeError, OSError) as error:
                problem = str(error)
        where = ", ".join(f"{name} has {count} rows" for name, count in rows.items()) or "no row"
        where += f", {left[0]} half written" if left else ""
        said = f"FAILED: {problem}" if problem else "equal"
        name = signal.Signals(number).name
        print(f"{n + 1:3} {case:5} {name:7} status {status:4}: {where}: {said}", file=self.out, flush=True)
        shutil.rmtree(save, ignore_errors=True)  # there may be none yet
        return not problem


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
    print(f"{sum(found)} passed, {len(found) - sum(found)} failed", file=opt.out, flush=True)
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
