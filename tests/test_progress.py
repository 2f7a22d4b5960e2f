"""What a run says while it works: bars on a terminal, lines of 100 columns, the time left, and nothing with --quiet."""

import csv
import functools
import io
import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK
from test_dataset import make_tree

import train_student
import train_teacher
from helper import progress, run, sweep
from helper.trainee import Trainee
from helper.util import Stopped


def student(teacher, save, *more):
    train_student.main([*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2", "--save_folder",
                        str(save), "--run_name", "r", *more])  # fmt: skip
    return save / "student_model" / "r"


# ---- lines ----


def row(**more):
    usual = {"epoch": 123, "lr": 0.00123, "train_loss": 12.3456, "train_acc": 100.0, "train_seconds": 1234.56}
    return usual | {"images_per_second": 123456.7, "val_acc": 100.0, "val_acc_top5": 100.0} | more


@pytest.mark.parametrize("remaining, end", [(None, ""), (0.0, ""), (float("nan"), ""), (59, "  00:59 left"),
                                            (445678.0, "  123:47:58 left")])  # fmt: skip
@pytest.mark.parametrize("terms, shown", [({"ce": 1.0}, ""), ({"ce": 1.0, "kd": 11.3456}, " (ce 1.00 kd 11.3)"),
                                          (dict.fromkeys(["ce", "kd", "crd", "fitnet", "at"], 2.5), "")])  # fmt: skip
def test_a_line_of_one_run_fits(terms, shown, remaining, end) -> None:
    line = progress.line_of(row(**{f"loss_{name}": x for name, x in terms.items()}), "epoch 123/240", remaining)
    assert len(line) <= 100 and line.startswith("epoch 123/240  ") and line.endswith(end)
    assert f"  loss 12.3456{shown}  train 100.00  val 100.00  1234.6 s" in line.replace(" (top-5 100.00)", "")
    assert "left" not in line or end


def test_what_there_is_room_for() -> None:
    short = row(train_acc=9.0, val_acc=9.0, val_acc_top5=50.0, train_seconds=1.0, images_per_second=900.0, lr=0.1)
    line = progress.line_of(short, "epoch 1/2", 1)
    assert line == "epoch 1/2  lr 0.1  loss 12.3456  train 9.00  val 9.00  1.0 s  900 images/s  00:01 left"
    first = {key: x for key, x in short.items() if "val" not in key}
    assert (
        progress.line_of(first, "init epoch 1/2", None) == "init epoch 1/2  lr 0.1  loss 12.3456  1.0 s  900 images/s"
    )


@pytest.mark.parametrize("length", [3, 12, 80])
def test_a_line_of_many_students_fits(length) -> None:
    rows = [(f"{'crd -a 1' * 10:.{length}} #{n}", row(val_acc=n / 1.0)) for n in range(101)]
    for some in (rows, rows[:2], [*rows, ("ab #1", {k: x for k, x in row().items() if "val" not in k})]):
        for remaining in (None, 86399.0, 445678.0):
            line = progress.line_of_many(some, remaining)
            assert len(line) <= 100 and line.startswith(f"epoch 123: {len(some)} students")
            assert f"{max(one['val_acc'] for _, one in some if 'val_acc' in one):.0f})" in line
            assert ("  val 0.00/50.00/100.00 (" in line) == (len(some) > 100)
            assert (" (1 init)" in line) == (len(some) == 102)
    assert "epoch 3-123: 2 students" in progress.line_of_many([("kd", row()), ("at", row(epoch=3))], None)
    assert "1 student  val 100.00 (kd)  " in progress.line_of_many([("kd", row())], None)
    assert "2 students (2 init)  2469.1 s" in progress.line_of_many(
        [("ab", {"epoch": 1, "train_seconds": 1234.56, "images_per_second": 1.0})] * 2, None
    )


# ---- time left ----


def trainee(pace, left):
    return SimpleNamespace(pace=lambda: pace, epochs_left=lambda: left)


