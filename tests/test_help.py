"""What --help says: of the scripts what matters first, of every option its meaning, of bash scripts their head."""

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import crd  # noqa: F401  registers its methods
import evaluate_kd
import train_student
import train_teacher
import transfer_student
from distiller_zoo import Distiller, Pair, find_method, method_meanings, method_names, method_options
from helper import parsing

SCRIPTS = {module.__name__: module for module in (train_teacher, train_student, transfer_student, evaluate_kd)}
BASH = sorted({*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch"), *ROOT.glob("benchmarks/*.sh")})
BASH = [path for path in BASH if path.read_text().startswith("#!")]  # the others are sourced
ALONE = [path for path in BASH if '" requirements.txt -- "$@"\n' in path.read_text()]  # take no arguments


def called(path: Path) -> str:
    return path.name


@pytest.fixture(autouse=True)
def width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return monkeypatch


@pytest.fixture
def said(capsys):
    """What a script prints before it ends with status 0."""

    def run(script: str, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script].main(list(arguments))
        assert not stop.value.code
        return capsys.readouterr().out

    return run


def parser_of(script: str) -> parsing.BriefParser:
    found: list[parsing.BriefParser] = []

    class Stop(Exception):
        pass

    def keep(self: Any, *_: Any) -> None:
        found.append(self)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(parsing.Parser, "parse_args", keep)
        patch.setattr(parsing.BriefParser, "parse_known_args", keep)
        SCRIPTS[script].parse([])
    return found[0]


# ---- the four scripts ----


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_matters_first(script, said, width):
    text = said(script, "--help")
    lines = text.splitlines()
    assert text == said(script, "-h") and len(lines) <= 45 and max(map(len, lines)) <= 100
    assert f"usage: python {script}.py" in text and "--help_all" in text.rsplit("\n\n", 1)[1]
    listed = len(re.findall(r"^  -", text, re.M))
    assert 10 <= listed <= 30 and f"{len(parser_of(script)._actions) - listed} more options: --help_all." in text
    width.setenv("COLUMNS", "70")
    assert max(map(len, said(script, "--help").splitlines())) <= 70


@pytest.mark.parametrize("script", SCRIPTS)
def test_everything(script, said):
    text = said(script, "--help_all")
    for flag in parser_of(script)._option_string_actions:
        assert re.search(rf"^  (-.*, )?{flag}\b", text, re.M), flag


OPTIONS = [(script, action) for script in SCRIPTS for action in parser_of(script)._actions]


@pytest.mark.parametrize(("script", "action"), OPTIONS, ids=lambda x: x if isinstance(x, str) else x.option_strings[-1])
def test_every_option_has_a_meaning_and_one_default(script, action):
    text = parsing.Shown("")._expand_help(action)
    name = f"{action.option_strings[-1]} of {script}.py"
    meaning = re.sub(r"(^|; )(default: .*|an? (whole )?number of .*)", "", text)
    assert meaning, f"{name} has no meaning: where it is added, write help='what it does'"
    assert text.count("default: ") <= 1 and "None" not in text and "==SUPPRESS==" not in text, f"{name}: {text}"
    if action.default not in (None, argparse.SUPPRESS, []) and action.default is not False:
        assert "default: " in text, f"{name}: {text}"


def test_every_option_of_the_other_scripts_has_a_meaning():
    for path in [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "add_argument",
                "add_parser",
            ):
                assert "help" in {word.arg for word in node.keywords}, f"{path.name}:{node.lineno} has no help="


# ---- methods ----


@pytest.mark.parametrize("name", method_names())
def test_every_option_of_a_method_has_a_meaning(name):
    cls = find_method(name)
    missing = [key for key in method_options(cls) if not method_meanings(cls).get(key)]
    assert not missing, f"docstring of {cls.__module__}.{cls.__name__}: write `{missing[0]}: what it means.`"


class Base(Distiller):
    """A loss. toy_one: the first. More of it.

    toy_two, toy_three: of both, 0.5 as in v1.2 of
    the code; toy_four: the last

    toy_fives: is another word, and so is an_toy_one: this.
    """

    def __init__(self, pair: Pair, *, toy_one: int = 1, toy_two: int = 2, toy_three: int = 3, toy_four: int = 4):
        super().__init__(pair)


class Derived(Base):
    """toy_one: the first of its own, as toy_two. toy_five: not in its base."""

    def __init__(self, pair: Pair, *, toy_five: int = 5, **others: int):
        super().__init__(pair, **others)


def test_where_a_meaning_ends():
    both = "of both, 0.5 as in v1.2 of the code"
    expected = {"toy_one": "the first", "toy_two": both, "toy_three": both, "toy_four": "the last"}
    assert method_meanings(Base) == expected
    assert method_meanings(Derived) == {"toy_five": "not in its base"}
    assert method_meanings(find_method("none")) == {}


def test_equal_and_different_meanings_of_an_option():
    parser, two = (
        argparse.ArgumentParser(),
        {"p": method_options(Base), "q": {"toy_one": method_options(Base)["toy_one"]}},
    )
    meanings = {"p": {"toy_one": "50 % here", "toy_two": "same"}, "q": {"toy_one": "there"}}
    parsing.add_method_options(parser, two, meanings=meanings)
    text = " ".join(parser.format_help().split())
    assert "p: 50 % here; q: there; default: p 1, q 1" in text and "same; default: p 2" in text


@pytest.mark.parametrize("name", method_names())
def test_help_of_a_method(name, said):
    cls, text = find_method(name), said("train_student", "--help_method", name)
    flat = " ".join(text.split())
    title = (sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0]
    assert flat.startswith(f"{', '.join([name, *cls.aliases])}: {' '.join(title.split())}")
    assert "Default weights: -r {:g} -a {:g} -b {:g}".format(*cls.weights) in flat
    flags = re.findall(r"^  --(\w+)", text, re.M)
    assert flags == list(method_options(cls))
    assert f"it needs {'no' if name in ('none', 'cskd', 'dml', 'pskd') else 'a'} teacher" in flat
    assert all(len(line) <= 100 or line.startswith("https://") for line in text.splitlines())


def test_help_of_several_methods(said, capsys):
    both = [said("train_student", "--help_method", name) for name in ("crd", "kd")]
    assert said("train_student", "--help_method", "crd,kd") == "\n".join(both)
    assert said("train_student", "--help_method", "hint").startswith("fitnet, hint: FitNets")
    assert said("train_student", "--help_method").replace("\n", " ").strip() == ", ".join(method_names())
    with pytest.raises(SystemExit) as stop:
        train_student.main(["--help_method", "crf"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "unknown method 'crf'; near: crd" in error


# ---- bash ----


@pytest.fixture
def bash(tmp_path):
    """Calls a script where nothing else can be called: status, output, error output."""
    (tmp_path / "tools").mkdir()
    for tool in ("python", "python3", "srun", "scontrol", "curl"):
        (tmp_path / "tools" / tool).write_text('#!/bin/sh\necho "$0 $*" >&2\nexit 9\n')
        (tmp_path / "tools" / tool).chmod(0o755)
    path = f"{tmp_path}/tools:{os.environ['PATH']}"

    def call(script: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
        here = ROOT if script.suffix == ".sbatch" else tmp_path  # sbatch copies the script, and starts it there
        variables = {"PATH": path, "PYTHON": str(tmp_path / "tools" / "python")} | variables
        done = subprocess.run(["bash", script, *arguments], cwd=here, env=variables, capture_output=True, text=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["tools"]
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.parametrize("script", BASH, ids=called)
def test_help_of_bash_scripts(script, bash):
    lines = script.read_text().splitlines()[1:]
    head = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    expected = "".join(re.sub("^#( |$)", "", line) + "\n" for line in head)
    assert len(head) >= 2 and bash(script, "--help") == bash(script, "-h", PYTHON="") == (0, expected, "")


@pytest.mark.parametrize("script", ALONE, ids=called)
def test_arguments_that_a_bash_script_does_not_know(script, bash):
    reason = f"{script.name} takes no arguments but --help, which lists its variables; found foo"
    assert bash(script, "foo", "--help") == (2, "", f"error: {reason}\n")


def test_the_others_pass_their_arguments_on():
    others = {path.name for path in BASH} - {path.name for path in ALONE}
    assert others == {"test.sh", "slurm_distill.sbatch", "slurm_sweep.sbatch"}
    assert all(' --any "$@"\n' in (ROOT / "scripts" / name).read_text() for name in others)


def variables(script: Path) -> set[str]:
    """Those that a script's head names."""
    return set(re.findall(r"([A-Z][A-Z0-9_]*)=", script.read_text().split("\nset -euo")[0]))


@pytest.mark.parametrize("script", BASH, ids=called)
def test_heads_name_the_variables_that_are_read(script):
    def read(path: Path) -> set[str]:
        text = path.read_text()
        found = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*):?[-+?]", text)) - {"SLURM_GPUS_ON_NODE"}
        if "/procedures.sh" in text:
            found |= read(ROOT / "scripts" / "procedures.sh")
        return found if "find_teacher" in text else found - {"TEACHER_OPTIONS"}

    expected = read(script)
    if script.name == "dist_job.sh":  # its variables are the other script's, but for what it sets
        expected |= read(script.with_name("contdist_job.sh"))
        expected -= {"TEACHERS", "MODEL_LIST", "N", "T_SEED", "CURRICULUM"}
    assert variables(script) == expected, "in the script's head each of them is written as NAME=default"


@pytest.mark.parametrize("script", BASH, ids=called)
def test_a_misspelt_variable(script, bash):
    name = max(variables(script), key=len)
    for wrong in (name[1] + name[0] + name[2:], name[:-1] + "XX"[: len(name) > 4]):
        if wrong != name and len(name) > 4:
            status, out, error = bash(script, **{wrong: "1"})
            assert (status, out) == (
                2,
                "",
            ) and error == f"error: {wrong} is no variable of {script.name}; near: {name}\n"


def test_a_variable_of_another_script(bash):
    """May be exported for that one."""
    status, _, error = bash(ROOT / "scripts" / "run_cifar_distill.sh", METHOD="kd", METHODS="kd", TEACHER="/x/y.pth")
    assert error.splitlines()[0] == "warning: METHOD is no variable of run_cifar_distill.sh; near: METHODS"
    assert status == 2 and "/x/y.pth: no such file" in error  # it went on
    given = {"STUDENT_FILE": "s.pth", "STUDENT": "resnet8", "TEACHER": "/x/y.pth"}
    assert bash(ROOT / "scripts" / "dist_job.sh", **given)[2] == "error: /x/y.pth: no such file\n"


COMMON = """BASH CI COLORTERM COLUMNS CONDA_PREFIX CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES DATE DEBUG DISPLAY EDITOR
EUID GID GITHUB_REF GITHUB_SHA HF_HOME HISTFILE HISTSIZE HOME HOST HOSTNAME HOSTTYPE JOB_ID LANG LANGUAGE LC_ALL
LD_LIBRARY_PATH LESS LESSOPEN LINES LOCAL_RANK LOGNAME LS_COLORS MACHTYPE MAIL MAKEFLAGS MANPATH MASTER_ADDR
MASTER_PORT MKL_NUM_THREADS MODULEPATH NAME NODE_RANK OLDPWD OMP_NUM_THREADS OSTYPE PAGER PATH PBS_JOBID PPID
PROMPT_COMMAND PWD PYTHON3 PYTHONPATH PYTHONUNBUFFERED RANK REQUESTS_CA_BUNDLE SHELL SHLVL SLURM_JOB_ID SLURM_NNODES
SLURM_NPROCS SLURM_NTASKS SLURM_STEP_ID SSH_AUTH_SOCK SSH_TTY SUDO_USER TEMP TERM TMP TMPDIR TMUX TZ UID USER USERNAME
VERSION VIRTUAL_ENV VISUAL WANDB_MODE WORLD_SIZE XAUTHORITY XDG_DATA_DIRS XDG_RUNTIME_DIR XDG_SESSION_ID"""


def test_the_common_environment_is_no_mistake():
    check = f'PYTHON=python; source {ROOT}/scripts/setup.sh any; for script in "$@"; do _check_names "$script"; done'
    environment = {**dict.fromkeys(COMMON.split(), "C"), "PATH": os.environ["PATH"]}
    command = ["bash", "-euc", check, "-", *BASH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
