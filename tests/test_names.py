"""helper/ knows no method and no network; one file and one import line add a method."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
import torch
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


METHOD = '''"""Throw-away methods."""

import torch
from torch import Tensor, nn

from dataset import Views

from .base import Batch, Distiller, Output, Pair


class Mean(Distiller, name="throwaway", aliases=("thrown",)):
    """Pulls the mean logits together."""

    weights = (1.0, 0.0, 0.5)

    def __init__(self, pair: Pair, *, throw_scale: float = 1.0) -> None:
        super().__init__(pair)
        self.scale = throw_scale

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return self.scale * (s.logits.mean(0) - t.logits.mean(0)).square().sum()


class Twice(Views):
    def stream(self, index, view, steps):
        for images in self.augment.stream(index, view, steps):
            yield torch.stack([images, images.flip(-1)], 1)


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.scale = network, nn.Parameter(torch.ones(()))

    def forward(self, x, is_feat=False):
        out = self.network(x, is_feat=True)
        out = out._replace(logits=out.logits * self.scale)
        return out if is_feat else out.logits


class Views(Distiller, name="twoviews"):
    """Asks for two views of every sample, and for another network around the student."""

    def views(self, augment):
        return Twice(augment)

    def wrap(self, student):
        return Wrapped(student)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        assert batch.images.shape[:2] == (len(batch.labels), 2) and len(s.logits) == 2 * len(batch.labels)
        plain, mirrored = s.logits.unflatten(0, (-1, 2)).unbind(1)
        return (plain - mirrored).square().mean()
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with one file and one import line more."""
    here = tmp_path_factory.mktemp("project")
    for name in ("models", "distiller_zoo", "crd", "dataset", "helper"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_student.py", here)
    (here / "distiller_zoo" / "throwaway.py").write_text(METHOD)
    with open(here / "distiller_zoo" / "__init__.py", "a") as file:
        file.write("from .throwaway import Mean as Mean\n")
    return here


def distil(project, teacher, *arguments):
    command = [sys.executable, "train_student.py", *QUICK, "--path_t", str(teacher), "--epochs", "1", *arguments]
    done = subprocess.run(
        [*command, "--run_name", "r", "--resume", "never"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return project / "save" / "student_model" / "r"


def test_one_file_and_one_line_add_a_method(project, teacher):
    folder = distil(project, teacher, "--distill", "thrown", "--throw_scale", "3")
    options = json.loads((folder / "options.json").read_text())["options"]
    assert (options["distill"], options["throw_scale"], options["beta"]) == (["throwaway"], 3.0, [0.5])


def test_a_method_can_ask_for_views_and_wrap_the_student(project, teacher):
    """What was wrapped is what is trained, validated and saved."""
    folder = distil(project, teacher, "--distill", "twoviews")
    state = torch.load(folder / "last.pth", weights_only=True)["model"]
    assert state["scale"] != 1 and "network.conv1.weight" in state
