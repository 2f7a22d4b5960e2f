"""scripts/run_cifar100_table.sh on class folders of a few images: stopped twice by its time, then gone on with."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from test_dataset import make_tree

# in the place of the command so called: the time is up when the students have so many epochs
TIMEOUT = """#!/bin/sh
[ "$1 $2" = "--foreground --signal=TERM" ] && shift 3
"$@" &
epochs() { cat "$SAVE"/student_model/*/log.csv 2>/dev/null | wc -l; }
while kill -0 $! 2>/dev/null && [ "$(epochs)" -lt "$EPOCHS" ]; do sleep 0.05; done
kill -TERM $! 2>/dev/null
wait $!
status=$?
[ $status = 143 ] && exit 124
exit $status
"""
FEW = "--batch_size 4 --lr_decay_epochs 2 --device cpu"


@pytest.fixture
def table(python, tmp_path):
    """Runs the script; with `epochs`, its time is up when these are trained."""
    make_tree(tmp_path / "images", (32, 32))
    (tmp_path / "timeout").write_text(TIMEOUT)
    (tmp_path / "timeout").chmod(0o755)

    def call(epochs: int = 0, **variables: str) -> subprocess.CompletedProcess:
        given = {"PYTHON": python, "OMP_NUM_THREADS": "1", "DATA": tmp_path / "images", "SAVE": tmp_path / "save"}
        given |= {
            "PAIR": "resnet14:resnet8",
            "METHODS": "none; kd",
            "SEEDS": "1 2",
            "TEACHER_OPTIONS": f"{FEW} --epochs 1",
        }
        given |= {"OPTIONS": f"{FEW} --epochs 60", "EPOCHS": epochs, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        given |= {"MINUTES": "1"} if epochs else {}
        return subprocess.run(
            ["bash", ROOT / "scripts" / "run_cifar100_table.sh"],
            env=os.environ | {key: str(value) for key, value in (given | variables).items()},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def read(folder: Path) -> str:
    return (folder / "save" / "table" / "table.md").read_text()


def test_stopped_in_time_and_gone_on_with(table, tmp_path) -> None:
    for epochs in (20, 100):
        said = table(epochs)
        assert said.returncode == 0, said.stderr
        assert "stopped after 1 minutes; the same command goes on" in said.stdout
        assert "epochs" in read(tmp_path).split("Unfinished:")[1]
    finished = len(
        list((tmp_path / "save").rglob("student_model/*/summary.json"))
    )  # none, but on a machine that stops late
    said = table(OPTIONS=f"{FEW} --epochs 60")
    assert said.returncode == 0 and "continuing" in said.stdout, said.stderr
    counted = f"asked for: 2 students, 2 seeds, 4 runs; finished in {tmp_path}/save/student_model: {finished}\n"
    assert said.stdout.startswith(counted)
    assert len(list((tmp_path / "save").rglob("student_model/*/summary.json"))) == 4
    assert read(tmp_path).startswith("CIFAR-100, resnet14 > resnet8, paper profile")
    assert "Unfinished" not in read(tmp_path) and "| kd |" in said.stdout
    assert {path.name for path in (tmp_path / "save" / "table").iterdir()} == {
        "table.md",
        "table.csv",
        "curves.csv",
        "page.html",
    }


def test_interrupted_by_the_user(table, tmp_path) -> None:
    """The table is written all the same."""
    (tmp_path / "python").write_text(
        f"#!/bin/sh\ncase $* in *--sweep*) exit 130 ;; *summarize.py*) echo made >{tmp_path}/called ;; esac\n"
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "methods").write_text("# two\nnone\nkd\n")
    said = table(PYTHON=tmp_path / "python", METHODS=tmp_path / "methods", PROFILE="paper", OPTIONS="")
    assert said.returncode == 130 and "asked for: 2 students, 2 seeds, 4 runs" in said.stdout, said.stderr
    assert (tmp_path / "called").is_file() and read(tmp_path).startswith("CIFAR-100, resnet14 > resnet8, paper profile")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MINUTES": "soon"}, "MINUTES: expected a whole number above 0, found soon"),
        ({"PROFILE": "quick"}, "PROFILE: expected paper or fast, found quick"),
        ({"PAIR": "resnet8"}, "PAIR=resnet8: expected teacher:student"),
    ],
)
def test_what_it_refuses(table, tmp_path, variables, message) -> None:
    said = table(**variables)
    assert said.returncode == 2 and message in said.stderr and not (tmp_path / "save").exists()
