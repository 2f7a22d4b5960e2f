"""A run is its options and what it was made of: weights and images by their content, whatever their place."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from kill_harness import equal, results

import evaluate_kd
import train_student
from helper import export
from helper.run import Run
from helper.trainee import Trainee

RUN = ["--epochs", "3", "--run_name", "r"]


def student(teacher: Path, save: Path, *more: str) -> list[str]:
    place = ["--path_t", str(teacher), "--save_folder", str(save)]
    return [*QUICK, *RUN, *place, "--model_s", "resnet8", "--distill", "kd", *more]


def on_tree(data: Path, save: Path, *more: str) -> list[str]:
    where = ["--dataset", "folder", "--data_folder", str(data), "--image_size", "16", "--save_folder", str(save)]
    return [*RUN, *where, "--model", "resnet8", "--batch_size", "4", "--num_workers", "1", "--device", "cpu", *more]


def refused(main: Callable, arguments: list[str], capsys, *messages: str) -> str:
    """Runs a script in this process. Returns its one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    for message in messages:
        assert re.search(message, error), (message, error)
    return error


def lost(main: Callable, arguments: list[str], epoch: int = 3) -> None:
    """The run, lost at the end of that epoch."""

    def log(self: Run, name: str, row: dict, real=Run.log) -> None:
        if row["epoch"] == epoch:
            raise RuntimeError("power cut")
        real(self, name, row)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Run, "log", log)
        main(arguments)


def finished(main: Callable, arguments: list[str], capsys) -> None:
    """The command says that the run is finished, and trains nothing."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "step", None)
        main(arguments)
    assert "this run is finished" in capsys.readouterr().out


def altered(source: Path, target: Path) -> None:
    """A checkpoint of the same network with other weights."""
    state = torch.load(source, weights_only=True)
    state["model"]["fc.bias"] = state["model"]["fc.bias"] + 1
    torch.save(state, target)


def same(found: Path, expected: Path) -> None:
    for a, b in zip(results(found), results(expected), strict=True):
        if isinstance(a, dict):
            a.get("options", {}).pop("path_t", None), b.get("options", {}).pop("path_t", None)
            a.get("options", {}).pop("data_folder", None), b.get("options", {}).pop("data_folder", None)
        assert equal(a, b)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    """A finished student's folder."""
    save = tmp_path_factory.mktemp("whole")
    train_student.main(student(teacher, save))
    return save / "student_model" / "r"


@pytest.fixture(scope="module")
def cut_short(teacher, tmp_path_factory) -> Path:
    """The save folder of the same student, lost in its last epoch."""
    save = tmp_path_factory.mktemp("cut")
    lost(train_student.main, student(teacher, save))
    return save


@pytest.fixture
def cut(cut_short, tmp_path) -> Path:
    return shutil.copytree(cut_short, tmp_path / "save")


# ---- what an earlier run has left ----


def test_afresh_means_without_anything_of_the_run_before(teacher, tmp_path):
    """All that the project writes goes, and nothing else."""
    more = ["--save_predictions", "--export", "torchscript,pt2", "--save_freq", "1"]
    train_student.main(student(teacher, tmp_path, *more, "--distill", "ab", "--init_epochs", "1"))
    folder = tmp_path / "student_model" / "r"
    (folder / "student.onnx").touch()
    (folder / "last.prev.pth").touch()
    (folder / ".best.pth.123.tmp").touch()
    own = {"notes.txt", "my_log.csv", "my.pth", "predictions_of_mine.csv", "best.pth.old", ".notes.tmp", "my.json"}
    for name in own:
        (folder / name).touch()
    events = {path.name for path in folder.glob("events*")}
    assert events and len(list(folder.glob("predictions*.csv"))) == 3 and (folder / "init_log.csv").is_file()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainee, "step", lambda *given: 1 / 0)
        train_student.main(student(teacher, tmp_path, "--resume", "never"))
    left = {path.name for path in folder.iterdir()} - own
    assert {name for name in left if not name.startswith("events")} == {"options.json", ".lock"}
    assert not left & events and all((folder / name).is_file() for name in own)


def exported(folder: Path) -> None:
    """The exported network has the weights of the run's last checkpoint."""
    with pytest.warns(match="deprecated"):
        found = torch.jit.load(folder / "student.pt").state_dict()
    assert equal(dict(found), torch.load(folder / "last.pth", weights_only=True)["model"])


