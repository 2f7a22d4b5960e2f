"""Long runs on the shipped digits: does memory stay flat, do many epochs end, do equal seeds give equal numbers?

python tests/long_runs.py memory --out DIR   # 2,000 steps of each method: resident memory and open files
python tests/long_runs.py epochs --out DIR   # 10,000 epochs, killed in the middle and started again
python tests/long_runs.py twice --out DIR    # each method twice, on one thread and on two: equal bit for bit?

Each writes a line of JSON for each thing done into DIR, goes on after what it finds there, and ends with a summary.
"""

import argparse
import ctypes
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from fakes import student_for  # noqa: E402

import train_student  # noqa: E402
import train_teacher  # noqa: E402
from distiller_zoo import find_method, method_names, method_options  # noqa: E402
from helper.run import Run  # noqa: E402
from helper.trainee import Trainee  # noqa: E402

TINY = "--dataset digits --image_size 8 --device cpu --batch_size 8".split()
STEPS = (
    "--limit_train 400 --limit_val 40 --epochs 40 --print_freq 20 --tb_freq 25 --save_freq 10".split()
)  # 50 an epoch
MANY = "--limit_train 20 --limit_val 10 --epochs 10000 --lr_decay_epochs 8000 --save_freq 1000 --distill kd".split()
FEW = "--limit_train 64 --limit_val 10 --epochs 2".split()
RESOURCES = ("resident_mb", "own_mb", "open_files")


def options_of(name: str) -> list[str]:
    """A weight for the methods that are published without one, and small banks."""
    cls = find_method(name)
    small = ["--nce_k", "256"] if "nce_k" in method_options(cls) else []
    network = ["--model_s", student_for(name, "resnet8")]
    return [*network, "--distill", name, *small, *([] if cls.init_loss or cls.weights[2] else ["-b", "1"])]


def student(save: Path, *options: str) -> Path:
    """Trains, by the script, a teacher where there is none yet, and a student. Returns its folder."""
    common, teacher = [*TINY, "--save_folder", str(save)], save / "models" / "t" / "last.pth"
    if not teacher.exists():
        train_teacher.main([*common, *FEW, "--model", "resnet8", "--run_name", "t"])
    train_student.main([*common, "--run_name", "s", "--path_t", str(teacher), *options])
    return save / "student_model" / "s"


def plain() -> None:
    """One thread, and pages as they are asked for: Linux makes huge ones of them at moments of its own (prctl 41)."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)


def resources() -> tuple[float, float, int]:
    """Resident memory in MB, that of it which is no file's (freed memory included), and the number of open files."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    whole, own = (round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1) for pages in (resident, resident - shared))
    return whole, own, len(os.listdir("/proc/self/fd"))


def memory(name: str) -> dict[str, Any]:
    """Every 100 steps of the initialisation, where there is one, and of the 2,000 steps after it."""
    plain()
    samples, count, step = [], itertools.count(1), Trainee.step

    def watched(*args: Any) -> None:
        step(*args)
        if next(count) % 100 == 0:
            samples.append(resources())

    Trainee.step = watched
    with tempfile.TemporaryDirectory() as save:
        student(Path(save), *options_of(name), *STEPS, "--init_epochs", "4")
    return dict(zip(RESOURCES, zip(*samples, strict=True), strict=True))


def growth(samples: list[float]) -> float:
    """Percent that the largest sample after 500 steps is above the one at 500 steps."""
    before, *after = samples[-16:]
    return 100 * (max(after) / before - 1)


def of_memory(rows: dict[str, dict]) -> str:
    grown = {what: {name: growth(row[what]) for name, row in rows.items()} for what in RESOURCES}
    worst = {what: max(of, key=of.get) for what, of in grown.items()}
    return f"{len(rows)} methods, most growth from step 500 to 2,000: " + ", ".join(
        f"{what} {grown[what][name]:.2f} % ({name})" for what, name in worst.items()
    )


def twice(name: str) -> dict[str, Any]:
    """Whether two runs have equal checkpoints and logs."""
    from test_resume import equal, results

    found = {}
    with tempfile.TemporaryDirectory() as save:
        student(Path(save), *FEW, "--distill", "none")  # and a teacher for all
        for threads, again in itertools.product((1, 2), range(2)):
            torch.set_num_threads(threads)
            folder = student(Path(save), *FEW, *options_of(name), "--init_epochs", "1", "--resume", "never")
            found[threads, again] = results(folder)
    return {f"{n} threads": all(map(equal, found[n, 0], found[n, 1])) for n in (1, 2)}


def of_twice(rows: dict[str, dict]) -> str:
    unequal = [f"{name} on {n}" for name, row in rows.items() for n in ("1 threads", "2 threads") if not row[n]]
    return f"{len(rows)} methods twice, on 1 and on 2 threads; unequal: {', '.join(unequal) or 'none'}"


def epochs(save: Path, file: Path, killed_in: int | None) -> None:
    """Writes time and resources every 500 epochs."""
    plain()
    log, start = Run.log, time.perf_counter()

    def watched(self: Run, name: str, row: dict[str, Any]) -> None:
        nonlocal start
        log(self, name, row)
        if row["epoch"] == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        if row["epoch"] % 500 == 0:
            seconds, start = time.perf_counter() - start, time.perf_counter()
            note(file, row["epoch"], {"seconds": round(seconds, 2), **dict(zip(RESOURCES, resources(), strict=True))})

    Run.log = watched
    folder = student(save, *MANY)
    rows = [int(line.split(",")[0]) for line in (folder / "log.csv").read_text().splitlines()[1:]]
    assert rows == list(range(1, 10001)), "log.csv has not each epoch once"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 10000


def of_epochs(rows: dict[str, dict]) -> str:
    times = [row["seconds"] / 500 for row in rows.values()]
    return (
        f"{list(rows)[-1]} epochs in {500 * sum(times):.0f} s: {1000 * times[0]:.0f} ms an epoch at first, "
        f"{1000 * times[-1]:.0f} ms at the end"
    )


def note(file: Path, what: str | int, found: dict[str, Any]) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"what": what, **found}) + "\n")


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def done(file: Path) -> dict[str, dict]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {row.pop("what"): row for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "epochs", "twice"])
    parser.add_argument("--out", type=Path, required=True)
    opt = parser.parse_args()
    opt.out.mkdir(parents=True, exist_ok=True)
    file = opt.out / f"{opt.what}.jsonl"
    if opt.what == "epochs":
        try:
            alone(epochs, opt.out, file, 5250)
        except BrokenProcessPool:
            alone(epochs, opt.out, file, None)
    else:
        for name in method_names():
            if name not in done(file):
                note(file, name, alone(globals()[opt.what], name))
    print(globals()[f"of_{opt.what}"](done(file)))


if __name__ == "__main__":
    main()
