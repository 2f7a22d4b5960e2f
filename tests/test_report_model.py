"""scripts/report_model.py and helper/worth.py: what they say of a network is so. How fast it is, no test can say."""

import csv
import json
import re
import shlex
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, ROOT, plausible
from torch import nn

import dataset
import models
import train_student
import train_teacher
from helper import checkpoint, worth
from scripts import report_model, report_table

ONNX = all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not ONNX, reason="needs onnx, onnxscript, onnxruntime")
SMALL = [*QUICK, "--image_size", "16", "--epochs", "1"]


# ---- helper/worth.py ----


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (nn.Conv2d(6, 8, 3, padding=1), (6, 10, 12), 10 * 12 * 8 * 6 * 9),
        (nn.Conv2d(6, 8, (3, 1), stride=2, bias=False), (6, 9, 9), 4 * 5 * 8 * 6 * 3),
        (nn.Conv2d(6, 12, 3, groups=6), (6, 5, 5), 9 * 12 * 1 * 9),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)), (3, 2, 2), 70),
        (nn.BatchNorm2d(6).eval(), (6, 4, 4), 0),
    ],
)
def test_multiply_adds_by_the_closed_formula(layer, shape, expected):
    assert worth.multiply_adds(layer, torch.randn(1, *shape)) == expected


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_multiply_adds_of_attention():
    """4 heads, 9 tokens of 8 numbers: scores, and sums weighted by them."""
    assert worth.multiply_adds(Attention(), torch.randn(1, 4, 9, 8)) == 2 * 4 * 9 * 9 * 8


def plain_calibration_error(logits, labels, bins):
    total = 0.0
    for b in range(bins):
        inside = []
        for row, label in zip(logits, labels, strict=True):
            p = row.softmax(0)
            if b / bins < p.max().item() <= (b + 1) / bins:
                inside.append((float(p.argmax() == label), p.max().item()))
        if inside:
            right, confidence = np.mean(inside, 0)
            total += len(inside) / len(labels) * abs(right - confidence)
    return total


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 1000.0])
def test_calibration_error_is_the_plain_loops(scale):
    torch.manual_seed(0)
    logits, labels = scale * torch.randn(200, 5, dtype=torch.float64), torch.randint(5, (200,))
    expected = plain_calibration_error(logits, labels, 15)
    assert worth.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    """Two of four right at 0.9 of confidence; a constant answer is always sure."""
    logits = torch.tensor([0.9, 0.1]).double().log().repeat(4, 1)
    assert worth.calibration_error(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.4)
    assert worth.calibration_error(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)) == 0