def test_time_left() -> None:
    one = trainee({"log.csv": 10.0}, {"log.csv": 2.5})
    assert progress.seconds_left([one]) == 25
    assert progress.seconds_left([one], waiting=4) == 65
    unknown = trainee({}, {"init_log.csv": 3.0, "log.csv": 2.0})
    assert progress.seconds_left([unknown]) is None
    assert progress.seconds_left([one, unknown]) == 25 + 50
    both = trainee({"init_log.csv": 2.0, "log.csv": 10.0}, {"init_log.csv": 1.0, "log.csv": 3.0})
    assert progress.seconds_left([both]) == 2 + 30
    finished = trainee({"log.csv": 5.0}, {})
    assert progress.seconds_left([finished]) == 0


def test_the_pace_is_that_of_the_log_or_of_the_steps_so_far(teacher, tmp_path, monkeypatch, capsys) -> None:
    """After a step that of the epoch, in the second epoch that of the first, and so it is after a stop."""
    seen, step = [], Trainee.step

    def looked(self, *given):
        step(self, *given)
        self.meters.elapsed, self.meters.together = 8.0 * self.meters.steps, float("inf")  # a step takes 8 seconds
        seen.append((self.pace(), self.epochs_left()))
        if len(seen) == 6:
            raise Stopped(15, "a step")

    monkeypatch.setattr(Trainee, "step", looked)
    with pytest.raises(SystemExit):
        student(teacher, tmp_path, "--distill", "none", "--save_steps", "1")
    assert seen[0] == ({"log.csv": 32.0}, {"log.csv": 1.75}) and seen[2] == ({"log.csv": 32.0}, {"log.csv": 1.25})
    (pace, left) = seen[4]
    assert left == {"log.csv": 0.75} and pace["log.csv"] > 0
    capsys.readouterr()
    monkeypatch.setattr(Trainee, "step", step)
    folder = student(teacher, tmp_path, "--distill", "none")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"continuing {folder} after step 2 of epoch 2/2  00:32 left"


def test_a_sweep_says_where_it_goes_on(teacher, tmp_path, monkeypatch, capsys) -> None:
    def stopping(self, *given, end_epoch=Trainee.end_epoch):
        row = end_epoch(self, *given)
        if self.epoch == 2 and self.label == "kd":
            raise Stopped(15, "an epoch")
        return row

    command = [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(tmp_path)]
    command += ["--epochs", "2", "--sweep", "none; kd; at", "--at_once", "2"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainee, "end_epoch", stopping)
        train_student.main(command)
    capsys.readouterr()
    train_student.main(command)
    said = capsys.readouterr().out
    assert re.search(r"^continuing 2 of 2 students at epoch 2/2  \d\d:\d\d left$", said, re.M)
    assert len(re.findall("^continuing", said, re.M)) == 1
    waits = SimpleNamespace(job=SimpleNamespace(opt=SimpleNamespace(epochs=9)), run=SimpleNamespace(state=None))
    assert sweep.epochs_of(waits) == 9
    waits.run.state = {"done": {"init_log.csv": 2, "log.csv": 4}}
    assert sweep.epochs_of(waits) == 5
    assert sweep.resumed(["a", "b", "a", "c"], 5) == "continuing 4 of 5 students a, b, ..."


# ---- bars ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch) -> Terminal:
    """What bars are drawn on from here on, each time that they change."""
    found = Terminal()
    monkeypatch.setattr("sys.stderr", found)  # in the test itself: pytest sets it before
    monkeypatch.setattr(progress, "DELAY", 0)
    init = functools.partialmethod(progress.tqdm.__init__, mininterval=0, ncols=120)
    monkeypatch.setattr(progress.tqdm, "__init__", init)
    return found


def test_bars_of_training(teacher, tmp_path, monkeypatch) -> None:
    terminal = shown(monkeypatch)
    student(teacher, tmp_path, "--distill", "kd", "--print_freq", "1", "--val_split", "20")
    said = terminal.getvalue()
    bar = r"epoch 1/2  67%\|[^|]*\| 2/3, loss \d+\.\d{4}  acc \d+\.\d\d  \d+ images/s  \d\d:\d\d left"
    assert re.search(bar, said) and "epoch 2/2" in said, said
    assert all(f"\r{label}: " in said for label in ("teacher's validation", "validation", "test")), said


