"""Every command in the table of docs/from_other_projects.md runs: on few digits, one epoch, between small networks."""

import json
import re
import shlex

import pytest
import torch
from conftest import ROOT

import crd  # noqa: F401
import evaluate_kd
import train_student
import train_teacher
from distiller_zoo import find_method
from scripts import compare_predictions

SECTION = (ROOT / "docs" / "from_other_projects.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if line[:2] == "| "][1:]
COMMANDS = [command for row in ROWS for command in re.findall("`([^`]*)`", row[-1])]
PYTHON = list(dict.fromkeys(command for command in COMMANDS if command.startswith("python ")))
BASH = list(dict.fromkeys(command for command in COMMANDS if not command.startswith("python ")))
SCRIPTS = {
    "train_teacher.py": train_teacher.main,
    "train_student.py": train_student.main,
    "evaluate_kd.py": evaluate_kd.main,
    "scripts/compare_predictions.py": compare_predictions.main,
}
FEW = "--dataset digits --limit_train 40 --limit_val 20 --batch_size 20 --epochs 1 --device cpu".split()
SMALL = {
    "train_teacher.py": ["--model", "resnet8"],
    "train_student.py": ["--model_s", "resnet8", "--init_epochs", "1"],
    "evaluate_kd.py": ["--teacher", "resnet14", "--student", "resnet8"],
}
CHECKPOINTS = {
    **dict.fromkeys(["$T", "$T2", "$T3"], "save/models/ONE/last.pth"),
    "$S": "save/models/OTHER/last.pth",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the runs that the commands name."""
    here = tmp_path_factory.mktemp("translation")
    common = [*FEW, "--save_predictions", "--save_folder", str(here / "save"), "--run_name"]
    train_teacher.main(["--model", "resnet14", *common, "ONE"])
    train_teacher.main(["--model", "resnet8", *common, "OTHER"])
    paths = ["--path_t", str(here / CHECKPOINTS["$T"]), "--path_s", str(here / CHECKPOINTS["$S"])]
    train_student.main(["--model_s", "resnet8", *paths, *common, "RUN"])
    return here


def split(command):
    """The script, and its arguments with the placeholders filled in."""
    _, script, *arguments = shlex.split(command)
    arguments = [CHECKPOINTS.get(argument, argument) for argument in arguments]
    return script, [str(ROOT / argument) if argument.startswith("configs/") else argument for argument in arguments]


@pytest.mark.parametrize("command", PYTHON)
def test_command(command, here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(here)
    script, arguments = split(command)
    if script == "scripts/compare_predictions.py":
        SCRIPTS[script](arguments)
        assert capsys.readouterr().out.startswith("| class | samples |")
        return
    folder = ["--results-dir" if script == "evaluate_kd.py" else "--save_folder", str(tmp_path)]
    if script == "train_student.py":
        train_student.settle(train_student.parse(arguments))  # as it stands: every flag belongs to a method in use
        if "--path_t" in arguments:  # the small teachers, whatever the command or its config says of them
            arguments += ["--model_t", *["resnet14"] * arguments.count(CHECKPOINTS["$T"])]
    SCRIPTS[script]([*arguments, *FEW, *SMALL[script], *folder])
    if "--test_only" in arguments:
        assert capsys.readouterr().out.startswith(f"{CHECKPOINTS['$S']}: loss ") and not list(tmp_path.iterdir())
        return
    *_, run = sorted(tmp_path.rglob("summary.json"))
    assert json.loads(run.read_text())["epochs"] == 1
    assert all(w.isfinite().all() for w in torch.load(run.with_name("last.pth"), weights_only=True)["model"].values())


@pytest.mark.parametrize("command", BASH)
def test_bash_command(command):
    """It takes these variables, and a test of its own runs it."""
    *variables, bash, script = shlex.split(command)
    assert bash == "bash"
    text = (ROOT / script).read_text()
    assert all(f"${{{variable.split('=')[0]}:" in text for variable in variables)
    name = script.removeprefix("scripts/")
    assert any(f'"{name}"' in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def test_every_method_of_theirs_is_there():
    students = [arguments for script, arguments in map(split, PYTHON) if script == "train_student.py"]
    found = {find_method(name).name for arguments in students for name in train_student.parse(arguments).distill}
    theirs = """
        none kd fitnet at sp cc vid rkd pkt ab ft fsp nst kdsvd crd ofd
        triplet triplet_cosine mt uda pkd sfd ft_flat tfkd sskd cse_l2 pad_l2
        kl xekl hinton cd sup dp
    """
    assert found == set(theirs.split())
    assert all(len(row) == 4 for row in ROWS)