def sampled(scale, n=4000):
    """Logits `scale` times as large as those that the labels are drawn from."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(n, 4, dtype=torch.float64)
    return scale * logits, torch.multinomial(logits.softmax(1), 1)[:, 0]


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_temperature_scaling(scale):
    logits, labels = sampled(scale)
    t = worth.temperature(logits, labels)
    assert t == pytest.approx(scale, rel=0.1)
    before, after = F.cross_entropy(logits, labels), F.cross_entropy(logits / t, labels)
    assert after < before if scale != 1 else after <= before
    for other in (0.99 * t, 1.01 * t):
        assert after < F.cross_entropy(logits / other, labels)
    assert torch.equal(logits.argmax(1), (logits / t).argmax(1))
    if scale != 1:
        assert worth.calibration_error(logits / t, labels) < worth.calibration_error(logits, labels)


@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_without_a_best_value_stays_finite(right):
    logits, _ = sampled(1.0, 50)
    labels = logits.argmax(1) if right else logits.argmin(1)
    assert 1e-3 < worth.temperature(logits, labels) < 1e3


def test_halves_have_every_image_once_and_equally_many_of_a_class():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1])
    halves = worth.halves(labels)
    assert sorted(torch.cat(halves).tolist()) == list(range(9))
    counts = [labels[half].bincount(minlength=3) for half in halves]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_times_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(worth, "TURN", 1e-9)
    seen = []
    calls = {key: lambda key=key: seen.append((key, torch.is_grad_enabled())) for key in "abc"}
    found = worth.time_in_turn(calls, rounds=3)
    assert seen == [(key, False) for key in "abc" * 4]  # the first round warms up
    assert list(found) == list("abc") and all(0 < t.low <= t.median <= t.high for t in found.values())


@pytest.mark.parametrize(
    "flags, expected", [("fpu avx2", True), ("fpu avx512_vnni", False), ("fpu avx_vnni", False), (None, False)]
)
def test_cpus_whose_sums_of_bytes_saturate(flags, expected, tmp_path):
    path = tmp_path / "cpuinfo"
    if flags:
        path.write_text(f"processor : 0\nflags : {flags}\n")
    assert worth.saturates(path) is expected


def test_a_copy_in_another_precision_leaves_the_network_as_it_is():
    network = models.create_model("resnet8", 10).eval()
    images = torch.randn(2, 3, 16, 16)
    half = worth.on_device(network, torch.device("cpu"), torch.bfloat16)
    assert half(images).dtype == torch.bfloat16 and next(network.parameters()).dtype == torch.float32
    torch.testing.assert_close(half(images).float(), network(images), rtol=0.1, atol=0.1)


# ---- the script, on real runs ----


def report(*arguments):
    report_model.main([*map(str, arguments), "--device", "cpu", "--rounds", "1"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and two of its students, one wrapped."""
    save = tmp_path_factory.mktemp("runs")
    common = [*SMALL, "--save_folder", str(save), "--run_name"]
    train_teacher.main(["--model", "resnet14", *common, "t"])
    teach = ["--path_t", str(save / "models" / "t" / "last.pth"), "--model_s", "resnet8"]
    for method in ("kd", "simkd"):
        train_student.main([*teach, "--distill", method, *common, method, "--save_predictions"])
    return save


@pytest.fixture(scope="module")
def said(runs, tmp_path_factory):
    """Of both students: the folder of all that is written, and what the JSON file says of each network."""
    out = tmp_path_factory.mktemp("out")
    students = [runs / "student_model" / name for name in ("kd", "simkd")]
    files = [f"--{kind}={out / 'worth'}.{kind}" for kind in ("json", "csv")]
    plot = [f"--plot={out / 'worth.png'}"] if find_spec("matplotlib") else []
    report(*students, *files, *plot, "--keep", out / "keep")
    found = json.loads((out / "worth.json").read_text())
    return SimpleNamespace(out=out, all=found, networks={one["label"]: one for one in found["networks"]})


def predictions(path):
    with open(path, newline="") as file:
        return [int(row["prediction"]) for row in csv.DictReader(file)]


def test_what_the_runs_say_too(runs, said):
    assert list(said.networks) == ["resnet14, teacher", "resnet8, kd", "resnet8, simkd"]
    assert said.all["data"] | {"data_folder": ""} == {
        "dataset": "digits", "data_folder": "", "image_size": 16,
        "limit_train": 100, "limit_val": 50, "test_images": 50,
    }  # fmt: skip
    for name in ("kd", "simkd"):
        folder, found = runs / "student_model" / name, said.networks[f"resnet8, {name}"]
        summary = json.loads((folder / "summary.json").read_text())
        assert found["top1"]["torch"] == pytest.approx(summary["last_acc"])
        assert found["parameters"] == summary["parameters"]
        ours, theirs = (predictions(folder / f"predictions{end}.csv") for end in ("", "_teacher1"))
        assert found["agreement"] == pytest.approx(100 * np.equal(ours, theirs).mean())
        assert found["teacher"] == "resnet14, teacher" and found["temperature"] > 0
    assert "agreement" not in said.networks["resnet14, teacher"]


def test_the_bytes_are_those_of_the_files(said):
    for n, found in enumerate(said.networks.values(), 1):
        stem = said.out / "keep" / f"{n}_{found['network']}"
        for name, size in found["bytes"].items():
            assert size == stem.with_name(f"{stem.name}.{report_model.SUFFIXES[name]}").stat().st_size
        assert found["bytes"]["float16"] < 0.7 * found["bytes"]["float32"]
        assert set(found["bytes"]) == {"float32", "float16", *(("onnx", "int8") if ONNX else ())}
    kept = checkpoint.load(said.out / "keep" / "1_resnet14.float16.pth")["model"]
    assert kept["conv1.weight"].dtype == torch.float16 and kept["bn1.num_batches_tracked"].dtype == torch.int64


