"""Images a second of whole training steps: data, augmentation, teacher, student, loss, optimiser, meters.

python benchmarks/step_time.py --pair resnet32x4:resnet8x4 --methods kd,crd --peer ../RepDistiller --out results/speed

Each method trains in a process of its own, by train_student.py as it is; so does the peer's. They take turns, a short
sample each, so that a change of the machine's load meets all alike; medians are taken over the rounds. Writes
step_time.json after every sample and step_time.md, the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import crd  # noqa: E402, F401  registers its methods
import models  # noqa: E402
from distiller_zoo import find_method, method_names  # noqa: E402
from helper import checkpoint, devices, parsing, util  # noqa: E402

# what RepDistiller calls those of ours that it has
PEER = "kd hint attention similarity correlation vid rkd pkt abound factor fsp nst kdsvd crd".split()
PEER = {find_method(name).name: name for name in PEER}
SWEEP = "sweep"  # in the place of a method: several students, whose images count together


def pair(text: str) -> tuple[str, str]:
    """`resnet32x4:resnet8x4` -> the two names; where these have colons, a space parts them."""
    teacher, _, student = text.partition(" " if " " in text else ":")
    return parsing.network(teacher), parsing.network(student)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = util.OneLineParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--pair",
        type=pair,
        nargs="+",
        default=[("resnet32x4", "resnet8x4")],
        metavar="TEACHER:STUDENT",
        help="the networks",
    )
    add("--methods", type=parsing.names_of(find_method), default=method_names(), help="default: all")
    add(
        "--sweep", metavar="ITEMS", help="students that are trained at once, as train_student.py has them: one more row"
    )
    add("--batch_size", type=parsing.number(int, 2), default=64, help="images of a step")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--amp", choices=["off", "bf16", "fp16"], nargs="+", default=["off"], help="several: of ours, in turn")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--images", type=parsing.count, default=1600, help="of the training set")
    add("--bank", type=parsing.whole, default=0, help="rows of the memory banks; 0: a row an image")
    add("--threads", type=parsing.count, default=os.cpu_count(), help="of each process")
    add("--options", default="", help="more options of train_student.py, in one string")
    add("--peer", type=Path, metavar="DIR", help="a RepDistiller checkout to time in turn with ours")
    add("--peer_workers", type=parsing.whole, default=2, help="processes that load its data")
    add("--repeats", type=parsing.count, default=5, help="how many times each is timed")
    add("--warm_up", type=parsing.count, default=1, help="steps of each sample that do not count")
    add("--steps", type=parsing.count, default=1000, help="of each sample, at most")
    add("--seconds", type=parsing.above_zero, default=2.0, help="of each sample, at most but for one step")
    add("--minutes", type=parsing.above_zero, default=60.0, help="of all; less repeats where time is short")
    add("--together", type=parsing.count, default=6, help="methods whose processes are in memory at once")
    add(
        "--start_together", action="store_true", help="start these at once: quicker, but first steps are not to compare"
    )
    add("--out", type=Path, default=Path("save/speed"), help="folder of the results")
    opt = parser.parse_args(argv)
    if opt.peer and opt.images % 100:
        parser.error(f"--images {opt.images}: RepDistiller needs equally many of each of 100 classes")
    return opt


class Timed:
    """A process that trains one method of one side, when asked to."""

    def __init__(self, opt: argparse.Namespace, folder: Path, row: dict) -> None:
        teacher, student = row["pair"]
        command = ["--model_s", student, "--batch_size", opt.batch_size, "--trial", "1"]
        command += ["--epochs", 1, "--path_t", f"./save/{teacher}_vanilla/last.pth"]
        if row["method"] != SWEEP:
            r, a, b = find_method(row["method"]).weights
            command += ["-r", r, "-a", a, "-b", b]
        if row["side"] == "peer":
            script = ["peer.py", opt.peer.resolve(), "--distill", PEER[row["method"]]]
            script += ["--num_workers", opt.peer_workers]
        else:
            script = ["ours.py", "--model_t", teacher, "--dataset", "random", "--amp", row["amp"]]
            script += ["--device", opt.device, "--resume", "never", *(["--compile"] if opt.compile else [])]
            if row["method"] == SWEEP:
                script += ["--sweep", opt.sweep, "--at_once", 1000]
            else:
                script += ["--distill", row["method"], "--run_name", f"{row['method']}{row['stage']}{row['amp']}"]
                script += ["--init_epochs", int(row["stage"] == "init")]
            script += opt.options.split()
        script[0] = ROOT / "benchmarks" / script[0]
        numbers = {"OMP_NUM_THREADS": opt.threads, "IMAGES": opt.images, "BANK": opt.bank, "STAGE": row["stage"]}
        self.errors = tempfile.TemporaryFile("w+")
        self.row, self.begin = row, time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, script + command)], cwd=folder, text=True,
            env=os.environ | {k: str(v) for k, v in numbers.items()},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def sample(self, **what: float) -> dict:
        """The next sample. Raises ValueError with the process's last words where it has ended."""
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.wait()
            self.errors.seek(0)
            raise ValueError((self.errors.read().strip().splitlines() or ["no word"])[-1]) from None
        return answer | {"start_to_first_step": answer.pop("first_step") - self.begin}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def take(running: list[Timed], timed: Timed, found: dict, **what: float) -> dict | None:
    """A sample of one of the processes; one that has failed is noted, and runs no more."""
    try:
        sample = timed.sample(**what)
    except ValueError as error:
        running.remove(timed)
        timed.end()
        found["failed"].append(timed.row | {"error": str(error)})
        print(*timed.row.values(), error, flush=True)
        return None
    timed.row.setdefault("start_to_first_step", round(sample["start_to_first_step"], 2))
    timed.row["peak_memory_mb"] = round(sample["peak_memory_mb"])
    return sample


