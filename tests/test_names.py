"""helper/ knows no method and no network; one file and one import line add a method."""

import ast
import shutil
import subprocess
import sys

import pytest
from conftest import QUICK, ROOT

import crd  # noqa: F401
from distiller_zoo import find_method, method_names
from models import model_names

NAMES = {*method_names(), *(alias for name in method_names() for alias in find_method(name).aliases), *model_names()}


@pytest.mark.parametrize("path", sorted((ROOT / "helper").glob("*.py")), ids=lambda path: path.name)
def test_helper_names_no_method_and_no_network(path):
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert node.value not in NAMES, f"{path.name}:{node.lineno}"
        for field in ("id", "attr", "arg", "name", "asname"):
            assert getattr(node, field, None) not in NAMES, f"{path.name}:{node.lineno}"


METHOD = '''"""A throw-away method."""

from torch import Tensor

from .base import Batch, Distiller, Output, Pair


class Mean(Distiller, name="throwaway", aliases=("thrown",)):
    """Pulls the mean logits together."""

    weights = (1.0, 0.0, 0.5)

    def __init__(self, pair: Pair, *, throw_scale: float = 1.0) -> None:
        super().__init__(pair)
        self.scale = throw_scale

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return self.scale * (s.logits.mean(0) - t.logits.mean(0)).square().sum()
'''


def test_one_file_and_one_line_add_a_method(tmp_path, teacher):
    for name in ("models", "distiller_zoo", "crd", "dataset", "helper"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_student.py", tmp_path)
    (tmp_path / "distiller_zoo" / "throwaway.py").write_text(METHOD)
    with open(tmp_path / "distiller_zoo" / "__init__.py", "a") as file:
        file.write("from .throwaway import Mean as Mean\n")
    command = [sys.executable, "train_student.py", *QUICK, "--path_t", str(teacher), "--epochs", "1"]
    done = subprocess.run(
        [*command, "--distill", "thrown", "--throw_scale", "3", "--run_name", "r"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = (tmp_path / "save" / "student_model" / "r" / "options.json").read_text()
    assert '"throwaway"' in options and '"throw_scale": 3.0' in options and '"beta": [\n      0.5\n    ]' in options
