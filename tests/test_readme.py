"""README and pages name what there is, with the weights that hold; their links and files exist."""

import re

import pytest
from conftest import ROOT

import crd  # noqa: F401
from dataset import dataset_names
from distiller_zoo import find_method, method_names
from models import model_names

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README = PAGES["README.md"]
METHODS = PAGES["methods.md"]


def test_the_readme_groups_every_method_once():
    rows = README.split("| what is compared |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", rows.split("|\n", 1)[1])) == sorted(method_names())


@pytest.mark.parametrize(
    ("page", "name"),
    [
        *[("methods.md", name) for name in method_names()],
        *[("networks.md", name) for name in model_names()],
        *[("data.md", name) for name in dataset_names()],
    ],
)
def test_every_name_stands_in_its_page(page, name):
    assert f"`{name}`" in PAGES[page]


@pytest.mark.parametrize("name", method_names())
def test_methods_with_their_aliases_and_weights(name):
    row = next(line for line in METHODS.splitlines() if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert tuple(re.findall(r"`(\w+)`", cells[1])) == find_method(name).aliases
    assert tuple(float(n) for n in re.findall(r"[\d.]+", cells[2])) == find_method(name).weights


@pytest.mark.parametrize("page", PAGES)
def test_files_that_it_mentions_exist(page):
    for path in re.findall(r"(?<![\w/])(?:scripts|tests|results|configs|benchmarks)/[\w./-]+\w", PAGES[page]):
        assert (ROOT / path).exists() or path.startswith("results/FOLDER"), path
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\((?!http)([^)#]*)", PAGES[page]):
        assert (folder / link).exists(), link


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
