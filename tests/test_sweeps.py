"""The sweeps over networks and over probes, on the shipped digits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from conftest import QUICK, ROOT

import models
import train_teacher
import transfer_student
from distiller_zoo import find_method, method_names
from scripts import methods

FEW = " ".join([*QUICK[2:], "--epochs", "1"])


def call(script: str, **variables: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "OPTIONS": FEW}
    environment |= {key: str(value) for key, value in variables.items()}
    return subprocess.run(["bash", ROOT / "scripts" / script], env=environment, capture_output=True, text=True)


def options(folder: Path) -> dict:
    return json.loads((folder / "options.json").read_text())["options"]


def test_networks_alone(tmp_path):
    """Seed 1 is the run that run_cifar_distill.sh makes where it finds no teacher."""
    command = f"--model resnet8 --dataset digits --save_folder {tmp_path} --run_name resnet8_vanilla {FEW}"
    train_teacher.main(command.split())
    for run in ("resnet14_vanilla", "resnet14_vanilla_2"):
        (tmp_path / "models" / run).mkdir()
        torch.save(models.create_model("resnet14", 10).state_dict(), tmp_path / "models" / run / "ckpt_epoch_240.pth")
    result = call("run_cifar_vanilla.sh", MODELS="resnet8 resnet14", DATASET="digits", SEEDS="1 2", SAVE=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("this run is finished") == 1
    for run in ("resnet14_vanilla", "resnet14_vanilla_2"):
        assert f"{run} was fetched" in result.stdout
        assert [path.name for path in (tmp_path / "models" / run).iterdir()] == ["ckpt_epoch_240.pth"]
    assert options(tmp_path / "models" / "resnet8_vanilla")["seed"] == 1
    second = options(tmp_path / "models" / "resnet8_vanilla_2")
    assert second["seed"] == 2 and second["epochs"] == 1
    assert "| digits | resnet8 |" in result.stdout and " ± " in result.stdout


def test_probes(teacher, tmp_path):
    result = call("run_cifar_transfer.sh", SAVE=tmp_path)
    assert result.returncode == 2 and f"no finished run in {tmp_path}/student_model; name checkpoints" in result.stderr
    for name in ("done", "new", "unfinished"):
        shutil.copytree(teacher.parent, tmp_path / "student_model" / name)
    (tmp_path / "student_model" / "unfinished" / "summary.json").unlink()
    done = tmp_path / "student_model" / "done" / "last.pth"
    command = f"--path_s {done} --dataset digits --image_size 32 --trial 3 --save_folder {tmp_path} {FEW}"
    transfer_student.main(command.split())
    result = call("run_cifar_transfer.sh", DATASETS="digits", SEEDS="3", SAVE=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("this run is finished") == 1
    probes = sorted(path.name for path in (tmp_path / "transfer").iterdir())
    assert probes == ["done_to_digits_eval_3", "new_to_digits_eval_3"]
    probe = options(tmp_path / "transfer" / "new_to_digits_eval_3")
    assert (probe["path_s"], probe["seed"]) == (str(tmp_path / "student_model" / "new" / "last.pth"), 3)
    assert (probe["image_size"], probe["lr_decay_epochs"], probe["learning_rate"]) == (32, [30, 60, 90], 0.05)
    assert "### Probes" in result.stdout and "| digits | resnet14 |" in result.stdout

    (tmp_path / "bare").mkdir()
    result = call("run_cifar_transfer.sh", DATASETS="digits", SAVE=tmp_path, STUDENTS=f"{tmp_path}/bare/")
    assert result.returncode == 2 and f"--path_s {tmp_path}/bare/last.pth: no such file" in result.stderr


def test_the_methods_of_a_pair(capsys):
    """All that are registered, `none` and `kd` first, but those that refuse it or go on from a trained student."""
    methods.main(["resnet14", "resnet8x4"])
    out, error = capsys.readouterr()
    found, left_out = out.strip().split("; "), re.findall("^left out: (.*?): (.*)", error, re.M)
    assert found[:2] == ["none", "kd"] and sorted([*found, *(name for name, _ in left_out)]) == sorted(method_names())
    reasons = dict(left_out)
    assert {name for name in reasons if find_method(name).trained_student} == {"dp", "pad_l2"}
    assert "needs equal channels" in reasons["sfd"] and "distillation token" in reasons["deit_soft"]
    assert {"crd", "ft", "dist", "simkd"} <= set(found)
    methods.main(["resnet14", "resnet8"])
    assert "sfd" in capsys.readouterr().out.strip().split("; ")


def test_the_default_methods_are_those_of_the_pair(teacher, tmp_path):
    """What the script asks train_student.py for."""
    recorder = tmp_path / "python"
    recorder.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase $1 in *methods.py) echo "none; kd; made up" ;; esac\n'
    )
    recorder.chmod(0o755)
    call("run_cifar_distill.sh", PYTHON=recorder, TEACHER=teacher, PAIR="resnet14:resnet8", SAVE=tmp_path)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].endswith("scripts/methods.py resnet14 resnet8") and "--sweep none; kd; made up " in calls[1]