@pytest.mark.parametrize("moment", ["before the first step", "before the export"])
def test_an_export_is_of_the_run_that_is_there(moment, teacher, tmp_path, monkeypatch):
    command = student(teacher, tmp_path, "--export", "torchscript")
    train_student.main(command)
    command += ["--learning_rate", "0.2"]
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, TypeError)):
        if moment == "before the export":
            patch.setattr(export, "save", None)
        else:
            patch.setattr(Trainee, "step", None)
        train_student.main([*command, "--resume", "never"])
    train_student.main(command)
    exported(tmp_path / "student_model" / "r")


def test_an_export_counts_where_it_names_the_last_weights_and_its_files(teacher, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "student_model" / "r")
    command = student(teacher, tmp_path, "--export", "torchscript")
    train_student.main(command)
    exported(folder)
    good = {name: (folder / name).read_bytes() for name in ("student.pt", "student.json")}
    finished(train_student.main, command, capsys)
    said = json.loads(good["student.json"])
    for name, content in {
        "student.pt": good["student.pt"][:-1],
        "student.json": json.dumps(said | {"weights": "0"}).encode(),
    }.items():
        (folder / name).write_bytes(content)
        train_student.main(command)
        exported(folder)
        finished(train_student.main, command, capsys)
    train_student.main(student(teacher, tmp_path, "--export", "pt2"))
    for formats in ("torchscript", "pt2", "pt2,torchscript"):  # the first is still there
        finished(train_student.main, student(teacher, tmp_path, "--export", formats), capsys)


def test_nothing_is_there_to_be_exported(teacher, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "student_model" / "r")
    (folder / "last.pth").unlink()
    finished(train_student.main, student(teacher, tmp_path), capsys)
    refused(
        train_student.main, student(teacher, tmp_path, "--export", "torchscript"), capsys,
        f"--export torchscript: {folder} is finished, but its last.pth is gone: there is nothing to export",
    )  # fmt: skip


# ---- logs ----

EDITS = {
    "no last line end": lambda text: text.rstrip("\n"),
    "words": lambda text: text.replace("0.05", "a lot"),
    "fewer columns": lambda text: "\n".join(line.partition(",")[0] for line in text.splitlines()) + "\n",
    "not UTF-8": lambda text: text + "\udcff",
    "a huge field": lambda text: text + "1," + "9" * 200000 + "\n",
    "gone": None,
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_log(edit, teacher, whole, cut, capsys):
    """The checkpoint says what was measured; the file is written anew from it."""
    log = cut / "student_model" / "r" / "log.csv"
    if EDITS[edit]:
        log.write_text(EDITS[edit](log.read_text()), errors="surrogateescape")
    else:
        log.unlink()
    train_student.main(student(teacher, cut))
    same(log.parent, whole)
    log.write_bytes(b"\xff")
    finished(train_student.main, student(teacher, cut), capsys)
    train_student.main(student(teacher, cut, "--export", "torchscript"))
    same_but_export = [name for name in results(log.parent)[3] if not name.startswith("student.")]
    assert same_but_export == results(whole)[3] and log.read_text().count("\n") == 4


def test_log_and_checkpoint_say_the_same(whole):
    text = torch.load(whole / "last.pth", weights_only=True)["logs"]["log.csv"]
    assert (whole / "log.csv").read_text() == text
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_acc"]) == json.loads((whole / "summary.json").read_text())["last_acc"]


LOGS = {
    "none": (None, "not a checkpoint that a run can go on from"),
    "a row is missing": ({"log.csv": "epoch,val_acc\n1,2\n"}, "log.csv: expected a row for each of 2 epochs"),
    "words": ({"log.csv": "epoch,val_acc\n1,x\n2,y\n"}, "not as this run leaves it"),
    "a list": ({"log.csv": [1]}, "not as this run leaves it"),
    "another log": ({}, "log.csv: expected a row for each of 2 epochs"),
}


@pytest.mark.parametrize("name", LOGS)
def test_checkpoints_without_their_rows(name, teacher, cut, capsys):
    """Of an older version, or of strangers: before anything is trained."""
    logs, message = LOGS[name]
    path = cut / "student_model" / "r" / "last.pth"
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in (state | {"logs": logs}).items() if v is not None}, path)
    path.with_name("last.prev.pth").unlink()
    refused(train_student.main, student(teacher, cut), capsys, message)


def test_the_suite_reads_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"--mode nokd --student resnet8 --dataset digits --epochs 2 --results-dir {tmp_path}".split()
    command += "--limit_train 100 --limit_val 50 --device cpu".split()
    evaluate_kd.main(command)
    (curves,) = tmp_path.rglob("*_curves.csv")
    before = curves.read_text()
    for log in tmp_path.rglob("log.csv"):
        log.write_text("epoch,val_acc\n1,x\n")
    evaluate_kd.main(command)
    assert curves.read_text() == before