def test_bars_of_a_sweep_and_of_a_test(teacher, tmp_path, monkeypatch) -> None:
    terminal = shown(monkeypatch)
    command = [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(tmp_path)]
    train_student.main([*command, "--epochs", "1", "--sweep", "none; kd", "--print_freq", "1"])
    bar = r"epoch 1 of 2 students  50%\|[^|]*\| 2/4, acc [\d.]+/[\d.]+/[\d.]+  \d+ images/s  \d\d:\d\d left"
    assert re.search(bar, terminal.getvalue())
    terminal.truncate(0)
    train_teacher.main([*QUICK, "--test_only", str(teacher)])
    assert "\rtest: 100%" in terminal.getvalue()


def test_a_bar_of_decoding(tmp_path, monkeypatch) -> None:
    terminal = shown(monkeypatch)
    command = ["--dataset", "folder", "--data_folder", str(make_tree(tmp_path)), "--image_size", "8", "--batch_size"]
    command += ["4", "--device", "cpu", "--model", "resnet8", "--epochs", "1", "--save_folder", str(tmp_path / "save")]
    train_teacher.main([*command, "--quiet"])
    assert not terminal.getvalue()
    for cache in tmp_path.glob(".cache*"):
        cache.unlink()
    train_teacher.main([*command, "--run_name", "r"])
    assert "\rdecoding images: 100%" in terminal.getvalue()


# ---- --quiet ----


def test_quiet(teacher, tmp_path, capsys, monkeypatch) -> None:
    """Results alone, on a terminal too; it may change when a run goes on."""
    terminal = shown(monkeypatch)
    folder = student(teacher, tmp_path, "--distill", "kd", "--quiet")
    result = capsys.readouterr().out
    assert re.fullmatch(r"last epoch \(2\): .* %   best \(epoch \d\): .* %\nrun folder: .*\n", result)
    assert not terminal.getvalue()
    student(teacher, tmp_path, "--distill", "kd", "--quiet")
    assert capsys.readouterr().out == result
    (folder / "summary.json").unlink()
    student(teacher, tmp_path, "--distill", "kd")
    assert capsys.readouterr().out == f"continuing {folder} after its last epoch\n" + result
    assert "\repoch" not in terminal.getvalue() and "\rtest" not in terminal.getvalue()
    command = [*QUICK, "--path_t", str(teacher), "--save_folder", str(tmp_path / "sweep"), "--epochs", "1"]
    train_student.main([*command, "--sweep", "none; kd", "--at_once", "1", "--quiet"])
    assert capsys.readouterr().out.startswith("\n| student | seeds |")


