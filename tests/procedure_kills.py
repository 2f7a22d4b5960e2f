"""Kills whole procedures at random moments, starts the same command again, and compares with the undisturbed one.

python tests/procedure_kills.py --kills 20 --seed 0 --out kills.txt

Each of evaluate_kd.py, run_takd.sh, run_multikd.sh and the tables of procedures.py is killed (SIGKILL, the script and
what it has started) as often as that, at a moment of the clock. What must be equal: all that every run's last.pth
holds, logs and summaries but for times and memory, the names of all files, the text of every table. A line a kill,
`N passed, M failed` last.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from forks import ROOT, write_client  # noqa: E402
from kill_harness import equal, results  # noqa: E402

TINY = "--limit_train 40 --limit_val 20 --device cpu"
FEW = f"{TINY} --lr_decay_epochs 1 --batch_size 20 --epochs 2"
ENVIRONMENT = {"DATASET": "digits", "SEEDS": "1", "OPTIONS": FEW, "TEACHER_OPTIONS": FEW, "SAVE": "save"}
ENVIRONMENT |= {"PAIR": "resnet14:resnet8", "ASSISTANTS": "resnet8", "STUDENT": "resnet8", "ENSEMBLE": "2"}
TABLE = "table --save save --seeds 1 --out save/tables/mine --row alone resnet8_digits_none"
EVALUATE = "--mode nokd kd takd rkd --teacher resnet14 --student resnet8 --takd-assistants resnet8 --dataset digits"
CASES = {
    "evaluate_kd": ["{python}", ROOT / "evaluate_kd.py", *EVALUATE.split(), "--results-dir", "save"]
    + f"--epochs 2 --batch-size 20 {TINY}".split(),
    "takd": ["bash", ROOT / "scripts/run_takd.sh"],
    "multikd": ["bash", ROOT / "scripts/run_multikd.sh"],
    "table": ["{python}", ROOT / "scripts/procedures.py", *TABLE.split()],
}


def found(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What every run and every table holds, and the names of all files."""
    held: dict[str, Any] = {str(path.parent): results(path.parent) for path in folder.rglob("last.pth")}
    tables = [*folder.rglob("*.md"), *(path for path in folder.rglob("*.csv") if "log" not in path.name)]
    held |= {str(path): path.read_text() for path in tables}
    held = {os.path.relpath(path, folder): content for path, content in held.items()}
    return held, sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.startswith("events"))


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


class Harness:
    def __init__(self, place: Path, seed: int, server: int) -> None:
        self.place, self.server, self.random = place, server, random.Random(seed)
        self.whole: dict[str, tuple[Any, float]] = {}

    def start(self, case: str, folder: Path) -> subprocess.Popen:
        python = self.place / "python"
        command = [str(word).format(python=python) for word in CASES[case]]
        if case == "table":
            shutil.copytree(self.place / "takd", folder, dirs_exist_ok=True)
        folder.mkdir(exist_ok=True)
        environment = os.environ | ENVIRONMENT | {"PYTHON": str(python)}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, text=True, **pipes)

    def undisturbed(self, case: str) -> tuple[Any, float]:
        """Results and seconds."""
        if case not in self.whole:
            begin, process = time.monotonic(), self.start(case, self.place / case)
            error = process.communicate()[1]
            if process.returncode:
                raise RuntimeError(f"{case} ended with {process.returncode}: {error}")
            self.whole[case] = found(self.place / case), time.monotonic() - begin
        return self.whole[case]

    def kill(self, case: str) -> str:
        """Kills, and continues. Returns what is wrong with the end."""
        if case == "table":
            self.undisturbed("takd")
        expected, seconds = self.undisturbed(case)
        folder = self.place / "killed"
        while True:  # it may be over before its moment has come
            shutil.rmtree(folder, ignore_errors=True)
            process = self.start(case, folder)
            time.sleep(self.random.uniform(0, seconds))
            if process.poll() is None:
                break
            process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
        for job in [job for between in children(self.server) for job in children(between)]:
            os.kill(job, signal.SIGKILL)
        process.communicate()
        done = len(list(folder.rglob("summary.json")))
        again = self.start(case, folder)
        error = again.communicate()[1]
        problem = f"it ended with {again.returncode}: {error[-500:]}" if again.returncode else ""
        if not problem:
            names = [
                name
                for name, a, b in zip(("contents", "files"), found(folder), expected, strict=True)
                if not equal(a, b)
            ]
            problem = ", ".join(names)
        return f"status {process.returncode}, {done} runs were finished: " + (
            f"FAILED: {problem}" if problem else "equal"
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    opt = parser.parse_args(argv)
    failed = passed = 0
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        command = [sys.executable, ROOT / "tests" / "forks.py", here / "socket"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:
            server.stdout.readline()
            write_client(here / "python", here / "socket")
            harness = Harness(here, opt.seed, server.pid)
            try:
                for case in opt.cases.split(","):
                    for n in range(opt.kills):
                        said = harness.kill(case)
                        failed, passed = failed + ("FAILED" in said), passed + ("FAILED" not in said)
                        print(f"{n + 1:3} {case:11} {said}", file=opt.out, flush=True)
            finally:
                server.terminate()
    print(f"{passed} passed, {failed} failed", file=opt.out, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
