"""Our losses and gradients equal the reference numbers in tests/golden/."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from check_golden import ADAPTERS, check, read_manifest

FOLDER = Path(__file__).parent / "golden"
METHODS = read_manifest(FOLDER)
CASES = [(m, v) for m, entry in METHODS.items() if m in ADAPTERS for v in entry["variants"]]


@pytest.mark.parametrize(("method", "variant"), CASES, ids=lambda x: x)
def test_golden(method: str, variant: str) -> None:
    check(FOLDER, METHODS[method], method, variant)


def test_every_adapter_has_numbers() -> None:
    assert set(ADAPTERS) <= set(METHODS)


@pytest.mark.parametrize("key", ["main/out/loss", "main/grad/f_s", "main/gradp/embed_s.bias", "main/param/tau"])
def test_a_wrong_number_is_found(tmp_path: Path, key: str) -> None:
    """The check, run as a program from elsewhere, fails on one altered array and names the case."""
    entry = METHODS["icd"] | {"variants": {"main": METHODS["icd"]["variants"]["main"]}}
    manifest = {"format": {}, "methods": {"icd": entry, "unheard_of": entry}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    arrays = dict(np.load(FOLDER / "icd.npz"))
    program = [sys.executable, str(Path(__file__).parent / "check_golden.py"), str(tmp_path)]
    for factor, status, line, last in (
        (1.0, 0, "ok  icd/main", "1 passed, 0 failed"),
        (1.0 + 1e-6, 1, "FAIL icd/main: ", "0 passed, 1 failed"),
    ):
        np.savez(tmp_path / "icd.npz", **(arrays | {key: arrays[key] * arrays[key].dtype.type(factor)}))
        result = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
        lines = result.stdout.splitlines()
        assert (result.returncode, lines[-1]) == (status, last), result.stdout + result.stderr
        assert lines[0].startswith(line) and lines[1] == "skip unheard_of: no such method here"
        assert lines[2] == "not here: unheard_of"
