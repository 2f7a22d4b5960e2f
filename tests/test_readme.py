"""The README names what there is, with the weights that hold."""

import re

import pytest
from conftest import ROOT

import crd  # noqa: F401
from dataset import dataset_names
from distiller_zoo import find_method, method_names
from models import model_names

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", [*method_names(), *model_names(), *dataset_names()])
def test_every_name_stands_in_the_readme(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", method_names())
def test_methods_with_their_aliases_and_weights(name):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert tuple(re.findall(r"`(\w+)`", cells[1])) == find_method(name).aliases
    assert tuple(float(n) for n in re.findall(r"[\d.]+", cells[2])) == find_method(name).weights


@pytest.mark.parametrize("path", re.findall(r"(?:scripts|tests|results|configs)/[\w./-]+\w", README))
def test_files_that_it_mentions_exist(path):
    assert (ROOT / path).exists()
