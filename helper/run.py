"""A run's folder: what it holds, how it is continued, and when it is already done."""

import argparse
import contextlib
import csv
import fcntl
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from . import checkpoint, export, identity, parallel, publish, track
from .devices import machine
from .options import FREE
from .tb import Scalars
from .util import UserError

COLUMNS = (
    "epoch lr train_loss train_acc val_loss val_acc val_acc_top5 train_seconds images_per_second peak_memory_mb".split()
)
PATHS = {"path_t", "path_s", "initial_checkpoint"}  # of weights
MEASURED, VALIDATED = {"train_seconds", "images_per_second"}, {"val_acc", "val_acc_top5"}  # read again at the end
REPORTED = {"epochs": int, "last_acc": float, "best_epoch": int, "best_acc": float}  # of summary.json
LAST, PREVIOUS, LOCK = "last.pth", "last.prev.pth", ".lock"
# all that a run writes into its folder, but for the lock
WRITTEN = r"(options|summary)\.json|(last|last\.prev|best|ckpt_epoch_\d+)\.pth|(init_)?log\.csv"
WRITTEN += r"|predictions(_teacher\d+|_start)?\.csv|(teacher|student)\.(onnx|pt|pt2|json)|events\.out\.tfevents\..*"
HALF_WRITTEN = r"\.(.+)\.\d+\.tmp"  # by a process that was killed


def writes(method: Callable[..., None]) -> Callable[..., None]:
    """Makes the decorated method of Run do nothing but in the first process; an error of the disk is the user's."""

    @parallel.rank_zero_only
    @functools.wraps(method)
    def checked(run: "Run", *args: Any) -> None:
        try:
            if run.lock and not os.path.samestat(os.stat(run.folder / LOCK), os.fstat(run.lock.fileno())):
                raise UserError(f"--save_folder: {run.folder} was removed, and made anew by another process")
            method(run, *args)
        except OSError as error:
            raise UserError(
                f"--save_folder: {run.folder} cannot be written: {error.strerror or error}; "
                "the same command goes on from the last checkpoint that is whole"
            ) from None

    return checked


