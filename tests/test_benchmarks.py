"""The benchmarks run; how fast is nothing that a test can say."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from test_stream import make_imagenet

from helper.util import has_arithmetic

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
