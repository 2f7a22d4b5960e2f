"""Training options against torch's and timm's own; runs with all of them go on, and are shared out, like others."""

import csv
import itertools
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, weights
from fakes import batch, sgd_options
from kill_harness import equal, results
from tape import Tape
from test_methods import NAMES, build, example, losses, views_of
from torch import Tensor, nn

import dataset
import models
import train_student
import train_teacher
import transfer_student
from dataset.base import Batch, ImageSet, Mixed, Shared
from distiller_zoo import find_method
from distiller_zoo.criterion import Criterion
from helper import captured, options, parallel, schedules
from helper.labels import LabelLoss, balanced, likelier, repeated
from helper.slow import SlowWeights
from helper.step import Part, Precision, Update, parameter_groups
from helper.trainee import Trainee
from scripts import runs_table

CPU = torch.device("cpu")
RECIPE = "--opt adamw --learning_rate 0.002 --sched cosine --warmup_epochs 1 --min_lr 1e-5 --clip_grad 1 --accumulate 3"
RECIPE += " --aug trivialaugment --reprob 0.3 --mixup 0.4 --cutmix 1"
RECIPE = f"{RECIPE} --smoothing 0.1 --class_weights balanced --ema 0.9 --early_stop 2 --val_split 20".split()


# ---- schedules ----

WARMUPS = [{}, {"warmup_epochs": 3, "warmup_lr": 1e-5}, {"warmup_epochs": 12, "warmup_lr": 0.3}]


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("sched", ["step", "cosine"])
def test_schedules_are_those_of_timm(sched: str, warmup: dict) -> None:
    scheduler = pytest.importorskip("timm.scheduler")
    opt = sgd_options(learning_rate=0.1, epochs=12, sched=sched, min_lr=0.001, **{"warmup_epochs": 0} | warmup)
    opt.lr_decay_epochs, opt.lr_decay_rate = [2, 5, 9], 0.2
    groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr_scale": 0.5}]
    how = {"warmup_epochs": 0, "warmup_lr": 0.0} | warmup
    name = "multistep" if sched == "step" else sched
    how |= {"decay_milestones": [e + 1 for e in opt.lr_decay_epochs], "decay_rate": 0.2, "min_lr": 0.001}
    theirs, epochs = scheduler.create_scheduler_v2(torch.optim.SGD(groups, 0.1), name, 12, **how)
    assert epochs == opt.epochs
    update = Update([{"params": [torch.zeros(1)]}, groups[1] | {}], Precision("off", CPU), opt)
    for epoch in range(1, 13):
        theirs.step(epoch - 1)
        update.set_rate(schedules.of(opt)(epoch))
        if sched == "step" or epoch <= how["warmup_epochs"]:  # a cosine's end is no multiple of a group's rate
            expected = [group["lr"] for group in theirs.optimizer.param_groups]
            assert update.rates() == pytest.approx(expected, rel=1e-12)
        assert update.rates()[0] == pytest.approx(theirs.optimizer.param_groups[0]["lr"], rel=1e-12)


# ---- optimisers ----


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)).double()


