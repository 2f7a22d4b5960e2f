"""The notebook runs from its first cell to its last, and is kept without outputs."""

import json
from importlib.util import find_spec

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def test_it_has_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


@pytest.mark.skipif(
    not all(map(find_spec, ("nbclient", "ipykernel", "matplotlib"))),
    reason="nbclient, ipykernel and matplotlib are optional",
)
def test_it_runs(monkeypatch, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    for key, value in {"SAVE": tmp_path / "save", "EPOCHS": 1, "MPLBACKEND": "agg", "IPYTHONDIR": tmp_path}.items():
        monkeypatch.setenv(key, str(value))
    notebook = nbformat.read(NOTEBOOK, 4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}})
    client.execute()
    *_, last = notebook.cells
    summary = json.loads((tmp_path / "save" / "student_model" / "kd" / "summary.json").read_text())
    assert last.outputs[0].text == f"{summary['last_acc']:.2f} % of 397 images\n"