def test_errors_are_told_quietly(teacher, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        student(teacher, tmp_path, "--distill", "kd", "--quiet", "--path_s", "no.pth")
    assert stop.value.code == 2 and "--path_s no.pth: no such file" in capsys.readouterr().err


# ---- terms of the loss ----


def rows_of(folder, name="log.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_the_terms_add_up_to_the_loss(teacher, tmp_path) -> None:
    folder = student(teacher, tmp_path, "--distill", "crd,ab", "--nce_k", "16", "-a", "0.5", "--init_epochs", "1")
    rows = rows_of(folder)
    assert list(rows[0])[: len(run.COLUMNS)] == list(run.COLUMNS)
    assert list(rows[0])[len(run.COLUMNS) :] == ["loss_ce", "loss_kd", "loss_crd"]
    for one in rows:
        terms = [float(one[key]) for key in ("loss_ce", "loss_kd", "loss_crd")]
        assert sum(terms) == pytest.approx(float(one["train_loss"]), rel=1e-9) and all(terms)
    (first,) = rows_of(folder, "init_log.csv")
    assert first["loss_ab"] == first["train_loss"]
    (events,) = folder.glob("events*")
    assert all(name in events.read_bytes() for name in (b"loss_ce", b"loss_kd", b"loss_crd", b"init_loss_ab"))


def test_a_checkpoint_of_before_goes_on(teacher, tmp_path, monkeypatch) -> None:
    """One whose log has no columns of terms: its rows have none, and the others are as they would be."""
    expected = student(teacher, tmp_path / "whole", "--distill", "kd")

    def stopping(self, name, row, log=run.Run.log):
        log(self, name, row)
        if row["epoch"] == 2:
            raise Stopped(15, "an epoch")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run.Run, "log", stopping)
        student(teacher, tmp_path / "cut", "--distill", "kd")
    last = tmp_path / "cut" / "student_model" / "r" / "last.pth"
    state = torch.load(last, weights_only=True)
    lines = [line.split(",")[: len(run.COLUMNS)] for line in state["logs"]["log.csv"].splitlines()]
    state["logs"]["log.csv"] = "".join(",".join(line) + "\n" for line in lines)
    del state["options"]["quiet"]
    torch.save(state, last)
    (first, second), (whole, other) = rows_of(student(teacher, tmp_path / "cut", "--distill", "kd")), rows_of(expected)
    assert (first["loss_ce"], first["loss_kd"]) == ("", "") and first["val_loss"] == whole["val_loss"]
    assert all(second[key] == other[key] for key in ("train_loss", "loss_ce", "loss_kd", "val_loss"))


# ---- teachers are remembered ----


@pytest.fixture
def validated(monkeypatch):
    """A list that grows by an accuracy with each validation of a teacher."""
    found, validate = [], sweep.validate

    def counted(*given):
        row = validate(*given)
        found.append(row["val_acc"])
        return row

    monkeypatch.setattr(sweep, "validate", counted)
    return found


def accuracy(folder):
    return json.loads((folder / "summary.json").read_text()).get("teacher_acc")


def test_a_teacher_is_validated_once(teacher, tmp_path, validated) -> None:
    """What would give another number is validated: other weights, other images. So it is where the file is broken."""
    kd = ("--distill", "kd", "--epochs", "1", "--resume", "never")
    folder = student(teacher, tmp_path, *kd)
    expected = json.loads((teacher.parent / "summary.json").read_text())["last_acc"]
    assert accuracy(folder) == expected and validated == [expected]
    assert accuracy(student(teacher, tmp_path, *kd, "--learning_rate", "0.1")) == expected and len(validated) == 1
    memory = tmp_path / "teacher_acc.json"
    kept = json.loads(memory.read_text())
    assert list(kept.values()) == [expected] and list(kept)[0].startswith("resnet14 ")
    student(teacher, tmp_path, *kd, "--limit_val", "40")
    assert len(validated) == 2 and len(json.loads(memory.read_text())) == 2
    other = torch.load(teacher, weights_only=True)
    other["model"]["fc.bias"] += torch.arange(10.0)
    torch.save(other, tmp_path / "other.pth")
    student(tmp_path / "other.pth", tmp_path, *kd)
    assert len(validated) == 3 and kept.items() <= json.loads(memory.read_text()).items()
    for content in ("{", "[1]", json.dumps(dict.fromkeys(kept, "high") | {"theirs": 1}), json.dumps({}), "\0\xff"):
        memory.write_text(content)
        assert accuracy(student(teacher, tmp_path, *kd)) == expected
        assert json.loads(memory.read_text()) == kept
    assert len(validated) == 3 + 5
    memory.unlink()
    memory.mkdir()
    assert accuracy(student(teacher, tmp_path, *kd)) == expected and len(validated) == 9


def test_where_no_teacher_is_asked_none_is_validated(teacher, tmp_path, validated) -> None:
    folder = student(teacher, tmp_path / "none", "--distill", "none")
    assert accuracy(folder) is None and not validated and not (tmp_path / "none" / "teacher_acc.json").exists()
    folder = student(teacher, tmp_path, "--distill", "kd")
    (expected,) = validated
    (tmp_path / "teacher_acc.json").unlink()
    student(teacher, tmp_path, "--distill", "kd", "--export", "torchscript")
    assert (folder / "student.pt").is_file() and len(validated) == 1
    (folder / "summary.json").unlink()
    assert accuracy(student(teacher, tmp_path, "--distill", "kd")) == expected and len(validated) == 1


def test_a_run_that_goes_on_knows_its_teacher(teacher, tmp_path, validated, monkeypatch) -> None:
    def stopping(self, name, state, save=run.Run.save):
        save(self, name, state)
        if name == "last.pth":
            raise Stopped(15, "an epoch")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run.Run, "save", stopping)
        student(teacher, tmp_path, "--distill", "kd")
    (tmp_path / "teacher_acc.json").unlink()
    assert accuracy(student(teacher, tmp_path, "--distill", "kd")) == validated[0] and len(validated) == 1
