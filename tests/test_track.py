"""`--track`: what each tracker keeps of a run is read back from its own files, without a network."""

import contextlib
import csv
import json
import re
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, weights

import train_student
import train_teacher
from helper import track
from helper.run import Run

Kept = list[tuple[dict[str, float], dict[str, object]]]  # of each tracked run: what of each step, and the summary


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Every tracker writes below the test's folder, and none asks a server."""
    for key in ("WANDB_PROJECT", "WANDB_API_KEY", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads once
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)


def of_wandb(folder: Path) -> Kept:
    """From its offline files: LevelDB's log format, of which each entry is a message in protobuf."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service has written all, and reads WANDB_DIR anew when it starts again
    found: dict[str, tuple[dict, dict]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        content, at, entry = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 2**15 - at % 2**15 < 7:  # no entry begins so near to the end of a block
                at += 2**15 - at % 2**15
                continue
            length, kind = struct.unpack_from("<HB", content, at + 4)
            entry += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record, entry = Record.FromString(entry), b""
                steps, summary = found.setdefault(path.stem.removeprefix("run-"), ({}, {}))
                items = {(x.key or "/".join(x.nested_key)): json.loads(x.value_json) for x in record.history.item}
                if record.HasField("history"):
                    steps.setdefault(items["_step"], []).append(items)
                summary |= {x.key or x.nested_key[0]: json.loads(x.value_json) for x in record.summary.update}
    return list(found.values())


def of_mlflow(folder: Path) -> Kept:
    from mlflow import MlflowClient

    client, found = MlflowClient(), []
    experiment = client.get_experiment_by_name("distill").experiment_id
    for run in client.search_runs([experiment]):
        assert run.info.status == "FINISHED"
        steps: dict[int, list] = {}
        for key in run.data.metrics.keys() - {"last_acc", "best_acc"}:
            for metric in client.get_metric_history(run.info.run_id, key):
                steps.setdefault(metric.step, [{}])[0][key] = metric.value
        steps.pop(0)  # the other numbers of the summary
        assert run.data.params["epochs"] == "3"
        found.append((steps, run.data.metrics | run.data.tags))
    return found


def of_trackio(folder: Path) -> Kept:
    from trackio.utils import TRACKIO_DIR

    found: dict[str, tuple[dict, dict]] = {}
    with contextlib.closing(sqlite3.connect(TRACKIO_DIR / f"{folder.name}.db")) as base:
        for run, step, text in base.execute("select run_id, step, metrics from metrics order by id"):
            steps, summary = found.setdefault(run, ({}, {}))
            row = json.loads(text)
            told = {k.removeprefix("summary/"): v for k, v in row.items() if k.startswith("summary/")}
            summary |= told
            if not told:
                steps.setdefault(step, []).append(row)
    return list(found.values())


READ = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}
each = pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.skipif(not find_spec(k), reason=f"{k} is optional")) for k in track.TRACKERS],
)
TEACHER = [*QUICK, "--model", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2", "--run_name", "r"]


def rows_of(run: Path, name: str = "log.csv") -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader((run / name).open())]


def compare(kept: Kept, *runs: Path) -> None:
    """Each run folder is tracked once, with every row of its logs and its summary."""
    left = list(kept)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        [one] = [one for one in left if one[1]["weights"] == summary["weights"]]
        left.remove(one)
        steps, told = one
        assert told["last_acc"] == summary["last_acc"] and told["best_acc"] == summary["best_acc"]
        names = [name for name in ("init_log.csv", "log.csv") if (run / name).exists()]
        rows = [(name, row) for name in names for row in rows_of(run, name)]
        assert sorted(steps) == list(range(1, len(rows) + 1))
        for step, (name, row) in enumerate(rows, 1):
            [found] = steps[step]
            assert found["epoch"] == row.pop("epoch")
            prefix = name.removesuffix("log.csv")
            assert {k: found.get(prefix + k) for k in row} == pytest.approx(row)
    assert not left


@each
def test_a_run_that_goes_on_stays_one(kind, tmp_path, monkeypatch):
    """Stopped before its third epoch is noted, and started again; its weights are those of a run without a tracker."""
    log = Run.log

    def stopping(run, name, row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt
        log(run, name, row)

    command = [*TEACHER, "--save_folder", str(tmp_path / "save"), "--track", kind]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "log", stopping)
        with pytest.raises(SystemExit):
            train_teacher.main(command)
    train_teacher.main(command)
    run = tmp_path / "save" / "models" / "r"
    compare(READ[kind](tmp_path), run)
    train_teacher.main(command)  # finished
    compare(READ[kind](tmp_path), run)

    train_teacher.main([*TEACHER, "--save_folder", str(tmp_path / "plain")])
    plain = weights(tmp_path / "plain" / "models" / "r" / "last.pth")
    assert all(torch.equal(x, plain[k]) for k, x in weights(run / "last.pth").items())


@each
def test_students_of_a_sweep_are_runs_of_their_own(kind, teacher, tmp_path):
    command = [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2"]
    command += ["--save_folder", str(tmp_path / "save"), "--track", kind, "--sweep", "none; ab --init_epochs 1"]
    train_student.main(command)
    compare(READ[kind](tmp_path), *(tmp_path / "save" / "student_model").iterdir())


@pytest.mark.skipif(not find_spec("mlflow"), reason="mlflow is optional")
def test_killed(tmp_path, python):
    command = [*TEACHER, "--save_folder", str(tmp_path / "save"), "--track", "mlflow"]
    killer = [python, ROOT / "tests" / "killer.py", "SIGKILL", "helper.run:Run.log", "3", "train_teacher.py"]
    assert subprocess.run([*killer, *command], cwd=ROOT, capture_output=True).returncode == 137
    train_teacher.main(command)
    compare(of_mlflow(tmp_path), tmp_path / "save" / "models" / "r")


def test_without_its_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        train_teacher.main([*TEACHER, "--save_folder", str(tmp_path / "save"), "--track", "wandb"])
    assert stop.value.code == 2 and not (tmp_path / "save").exists()
    error = capsys.readouterr().err
    assert re.fullmatch(r".*error: --track wandb: needs the package wandb \(pip install wandb\)\n", error)


class Failing:
    """A tracker whose server goes away."""

    def __init__(self, name, options, before):
        if before == "gone":
            raise ConnectionError("no such run\non the server")
        self.id = "x"

    def log(self, numbers, step):
        raise ConnectionError("the server is gone")

    def close(self, failed):
        raise AssertionError("asked again")


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(track.TRACKERS, "json", Failing)  # a package that there is
    train_teacher.main([*TEACHER, "--save_folder", str(tmp_path), "--track", "json"])
    assert len(rows_of(tmp_path / "models" / "r")) == 3
    error = [line for line in capsys.readouterr().err.splitlines() if "track" in line]
    assert error == ["warning: --track json: the server is gone; going on without it"]


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"json": "gone"}, "--track json: no such run"),
        ({"json": "../../x"}, "not as this run leaves it: tracked: expected the ids of runs"),
        (["x"], "not as this run leaves it: tracked"),
    ],
)
def test_ids_that_are_not_as_they_should_be(before, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(track.TRACKERS, "json", Failing)
    command = [*TEACHER, "--save_folder", str(tmp_path), "--track", "json"]
    train_teacher.main(command)
    run = tmp_path / "models" / "r"
    (run / "summary.json").unlink()
    state = torch.load(run / "last.pth", weights_only=True)
    torch.save(state | {"tracked": before}, run / "last.pth")
    with pytest.raises(SystemExit) as stop:
        train_teacher.main(command)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_no_package_is_imported_unless_it_is_asked_for():
    code = "import sys, train_teacher, train_student; print(sorted({'wandb', 'mlflow', 'trackio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