@needs_onnx
def test_the_accuracies_are_those_of_the_kept_files(said):
    import onnxruntime

    data = dataset.load("digits", ".", 16, 100, 50)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    images = ((data.val_images.float() / 255 - mean) / std).numpy()
    for n, found in enumerate(said.networks.values(), 1):
        for suffix, way in (("onnx", "onnx"), ("int8.onnx", "int8")):
            session = onnxruntime.InferenceSession(said.out / "keep" / f"{n}_{found['network']}.{suffix}")
            right = session.run(None, {"images": images})[0].argmax(1) == data.val_labels.numpy()
            assert 100 * right.mean() == pytest.approx(found["top1"][way])
        assert found["bytes"]["int8"] < 0.6 * found["bytes"]["onnx"]


class Set(list):
    """Batches with the labels of all."""

    def __init__(self, images, labels):
        super().__init__(SimpleNamespace(images=part) for part in images.split(50))
        self.labels = labels


@needs_onnx
def test_int8_answers_are_those_of_the_int8_file(tmp_path):
    """Labels are what that file predicts, run by hand: it alone is always right."""
    import onnx
    import onnxruntime

    torch.manual_seed(0)
    images = torch.randn(300, 3, 16, 16)
    network = models.create_model("resnet8", 100).eval()  # so many classes that some answers are close
    network.load_state_dict(plausible("resnet8", 100, images))
    plain, int8 = tmp_path / "a.onnx", tmp_path / "a.int8.onnx"
    ways = worth.ways(network, torch.device("cpu"))
    ways |= worth.onnx_ways(network, plain, int8, Set(images[:100], None), threads=1)
    logits = torch.from_numpy(onnxruntime.InferenceSession(int8).run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        assert 0.01 < (logits - network(images)).abs().max() < 1
    facts, predicted = worth.answers_of(network, ways, Set(images, logits.argmax(1)))
    assert facts["top1"]["int8"] == 100 > facts["top1"]["torch"] == pytest.approx(facts["top1"]["onnx"])
    assert worth.share_of_equal(predicted, logits.argmax(1)) == pytest.approx(facts["top1"]["torch"] / 100)
    stored = {x.name: x for x in onnx.load(int8).graph.initializer}
    weights = [x for x in stored.values() if len(x.dims) == 4 and x.data_type != onnx.TensorProto.INT64]
    assert {x.data_type for x in weights} == {onnx.TensorProto.INT8} and len(weights) >= 7
    for x in weights:  # a scale a channel
        assert list(stored[x.name.replace("_quantized", "_scale")].dims) == [x.dims[0]]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_files(said):
    with open(said.out / "worth.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    ways = ["torch", *(("onnx", "int8") if ONNX else ())]
    assert [(line["label"], line["way"]) for line in lines] == [(name, way) for name in said.networks for way in ways]
    for line in lines:
        found = said.networks[line["label"]]
        assert float(line["top1"]) == found["top1"][line["way"]]
        assert int(line["multiply_adds"]) == found["multiply_adds"]
        assert float(line["batch_32_median"]) == found["ms"][line["way"]]["batch_32"]["median"] > 0
    if find_spec("matplotlib"):
        assert (said.out / "worth.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table(said):
    text = report_table.table(said.all["networks"])
    assert max(map(len, text.splitlines())) <= 100
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]
    cells = {row[0]: row[1:] for row in rows[: len(rows) // text.count("| parameters ")]}
    two = list(said.networks.values())[:2]
    assert cells[""] == [one["label"] for one in two]
    assert cells["parameters"] == [f"{one['parameters']:,}" for one in two]
    assert cells["PyTorch float32: top-1, %"] == [f"{one['top1']['torch']:.2f}" for one in two]
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+-[\d.]+\), [\d.]+/s", x) for x in cells["PyTorch float32: batch 32"])


@pytest.mark.parametrize(
    "x, expected", [(0.00123, "0.001"), (0.0754, "0.075"), (9.876, "9.88"), (12.34, "12.3"), (1234.4, "1234")]
)
def test_digits(x, expected):
    assert report_table.digits(x) == expected


def test_labels_do_not_overlap():
    pytest.importorskip("matplotlib")
    from scripts import tradeoff

    points = [
        tradeoff.Point(f"network {n}", way, 5 + n % 3 + k, 70 + n / 20) for n in range(9) for k, way in enumerate("ab")
    ]
    figure = tradeoff.draw("title", points)
    texts = [text for text in figure.axes[0].texts if text.get_text().startswith("network")]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 9 and all(box.count_overlaps(boxes) == 1 for box in boxes)


def test_networks_of_packages(runs, tmp_path, capsys):
    """Attention, and images that they resize themselves."""
    pytest.importorskip("timm")
    data = dataset.load("digits", ".", 16, 100, 50)
    for name in ("timm:test_vit", "torchvision:resnet18"):
        network = models.create_model(name, 10, models.Images((16, 16), data.mean, data.std))
        facts = {"model_name": name, "num_classes": 10, "model": network.state_dict()}
        torch.save(facts, tmp_path / f"{name.partition(':')[2]}.pth")
    command = ["--dataset", "digits", "--image_size", "16", "--limit_train", "40", "--limit_val", "20"]
    report(*sorted(tmp_path.glob("*.pth")), *command)
    out = capsys.readouterr().out
    assert "no rows of ONNX Runtime: " not in out or not ONNX
    assert "timm:test_vit" in out and "torchvision:resnet18" in out


# ---- what is not there ----


def test_without_onnx_runtime_its_rows_are_missing_and_a_line_says_so(runs, monkeypatch, capsys):
    monkeypatch.setattr(report_model, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    report(runs / "student_model" / "kd")
    out = capsys.readouterr().out
    assert "no rows of ONNX Runtime: onnxruntime not installed (pip install onnxruntime)\n" in out
    assert "PyTorch float32: batch 1" in out and "int8" not in out and "ONNX float32" not in out


def test_a_network_that_cannot_be_exported_has_the_other_rows(runs, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(worth, "onnx_ways", fail)
    monkeypatch.setattr(report_model, "find_spec", lambda name: True)
    report(runs / "models" / "t", "--json", tmp_path / "j")
    assert "resnet14: no rows of ONNX Runtime: no such operator\n" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "j").read_text())["networks"]
    assert set(found["bytes"]) == {"float32", "float16"} and set(found["ms"]) == {"torch"}


def test_a_teacher_that_is_gone_and_one_that_is_named(runs, tmp_path, monkeypatch, capsys):
    state = torch.load(runs / "student_model" / "kd" / "last.pth", weights_only=True)
    state["options"]["path_t"] = ["gone.pth"]
    torch.save(state, tmp_path / "moved.pth")
    monkeypatch.setattr(report_model, "find_spec", lambda name: None)
    report(tmp_path / "moved.pth")
    out = capsys.readouterr().out
    assert f"{tmp_path / 'moved.pth'}: its teacher gone.pth is not there; --teacher RUN names one\n" in out
    report(tmp_path / "moved.pth", "--teacher", runs / "models" / "t")
    out = capsys.readouterr().out
    assert "gone.pth" not in out and re.search(r"\| resnet14, teacher +\| resnet8, kd ", out)


def test_a_student_that_teaches_is_named_before_its_teacher_is_measured(runs, tmp_path, monkeypatch):
    """Given in any order, each network is there once, and agreement is with its own teacher."""
    first = runs / "student_model" / "kd" / "last.pth"
    state = torch.load(first, weights_only=True)
    state["options"]["path_t"] = [str(first)]
    torch.save(state, tmp_path / "second.pth")
    monkeypatch.setattr(report_model, "find_spec", lambda name: None)
    report(tmp_path / "second.pth", first, "--json", tmp_path / "j")
    found = json.loads((tmp_path / "j").read_text())["networks"]
    assert [one["label"] for one in found] == ["resnet8, teacher", "resnet8, kd", "resnet14, teacher"]
    assert found[1]["agreement"] == 100  # of a network with itself
    assert found[0]["teacher"] == "resnet14, teacher"


def test_which_checkpoint_of_a_folder(tmp_path):
    for name in ("best.pth", "ckpt_epoch_9.pth", "ckpt_epoch_40.pth", "last.pth"):
        (tmp_path / name).touch()
        assert report_model.checkpoint_in(tmp_path).name == name


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        report(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_the_user_can_mend(runs, tmp_path, monkeypatch, capsys):
    kd, empty = runs / "student_model" / "kd", tmp_path / "empty"
    empty.mkdir()
    assert "nowhere: no such folder" in stopped(capsys, tmp_path / "nowhere")
    assert f"{empty}: no checkpoint in there, expected last.pth" in stopped(capsys, empty)
    (empty / "x.pth").write_bytes(b"no")
    assert "x.pth: truncated, or not a checkpoint" in stopped(capsys, empty / "x.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, empty / "x.pth")
    assert "x.pth: neither the file nor its name or its folder's says" in stopped(capsys, empty / "x.pth")
    torch.save({"model": models.create_model("resnet8", 7).state_dict()}, empty / "resnet8.pth")
    error = stopped(capsys, kd, empty / "resnet8.pth")
    assert "resnet8.pth: has 7 classes, the data set has 10" in error
    assert "has 7 classes, the data set has 10" in stopped(capsys, kd, "--teacher", empty / "resnet8.pth")
    assert "--teacher no: no such folder" in stopped(capsys, kd, "--teacher", "no")
    for flag in ("json", "csv", "plot", "keep"):
        assert f"--{flag} {empty}/no/x: there is no folder" in stopped(capsys, kd, f"--{flag}", empty / "no" / "x")
    assert "expected a name that ends in .png, .pdf, .svg" in stopped(capsys, kd, "--plot", empty / "x.doc")
    with monkeypatch.context() as patch:
        patch.setattr(report_model, "find_spec", lambda name: None)
        assert "needs the package matplotlib (pip install matplotlib)" in stopped(capsys, kd, "--plot", empty / "x.png")
    assert not (empty / "no").exists() and not (empty / "x.doc").exists()


@pytest.mark.parametrize("key, value, expected", [
    ("image_size", 24, "--image_size: 16 in {kd}, 24 in {other}; give the one to measure on"),
    ("dataset", "cifar10", "--dataset: digits in {kd}, cifar10 in {other}; give the one to measure on"),
    ("limit_val", -3, "{other}: its options: expected a whole number of at least 1, found -3"),
    ("dataset", ["x"], "{other}: its options: unknown data set"),
])  # fmt: skip
def test_runs_on_other_images(key, value, expected, runs, tmp_path, capsys):
    kd, other = runs / "student_model" / "kd", tmp_path / "other.pth"
    state = torch.load(kd / "last.pth", weights_only=True)
    state["options"][key] = value
    torch.save(state, other)
    assert expected.format(kd=kd / "last.pth", other=other) in stopped(capsys, kd, other)


# ---- docs/report.md ----


PAGE = (ROOT / "docs" / "report.md").read_text()
COMMANDS = re.findall(r"^python (\S+) (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE)
FEW = "--limit_train 40 --limit_val 20 --batch_size 20 --epochs 1 --device cpu".split()


def test_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_model, "find_spec", lambda name: find_spec(name) if name == "matplotlib" else None)
    scripts = {"train_teacher.py": train_teacher.main, "train_student.py": train_student.main}
    for script, arguments in COMMANDS:
        if script != "scripts/report_model.py":
            scripts[script]([*shlex.split(arguments), *FEW])
            continue
        if "--plot" in arguments and not find_spec("matplotlib"):
            continue
        capsys.readouterr()
        report(*shlex.split(arguments))
        out = capsys.readouterr().out
        assert "digits, 20 test images of 16x16; " in out and "| resnet20, teacher " in out
    assert [script for script, _ in COMMANDS].count("scripts/report_model.py") >= 2


def test_the_page_has_every_row(said):
    for row in report_table.cells(said.networks["resnet8, kd"]):
        assert f"\n| {row} " in PAGE


def test_the_page_names_every_option():
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        found = []
        patch.setattr("argparse.ArgumentParser.print_help", lambda parser: found.extend(parser._option_string_actions))
        report_model.parse(["--help"])
    assert all(f"`{flag}" in PAGE for flag in found if flag.startswith("--") and flag != "--help")
