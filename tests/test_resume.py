"""A run that is killed and started again ends where the uninterrupted one ends, bit for bit."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT

import train_student

# runs the command of argv[3:], and kills itself at the argv[2]-th call of the function argv[1]
KILLER = """
import importlib, os, signal, sys
place, when = sys.argv[1], int(sys.argv[2])
module, name = place.rsplit(".", 1)
module = importlib.import_module(module) if ":" not in module else getattr(
    importlib.import_module(module.split(":")[0]), module.split(":")[1])
calls, original = 0, getattr(module, name)
def patched(*args, **kwargs):
    global calls
    calls += 1
    if calls == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(module, name, patched)
import train_student
train_student.main(sys.argv[3:])
"""

METHODS = {
    "crd": "--distill crd --nce_k 64 -a 1".split(),
    "ab": "--distill ab --init_epochs 2".split(),
}
# where: in a step, as a log row is written, as a checkpoint is written, before it gets its name, after it got it
KILLS = [
    ("crd", "helper.loops:Precision.step", 1),
    ("crd", "helper.loops:Precision.step", 6),
    ("crd", "helper.run:Run.log", 2),
    ("crd", "os.fsync", 7),
    ("crd", "os.replace", 6),
    ("crd", "helper.run:Run.finish", 1),
    ("ab", "helper.loops:Precision.step", 7),
    ("ab", "helper.loops:Precision.step", 11),
]


def arguments(method, teacher, save):
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2",
            "--save_freq", "2", "--save_folder", str(save), "--run_name", "r", *METHODS[method]]  # fmt: skip


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The uninterrupted runs."""
    folders = {}
    for method in METHODS:
        save = tmp_path_factory.mktemp(method)
        train_student.main(arguments(method, teacher, save))
        folders[method] = save / "student_model" / "r"
    return folders


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def results(folder):
    """All that must not depend on interruptions: everything but times and memory."""
    state = torch.load(folder / "last.pth", weights_only=True)
    state["options"].pop("save_folder")
    logs = {}
    for path in sorted(folder.glob("*log.csv")):
        with open(path, newline="") as file:
            timing = ("train_seconds", "images_per_second", "peak_memory_mb")
            logs[path.name] = [{k: v for k, v in row.items() if k not in timing} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("seconds", "images_per_second"):
        summary.pop(key)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events"))
    return state, logs, summary, files


@pytest.mark.parametrize("method, place, when", KILLS)
def test_killed_and_started_again(method, place, when, teacher, whole, tmp_path):
    command = arguments(method, teacher, tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, place, str(when), *command], cwd=ROOT, capture_output=True, text=True
    )
    folder = tmp_path / "student_model" / "r"
    assert killed.returncode == -9, killed.stderr
    assert not (folder / "summary.json").exists()
    train_student.main(command)
    for path in folder.glob(".*.tmp"):
        path.unlink()  # what a kill between writing and renaming leaves
    for found, expected in zip(results(folder), results(whole[method]), strict=True):
        assert equal(found, expected)


def test_a_finished_run_returns_at_once(teacher, whole, capsys):
    folder = whole["crd"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    train_student.main(arguments("crd", teacher, folder.parent.parent))
    assert "this run is finished" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_other_options_are_refused(teacher, whole, capsys):
    with pytest.raises(SystemExit) as stop:
        train_student.main(
            [*arguments("crd", teacher, whole["crd"].parent.parent), "--momentum", "0.8", "--nce_t", "0.1"]
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--momentum was 0.9, is 0.8" in error and "--nce_t was 0.07, is 0.1" in error


def test_options_json_reproduces_the_run(teacher, whole, tmp_path):
    folder = whole["crd"]
    train_student.main(["--config", str(folder / "options.json"), "--save_folder", str(tmp_path)])
    again = tmp_path / "student_model" / "r"
    assert equal(results(again)[0], results(folder)[0])


def test_never_starts_afresh(teacher, tmp_path, capsys):
    command = arguments("ab", teacher, tmp_path)
    train_student.main(command)
    train_student.main([*command, "--epochs", "1", "--init_epochs", "1", "--resume", "never"])
    folder = tmp_path / "student_model" / "r"
    state, logs, summary, files = results(folder)
    assert summary["epochs"] == 1 and len(logs["log.csv"]) == len(logs["init_log.csv"]) == 1
    assert "ckpt_epoch_2.pth" not in files


def test_divergence_names_step_and_term_and_keeps_the_checkpoint(teacher, tmp_path, capsys, monkeypatch):
    command = arguments("crd", teacher, tmp_path)
    steps = 0
    from distiller_zoo import KD

    def broken(self, s, t, batch, forward=KD.forward):
        nonlocal steps
        steps += 1
        return forward(self, s, t, batch) * (float("nan") if steps == 6 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(KD, "forward", broken)
        with pytest.raises(SystemExit) as stop:
            train_student.main(command)
    assert stop.value.code == 3
    assert "epoch 2, step 2: the term 'kd' of the loss is nan" in capsys.readouterr().err
    folder = tmp_path / "student_model" / "r"
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in state["model"].values())


def test_weights_that_diverge_in_the_last_step_are_not_saved(teacher, tmp_path, capsys, monkeypatch):
    from helper.loops import Precision

    steps = 0

    def broken(self, loss, optimizer, step=Precision.step):
        nonlocal steps
        steps += 1
        step(self, loss * (float("inf") if steps == 8 else 1.0), optimizer)

    monkeypatch.setattr(Precision, "step", broken)
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments("crd", teacher, tmp_path))
    assert stop.value.code == 3 and "epoch 2: the validation loss is nan" in capsys.readouterr().err
    assert torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)["epoch"] == 1
