"""`pip install .` and `pip install -e .`: the folders can be imported from anywhere, with what they need."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("pip")
pytest.importorskip("setuptools", minversion="77")  # which builds the package here, so that nothing is fetched

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


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
