"""evaluate_kd.py: every mode, the table, and that it goes on where it was killed."""

import csv
import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT

import evaluate_kd

FEW = [*QUICK, "--teacher", "resnet14", "--student", "resnet8", "--takd-assistants", "resnet14"]
LISTS = "--allkd-teachers resnet8 resnet14 --multikd-teachers resnet14 --kdparam-temperatures 1 5 --kdparam-alphas 0.5"

# kills itself at the argv[1]-th training step of the command argv[2:]
KILLER = """
import os, signal, sys
from helper.trainee import Trainee
steps, step = 0, Trainee.step
def counted(*args):
    global steps
    steps += 1
    if steps == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    step(*args)
Trainee.step = counted
import evaluate_kd
evaluate_kd.main(sys.argv[2:])
"""


def lines(text):
    """The table's lines as lists of cells, without the header."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "][2:]


def options(folder):
    return json.loads((folder / "options.json").read_text())["options"]


def test_every_mode(tmp_path, capsys):
    command = [*FEW, *LISTS.split(), "--epochs", "1", "--results-dir", str(tmp_path)]
    evaluate_kd.main([*command, "--mode", *evaluate_kd.MODES])
    out = capsys.readouterr().out
    here = tmp_path / "digits"
    table = lines(out)
    assert [line[0] for line in table] == evaluate_kd.MODES
    assert len(evaluate_kd.MODES) == 13
    for mode, _, teacher, last, gain, best in table:
        assert 0 <= float(last) <= float(best) <= 100
        assert bool(teacher) == bool(gain) == (mode != "nokd")
    by = {line[0]: line[1] for line in table}
    assert "of 2)" in by["allkd"] and "of 2)" in by["kdparam"] and "alpha 0.5" in by["kdparam"]
    assert by["multikd"] == "by resnet14, resnet14" and by["takd"] == "by resnet14 by resnet14"
    assert lines((here / "resnet14_resnet8_1.md").read_text()) == table

    with open(here / "resnet14_resnet8_1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 + 1 + 1  # the second teacher of allkd, the second temperature of kdparam
    last = {line[0]: float(line[3]) for line in table}
    highest = {mode: max(float(row["last_acc"]) for row in rows if row["mode"] == mode) for mode in last}
    assert highest == pytest.approx(last, abs=0.01)
    curves = (here / "resnet14_resnet8_1_curves.csv").read_text().splitlines()
    assert curves[0].split(",") == ["epoch", *evaluate_kd.MODES] and len(curves) == 2
    assert [f"{float(accuracy):.2f}" for accuracy in curves[-1].split(",")[1:]] == [line[3] for line in table]

    # what all runs share, and what the modes set
    folders = {row["mode"]: row["folder"] for row in rows}
    shared = {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "seed": 1,
        "batch_size": 32,
    }
    for folder in [*here.glob("models/*"), *here.glob("student_model/*")]:
        expected = shared | ({"seed": 2} if folder.name == "resnet14_2" else {})
        assert {key: options(folder)[key] for key in shared} == expected
    weights = {mode: [options(ROOT / folders[mode])[k] for k in ("gamma", "alpha", "beta")] for mode in folders}
    assert weights["nokd"] == [1, 0, [0]] and weights["kd"] == [0.5, 0.5, [0]] and weights["pkd"] == [0.5, 0.5, [10]]
    assert weights["triplet"] == [0, 0.5, [0.5]] and weights["rkd"] == [0.5, 0.5, [1]] and weights["sfd"] == [1, 0, [1]]
    assert weights["oh"] == [1, 0, [0.001]] and weights["uda"] == weights["kd"]
    assert {options(ROOT / folders[mode])["kd_T"] for mode in "kd triplet uda takd ab rkd pkd".split()} == {5}
    assert len((ROOT / folders["ab"] / "init_log.csv").read_text().splitlines()) == 1 + 10
    assert len({row["folder"] for row in rows}) == 13  # kd is also a run of allkd and a cell of kdparam
    if importlib.util.find_spec("matplotlib"):
        assert (here / "resnet14_resnet8_1.pdf").is_file() and (here / "resnet14_resnet8_1.png").is_file()


@pytest.mark.parametrize("scheduler, decay", [("multisteplr", [33, 66]), ("steplr", [50]), ("constant", [])])
def test_schedules(scheduler, decay):
    opt, rest = evaluate_kd.parse(["--scheduler", scheduler, "--dataset", "digits"])
    suite = evaluate_kd.Suite(opt, rest)
    assert evaluate_kd.train_teacher.parse(suite.common).lr_decay_epochs == decay


def test_the_bash_scripts_have_the_same_defaults():
    """Of what the procedures share with them: networks, how KD is weighed, the grid."""
    opt, kd = evaluate_kd.parse([])[0], evaluate_kd.SINGLE["kd"]
    pair = {"PAIR": f"{opt.teacher}:{opt.student}", "DATASET": opt.dataset}
    grid = {"TEMPERATURES": opt.kdparam_temperatures, "ALPHAS": opt.kdparam_alphas}
    shared = {
        "takd": pair | {"ASSISTANTS": " ".join(opt.takd_assistants), "METHOD": kd},
        "allkd": {"STUDENT": opt.student, "TEACHERS": " ".join(opt.allkd_teachers), "METHOD": kd},
        "kdparam": pair | {key: " ".join(f"{x:g}" for x in values) for key, values in grid.items()},
        "multikd": {"STUDENT": opt.student, "METHOD": kd},
    }
    for name, expected in shared.items():
        head, body = (ROOT / "scripts" / f"run_{name}.sh").read_text().split("set -euo", 1)
        for key, value in expected.items():
            documented = re.search(rf'\b{key}=(?:"(.*?)"|(\S+))', head)
            found = [documented[1] or documented[2], re.findall(rf"\b{key}:-(.*?)\}}", body)[-1]]
            assert [one.replace("1.0", "1") for one in found] == [value, value], (name, key)


def test_killed_and_started_again(teacher, tmp_path, capsys):
    command = [*FEW, "--limit_train", "40", "--epochs", "2", "--mode", "NOKD", "takd", "kd"]
    command += ["--batch-size", "20", "--teacher-checkpoint", str(teacher)]
    evaluate_kd.main([*command, "--results-dir", str(tmp_path / "whole")])
    whole = capsys.readouterr().out
    steps = 2 * 2  # of a run: of nokd, of the assistant, of its student, which is killed in its second epoch
    command += ["--results-dir", str(tmp_path / "killed")]
    killed = subprocess.run([sys.executable, "-c", KILLER, str(2 * steps + 3), *command], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    unfinished = [f for f in (tmp_path / "killed/digits/student_model").iterdir() if not (f / "summary.json").is_file()]
    assert [len((f / "log.csv").read_text().splitlines()) for f in unfinished] == [1 + 1]
    assert not list((tmp_path / "killed" / "digits").glob("*.md"))
    evaluate_kd.main(command)
    out = capsys.readouterr().out
    assert out.count("this run is finished") == 2 and out.count("continuing ") == 1
    assert lines(out) == lines(whole) and len(lines(out)) == 3
    assert not (tmp_path / "killed" / "digits" / "models").exists()  # the checkpoint was given
    first, second = (
        (tmp_path / d / "digits" / "resnet14_resnet8_1_curves.csv").read_text() for d in ("whole", "killed")
    )
    assert first == second


def test_a_mode_that_the_pair_does_not_allow(teacher, tmp_path, capsys):
    """is named, and does not stop the others; without matplotlib a line says so."""
    command = [*QUICK, "--student", "wrn_16_1", "--teacher", "resnet14", "--teacher-checkpoint", str(teacher)]
    find = importlib.util.find_spec
    command += ["--epochs", "1", "--mode", "fd", "nokd", "--results-dir", str(tmp_path), "--limit_train", "20"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
        evaluate_kd.main([*command, "--student", "resnet8x4"])
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert "sfd needs equal channels" in captured.err and "not run, for the reason above: sfd" in captured.err
    assert [line[0] for line in lines(captured.out)] == ["nokd"]
    assert "no plot: matplotlib is not installed" in captured.out
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "command, message",
    [
        ("--optimizer novograd", r"--optimizer: invalid choice: 'novograd' \(choose from '?sgd'?\)"),
        ("--optimizer adabound", r"--optimizer: invalid choice: 'adabound'"),
        ("--scheduler reducelronplateau", r"--scheduler: invalid choice: 'reducelronplateau'"),
        ("--mode nokd kdd", r"--mode: invalid choice: 'kdd'"),
        ("--teacher resnet9", r"--teacher: unknown network 'resnet9'"),
        ("--teacher-checkpoint nowhere.pth", r"--teacher-checkpoint nowhere.pth: no such file"),
        ("--nosuch 1", r"unknown option --nosuch"),
        ("--nce_k 8", r"unknown option --nce_k"),
        ("--run_name mine", r"--run_name: every run has its own"),
        ("--save_folder=here", r"--save_folder: every run has its own"),
        ("--batch-size 0", r"--batch-size.*: expected a whole number"),
        ("--kdparam-alphas 2", r"--kdparam-alphas: expected a number from 0 to 1"),
    ],
)
def test_bad_input(command, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate_kd.main([*FEW, "--results-dir", str(tmp_path / "r"), *command.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and re.search(message, error), error
    assert not (tmp_path / "r").exists()


def test_other_options_want_another_folder(tmp_path, capsys):
    command = [*FEW, "--mode", "nokd", "--epochs", "1", "--results-dir", str(tmp_path), "--limit_train", "20"]
    evaluate_kd.main(command)
    with pytest.raises(SystemExit) as stop:
        evaluate_kd.main([*command, "--momentum", "0.8"])
    assert stop.value.code == 2
    assert "--momentum was 0.9, is 0.8" in capsys.readouterr().err
    assert torch.load(next(tmp_path.rglob("last.pth")), weights_only=True)["options"]["momentum"] == 0.9
