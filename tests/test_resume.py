"""A run that is killed and started again ends where the uninterrupted one ends, bit for bit."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import QUICK, ROOT
from kill_harness import equal, results

import train_student
from helper.interrupt import Signals
from helper.step import Update
from helper.trainee import Trainee
from helper.util import Stopped

METHODS = {
    "crd": "--distill crd --nce_k 64 -a 1".split(),
    "ab": "--distill ab --init_epochs 2".split(),
    # bank, queue, an initialisation of the student, slow weights
    "many": "--distill crd,rrd,fsp --nce_k 64 --init_epochs 1 --mcl_tau 0.9 --mcl_every 3".split(),
    "sskd": "--distill sskd --init_epochs 1".split(),
    "uda": "--distill uda".split(),
    "simkd": "--distill simkd --mcl_tau 0.9".split(),
}
# where: in a step, as a log row is written, as a checkpoint is written, before it gets its name, after it got it
KILLS = [
    ("crd", "helper.trainee:Trainee.step", 1),
    ("crd", "helper.trainee:Trainee.step", 6),
    ("crd", "helper.run:Run.log", 2),
    ("crd", "os.fsync", 7),
    ("crd", "os.replace", 6),
    ("crd", "helper.run:Run.finish", 1),
    ("ab", "helper.trainee:Trainee.step", 7),
    ("ab", "helper.trainee:Trainee.step", 11),
    ("simkd", "helper.trainee:Trainee.step", 6),
]


def arguments(method, teacher, save):
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2",
            "--save_freq", "2", "--save_folder", str(save), "--run_name", "r", *METHODS[method]]  # fmt: skip


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The folder of a method's uninterrupted run."""

    @functools.cache
    def folder(method):
        save = tmp_path_factory.mktemp(method)
        train_student.main(arguments(method, teacher, save))
        return save / "student_model" / "r"

    return folder


@pytest.mark.parametrize("method, place, when", KILLS)
def test_killed_and_started_again(method, place, when, python, teacher, whole, tmp_path):
    command = arguments(method, teacher, tmp_path)
    killer = [python, ROOT / "tests" / "killer.py", "SIGKILL", place, str(when), "train_student.py"]
    killed = subprocess.run([*killer, *command], cwd=ROOT, capture_output=True, text=True)
    folder = tmp_path / "student_model" / "r"
    assert killed.returncode == 128 + 9, killed.stderr
    assert not (folder / "summary.json").exists()
    train_student.main(command)
    for found, expected in zip(results(folder), results(whole(method)), strict=True):
        assert equal(found, expected)


def test_harness():
    """Two kills, a SIGTERM, and two kills with other images and a move, at moments of a clock, not of the program."""
    harness = [sys.executable, "tests/kill_harness.py", "--kills", "2", "--cases", "ab"]
    done = subprocess.run(harness, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.endswith("\n5 passed, 0 failed\n"), done.stdout + done.stderr


@pytest.fixture
def send(monkeypatch):
    """send(number, step) sends this process a signal after that step."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored

    def send(number, step, real=Trainee.step):
        steps = 0

        def counted(*args):
            nonlocal steps
            real(*args)
            steps += 1
            if steps == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainee, "step", counted)

    return send


@pytest.mark.parametrize("method", ["many", "sskd", "uda"])
def test_stopped_within_epochs(method, send, teacher, whole, tmp_path, capsys):
    """By SIGTERM in the first stage, by Ctrl-C in the next, and by SIGTERM at the end of an epoch."""
    command = arguments(method, teacher, tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, step, place in (
        (signal.SIGTERM, 2, "step 2 of .*epoch 1"),
        (signal.SIGINT, 5, "step 3 of .*epoch [12]"),
        (signal.SIGTERM, 1, "step 4 of .*epoch [12]"),
    ):
        send(number, step)
        with pytest.raises(SystemExit) as stop:
            train_student.main(command)
        error = capsys.readouterr().err
        assert stop.value.code == 128 + number
        assert re.fullmatch(rf".*{number.name}: stopped after {place}; the same command goes on there\n", error)
    send(0, 0)
    train_student.main(command)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    folder = tmp_path / "student_model" / "r"
    for found, expected in zip(results(folder), results(whole(method)), strict=True):
        assert equal(found, expected)
    for log in folder.glob("*log.csv"):
        seconds = [float(row.split(",")[7]) for row in log.read_text().splitlines()[1:]]
        assert all(seconds)


def test_saved_every_few_steps(teacher, whole, tmp_path, monkeypatch):
    """What is lost is at most that many steps; a weight that is not finite is not saved."""
    command = [*arguments("crd", teacher, tmp_path), "--save_steps", "3"]
    steps = 0

    def lost(self, *args, real=Trainee.step):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise OSError("power cut")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", lost)
        with pytest.raises(OSError, match="power cut"):
            train_student.main(command)
    folder = tmp_path / "student_model" / "r"
    (part,) = torch.load(folder / "last.pth", weights_only=True)["parts"]
    assert part["meters"]["steps"] == 3
    train_student.main(arguments("crd", teacher, tmp_path))  # it may change: it is not part of the result
    for found, expected in zip(results(folder), results(whole("crd")), strict=True):
        assert equal(found, expected)


def test_signals():
    """A second Ctrl-C ends at once, a second SIGTERM does not; a signal that nobody asked for is not lost."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="SIGTERM"), Signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert not signals.received()
    signal.signal(signal.SIGINT, ignored)
    thread = threading.Thread(target=lambda: Signals().__enter__().__exit__(None))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_finished_run_returns_at_once(teacher, whole, capsys):
    folder = whole("crd")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    train_student.main(arguments("crd", teacher, folder.parent.parent))
    assert "this run is finished" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_other_options_are_refused(teacher, whole, capsys):
    with pytest.raises(SystemExit) as stop:
        train_student.main(
            [*arguments("crd", teacher, whole("crd").parent.parent), "--momentum", "0.8", "--nce_t", "0.1"]
        )
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--momentum was 0.9, is 0.8" in error and "--nce_t was 0.07, is 0.1" in error


def test_options_json_reproduces_the_run(teacher, whole, tmp_path):
    folder = whole("crd")
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
    assert json.loads((folder / "options.json").read_text())["failed"].startswith("epoch 2, step 2: the term 'kd'")


def test_weights_that_diverge_in_the_last_step_are_not_saved(teacher, tmp_path, capsys, monkeypatch):
    steps = 0

    def broken(self, terms, part, step=Update.step):
        nonlocal steps
        steps += 1
        step(self, {name: term * (float("inf") if steps == 8 else 1.0) for name, term in terms.items()}, part)

    monkeypatch.setattr(Update, "step", broken)
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments("crd", teacher, tmp_path))
    assert stop.value.code == 3 and "epoch 2: the validation loss is nan" in capsys.readouterr().err
    assert torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)["epoch"] == 1