class Run:
    """The folder of one run: options.json, log.csv, events, last.pth, best.pth, ckpt_epoch_N.pth, summary.json.

    Building it only reads; `open` is the first to write, and of several processes only the first one writes. Raises
    UserError where the folder belongs to a run with other options, is in another process's hands, or cannot be written.
    start: the checkpoint that the network starts from, which --test_only takes where there is no such run.
    """

    def __init__(self, kind: str, name: str, opt: argparse.Namespace, start: str | None = None) -> None:
        self.folder = folder_of(kind, name, opt)
        if not opt.run_name and ":" in self.folder.name:
            print(f"{self.folder}: this run goes on under its former name; new names have no colon")
        self.stem = self.folder / ("teacher" if kind == "models" else "student")  # of the exported files
        self.options = {
            k: v
            for k, v in vars(opt).items()
            if k not in ("config", "given", "resume", "test_only", "sweep", "at_once")
        }
        self.state: dict[str, Any] | None = None  # of the interrupted run, or of what is tested
        self.logs: dict[str, str] = {}  # the text of each log.csv, which goes into last.pth
        self.made_of: dict[str, Any] = {}  # digests of the weights that it begins with and of the images that it sees
        self.before: dict[str, Any] = {}  # the same of the run that the folder holds
        self.finished, self.lock = False, None
        self.failed = ""  # why it has no result, where others went on
        last, previous, summary = self.progress = [self.folder / name for name in (LAST, PREVIOUS, "summary.json")]
        if opt.test_only is not None:
            self.tested = self._to_test(opt.test_only, last, start)
            return
        parent = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"--save_folder {opt.save_folder}: {parent} is not a folder that can be written")
        track.check(opt.track)
        if opt.push_to_hub:
            publish.check(opt.push_to_hub, bool(getattr(opt, "sweep", None)))
        self._refuse_if_locked()
        self.seen = self._look()
        if opt.resume == "auto" and summary in self.seen:
            self.origin = self.folder / "options.json"
            self._compare(self._read_json(self.origin, options=dict))
            self.summary = self._read_json(summary, **REPORTED)
            self.finished = not opt.export or export.done(self.stem, opt.export, self.summary.get("weights"))
            if self.finished:
                return
            if last not in self.seen:
                asked = f"--export {','.join(opt.export)}: {self.folder} is finished"
                raise UserError(f"{asked}, but its {LAST} is gone: there is nothing to export")
        if opt.resume == "auto" and (last in self.seen or previous in self.seen):
            self.state = self._read_last(last, previous)
            self._compare(self.state)
            self._take_logs(self.state)

    def _look(self) -> dict[Path, tuple[int, int]]:
        """Which files of the run's progress there are, and of when."""
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.progress if path.is_file()}

    @writes
    def _refuse_if_locked(self) -> None:
        if (self.folder / LOCK).exists():
            self._locked().close()

    def _locked(self) -> IO:
        """A file that is this process's until it closes it or ends. Raises UserError where it is another's."""
        file = open(self.folder / LOCK, "a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in workers that outlive a kill
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(f"{self.folder}: another process is training this run; give --run_name") from None
        except OSError:
            pass  # some network file systems have no locks; go on without
        return file

    def _read_last(self, *paths: Path) -> dict[str, Any]:
        """The first of the checkpoints that is whole. Raises UserError where none is."""
        errors = []
        for path in filter(self.seen.get, paths):
            try:
                state = checkpoint.load(path, "the interrupted run's")
                kinds = {"options": dict, "made_of": dict, "done": dict, "logs": dict, "stage": str}
                lacking = [key for key, kind in kinds.items() if type(state.get(key)) is not kind]
                if lacking or any(name != os.path.basename(name) for name in state["done"]):
                    reason = f", it lacks {', '.join(lacking)}" if lacking else ""
                    raise UserError(f"the interrupted run's {path}: not a checkpoint that a run can go on from{reason}")
            except UserError as error:
                errors.append(str(error))
            else:
                if errors and not parallel.rank():
                    print(f"warning: {errors[0]}; going on from {path.name}", file=sys.stderr)
                self.origin = path
                return state
        raise UserError("; ".join([*errors, "--resume never starts the run afresh"]))

    def _take_logs(self, state: dict[str, Any]) -> None:
        """The rows that the checkpoint has; what stands in the files is not read."""
        with self.resume_errors():
            for name, epochs in state["done"].items():
                rows = parsed(state["logs"].get(name, ""))
                if [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
                    raise ValueError(f"{name}: expected a row for each of {epochs} epochs")
                needed = MEASURED | (VALIDATED if name == "log.csv" else set())
                if any(needed - row.keys() for row in rows):
                    raise ValueError(f"{name}: expected {', '.join(sorted(needed))} in each row")
                if rows:
                    self.logs[name] = state["logs"][name]

    def _to_test(self, given: str, last: Path, start: str | None) -> str:
        """Finds and reads the file that is tested: the given one, else the last of a run so called, else `start`."""
        if not given and last.is_file():
            self.state = checkpoint.load(last, "the run's")
            self.origin = last
            try:
                self._compare(self.state)
                return str(last)
            except UserError:
                if start is None:
                    raise
        self.before = {}
        self.state = checkpoint.load(given, "--test_only") if given else None
        if not (given or start):
            raise UserError(f"--test_only: expected a run of these options, but there is no {last}; or name a FILE")
        return given or start

    def _read_json(self, path: Path, **kinds: type) -> dict[str, Any]:
        try:
            found = checkpoint.load_json(path, "the finished run's")
            for key, kind in kinds.items():
                if type(found.get(key)) is not kind:
                    raise UserError(f"the finished run's {path}: expected {key} of type {kind.__name__}")
        except UserError as error:
            raise UserError(f"{error}; --resume never starts the run afresh") from None
        return found

    @contextlib.contextmanager
    def resume_errors(self) -> Iterator[None]:
        """What the block raises where `state` is not as this run leaves it becomes UserError."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = checkpoint.first_line(error)
            raise UserError(
                f"{self.origin}: not as this run leaves it: {reason}; --resume never starts the run afresh"
            ) from None

    def _compare(self, told: dict[str, Any]) -> None:
        """Raises UserError where the folder's run has other options. Paths of weights are free: these are compared."""
        before, self.before = (told[k] if isinstance(told.get(k), dict) else {} for k in ("options", "made_of"))
        now = json.loads(json.dumps(self.options))
        differing = [k for k in sorted({*before, *now} - FREE, key=str) if before.get(k) != now.get(k)]
        if "weights" in self.before:
            differing = [k for k in differing if k not in PATHS or number(before.get(k)) != number(now.get(k))]
        self._refuse("with other options", [f"--{k} was {before.get(k)}, is {now.get(k)}" for k in differing])

    def begins_with(self, option: str, files: list[tuple[str, str | None]]) -> None:
        """Notes what an option names, and the digest of each one's weights; None: the file is gone.

        Raises UserError where the folder's run began with other weights.
        """
        with self.resume_errors():
            before = self.before.get("weights", {}).get(option, [])
            found = [(path, now, was) for (path, now), was in zip(files, before, strict=False) if now and now != was]
        other = [f"--{option} {path} has the digest {now}, not {was}" for path, now, was in found]
        self._refuse("that began with other weights", other)
        if files:
            self.made_of.setdefault("weights", {})[option] = [digest for _, digest in files]

    def sees(self, data: dict[str, Any], listed: str) -> None:
        """Notes `identity.of` a data set and `dataset.listed`. Raises UserError where the folder's run saw another."""
        with self.resume_errors():
            other = identity.differences(self.before.get("data", {}), data)
        self._refuse("on other data", other and [*other, f"--data_folder {self.options['data_folder']}"])
        self.made_of |= {"data": data, "listed": listed}

    def _refuse(self, which: str, reasons: list[str]) -> None:
        if reasons:
            reason = "; ".join(reasons)
            raise UserError(f"{self.folder} holds a run {which}: {reason}; give --run_name or --resume never")

    @contextlib.contextmanager
    def open(self, device: torch.device) -> Iterator[None]:
        """Makes the folder, with the logs of the state that is gone on from, and keeps other processes out."""
        parallel.barrier()  # all have read it
        kind = "off" if parallel.rank() else self.options["track"]
        with self.resume_errors():
            tracked = track.Tracked(kind, self.folder.name, self.options, (self.state or {}).get("tracked", {}))
        with track.closing(tracked) as self.tracked:
            try:
                self._make(device)
                self.scalars = Scalars(None if parallel.rank() else self.folder)
                yield
            finally:
                self.scalars = None  # which closes their file
                if self.lock:
                    self.lock.close()

    @writes
    def _make(self, device: torch.device) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = self._locked()
        if self._look() != self.seen:
            raise UserError(f"{self.folder}: another process has changed it meanwhile; start again")
        for path in list(self.folder.iterdir()):
            half = re.fullmatch(HALF_WRITTEN, path.name)
            if (half or self.state is None) and re.fullmatch(WRITTEN, half[1] if half else path.name):
                path.unlink()
        if self.state is None:
            facts = machine(device) | {"processes": parallel.world_size()}
            told = {"options": self.options, "made_of": self.made_of}
            checkpoint.save_json(self.folder / "options.json", told | facts)
        elif self.origin != self.folder / LAST:
            os.replace(self.origin, self.folder / LAST)
        for name in self.state["done"] if self.state else ():
            if name in self.logs:
                self._write(name, self.logs[name])
            else:
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        checkpoint.atomically(self.folder / name, lambda file: file.write(text.encode(errors="surrogateescape")))

    @writes
    def log(self, name: str, row: dict[str, Any]) -> None:
        """Adds an epoch's row to log.csv or to a stage's own log, and its numbers to TensorBoard and --track."""
        self.logs[name] = extended(self.logs.get(name, ""), row)
        self._write(name, self.logs[name])
        prefix = name.removesuffix("log.csv")
        numbers = {prefix + k: v for k, v in row.items() if k != "epoch" and isinstance(v, (int, float))}
        self.scalars.log(numbers, row["epoch"])
        rows = sum(text.count("\n") - 1 for text in self.logs.values())  # stages count on, as trackers want it
        self.tracked.log(numbers | {"epoch": row["epoch"]}, rows)

    @writes
    def save(self, name: str, state: dict[str, Any]) -> None:
        """Writes a checkpoint; last.pth has the logs too, and its predecessor stays."""
        before = None
        if name == LAST:
            state, before = state | {"logs": self.logs, "tracked": self.tracked.ids}, self.folder / PREVIOUS
        checkpoint.save(self.folder / name, {**state, "options": self.options, "made_of": self.made_of}, before)

    @writes
    def save_predictions(self, name: str, predictions: Tensor, classes: Sequence[str], paths: Sequence[str]) -> None:
        """name: of another network than the result. predictions [N, 3]: label, predicted class, its probability.

        classes: [K] names; paths: [N] of the images, or none.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        columns = ["index", "label", "prediction", "confidence", "label_name", "prediction_name"]
        writer.writerow(columns + (["path"] if paths else []))
        for i, (label, guess, confidence) in enumerate(predictions.tolist()):
            row = [i, int(label), int(guess), f"{confidence:.6f}", classes[int(label)], classes[int(guess)]]
            writer.writerow(row + ([paths[i]] if paths else []))
        self._write(f"predictions{'_' if name else ''}{name}.csv", table.getvalue())

    @writes
    def fail(self, reason: str) -> None:
        """Keeps in options.json why the run has no result."""
        self.failed, path = reason, self.folder / "options.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = (self.lock or self.state) and path.is_file()
        told = json.loads(path.read_text()) if begun else {"options": self.options, "made_of": self.made_of}
        checkpoint.save_json(path, told | {"failed": reason})

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes summary.json from the logs, which also span the parts of a run that was interrupted."""
        self._summarise(facts)
        parallel.barrier()  # what comes next may read it

    @writes
    def _summarise(self, facts: dict[str, Any]) -> None:
        rows = parsed(self.logs["log.csv"])
        best = max(rows, key=lambda row: row["val_acc"])
        trained = [row for text in self.logs.values() for row in parsed(text)]  # initialisation included
        seconds = sum(row["train_seconds"] for row in trained)
        images = sum(row["train_seconds"] * row["images_per_second"] for row in trained)
        self.summary = {
            "last_acc": rows[-1]["val_acc"],
            "last_acc_top5": rows[-1]["val_acc_top5"],
            "best_acc": best["val_acc"],
            "best_epoch": int(best["epoch"]),
            "epochs": len(rows),
            **facts,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / seconds, 1) if seconds else None,
        }
        (self.folder / PREVIOUS).unlink(missing_ok=True)
        checkpoint.save_json(self.folder / "summary.json", self.summary)
        self.tracked.summarise(self.summary)

    def already_done(self) -> None:
        if not self.options["quiet"]:
            print("this run is finished; --resume never starts it afresh")
        self.report()

    def report(self) -> None:
        """Says how it ended, and uploads it where that is asked for."""
        s = self.summary
        print(
            f"last epoch ({s['epochs']}): {s['last_acc']:.2f} %   best (epoch {s['best_epoch']}): {s['best_acc']:.2f} %"
        )
        if "test_acc" in s:
            print(f"of the test set: {s['test_acc']:.2f} %   best epoch: {s['best_test_acc']:.2f} %")
        print(f"run folder: {self.folder}")
        if (repository := self.options["push_to_hub"]) and not parallel.rank():
            state = checkpoint.load(self.folder / LAST, f"--push_to_hub {repository}:")
            print(f"uploaded to {publish.push(repository, self.folder, state, s)}")


def folder_of(kind: str, name: str, opt: argparse.Namespace) -> Path:
    """The run's folder: --run_name, else `name` with a dash for each colon and slash, which some systems do not take.

    A run that is there under `name` itself, as before, keeps that. Raises UserError for what is no folder's name.
    """
    runs, plain = Path(opt.save_folder) / kind, opt.run_name or re.sub("[:/]", "-", name)
    if plain in (".", "..") or "/" in plain or "\0" in plain or len(os.fsencode(plain)) > 255:
        raise UserError(f"--run_name {plain}: expected a folder's name, of at most 255 bytes and without /")
    former = not opt.run_name and "/" not in name and opt.resume != "never"
    return runs / name if former and (runs / name).is_dir() and not (runs / plain).exists() else runs / plain


def told_options(kind: str, name: str, opt: argparse.Namespace) -> dict[str, Any]:
    """The options of the run in that folder; {} where there is none, or none that can be read."""
    with contextlib.suppress(UserError):
        told = checkpoint.load_json(folder_of(kind, name, opt) / "options.json", "options")
        return told["options"] if isinstance(told.get("options"), dict) else {}
    return {}


def number(paths: str | list[str] | None) -> int:
    return len([paths] if isinstance(paths, str) else paths or [])


def parsed(log: str) -> list[dict[str, float]]:
    """The rows of a log's text, without empty cells. Raises TypeError or ValueError where others are not numbers."""
    return [{key: float(x) for key, x in row.items() if x != ""} for row in csv.DictReader(log.splitlines())]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """With a header: COLUMNS, and behind them what else the rows have."""
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)]))
    lines = [",".join(str(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"


def extended(log: str, row: dict[str, Any]) -> str:
    """The log's text with another row; columns that are new in it are empty in the rows before."""
    columns = log.partition("\n")[0].split(",")
    if row.keys() <= set(columns):
        return log + ",".join(str(row.get(column, "")) for column in columns) + "\n"
    return as_csv([*csv.DictReader(log.splitlines()), row])
