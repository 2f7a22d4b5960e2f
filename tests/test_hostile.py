"""Files of strangers: one line that names the file and the reason, exit status 2, nothing executed, nothing written."""

import os
import re
import subprocess
from pathlib import Path

import hostile
import pytest
import torch
from conftest import QUICK, ROOT

import train_student

Tree = dict[str, tuple]


def tree(folder: Path) -> Tree:
    """Everything below a folder, and what would show a change."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def refused(main, arguments: list[str], capsys, *messages: str, status: int = 2) -> str:
    """Runs a script in this process. Returns its one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == status and error.count("\n") == 1 and "Traceback" not in error, error
    for message in messages:
        assert re.search(message, error), (message, error)
    return error


# ---- checkpoints ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, teacher) -> dict[str, tuple[Path, str]]:
    return hostile.write(tmp_path_factory.mktemp("strangers"), torch.load(teacher, weights_only=True))


TABLES = [hostile.executing(Path()), hostile.bombs(), hostile.broken_tensors(), hostile.broken_safetensors()]


@pytest.mark.parametrize("name", [name for table in TABLES for name in table])
def test_checkpoint(name, checkpoints, capsys, tmp_path):
    path, message = checkpoints[name]
    before = tree(path.parent)
    student = [*QUICK, "--epochs", "1", "--save_folder", str(tmp_path / "save"), "--path_t", str(path)]
    refused(train_student.main, student, capsys, rf"--path_t {path}: .*({message})")
    assert tree(path.parent) == before and not os.listdir(tmp_path)


def test_bombs_take_neither_memory_nor_time(checkpoints, python, tmp_path):
    """In a process that can have 1 GB more than it has; each takes a second at most, and 300 MB of that."""
    names = list(hostile.bombs())
    for name in names:
        (tmp_path / f"{names.index(name):02}.pth").symlink_to(checkpoints[name][0])
    done = subprocess.run([python, ROOT / "tests" / "hostile.py", tmp_path], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(names), done.stderr
    for name, line in zip(names, lines, strict=True):
        seconds, megabytes, told = re.fullmatch(r"([\d.]+) s  (\d+) MB  (.*)", line).groups()
        assert re.search(checkpoints[name][1], told), (name, told)
        assert float(seconds) < 10 and int(megabytes) < 300, (name, line)