def time_group(opt: argparse.Namespace, folder: Path, rows: list[dict], deadline: float, found: dict) -> None:
    """Samples the rows in turn until there are enough, or it is `deadline`; writes them as they come."""
    running: list[Timed] = []
    found["rows"] += rows
    try:
        for row in rows:
            running.append(Timed(opt, folder, row))
            if not opt.start_together:
                take(running, running[-1], found, warm_up=1, steps=1, seconds=0.0)
        for timed in list(running) if opt.start_together else ():
            take(running, timed, found, warm_up=1, steps=1, seconds=0.0)
        for turn in range(opt.repeats):
            if turn and time.monotonic() > deadline:
                break
            for timed in running[:: -1 if turn % 2 else 1]:
                sample = take(running, timed, found, warm_up=opt.warm_up, steps=opt.steps, seconds=opt.seconds)
                if sample:
                    timed.row.setdefault("images_per_second", []).append(round(sample["images_per_second"], 2))
                checkpoint.save_json(opt.out / "step_time.json", found)
            print(f"{rows[-1]['pair']} {rows[-1]['method']}: {turn + 1} of {opt.repeats}", flush=True)
    finally:
        for timed in running:
            timed.end()


def untrained(name: str) -> dict[str, torch.Tensor]:
    """Weights of a teacher with features as large as a trained one's: its BatchNorms have the statistics of noise."""
    network = models.create_model(name, 100)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the one batch counts, and nothing before it
    network(torch.randn(64, 3, 32, 32))
    return network.state_dict()


def table(found: dict) -> str:
    """Markdown: a table a pair. Ratios are medians over the rounds of what stood side by side in each.

    A step is compared with kd's in the first of several precisions.
    """
    lines = []

    def ratio(row: dict, other: dict | None) -> str:
        both = zip(row["images_per_second"], other["images_per_second"] if other else [], strict=False)
        ratios = [a / b for a, b in both]
        return f"{median(ratios):.2f}" if ratios else ""

    for names in dict.fromkeys(tuple(row["pair"]) for row in found["rows"]):
        rows = [row for row in found["rows"] if tuple(row["pair"]) == names and "images_per_second" in row]
        lines += ["", f"{names[0]} > {names[1]}", ""]
        head = (
            "method | images/s | RepDistiller | times | step over kd's | peak MB | its | start to first step, s | its"
        )
        lines += [f"| {head} |", "|" + " --- |" * 9]
        for row in rows:
            if row["side"] == "peer" or (row["method"] == "kd" and row["group"]):
                continue
            same = [x for x in rows if x["group"] == row["group"]]
            method = "kd" if row["method"] == SWEEP else row["method"]
            peer = next((x for x in same if x == x | {"side": "peer", "method": method, "stage": row["stage"]}), None)
            kd = next((x for x in same if x == x | {"side": "ours", "method": "kd"}), None)
            values = [
                " ".join(filter(None, [row["method"], row["stage"], row["amp"].replace("off", "")])),
                f"{median(row['images_per_second']):.1f}",
                f"{median(peer['images_per_second']):.1f}" if peer else "",
                ratio(row, peer),
                ratio(kd, row) if kd and row["method"] != SWEEP else "",
                row["peak_memory_mb"],
                peer["peak_memory_mb"] if peer else "",
                row["start_to_first_step"],
                peer["start_to_first_step"] if peer else "",
            ]
            lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines[1:]) + "\n"


@util.command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    start = time.monotonic()
    opt.out.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(opt).items() if k not in ("out", "peer")}
    found = {"options": settings, **devices.machine(devices.choose_device(opt.device)), "rows": [], "failed": []}
    groups = []
    for names in opt.pair:
        wanted = [(name, "") for name in opt.methods if name != "kd"]
        wanted += [(name, "init") for name in opt.methods if find_method(name).init_loss]
        wanted += [(SWEEP, "")] if opt.sweep else []
        for first in range(0, max(len(wanted), 1), opt.together):
            group = [("kd", ""), *wanted[first : first + opt.together]]
            groups.append([])
            for method, stage in group:
                row = {"pair": names, "method": method, "stage": stage, "group": first // opt.together}
                groups[-1] += [row | {"side": "ours", "amp": amp} for amp in opt.amp]
                if opt.peer and method in PEER and not (method == "kd" and first):
                    groups[-1].append(row | {"side": "peer"})
    with tempfile.TemporaryDirectory() as folder:
        for name in {teacher for teacher, _ in opt.pair}:
            file = Path(folder, "save", f"{name}_vanilla", "last.pth")
            file.parent.mkdir(parents=True)
            torch.save({"model": untrained(name)}, file)
        for n, rows in enumerate(groups, 1):
            deadline = start + 60 * opt.minutes * n / len(groups)
            time_group(opt, Path(folder), rows, deadline, found)
    (opt.out / "step_time.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
