"""What scripts/*.py do where nobody reads what they print any more, as behind `| head`: they end, and say nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_procedures import write_run

PROGRAMS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text())


def unread(tmp_path: Path, script: str, *arguments: str) -> tuple[int, str]:
    """Status and error output of a script whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("script", PROGRAMS)
def test_help(script, tmp_path):
    assert unread(tmp_path, script, "--help") == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "command, written",
    [
        ("compare_predictions student_model/r_1 --csv c.csv", ["c.csv"]),
        ("summarize student_model --out o", ["o/table.md", "o/table.csv", "o/curves.csv"]),
        ("procedures table --save . --seeds 1 --out t --row alone r", ["t.md", "t.csv"]),
        ("procedures teachers l.csv", []),
    ],
)
def test_files_are_written_all_the_same(command, written, tmp_path):
    same = [0, 1, 2, 3]
    write_run(tmp_path / "student_model" / "r_1", predictions=same, predictions_start=same, predictions_teacher1=same)
    (tmp_path / "l.csv").write_text("modelname,modeltop1,path\nresnet8,70,x.pth\n")
    assert unread(tmp_path, *command.split()) == (128 + signal.SIGPIPE, "")
    assert all((tmp_path / name).read_text() for name in written)


def test_errors_are_still_told(tmp_path):
    assert unread(tmp_path, "summarize", "nowhere") == (2, "summarize.py: error: nowhere: no such folder\n")
