"""The variables of scripts/*.sh: lists over several lines, signs that a shell would expand, the caller's paths.

A recorder stands for PYTHON here: what is compared are the commands that a script would have run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT
from test_more_datasets import make_tinyimagenet

import models
from helper.sweep import items

SHELL = [path for end in ("sh", "sbatch") for path in sorted((ROOT / "scripts").glob(f"*.{end}"))]
RECORDER = """#!/bin/sh
printf '%s\\037' "$@" >>"$CALLS"
printf '\\036' >>"$CALLS"
"""
COMMON = {"SEEDS": "1 2", "OPTIONS": "--epochs 5 --amp bf16", "TEACHER_OPTIONS": "--epochs 3 --amp fp16"}
LISTS = {  # every variable of these scripts that holds several things
    "run_cifar_distill.sh": COMMON | {"METHODS": "none; kd -a 0.5 ;; crd;", "PAIR": "resnet20 resnet8"},
    "run_cifar_transfer.sh": {"STUDENTS": "a.pth b.pth", "DATASETS": "stl10 digits", "SEEDS": "1 2", "OPTIONS": "-x 1"},
    "run_cifar_vanilla.sh": {"MODELS": "resnet8 vgg8", "SEEDS": "0 1", "OPTIONS": "--epochs 5"},
    "run_imagenet_distill.sh": {"METHODS": "kd crd", "SEEDS": "1 2", "OPTIONS": "--amp bf16"},
    "run_kdparam.sh": COMMON | {"TEMPERATURES": "1 5", "ALPHAS": "0.5 1.0", "PAIR": "resnet20 resnet8"},
    "run_multikd.sh": COMMON | {"TEACHERS": "vgg8 resnet20", "METHOD": "kd -a 0.5"},
    "run_allkd.sh": COMMON | {"TEACHERS": "vgg8 resnet20", "METHOD": "kd -a 0.5"},
    "run_takd.sh": COMMON | {"ASSISTANTS": "vgg8 resnet20", "METHOD": "kd -a 0.5", "PAIR": "resnet20 resnet8"},
    "contdist_job.sh": COMMON | {"TEACHERS": "vgg8 resnet20", "METHOD": "xekl --mcl_tau 0.5"},
    "dist_job.sh": COMMON | {"METHOD": "xekl --mcl_tau 0.5"},
    "collect.sh": {"FIGURES": "--figures --help"},
    "fetch_pretrained_teachers.sh": {"TEACHERS": "vgg8 resnet20", "MIRRORS": "https://example.org/a https://b.org/%s"},
}
NEEDED = {
    "contdist_job.sh": {"STUDENT_FILE": "s.pth", "STUDENT": "resnet8"},
    "dist_job.sh": {"STUDENT_FILE": "s.pth", "STUDENT": "resnet8", "TEACHER": "vgg8"},
    "collect.sh": {"RESULTS": "results"},
}
EACH = [(script, name) for script, lists in LISTS.items() for name in lists]


@pytest.fixture
def call(tmp_path):
    """Runs a script in a folder of the caller's with the recorder. Returns its end and the commands."""
    (tmp_path / "tools").mkdir()
    for name, text in {"python": RECORDER, "curl": "#!/bin/sh\nexit 7\n"}.items():
        (tmp_path / "tools" / name).write_text(text)
        (tmp_path / "tools" / name).chmod(0o755)
    here = tmp_path / "here"

    def run(script: str, **variables: str) -> tuple[int, str, list[list[str]]]:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for name in ("one_file", "another_file"):
            (here / name).touch()
        (here / "there").mkdir()
        (here / "there" / "t.pth").touch()
        calls = tmp_path / "calls"
        calls.write_text("")
        given = {"PYTHON": "../tools/python", "CALLS": str(calls), "PATH": f"{tmp_path}/tools:{os.environ['PATH']}"}
        given |= NEEDED.get(script, {}) | variables
        done = subprocess.run(
            ["bash", ROOT / "scripts" / script],
            cwd=here, env=os.environ | given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        recorded = [record.split("\x1f")[:-1] for record in calls.read_text().split("\x1e")[:-1]]
        for command in recorded:  # train_student.py parts the items of a sweep as it does lines
            if "--sweep" in command:
                place = command.index("--sweep") + 1
                command[place] = repr(items(command[place]))
        return done.returncode, done.stdout, recorded

    return run


@pytest.mark.parametrize("script, name", EACH)
def test_over_several_lines(script, name, call):
    lists = LISTS[script]
    expected = call(script, **lists)
    mirrors = script == "fetch_pretrained_teachers.sh"  # none answers: then nothing is called
    assert expected[0] == mirrors and (mirrors or expected[2]), expected[1]
    separator = ";" if ";" in lists[name] else r"\s+"
    for space in ("\n", "\n\n", "\n    "):
        several = re.sub(separator, space, lists[name])
        assert call(script, **lists | {name: f"\n{several}\n"}) == expected
    assert call(script, **lists | {name: lists[name].replace(" ", "\t")}) == expected


@pytest.mark.parametrize("script, name", EACH)
def test_a_star_is_no_list_of_files(script, name, call):
    _, said, calls = call(script, **LISTS[script] | {name: "* *"})
    assert "_file" not in said and not any("_file" in argument for command in calls for argument in command)
    assert "*" in said or any("*" in argument for command in calls for argument in command)


@pytest.mark.parametrize("script", LISTS)
def test_programs_are_the_projects_and_paths_the_callers(script, call):
    if script in ("run_cifar_transfer.sh", "dist_job.sh"):
        given = {"SAVE": "../mine"}
    else:
        given = {"SAVE": "../mine", "TEACHER": "there/t.pth", "TEACHER_18": "there/t.pth"}
    _, _, calls = call(script, **LISTS[script] | given)
    programs = [argument for command in calls for argument in command if argument.endswith(".py")]
    configs = [command[i + 1] for command in calls for i, word in enumerate(command) if word == "--config"]
    assert all(os.path.isabs(path) and os.path.isfile(path) for path in programs + configs)
    folders = [command[i + 1] for command in calls for i, word in enumerate(command) if word == "--save_folder"]
    assert set(folders) <= {"../mine"}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_every_list_is_split_in_the_same_way(path):
    """And is in the tests above, or in test_slurm."""
    text = path.read_text()
    assert not re.search(r'\bfor \w+ in [^;(]*(?<!")\$[\w{]', text), "expands what it splits"
    assert path.name == "setup.sh" or not re.search(r"\bread -\w*a", text), "reads one line alone"
    split = set(re.findall(r"<\((?:words|items) \"\$\{?([A-Z_]+)", text))
    assert path.name in ("setup.sh", "procedures.sh", "slurm_sweep.sbatch") or split <= LISTS.get(path.name, {}).keys()


# ---- the caller's paths ----


def test_a_sweep_from_elsewhere(teacher, python, tmp_path):
    """Teacher, results and Python are the caller's, and so is the data's default folder."""
    (tmp_path / "there").mkdir()
    shutil.copy(teacher, tmp_path / "there" / "t.pth")
    here = tmp_path / "here"
    here.mkdir()
    quick = " ".join([*QUICK, "--epochs", "1"])
    variables = {"PYTHON": os.path.relpath(python, here), "SAVE": "results", "TEACHER": "../there/t.pth"}
    variables |= {
        "PAIR": "resnet14:resnet8",
        "DATASET": "digits",
        "SEEDS": "1",
        "METHODS": "none\nkd",
        "OPTIONS": quick,
    }
    before = sorted(path.name for path in ROOT.iterdir())
    done = subprocess.run(
        ["bash", os.path.relpath(ROOT / "scripts" / "run_cifar_distill.sh", here)],
        cwd=here, env=os.environ | variables | {"OPTIONS": quick}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(here.glob("results/student_model/*/summary.json"))) == 2 and "| kd |" in done.stdout
    assert [path.name for path in here.iterdir()] == ["results"]
    assert sorted(path.name for path in ROOT.iterdir()) == before


def elsewhere(tmp_path: Path) -> Path:
    """A folder with modules of the caller's own, whose names are those of the project's."""
    for name in ("dataset", "models", "helper"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not the one of the project')")
    return tmp_path


@pytest.mark.parametrize("script", ["fetch_pretrained_teachers.sh", "get_tinyimagenet.sh"])
def test_what_is_there_is_found_from_elsewhere(script, tmp_path):
    here = elsewhere(tmp_path)
    make_tinyimagenet(here / "mine")
    (here / "mine" / "models" / "resnet8_vanilla").mkdir(parents=True)
    state = {"model": models.create_model("resnet8", 100).state_dict()}
    torch.save(state, here / "mine" / "models" / "resnet8_vanilla" / "ckpt_epoch_240.pth")
    variables = {"PYTHON": sys.executable, "SAVE": "mine", "DATA": "mine", "TEACHERS": "resnet8"}
    variables["MIRRORS"] = "http://127.0.0.1:9/x"
    done = subprocess.run(
        ["bash", ROOT / "scripts" / script], cwd=here, env=os.environ | variables, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("resnet8: mine/.* is there|tiny-imagenet-200: 3 classes", done.stdout)


def test_the_environment_lives_in_the_project(tmp_path):
    """Whatever folder it is called from, and wherever CDPATH would lead."""
    project, here = tmp_path / "project", tmp_path / "here"
    for folder in (project / "scripts", here, tmp_path / "wrong" / "project" / "scripts", tmp_path / "tools"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", project / "scripts")
    (project / "requirements.txt").write_text("torch\n")
    (tmp_path / "tools" / "python3").write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"\nprintf \'#!/bin/sh\\necho "$@" >>"%s/asked"\\n\' "$3" >"$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n'
    )
    (tmp_path / "tools" / "python3").chmod(0o755)
    (project / "scripts" / "x.sh").write_text(
        'source "$(dirname "$0")/setup.sh" requirements.txt\necho "$PWD $ROOT $PYTHON"\n'
    )
    variables = {"PATH": f"{tmp_path}/tools:{os.environ['PATH']}", "CDPATH": str(tmp_path / "wrong"), "PYTHON": ""}
    for _ in range(2):
        command = ["bash", "-eu", "../project/scripts/x.sh"]
        done = subprocess.run(command, cwd=here, env=os.environ | variables, text=True, capture_output=True)
        assert done.stdout == f"{here} {project} {project}/.venv/bin/python\n", done.stderr
    (asked,) = (project / ".venv" / "asked").read_text().splitlines()
    assert asked.endswith(f"-r {project}/requirements.txt") and not list(here.iterdir())
