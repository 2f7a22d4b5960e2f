"""`pip install .` and `pip install -e .`: the folders can be imported from anywhere, with what they need."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def major(package: str) -> int:
    """0: it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return int(metadata.version(package).split(".")[0])
    return 0


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is installed: building leaves files beside it."""
    here = tmp_path_factory.mktemp("source")
    for name in PROJECT["packages"]:
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md", *(f"{name}.py" for name in PROJECT["py-modules"])]:
        shutil.copy(ROOT / name, here)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, here)
    return here


def install(place: Path, *arguments: str) -> Path:
    """A Python of its own that sees this one's packages, with the project installed."""
    venv.create(place, with_pip=False, symlinks=True)
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    command = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "bin" / "python"


@pytest.mark.skipif(not major("pip") or major("setuptools") < 77, reason="nothing is fetched: both must be here")
@pytest.mark.parametrize("how", [[], ["-e"]], ids=["installed", "editable"])
def test_it_is_found_from_another_folder(how, source, tmp_path):
    python = install(tmp_path / "venv", *how, str(source))
    code = """
import crd, dataset, distiller_zoo, helper, models, train_student
from importlib.metadata import requires
from pathlib import Path
print(Path(models.__file__).parents[1], len(dataset.load("digits", "").classes), "\\n".join(requires("distill")))
"""
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, classes, needed = done.stdout.split(maxsplit=2)
    assert (Path(place) == source) == bool(how) and classes == "10"
    for name in ("", "-extra", "-dev"):
        for line in (ROOT / f"requirements{name}.txt").read_text().splitlines():
            pinned = line.partition("#")[0].strip()
            extra = f'; extra == "{name[1:]}"' if name else ""
            assert not pinned or re.search(f"^{re.escape(pinned + extra)}$", needed, re.M), pinned


def test_every_module_is_installed():
    """A new folder or script is named in pyproject.toml. torch.hub, which reads hubconf.py, has the whole project."""
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(PROJECT["packages"])
    assert {path.stem for path in ROOT.glob("*.py")} - {"hubconf"} == set(PROJECT["py-modules"])
    assert not [path for path in ROOT.glob("*/*/*.py") if path.parts[-3] in folders]


# ---- Dockerfile and templates ----


def test_dockerfile():
    """It is not built here: what it copies and calls is there, and is not left out of the context."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    steps = [line.partition(" ")[::2] for line in lines]
    assert [name for name, _ in steps] == "ARG FROM ARG WORKDIR COPY RUN COPY ENV CMD".split()
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in (value.split()[0] for name, value in steps if name == "COPY"):
        assert (ROOT / source).exists() and source not in ignored[1:]
    program, script = json.loads(steps[-1][1])
    assert (ROOT / script).exists() and f"{program} {script}" in (ROOT / "README.md").read_text()
    for word in re.findall(r"\w+\.py(?= )", (ROOT / "Dockerfile").read_text()):
        assert (ROOT / word).exists()
    pinned = subprocess.run(
        ["grep", "-E", "^torch(vision)?==", "requirements.txt"], cwd=ROOT, capture_output=True, text=True
    )
    assert [line.partition("==")[0] for line in pinned.stdout.split()] == ["torch", "torchvision"]


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.name)
def test_issue_templates(path):
    form = pytest.importorskip("yaml").safe_load(path.read_text())
    assert form.keys() == {"name", "description", "labels", "body"}
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids)) and any(part.get("validations", {}).get("required") for part in form["body"])
    for part in form["body"]:
        assert part["type"] in ("textarea", "input") and part["attributes"]["label"]
