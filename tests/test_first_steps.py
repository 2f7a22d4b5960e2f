"""docs/first_steps.md as it stands: its commands, in a copy of the tree, with fewer images and epochs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK, ROOT

PAGE = (ROOT / "docs" / "first_steps.md").read_text()
PATHS = dict(re.findall(r"^## (.+?)\n.*?```bash\n(.*?)```", PAGE, re.S | re.M))
MINE = re.search(r"`distiller_zoo/mine.py`.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
NOT_HERE = (
    "bash scripts/quickstart.sh",
    "source ",
    "pip install",
    "python scripts/report_model.py",
)  # tested elsewhere


@pytest.fixture
def tree(tmp_path: Path, python: Path, teacher: Path) -> Path:
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines():
        if not name.startswith(("results/", "docs/")) or name == "results/published.csv":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    folder = tmp_path / "save" / "quickstart" / "models" / "resnet20"
    folder.mkdir(parents=True)
    (folder / "last.pth").write_bytes(teacher.read_bytes())
    return tmp_path


def run(tree: Path, path: str, python: Path) -> list[str]:
    """What each command of a path prints."""
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    printed = []
    for command in PATHS[path].splitlines():
        if command.startswith(NOT_HERE):
            continue
        command = command.replace("--dataset digits", " ".join(QUICK)).replace("--epochs 12", "--epochs 2")
        command = command.replace("--lr_decay_epochs 8,11", "--lr_decay_epochs 1")
        found = subprocess.run(command, shell=True, cwd=tree, capture_output=True, text=True, env=environment)
        assert found.returncode in (0, 124), command + found.stdout + found.stderr
        printed.append(found.stdout)
    return printed


def test_under_ten_commands() -> None:
    assert len(PATHS) == 3 and all(len(commands.splitlines()) < 10 for commands in PATHS.values())


def test_a_student(tree: Path, python: Path) -> None:
    trained, described = run(tree, "A distilled student", python)
    assert "teacher accuracy" in trained and "arxiv.org/abs/2203.08679" in described


def test_a_method(tree: Path) -> None:
    (tree / "distiller_zoo" / "mine.py").write_text(MINE)
    _, tests, _ = run(tree, "A method of your own", Path(sys.executable))
    assert re.search(r"[1-9]\d* passed", tests) and "failed" not in tests
    summaries = [path.read_text() for path in tree.glob("save/student_model/*mine*/summary.json")]
    assert len(summaries) == 1 and "last_acc" in summaries[0]


def test_a_sweep(tree: Path, python: Path) -> None:
    _, _, table = run(tree, "A sweep that is stopped and goes on", python)
    rows = [line for line in table.splitlines() if re.match(r"\| digits \| resnet8 ", line)]
    assert len(rows) == 3 and all("| 3 |" in row for row in rows)
    assert (tree / "save" / "page.html").is_file()
