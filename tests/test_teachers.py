"""Several teachers, methods without one, slow weights, and the predictions that runs save."""

import csv
import itertools
import json
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT, weights
from fakes import batch, output, pair

import models
import train_student
from distiller_zoo import KD, Distiller
from distiller_zoo.base import _methods
from distiller_zoo.criterion import Criterion
from helper.slow import SlowWeights
from scripts import compare_predictions


@pytest.fixture
def method():
    """Registers a class for one test."""
    names = []

    def add(cls: type[Distiller]) -> type[Distiller]:
        names.append(cls.name)
        return cls

    yield add
    for name in names:
        del _methods[name]


def logits(*seeds: int, n: int = 4):
    return [output(logits=torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))) for seed in seeds]


def student(folder, *arguments: str, epochs: int = 1):
    train_student.main([*QUICK, *arguments, "--epochs", str(epochs), "--save_folder", str(folder), "--run_name", "s"])
    return folder / "student_model" / "s"


def test_kd_of_several_teachers_is_the_mean_of_each_ones():
    s, t, u = logits(0, 1, 2)
    kd = KD(pair(s, t))
    both = Criterion(0.0, 0.5, kd)(s, [t, u], batch(s))["kd"]
    assert torch.isclose(both, 0.25 * (kd(s, t, batch(s)) + kd(s, u, batch(s))))


def test_a_method_takes_one_teacher_or_all(method):
    @method
    class All(Distiller, name="takes_all"):
        all_teachers = True

        def forward(self, s, t, batch):
            return sum(x.logits.sum() for x in t)

        init_loss = forward

    s, t, u = logits(0, 1, 2)
    criterion = Criterion(0.0, methods={"takes_all": All(pair(s, t))}, betas=[2.0])
    total = t.logits.sum() + u.logits.sum()
    assert torch.isclose(criterion(s, [t, u], batch(s))["takes_all"], 2 * total)
    assert torch.isclose(criterion.init(s, [t, u], batch(s))["takes_all"], total)


def test_labels_of_all_views_or_of_the_first(method):
    @method
    class First(Distiller, name="first_view"):
        label_all_views = False

    s, t = logits(0, 1, n=6)  # two views of three samples
    three = batch(s)._replace(labels=torch.tensor([1, 2, 3]))
    every = Criterion(1.0, 1.0, KD(pair(s, t)))(s, [t], three)
    expected = torch.nn.functional.cross_entropy(s.logits, torch.tensor([1, 1, 2, 2, 3, 3]))
    assert torch.isclose(every["ce"], expected)
    first = Criterion(1.0, 1.0, KD(pair(s, t)), {"first_view": First(pair(s, t))}, [0.0])(s, [t], three)
    s_first, t_first = (x._replace(logits=x.logits[::2]) for x in (s, t))
    assert torch.isclose(first["ce"], torch.nn.functional.cross_entropy(s_first.logits, three.labels))
    assert torch.isclose(first["kd"], KD(pair(s, t))(s_first, t_first, three))


def test_two_teachers_from_the_command_line(teacher, tmp_path):
    other = tmp_path / "resnet8_other" / "weights.pth"
    other.parent.mkdir()
    torch.save(models.create_model("resnet8", 10).state_dict(), other)
    folder = student(tmp_path, "--path_t", str(teacher), str(other), "--distill", "kd", "--save_predictions")
    opt = json.loads((folder / "options.json").read_text())["options"]
    assert opt["path_t"] == [str(teacher), str(other)] and opt["model_t"] == ["resnet14", "resnet8"]
    assert len(json.loads((folder / "summary.json").read_text())["teacher_acc"]) == 2
    assert {"predictions.csv", "predictions_teacher1.csv", "predictions_teacher2.csv"} <= {
        path.name for path in folder.iterdir()
    }
    # the same run by its own options.json
    train_student.main(["--config", str(folder / "options.json"), "--run_name", "again"])
    again = tmp_path / "student_model" / "again" / "last.pth"
    assert all(torch.equal(a, b) for a, b in zip(weights(folder / "last.pth").values(), weights(again).values()))  # noqa: B905


