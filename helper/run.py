"""A run's folder: what it holds, how it is continued, and when it is already done."""

import argparse
import csv
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint, export, parallel
from .options import FREE
from .tb import Scalars
from .util import UserError, machine

COLUMNS = (
    "epoch lr train_loss train_acc val_loss val_acc val_acc_top5 train_seconds images_per_second peak_memory_mb".split()
)


class Run:
    """The folder of one run: options.json, log.csv, events, last.pth, best.pth, ckpt_epoch_N.pth, summary.json.

    Building it only reads; `start` is the first to write, and of several processes only the first one writes. Raises
    UserError where the folder belongs to a run with other options, or cannot be written.
    start: the checkpoint that the network starts from, which --test_only takes where there is no such run.
    """

    def __init__(self, kind: str, name: str, opt: argparse.Namespace, start: str | None = None) -> None:
        name = opt.run_name or name
        if name != os.path.basename(name) or name in (".", "..") or "\0" in name or len(os.fsencode(name)) > 255:
            raise UserError(f"--run_name {name}: expected a folder's name, of at most 255 bytes and without /")
        self.folder = Path(opt.save_folder) / kind / name
        self.stem = self.folder / ("teacher" if kind == "models" else "student")  # of the exported files
        self.options = {k: v for k, v in vars(opt).items() if k not in ("config", "resume", "test_only")}
        self.state: dict[str, Any] | None = None  # of the interrupted run, or of what is tested
        self.finished = False
        last = self.folder / "last.pth"
        if opt.test_only is not None:
            self.tested = self._to_test(opt.test_only, last, start)
            return
        parent = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"--save_folder {opt.save_folder}: {parent} is not a folder that can be written")
        if opt.resume == "never":
            return
        exported = all(path.is_file() for path in export.files(self.stem, opt.export))
        if (summary := self.folder / "summary.json").is_file() and (exported or not last.is_file()):
            self._compare(self._read_json(self.folder / "options.json")["options"])
            self.finished = True
            self.summary = self._read_json(summary)
        elif last.is_file():
            self.state = checkpoint.load(last, "the interrupted run's")
            self._compare(self.state["options"])

    def _to_test(self, given: str, last: Path, start: str | None) -> str:
        """Finds and reads the file that is tested: the given one, else the last of a run so called, else `start`."""
        if not given and last.is_file():
            self.state = checkpoint.load(last, "the run's")
            try:
                self._compare(self.state["options"])
                return str(last)
            except UserError:
                if start is None:
                    raise
        self.state = checkpoint.load(given, "--test_only") if given else None
        if not (given or start):
            raise UserError(f"--test_only: expected a run of these options, but there is no {last}; or name a FILE")
        return given or start

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}; --resume never starts the run afresh") from None

    def _compare(self, before: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.options))
        differing = [k for k in sorted({*before, *now} - FREE) if before.get(k) != now.get(k)]
        if differing:
            listed = ", ".join(f"--{k} was {before.get(k)}, is {now.get(k)}" for k in differing)
            raise UserError(
                f"{self.folder} holds a run with other options: {listed}; give --run_name or --resume never"
            )

    def start(self, device: torch.device) -> None:
        """Makes the folder; cuts log rows newer than the checkpoint that the run goes on from."""
        parallel.wait()  # all have read it
        self.scalars = Scalars(None if parallel.rank() else self.folder)
        self._make(device)

    @parallel.in_first
    def _make(self, device: torch.device) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.state is None:
                for old in (
                    "last.pth",
                    "best.pth",
                    "summary.json",
                    *(f.name for f in self.folder.glob("ckpt_epoch_*.pth")),
                ):
                    (self.folder / old).unlink(missing_ok=True)
                facts = machine(device) | {"processes": parallel.world()}
                checkpoint.save_json(self.folder / "options.json", {"options": self.options, **facts})
        except OSError as error:
            raise UserError(f"--save_folder: {error}") from None
        done = self.state["done"] if self.state else {}
        for path in self.folder.glob("*log.csv"):
            rows = [r for r in self.rows(path.name) if int(r["epoch"]) <= done.get(path.name, 0)]
            if rows:
                checkpoint.atomically(path, lambda file, rows=rows: file.write(as_csv(rows, header=True).encode()))
            else:
                path.unlink()

    @parallel.in_first
    def log(self, file_name: str, row: dict[str, Any]) -> None:
        """Adds an epoch's row to log.csv or to a stage's own log, and its numbers to TensorBoard."""
        path = self.folder / file_name
        with open(path, "a", newline="") as file:
            file.write(as_csv([row], header=file.tell() == 0))
            file.flush()
            os.fsync(file.fileno())  # before last.pth: a checkpoint's rows are always there
        prefix = file_name.removesuffix("log.csv")
        numbers = {prefix + k: v for k, v in row.items() if k != "epoch" and isinstance(v, (int, float))}
        self.scalars.log(numbers, row["epoch"])

    @parallel.in_first
    def save(self, name: str, state: dict[str, Any]) -> None:
        checkpoint.save(self.folder / name, {**state, "options": self.options})

    @parallel.in_first
    def save_predictions(self, name: str, predictions: Tensor) -> None:
        """predictions [N, 3]: label, predicted class, its probability; name: of another network than the result."""
        lines = [f"{i},{int(y)},{int(p)},{c:.6f}" for i, (y, p, c) in enumerate(predictions.tolist())]
        text = "\n".join(["index,label,prediction,confidence", *lines]) + "\n"
        path = self.folder / f"predictions{'_' if name else ''}{name}.csv"
        checkpoint.atomically(path, lambda file: file.write(text.encode()))

    def rows(self, file_name: str) -> list[dict[str, str]]:
        with open(self.folder / file_name, newline="") as file:
            return list(csv.DictReader(file))

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes summary.json from the log, which also spans the parts of a run that was interrupted."""
        self._summarise(facts)
        parallel.wait()  # what comes next may read it

    @parallel.in_first
    def _summarise(self, facts: dict[str, Any]) -> None:
        rows = self.rows("log.csv")
        best = max(rows, key=lambda r: float(r["val_acc"]))
        trained = [r for path in self.folder.glob("*log.csv") for r in self.rows(path.name)]  # initialisation included
        seconds = sum(float(r["train_seconds"]) for r in trained)
        images = sum(float(r["train_seconds"]) * float(r["images_per_second"]) for r in trained)
        self.summary = {
            "last_acc": float(rows[-1]["val_acc"]),
            "last_acc_top5": float(rows[-1]["val_acc_top5"]),
            "best_acc": float(best["val_acc"]),
            "best_epoch": int(best["epoch"]),
            "epochs": len(rows),
            **facts,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / seconds, 1) if seconds else None,
        }
        checkpoint.save_json(self.folder / "summary.json", self.summary)
        self.report()

    def already_done(self) -> None:
        print("this run is finished; --resume never starts it afresh")
        self.report()

    def report(self) -> None:
        s = self.summary
        print(
            f"last epoch ({s['epochs']}): {s['last_acc']:.2f} %   best (epoch {s['best_epoch']}): {s['best_acc']:.2f} %"
        )
        print(f"run folder: {self.folder}")


def as_csv(rows: list[dict[str, Any]], header: bool) -> str:
    lines = [",".join(COLUMNS)] if header else []
    lines += [",".join(str(row.get(c, "")) for c in COLUMNS) for row in rows]
    return "\n".join(lines) + "\n"
