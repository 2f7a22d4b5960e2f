"""What the project fetches, and how: pinned, over https, compared with sums, and never run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from torchvision.datasets import CIFAR10, CIFAR100

from dataset import stl10

SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), *(ROOT / "scripts").glob("*.sbatch"), ROOT / ".ci" / "run"]
SCRIPTS += sorted((ROOT / "benchmarks").glob("*.sh"))
SOURCED = {"download.sh", "procedures.sh", "setup.sh", "slurm.sh"}  # by scripts that have set the options


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path):
    text = path.read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    if path.name not in SOURCED:
        assert text.startswith("#!/usr/bin/env bash\n") and re.search(r"^set -euo pipefail$", text, re.M)
    assert not re.search(r"http://(?!127\.0\.0\.1|localhost|\*|\})", code), "http"
    assert not re.search(r"\b(eval|wget)\b|\|\s*(ba)?sh\b|<\(curl", code), "runs what it fetches"
    assert path.name == "download.sh" or not re.search(r"\bcurl\b(?!:)", code), "only download.sh knows how to fetch"
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_code_fetches_over_https():
    for path in {*ROOT.glob("*.py"), *ROOT.glob("*/*.py")} - {*ROOT.glob("tests/*.py")}:
        for line in path.read_text().splitlines():
            assert "http://" not in line or "https://" in line, line  # where it is mended


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_versions_are_exact(path):
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"(#.*|-r requirements\.txt|[\w-]+==[\w.]+(  #.*)?)", line), line


def test_data_sets_come_over_https_with_their_sums(monkeypatch):
    asked = {}
    monkeypatch.setattr(stl10.official, "read", lambda source, *rest: asked.update(source=source) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stl10.stl10("nowhere")
    for source in (CIFAR10, CIFAR100, asked["source"]):
        assert source.url.startswith("https://") and re.fullmatch("[0-9a-f]{32}", source.tgz_md5)


CURL = """#!/usr/bin/env bash
echo "$@" >>"$ASKED"
while [ "$1" != --output ]; do shift; done
echo content >"$2"
"""


def download(tmp_path: Path, url: str, *sums: str) -> tuple[int, str, str]:
    """Status, what curl was asked, error output."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "curl").write_text(CURL)
    (tools / "curl").chmod(0o755)
    asked = tmp_path / "asked"
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "ASKED": str(asked), "PYTHON": sys.executable}
    script = f'source "{ROOT}/scripts/download.sh"; download "$@"'
    command = ["bash", "-euc", script, "-", url, tmp_path / "file", *sums]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, asked.read_text(), done.stderr


def test_download_asks_by_https(tmp_path):
    for url, asked in {
        "https://example.org/x": "--proto =https .* -- https://example.org/x",
        "http://example.org/x": "--proto =https .* -- https://example.org/x",
        "http://127.0.0.1.example.org/x": "--proto =https .* -- https://127.0.0.1.example.org/x",
        "http://127.0.0.1:9/x": "--proto =http,https .* -- http://127.0.0.1:9/x",
    }.items():
        (tmp_path / "file").unlink(missing_ok=True)
        (tmp_path / "asked").unlink(missing_ok=True)
        status, line, _ = download(tmp_path, url)
        assert status == 0 and re.search(asked, line), line
        assert (tmp_path / "file").read_text() == "content\n"


def test_download_compares_sums(tmp_path):
    right = "434728a410a78f56fc1b5899c3593436e61ab0c731e9072d95e96db290205e53"
    status, _, error = download(tmp_path, "https://example.org/x", "0" * 64)
    assert status == 1 and not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()
    assert f"https://example.org/x: expected the SHA-256 {'0' * 64}, found {right}" in error
    assert download(tmp_path, "https://example.org/x", right)[0] == 0 and (tmp_path / "file").exists()