def refused(capsys, message: str, *arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_wrong_numbers_of_teachers(teacher, capsys):
    two = ("--path_t", str(teacher), str(teacher))
    refused(capsys, "--path_t: sp takes one teacher, found 2", *two, "--distill", "sp")
    refused(capsys, "--path_t: ab takes one teacher, found 2", *two, "--distill", "ab")
    refused(capsys, "--model_t: expected a network for each of 2 --path_t, found 1", *two, "--model_t", "resnet14")
    refused(capsys, "--mcl_tau: expected a number from 0 to 1, found 1.5", "--mcl_tau", "1.5")


def test_published_temperature_of_the_kd_term(method, teacher, tmp_path):
    @method
    class Warm(Distiller, name="warm"):
        weights = (0.5, 0.5, 0.0)
        temperature = 5.0

    train_student.METHOD_OPTIONS["warm"] = {}
    try:
        for options, expected in ([], 5.0), (["--kd_T", "3"], 3.0):
            folder = student(tmp_path / str(expected), "--path_t", str(teacher), "--distill", "warm", *options)
            assert json.loads((folder / "options.json").read_text())["options"]["kd_T"] == expected
    finally:
        del train_student.METHOD_OPTIONS["warm"]


def test_a_method_that_needs_no_teacher(method, tmp_path):
    @method
    class Alone(Distiller, name="alone_test"):
        @classmethod
        def needs_teacher(cls, options):
            return False

        def forward(self, s, t, batch):
            assert t is None
            return s.logits.square().mean()

    train_student.METHOD_OPTIONS["alone_test"] = {}
    try:
        assert (student(tmp_path, "--distill", "alone_test") / "summary.json").is_file()
    finally:
        del train_student.METHOD_OPTIONS["alone_test"]


def test_slow_weights():
    """Floating buffers move, counters are copied, and only every so many steps."""
    torch.manual_seed(0)
    fast = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    slow = SlowWeights(fast, 0.75, 2)
    start = {key: value.clone() for key, value in fast.state_dict().items()}
    with torch.no_grad():
        for value in fast.state_dict().values():
            value.add_(4)
    slow.update(fast, 1)
    assert all(torch.equal(value, start[key]) for key, value in slow.network.state_dict().items())
    slow.update(fast, 2)
    for key, value in slow.network.state_dict().items():
        torch.testing.assert_close(value, start[key] + (4 if key.endswith("num_batches_tracked") else 1))
    assert not any(p.requires_grad for p in slow.network.parameters())


def test_slow_weights_at_the_ends(teacher, tmp_path):
    """tau 1 returns the student as it began; tau 0 at every step the one that was trained."""
    common = ("--path_t", str(teacher), "--path_s", str(teacher), "--model_s", "resnet14", "--distill", "kd")
    plain = weights(student(tmp_path / "plain", *common) / "last.pth")
    start = weights(teacher)
    still = torch.load(student(tmp_path / "still", *common, "--mcl_tau", "1") / "last.pth", weights_only=True)
    moved = weights(student(tmp_path / "moved", *common, "--mcl_tau", "0") / "last.pth")
    assert all(
        torch.equal(still["fast"][key], value) and torch.equal(moved[key], value) for key, value in plain.items()
    )
    counters = [key for key in start if key.endswith("num_batches_tracked")]
    assert all(torch.equal(still["model"][key], value) for key, value in start.items() if key not in counters)


def test_slow_weights_and_trained_ones_both_go_on(teacher, tmp_path, monkeypatch):
    """A run from a run's checkpoint begins with both."""
    common = ("--path_t", str(teacher), "--model_s", "resnet14", "--distill", "kd", "--mcl_tau", "1")
    before = student(tmp_path / "before", *common, "--path_s", str(teacher)) / "last.pth"
    monkeypatch.setattr("helper.step.Update.step", lambda *_: None)
    after = student(tmp_path / "after", *common, "--path_s", str(before)) / "last.pth"
    for kind in ("model", "fast"):
        a, b = (torch.load(path, weights_only=True)[kind] for path in (before, after))
        assert all(torch.equal(a[key], b[key]) for key in a if "running" not in key and "num_batches" not in key)


def test_slow_weights_resume_exactly(teacher, tmp_path):
    options = ("--path_t", str(teacher), "--distill", "kd", "--mcl_tau", "0.9", "--mcl_every", "2")
    whole = student(tmp_path / "whole", *options, epochs=2)
    command = [sys.executable, "train_student.py", *QUICK, *options, "--epochs", "2", "--run_name", "s"]
    command += ["--save_folder", str(tmp_path / "cut")]
    cut = tmp_path / "cut" / "student_model" / "s"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    while not (cut / "last.pth").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    for key in ("model", "fast"):
        a, b = (torch.load(f / "last.pth", weights_only=True)[key] for f in (whole, cut))
        assert all(torch.equal(a[name], b[name]) for name in a)


def write(path, label, prediction):
    lines = [f"{i},{y},{p},0.5" for i, (y, p) in enumerate(zip(label, prediction, strict=True))]
    path.write_text("\n".join(["index,label,prediction,confidence", *lines]) + "\n")


def test_comparison_by_hand(tmp_path, capsys):
    """One sample for each way in which before, after and teacher may be right or wrong; one way twice."""
    ways = [*itertools.product([True, False], repeat=3), (False, True, True)]
    label = [i % 2 for i in range(len(ways))]
    for place, name in enumerate(("before", "after", "teacher")):
        write(tmp_path / name, label, [y if way[place] else 1 - y for y, way in zip(label, ways, strict=True)])
    arguments = [str(tmp_path / name) for name in ("before", "after")]
    table = tmp_path / "table.csv"
    compare_predictions.main([*arguments, "--teacher", str(tmp_path / "teacher"), "--per_class", "--csv", str(table)])
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["class"] for row in rows] == ["all", "0", "1"] and [row["samples"] for row in rows] == ["9", "5", "4"]
    expected = {"before": 4, "after": 5, "delta": 1, "gained": 3, "lost": 2, "teacher": 5, "positive_flips": 3}
    for name, count in expected.items():
        assert float(rows[0][name]) == pytest.approx(100 * count / 9), name
    assert float(rows[0]["transfer_rate"]) == pytest.approx(200 / 3)
    assert float(rows[0]["agreement"]) == pytest.approx(400 / 9)
    assert float(rows[0]["agreement_with_teacher"]) == pytest.approx(500 / 9)
    assert "| all | 9 | 44.44 | 55.56 | 11.11 |" in capsys.readouterr().out
    for name, text in ("short", "index,label,prediction,confidence\n0,1,1,0.5\n"), ("other", "a,b\n1,2\n"):
        (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit) as stop:
            compare_predictions.main([str(tmp_path / name), str(tmp_path / "after")])
        assert stop.value.code == 2 and str(tmp_path) in capsys.readouterr().err


def test_predictions_of_a_run_are_those_of_its_result(teacher, tmp_path, capsys):
    common = ("--path_t", str(teacher), "--path_s", str(teacher), "--model_s", "resnet14", "--save_predictions")
    folder = student(tmp_path, *common, "--learning_rate", "1e-6")
    summary = json.loads((folder / "summary.json").read_text())
    labels, after = compare_predictions.read(folder)
    assert 100 * (labels == after).mean() == pytest.approx(summary["last_acc"])
    _, begun = compare_predictions.read(folder, "predictions_start.csv")
    _, taught = compare_predictions.read(folder, "predictions_teacher1.csv")
    assert (begun == taught).all() and 100 * (taught == labels).mean() == pytest.approx(summary["teacher_acc"])
    capsys.readouterr()
    compare_predictions.main([str(folder)])
    assert "transfer_rate" in capsys.readouterr().out
