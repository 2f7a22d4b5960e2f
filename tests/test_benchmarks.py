"""The benchmarks run; how fast is nothing that a test can say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tape import Tape
from test_stream import make_imagenet

import dataset
from helper import captured
from helper.devices import has_arithmetic

sys.path.insert(0, str(ROOT / "benchmarks"))

from loader import main as time_loaders  # noqa: E402
from sample import Slice  # noqa: E402
from step_time import table  # noqa: E402


def test_step_time(tmp_path):
    options = "--pair resnet8:resnet8 --methods kd --amp off bf16 --images 200 --batch_size 8 --repeats 2 --steps 2"
    command = [sys.executable, ROOT / "benchmarks" / "step_time.py", *options.split(), "--threads", "1"]
    command += ["--options=--image_size 16", "--out", tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "new" / "step_time.json").read_text())["rows"]
    assert [row["amp"] for row in rows] == ["off", "bf16"]
    assert all(len(row["images_per_second"]) == 2 and min(row["images_per_second"]) > 0 for row in rows)
    lines = (tmp_path / "new" / "step_time.md").read_text().splitlines()
    assert lines[-2].startswith("| kd |") and lines[-1].startswith("| kd bf16 |")


def test_a_slice_counts_what_follows_the_warm_up_over_the_ends_of_epochs():
    part = Slice(lambda epoch: [(epoch, [0] * 4)] * 3, warm_up=2, steps=5, seconds=1e9)
    assert [epoch for epoch, _ in part.epoch(1)] == [1, 1, 1, 2, 2, 2, 3]
    assert (part.done, part.images) == (5, 20) and part.end > part.start > 0
    part = Slice(lambda epoch: [(epoch, [0] * 4)] * 3, warm_up=1, steps=5, seconds=0.0)
    assert len(list(part.epoch(1))) == 2


def test_ratios_in_the_table_are_taken_round_by_round():
    row = {"pair": ["t", "s"], "stage": "", "amp": "off", "group": 0, "peak_memory_mb": 1, "start_to_first_step": 2}
    kd, peer, crd = (
        row | {"method": method, "side": side, "images_per_second": speeds}
        for method, side, speeds in [
            ("kd", "ours", [8, 4, 6]), ("kd", "peer", [4, 1, 3]), ("crd", "ours", [4, 1, 3])
        ]
    )  # fmt: skip
    lines = table({"rows": [kd, peer, crd]}).splitlines()
    assert lines[0] == "t > s"
    assert [cell.strip() for cell in lines[4].split("|")][1:6] == ["kd", "6.0", "3.0", "2.00", "1.00"]
    assert [cell.strip() for cell in lines[5].split("|")][1:6] == ["crd", "3.0", "", "", "2.00"]


def test_loaders(tmp_path):
    for size, loaders in ((32, 3), (80, 2)):
        options = (
            f"--dataset imagenet --image_size {size} --images 6 --batch_size 2 --repeats 2 --num_workers 1".split()
        )
        make_imagenet(tmp_path / str(size))
        time_loaders([*options, "--data_folder", str(tmp_path / str(size)), "--out", str(tmp_path)])
        found = json.loads((tmp_path / f"loader_{size}.json").read_text())["images_per_second"]
        assert len(found) == loaders and all(len(speeds) == 2 and min(speeds) > 0 for speeds in found.values())
        lines = (tmp_path / f"loader_{size}.md").read_text().splitlines()
        assert len(lines) == 2 + loaders and lines[-1].endswith("| 1.00 |")


@pytest.mark.parametrize(
    "flags, amp, has",
    [
        ("flags\t: fpu avx2 avx512f", "bf16", False),
        ("flags\t: fpu avx2 avx512_bf16", "bf16", True),
        ("Features\t: fp asimd fphp bf16", "fp16", True),
        ("Features\t: fp asimd", "fp16", False),
        ("", "bf16", True),
    ],
)
def test_half_precision_that_a_cpu_only_emulates(flags, amp, has, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert has_arithmetic(amp, tmp_path / "cpuinfo") == has


def suite(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess:
    small = {"DEVICE": "cpu", "PAIR": "resnet14:resnet8", "METHODS": "kd,at,kdsvd", "SECONDS_ALL": "60"}
    small |= {"CHECK_OPTIONS": "--images 100 --batch_size 16 --options=--image_size=8", "FAST": ""}
    small |= {"STEP_OPTIONS": "--images 200 --batch_size 8 --repeats 1 --steps 2 --warm_up 1 --seconds 0.1 --threads 1"}
    small["STEP_OPTIONS"] += " --options=--image_size=16"
    environment = os.environ | {"PYTHON": sys.executable, "RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"} | small
    command = ["bash", str(ROOT / "benchmarks" / "gpu_suite.sh")]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True)


def test_gpu_suite(tmp_path):
    """Every part, on a CPU, where nothing is recorded."""
    done = suite(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    end = done.stdout[done.stdout.index("## recorded") :]
    assert end.count("| no | 0.0e+00 | ok |") == 6 and end.count("| 0 of ") == 8 and "FAILED" not in end
    for row in ("kd", "crd", "nst", "sweep", "at bf16", "kdsvd bf16"):
        assert f"\n| {row} | " in end


def test_gpu_suite_says_which_part_failed(tmp_path):
    done = suite(tmp_path, PARTS="recorded steps", METHODS="kd", STEP_OPTIONS="--nonsense")
    assert done.returncode == 2 and "error: failed: steps" in done.stderr, done.stdout + done.stderr


def test_what_differs_fails(tmp_path, monkeypatch, capsys):
    """Recorded where nothing can be recorded, and a step that is not what it was."""
    monkeypatch.setattr(dataset.base, "_datasets", dict(dataset.base._datasets))  # a benchmark adds one
    import gpu_check

    monkeypatch.setattr(captured, "recorder", lambda graph, stream: Tape() if graph == "auto" else None)
    few = "--device cpu --pair resnet14:resnet8 --images 120 --batch_size 16 --methods kd,at".split()
    with pytest.raises(SystemExit) as stop:
        gpu_check.main([*few, "--options=--image_size 8", "--parts", "recorded", "--out", str(tmp_path)])
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and out.count("| yes | ") == out.count("FAILED") == 4, out
    assert "4 rows failed: kd float32, at float32, kd bf16, at bf16" in error
