"""The procedures of scripts/, end to end on the shipped digits, twice: the second time nothing is trained."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK, ROOT
from forks import write_client

FEW = " ".join([*QUICK[2:], "--epochs", "1"])


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """What the scripts take as PYTHON."""
    here = tmp_path_factory.mktemp("python")
    command = [sys.executable, ROOT / "tests" / "forks.py", here / "socket"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:
        assert server.stdout.readline() == b"ready\n"
        write_client(here / "python", here / "socket")
        yield here / "python"
        server.terminate()


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """The procedures share teachers and students."""
    return tmp_path_factory.mktemp("save")


@pytest.fixture
def call(python, save):
    def run(script: str, status: int = 0, **variables: object) -> str:
        given = {"PYTHON": python, "SAVE": save, "DATASET": "digits", "SEEDS": 1, "OPTIONS": FEW} | variables
        environment = os.environ | {"TEACHER_OPTIONS": FEW} | {key: str(value) for key, value in given.items()}
        done = subprocess.run(
            ["bash", ROOT / "scripts" / script],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        return done.stdout

    return run


def twice(call, script: str, runs: int, **variables: object) -> str:
    """Calls it, and again. Returns the table."""
    first, again = (call(script, **variables) for _ in range(2))
    assert again.count("this run is finished") == runs
    assert first[first.index("| ") :] == again[again.index("| ") :]
    return again[again.index("| ") :]


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(table: str, name: str) -> list[str]:
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line)
    return [row[header.index(name)] for row in rows]


def test_takd(call, save):
    table = twice(call, "run_takd.sh", 6, PAIR="resnet14:resnet8", ASSISTANTS="resnet14 resnet8")
    assert column(table, "student") == ["alone", "directly", "assistant", "assistant", "by the last assistant"]
    assert column(table, "network") == ["resnet8", "resnet8", "resnet14", "resnet8", "resnet8"]
    assert column(table, "teacher") == ["", "resnet14", "resnet14", "resnet14", "resnet8"]
    (path,) = (save / "tables").glob("takd_*.csv")
    rows = lines(path)
    # each is taught by the one before it
    assert float(rows[4]["teacher_acc"].strip("[]")) == float(rows[3]["last_mean"])
    assert float(rows[1]["gain"]) == pytest.approx(float(rows[1]["last_mean"]) - float(rows[0]["last_mean"]))
    assert str(save) not in table + path.read_text() and path.with_suffix(".md").read_text() == table


def test_allkd(call):
    teachers = {"STUDENT": "resnet8", "TEACHERS": "resnet8 resnet14"}
    table = twice(call, "run_allkd.sh", 8, **teachers, SEEDS="1 2")
    assert column(table, "student") == ["alone", "by resnet8", "by resnet14"]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", cell) for cell in column(table, "last epoch"))
    accuracy = dict(zip(column(table, "student"), column(table, "last epoch"), strict=True))
    best = max(("by resnet8", "by resnet14"), key=lambda name: float(accuracy[name].split()[0]))
    assert table.splitlines()[-1] == f"Best: {best}, {accuracy[best].split()[0]}"


def test_kdparam(call, save):
    table = twice(call, "run_kdparam.sh", 5, PAIR="resnet14:resnet8", TEMPERATURES="1 5", ALPHAS="0.3 1.0")
    assert table.splitlines()[0] == "| alpha \\ T | 1 | 5 |" and column(table, "alpha \\ T") == ["0.3", "1"]
    (path,) = (save / "tables").glob("kdparam_*.csv")
    assert [(row["alpha"], row["T"]) for row in lines(path)] == [
        ("0.3", "1.0"), ("0.3", "5.0"), ("1.0", "1.0"), ("1.0", "5.0"),
    ]  # fmt: skip
    # there alpha is the share of the cross entropy: 0.7 of it is what 0.3 of KD leaves
    cinic = twice(call, "run_kdparam.sh", 2, PAIR="resnet14:resnet8", TEMPERATURES=5, ALPHAS=0.7, GRID="cinic")
    assert column(cinic, "alpha \\ T") == ["0.7"] and column(cinic, "5") == column(table, "5")[:1]


def test_multikd(call):
    table = twice(call, "run_multikd.sh", 5, STUDENT="resnet8", ENSEMBLE="2")
    assert column(table, "student") == ["alone", "by the first", "by all"]
    assert column(table, "teacher") == ["", "resnet8", "resnet8+resnet8"]
    given = twice(call, "run_multikd.sh", 5, STUDENT="resnet8", TEACHERS="resnet14 resnet8")
    assert column(given, "teacher") == ["", "resnet14", "resnet14+resnet8"]


def test_a_run_that_is_refused_does_not_stop_the_others(call):
    out = call("run_allkd.sh", 1, STUDENT="resnet8", TEACHERS="nothing/here.pth resnet14")
    assert "not run, for the reason above: teacher nothing/here.pth" in out and "| by resnet14 |" in out