def data(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def update_of(network: nn.Module, amp: str = "off", **given) -> Update:
    return Update(parameter_groups([network], []), Precision(amp, CPU), sgd_options(learning_rate=0.01, **given))


def terms(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"ce": F.cross_entropy(network(x), y), "l2": 3 * network(x).square().mean()}


def same(found: nn.Module, expected: nn.Module, tolerance: float = 1e-12) -> None:
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lamb"])
def test_optimisers_are_those_of_their_packages(opt: str) -> None:
    found, expected = small(), small()
    update = update_of(found, opt=opt)
    if opt == "lamb":
        theirs = pytest.importorskip("timm.optim").Lamb(expected.parameters(), 0.01, weight_decay=5e-4)
    elif opt == "adamw":
        theirs = torch.optim.AdamW(expected.parameters(), 0.01, weight_decay=5e-4, fused=False, foreach=False)
    else:
        theirs = torch.optim.SGD(expected.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, foreach=False)
    x, y = data(12)
    for _ in range(5):
        update.step(terms(found, x, y))
        theirs.zero_grad()
        sum(terms(expected, x, y).values()).backward()
        theirs.step()
    same(found, expected, 1e-9)  # a bias before a BatchNorm has gradients of rounding alone


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("longest", [0.01, 1e9])
def test_clipped_gradients(amp: str, longest: float) -> None:
    """Those of the loss, whatever it was scaled by."""
    found, expected = small(), small()
    update = update_of(found, amp, clip_grad=longest)
    theirs = torch.optim.SGD(expected.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    x, y = data(12)
    for _ in range(3):
        update.step(terms(found, x, y))
        theirs.zero_grad()
        sum(terms(expected, x, y).values()).backward()
        nn.utils.clip_grad_norm_(expected.parameters(), longest)
        theirs.step()
    same(found, expected)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_accumulated_gradients_are_those_of_the_whole_batch(opt: str) -> None:
    found, expected = small().eval(), small().eval()
    parts, whole = (update_of(n, opt=opt, clip_grad=0.5, accumulate=k) for n, k in ((found, 4), (expected, 1)))
    x, y = data(64 + 38)
    for start in (0, 64, 0):
        own_x, own_y = x[start : start + 64], y[start : start + 64]
        pieces = list(zip(own_x.split(16), own_y.split(16), strict=True))
        for n, piece in enumerate(pieces):
            share = len(piece[0]) / len(own_x)
            parts.step(terms(found, *piece), Part(share, n == 0, n == len(pieces) - 1))
        whole.step(terms(expected, own_x, own_y))
    same(found, expected)


def test_lamb_without_its_package(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(SystemExit) as stop:
        train_teacher.main([*QUICK, "--opt", "lamb", "--save_folder", str(tmp_path / "s")])
    assert stop.value.code == 2 and "--opt lamb needs the package timm" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


# ---- labels ----


def mixed_labels(n: int, classes: int) -> tuple[Tensor, Tensor, Mixed]:
    torch.manual_seed(0)
    logits = torch.randn(n, classes, dtype=torch.float64, requires_grad=True)
    own, other = torch.randint(classes, (2, n))
    return logits, own, Mixed(other, torch.rand(n))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighed", [False, True])
def test_label_losses(smoothing: float, weighed: bool) -> None:
    """torch's; of mixed labels each loss in its share, and with weights the mean over these."""
    logits, own, mixed = mixed_labels(9, 5)
    w = torch.rand(5, dtype=torch.float64) if weighed else None
    loss, how = LabelLoss(smoothing, w), {"weight": w, "label_smoothing": smoothing}
    assert torch.equal(loss(logits, own), F.cross_entropy(logits, own, **how))
    total = weight = 0.0
    for z, a, b, share in zip(logits, own, mixed.labels, mixed.share.double(), strict=True):
        for label, part in ((a, share), (b, 1 - share)):
            total = total + part * F.cross_entropy(z[None], label[None], **how, reduction="sum")
            weight = weight + part * (1 if w is None else w[label])
    torch.testing.assert_close(loss(logits, own, mixed), total / weight)
    alone = Mixed(mixed.labels, torch.ones(9))
    torch.testing.assert_close(loss(logits, own, alone), loss(logits, own))


def test_class_weights() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    found = balanced(labels, 3)
    assert found.tolist() == pytest.approx([6 / 9, 2.0, 1.0]) and found[labels].mean() == pytest.approx(1)
    with pytest.raises(ValueError, match="class 3 has no training sample"):
        balanced(labels, 4)


def test_weighed_samples_of_several_processes(monkeypatch) -> None:
    """The mean of the processes' terms is the term of all, whose samples weigh unequally."""
    logits, labels, mixed = mixed_labels(7, 5)
    criterion = Criterion()
    criterion.label_loss = LabelLoss(0.1, torch.rand(5, dtype=torch.float64))
    cuts, found = [0, 3, 7], []
    totals = [criterion.label_loss.total(labels[a:b], Mixed(*(x[a:b] for x in mixed))) for a, b in ((0, 3), (3, 7))]
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "all_reduce", lambda x: sum(totals))
    out = models.Output(logits, (), (), logits)
    for rank, (a, b) in enumerate(itertools.pairwise(cuts)):
        whole = Shared(labels, labels, (3, 4), rank)
        part = Batch(None, labels[a:b], labels[a:b], whole, None, Mixed(*(x[a:b] for x in mixed)))
        found.append(criterion(out._replace(logits=logits[a:b]), (), part)["ce"])
    expected = criterion(out, (), Batch(None, labels, labels, mixed=mixed))["ce"]
    torch.testing.assert_close(sum(found) / 2, expected)


def test_views_and_hits_of_mixed_images() -> None:
    _, own, mixed = mixed_labels(4, 5)
    labels, twice = repeated(Batch(None, own, own, mixed=mixed), 2)
    assert torch.equal(labels, own.repeat_interleave(2)) and torch.equal(twice.share[1::2], mixed.share)
    assert repeated(Batch(None, own, own), 1)[1] is None and likelier(Batch(None, own, own)) is own
    mixed = Mixed(mixed.labels, torch.tensor([0.5, 0.4, 1.0, 0.0]))
    expected = [own[0], mixed.labels[1], own[2], mixed.labels[3]]
    assert likelier(Batch(None, own, own, mixed=mixed)).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_methods_that_read_labels_say_so(name: str) -> None:
    """Other labels, or in a later epoch what is kept of a sample, change no loss of the others."""
    found = []
    for shift in (0, 1):
        s, t = example(6 * views_of(name))
        method, seen = build(name, s, t), batch(s, views=views_of(name))
        torch.manual_seed(0)
        for method.epoch in (1, 2):
            values = losses(method, s, t, seen._replace(labels=(seen.labels + shift) % 2))
        found.append([value.item() for value in values])
    assert found[0] == found[1] or find_method(name).one_label


@pytest.mark.parametrize("flag", ["mixup", "cutmix"])
def test_mixed_images_are_refused_by_who_needs_one_label(flag: str) -> None:
    from distiller_zoo import chosen
    from helper.util import UserError

    opt = train_student.parse([*QUICK, "--distill", "crd,at", "--path_t", "t.pth", "-r", "1"])
    setattr(opt, flag, 0.2)
    keywords = train_student.settle(opt)
    with pytest.raises(UserError, match=f"^--{flag}: crd needs one label for each image$"):
        chosen.check(opt, keywords)


# ---- averages ----


def test_the_average_is_that_of_torch() -> None:
    """Of weights and of BatchNorm statistics, from the first step on."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = small()
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    theirs.update_parameters(network)  # torch's first one copies
    ours, update = SlowWeights(network, 0.8), update_of(network)
    for step in range(1, 6):
        update.step(terms(network, *data(12)))
        ours.update(network, step)
        theirs.update_parameters(network)
    found, expected = ours.network.state_dict(), theirs.module.state_dict()
    for key, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)


# ---- runs ----


def command(save: Path, *more: str, script: str = "student") -> list[str]:
    few = "--batch_size 16 --epochs 4 --run_name r".split() + ([] if "cosine" in more else ["--lr_decay_epochs", "2"])
    return [*QUICK, *few, "--save_folder", str(save), *more]


def student(teacher: Path, save: Path, *more: str) -> Path:
    train_student.main(student_command(teacher, save, *more))
    return save / "student_model" / "r"


def student_command(teacher: Path, save: Path, *more: str) -> list[str]:
    return command(save, "--path_t", str(teacher), "--model_s", "resnet8", "--distill", "kd", *more)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    return student(teacher, tmp_path_factory.mktemp("whole"), *RECIPE)


def test_what_a_recipe_leaves(whole) -> None:
    state, logs, summary, _ = results(whole)
    rows = logs["log.csv"]
    falling = [1e-5 + 0.5 * (0.002 - 1e-5) * (1 + math.cos(k * math.pi / 4)) for k in (1, 2, 3)]
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-5, *falling][: len(rows)])
    assert {"test_acc", "test_acc_top5", "best_test_acc", "stopped_early"} <= summary.keys()
    assert all(round(float(row["val_acc"]) / 5, 6).is_integer() for row in rows), "20 samples are validated"
    assert state["made_of"]["data"]["train samples"] == 100
    moved = [key for key, value in state["model"].items() if not torch.equal(value, state["fast"][key])]
    assert len(moved) > 20 and state["optimizer"]["state"][0]["step"].item() == 2 * len(rows)


def test_a_recipe_goes_on_where_it_was_stopped(teacher, whole, tmp_path, monkeypatch, capsys) -> None:
    """In mid-epoch, where an update is whole: of 80 samples in 5 steps after the third and the last."""
    run = student_command(teacher, tmp_path, *RECIPE)
    step, count = Trainee.step, iter(range(1, 1000))

    def stopping(*given: object) -> None:
        step(*given)
        if next(count) in (7, 9):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainee, "step", stopping)
    for place in ("step 3 of epoch 2", "step 5 of epoch 2"):
        with pytest.raises(SystemExit):
            train_student.main(run)
        assert f"stopped after {place}" in capsys.readouterr().err
    train_student.main(run)
    for found, expected in zip(results(tmp_path / "student_model" / "r"), results(whole), strict=True):
        assert equal(found, expected)


def test_saved_where_updates_are_whole(teacher, whole, tmp_path, monkeypatch) -> None:
    """The first such step at or after each second one."""
    saved, save = [], Trainee.pause
    monkeypatch.setattr(Trainee, "pause", lambda self: saved.append(self.meters.steps) or save(self))
    folder = student(teacher, tmp_path, *RECIPE, "--save_steps", "2")
    assert set(saved) == {3}
    assert equal(results(folder)[1], results(whole)[1])


def test_a_sweep_with_one_that_stops_early(teacher, tmp_path) -> None:
    """Each equals its run alone, those that go on too."""
    shared = [*RECIPE, "--epochs", "5"]
    items = ["kd", "kd --early_stop 1 --learning_rate 1e-9 --run_name early", "none --ema 0.5"]
    few = [word for word in student_command(teacher, tmp_path / "sweep", *shared) if word not in ("--run_name", "r")]
    train_student.main([*few, "--sweep", "; ".join(items)])
    for item in items:
        alone = [word if word != str(tmp_path / "sweep") else str(tmp_path / "alone") for word in few]
        train_student.main([*alone, "--distill", *item.split()])
    folders = sorted((tmp_path / "alone" / "student_model").iterdir())
    assert len(folders) == 3
    early = []
    for folder in folders:
        found, expected = results(tmp_path / "sweep" / "student_model" / folder.name), results(folder)
        assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
        early.append(found[2]["stopped_early"])
    assert True in early


def test_early_stop_counts_from_the_best_epoch(tmp_path, monkeypatch, capsys) -> None:
    """Where it is killed before it says that it is finished, the same command says it, with the same words."""
    import helper.trainee

    accuracies = [10.0, 30.0, 30.0, 20.0, 90.0]
    told = iter(accuracies)
    real = helper.trainee.validate

    def validate(*given):
        return real(*given) | {"val_acc": next(told)}

    monkeypatch.setattr(helper.trainee, "validate", validate)
    run = [*command(tmp_path), "--model", "resnet8", "--epochs", "9", "--early_stop", "2"]
    train_teacher.main(run)
    folder = tmp_path / "models" / "r"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["epochs"], summary["best_epoch"], summary["stopped_early"]) == (4, 2, True)
    train_teacher.main(run)
    assert "this run is finished" in capsys.readouterr().out
    (folder / "summary.json").unlink()
    train_teacher.main(run)
    assert json.loads((folder / "summary.json").read_text()) == summary
    told = iter([1.0, 2.0, 3.0])
    train_teacher.main([*run, "--epochs", "3", "--run_name", "never"])
    assert json.loads((tmp_path / "models" / "never" / "summary.json").read_text())["stopped_early"] is False


def test_validation_split(tmp_path) -> None:
    """Balanced, apart from what trains, the same for every seed; the test set is what tells test_acc."""
    labels = torch.arange(60) % 3
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 3, 2, 2)
    given = ImageSet(images, labels, images[:7], labels[:7], ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    apart = dataset.split(given, 9)
    train, val = apart.train_images[:, 0, 0, 0], apart.val_images[:, 0, 0, 0]
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(60))
    assert apart.val_labels.bincount().tolist() == [3, 3, 3] and apart.train_labels.bincount().tolist() == [17] * 3
    assert torch.equal(train % 3, apart.train_labels) and torch.equal(apart.test_images, given.val_images)
    assert torch.equal(dataset.split(given, 9).val_images, apart.val_images)
    for n, message in ((2, "expected 3"), (60, "leave some of 3 classes without"), (61, "expected 3")):
        with pytest.raises(ValueError, match=message):
            dataset.split(given, n)

    plain, own = [*command(tmp_path), "--model", "resnet8"], ["--val_split", "30", "--run_name", "own"]
    train_teacher.main([*plain, *own, "--save_predictions"])
    folder = tmp_path / "models" / "own"
    summary = json.loads((folder / "summary.json").read_text())
    rows = [line.split(",") for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
    hits = [label == prediction for _, label, prediction, *_ in rows]
    assert len(hits) == 50 and summary["test_acc"] == pytest.approx(2 * sum(hits))
    told = runs_table.Run(folder)
    assert (told.last, told.best) == (summary["test_acc"], summary["best_test_acc"])
    best = tmp_path / "best.txt"
    train_teacher.main([*plain, *own, "--test_only", str(folder / "best.pth"), "--run_log", str(best)])
    assert f"top-1 {summary['best_test_acc']:.2f} %" in best.read_text()


def test_accumulated_runs_are_runs_of_large_batches(teacher, tmp_path, monkeypatch) -> None:
    """A probe, whose BatchNorms are in eval mode, in float64; an epoch's last batches are fewer and smaller."""
    plain = dataset.Augment.normalise
    monkeypatch.setattr(dataset.Augment, "normalise", lambda self, x: plain(self, x).double())
    torch.set_default_dtype(torch.float64)
    try:
        found = []
        for size, more in (("32", []), ("8", ["--accumulate", "4"])):
            run = [
                *command(tmp_path / size),
                "--path_s",
                str(teacher),
                "--limit_train",
                "90",
                "--batch_size",
                size,
                "--epochs",
                "2",
            ]
            transfer_student.main([*run, *more, "--clip_grad", "0.5", "--smoothing", "0.1", "--ema", "0.9"])
            found.append(results(tmp_path / size / "transfer" / "r"))
    finally:
        torch.set_default_dtype(torch.float32)
    (state, logs, *_), (other, other_logs, *_) = found
    for key, value in state["model"].items():
        torch.testing.assert_close(other["model"][key], value, rtol=1e-9, atol=1e-9)
    for a, b in zip(logs["log.csv"], other_logs["log.csv"], strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-9)


def test_several_processes_are_one(python, teacher, tmp_path, port) -> None:
    """A whole recipe in float64."""
    from test_parallel import __file__ as script
    from test_parallel import finished, ranks

    found = []
    for n, more in ((1, []), (2, ["--sync_bn"])):
        run = student_command(teacher, tmp_path / str(n), *RECIPE, *more, "--epochs", "2")
        finished(ranks(python, n, script, "float64", *run, port=port))
        found.append(results(tmp_path / str(n) / "student_model" / "r"))
    (state, logs, *_), (other, other_logs, *_) = found
    for part in ("model", "fast"):
        for key, value in state[part].items():
            torch.testing.assert_close(other[part][key].double(), value.double(), rtol=1e-7, atol=1e-7)
    for a, b in zip(logs["log.csv"], other_logs["log.csv"], strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-7)


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_recorded_steps_are_the_steps(accumulate: str, teacher, tmp_path, monkeypatch) -> None:
    """Bit for bit; each part of an update has a recording of its own, which adds to the same gradients."""
    monkeypatch.setattr(Tape, "made", 0)
    monkeypatch.setattr(captured, "recorder", lambda graph, stream: Tape() if graph == "auto" else None)
    tiny = "--image_size 8 --limit_train 120 --batch_size 8 --epochs 5 --limit_val 10 --sched step --lr_decay_epochs 4"
    tiny = [*RECIPE, *tiny.split(), "--accumulate", accumulate, "--early_stop", "9"]
    tiny[tiny.index("--min_lr") : tiny.index("--min_lr") + 2] = []
    plain = results(student(teacher, tmp_path / "plain", *tiny, "--graph", "off"))
    assert Tape.made == 0
    found = results(student(teacher, tmp_path / "taped", *tiny))
    assert Tape.made >= 2 + 2 * int(accumulate)
    for state in (plain[0], found[0]):
        state.pop("options")
    assert all(equal(a, b) for a, b in zip(plain, found, strict=True))


def test_recorded_steps_of_mixed_images(teacher, tmp_path, monkeypatch) -> None:
    """Each with shares and labels of its own, and the hits of those that are larger."""
    monkeypatch.setattr(captured, "recorder", lambda graph, stream: Tape() if graph == "auto" else None)
    plain = dataset.Batches.epoch

    def mixed(self: dataset.Batches, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for step, each in enumerate(plain(self, epoch, start_step), start_step):
            share = torch.rand(len(each.labels), generator=torch.Generator().manual_seed(100 * epoch + step))
            yield each._replace(mixed=Mixed(each.labels.roll(1), share))

    monkeypatch.setattr(dataset.Batches, "epoch", mixed)
    more = "--image_size 8 --limit_train 80 --limit_val 10 --epochs 2 --smoothing 0.1".split()
    found = [results(student(teacher, tmp_path / g, *more, "--graph", g))[:2] for g in ("off", "auto")]
    for state, _ in found:
        state.pop("options")
    assert equal(*found)
    monkeypatch.setattr(dataset.Batches, "epoch", plain)
    other = results(student(teacher, tmp_path / "plain", *more))[1]
    assert other["log.csv"][0]["train_loss"] != found[0][1]["log.csv"][0]["train_loss"]


def test_an_optimiser_that_reads_numbers_runs_as_it_is(teacher, tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(captured, "recorder", lambda graph, stream: Tape() if graph == "auto" else None)
    student(teacher, tmp_path, "--opt", "lamb", "--epochs", "1")
    assert capsys.readouterr().out.count("steps of lamb cannot be recorded and run as they are") == 1


def test_drop_path(tmp_path, monkeypatch) -> None:
    """It trains otherwise, weighs nothing, and a run that goes on has it still."""
    timm = pytest.importorskip("timm")
    name, images = "timm:test_vit", models.Images((32, 32), (0.5,) * 3, (0.5,) * 3)
    network = models.create_model(name, 10, images, 0.4)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    theirs = timm.create_model("test_vit", drop_path_rate=0.4)
    assert rates and rates == [m.drop_prob for m in theirs.modules() if type(m).__name__ == "DropPath"]
    assert network.state_dict().keys() == models.create_model(name, 10, images).state_dict().keys()
    for other in ("resnet8", "torchvision:resnet18", "timm:selecsls42"):
        with pytest.raises(ValueError, match="does not take --drop_path"):
            models.create_model(other, 10, images, 0.4)

    run = ["--model", name, "--drop_path", "0.4", "--epochs", "2", "--batch_size", "32"]
    train_teacher.main([*command(tmp_path / "whole"), *run])
    train_teacher.main([*command(tmp_path / "plain"), *run[:2], *run[4:]])
    step, count = Trainee.step, iter(range(1, 1000))

    def stopping(*given: object) -> None:
        step(*given)
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainee, "step", stopping)
    with pytest.raises(SystemExit):
        train_teacher.main([*command(tmp_path / "cut"), *run])
    train_teacher.main([*command(tmp_path / "cut"), *run])
    cut, whole, plain = (weights(tmp_path / each / "models" / "r" / "last.pth") for each in ("cut", "whole", "plain"))
    assert equal(cut, whole) and not equal(cut, plain)


# ---- refused ----


@pytest.mark.parametrize("config", [{"lr_decay_epochs": [2], "lr_decay_rate": 0.1}, {"momentum": 0.9}])
def test_a_file_may_say_what_has_no_effect(config: dict, tmp_path) -> None:
    """Of a run's own options.json, or of a recipe that the command line changes."""
    (tmp_path / "c.json").write_text(json.dumps(config))
    words = ["--config", str(tmp_path / "c.json"), "--sched", "cosine", "--opt", "adamw"]
    opt = train_teacher.parse(words)
    options.settle_training(opt)
    assert opt.given == {"config", "sched", "opt"}


def test_an_initialisation_has_a_decay_of_its_own(teacher, tmp_path) -> None:
    few = "--sched cosine --lr_decay_rate 0.2 --distill ab --init_epochs 2 --init_lr_decay_epochs 1 --epochs 1".split()
    folder = student(teacher, tmp_path, *few)
    rates = [float(row["lr"]) for row in csv.DictReader((folder / "init_log.csv").read_text().splitlines())]
    assert rates[1] == pytest.approx(0.2 * rates[0])


WRONG = [
    ("--opt adam", "--opt: invalid choice: 'adam'"),
    ("--opt adamw --nesterov", "--nesterov has no effect without --opt sgd"),
    ("--opt adamw --momentum 0.9", "--momentum has no effect without --opt sgd"),
    ("--sched linear", "--sched: invalid choice"),
    ("--sched cosine --lr_decay_epochs 2", "--lr_decay_epochs has no effect without --sched step"),
    ("--sched cosine --lr_decay_rate=0.1", "--lr_decay_rate has no effect without --sched step"),
    ("--min_lr 0.1", "--min_lr has no effect without --sched cosine"),
    ("--warmup_lr 0.1", "--warmup_lr has no effect without --warmup_epochs"),
    ("--warmup_epochs 5", "--warmup_epochs 5: expected at most the --epochs, 4"),
    ("--clip_grad 0", "--clip_grad: expected a number above 0, found 0"),
    ("--accumulate 0", "--accumulate: expected a whole number of at least 1, found 0"),
    ("--smoothing 2", "--smoothing: expected a number from 0 to 1, found 2"),
    ("--class_weights equal", "--class_weights: invalid choice"),
    ("--ema 1.5", "--ema: expected a number from 0 to 1"),
    ("--early_stop 0", "--early_stop: expected a whole number of at least 1"),
    ("--val_split 5", "--val_split 5: expected 10 (one a class) to 100 (all) samples, found 5"),
    ("--val_split 100", "--val_split 100: 100 of 100 training samples leave some of 10 classes without any"),
    ("--drop_path 0.1", "resnet8: does not take --drop_path; timm:NAME networks do"),
]
WRONG_STUDENTS = [
    ("-r 0 --smoothing 0.1", "--smoothing has no effect: the weight of the cross entropy (-r) is 0"),
    ("-r 0 --class_weights balanced", "--class_weights has no effect"),
    ("-r 0 -a 0 -b 1 --distill deit_hard", "-r and -a are both 0: nothing would train the class token's head"),
    ("--sched cosine --lr_decay_rate 0.2", "--lr_decay_rate has no effect without --sched step"),
    ("--sched cosine --lr_decay_rate 0.2 --distill ab", "--lr_decay_rate has no effect without --sched step"),
    ("--ema 0.9 --mcl_tau 0.9", "--ema and --mcl_tau are the same"),
    ("--dot 0.05 --opt adamw", "--dot 0.05: does not support --opt adamw"),
    ("--dot 0.05 --clip_grad 1", "--dot 0.05: does not support --clip_grad"),
    ("--dot 0.05 --accumulate 2", "--dot 0.05: does not support --accumulate"),
    ("--sweep kd;none_--accumulate_2", "--accumulate is the same for all students"),
    ("--sweep kd;none_--val_split_20", "--val_split is the same for all students"),
]


@pytest.mark.parametrize("flags, message", WRONG)
def test_wrong_options(flags: str, message: str, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        train_teacher.main(command(tmp_path / "s", "--model", "resnet8", *flags.split()))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("flags, message", WRONG_STUDENTS)
def test_wrong_options_of_a_student(flags: str, message: str, teacher, tmp_path, capsys) -> None:
    words = [word.replace("_--", " --").replace("_2", " 2") if ";" in word else word for word in flags.split()]
    with pytest.raises(SystemExit) as stop:
        train_student.main(student_command(teacher, tmp_path / "s", *words))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "s").exists()


def test_drop_path_of_a_probe_in_eval_mode(teacher, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        transfer_student.main([*command(tmp_path / "s"), "--path_s", str(teacher), "--drop_path", "0.1"])
    assert "--drop_path has no effect with --probe_bn eval" in capsys.readouterr().err
