"""`--test_only` validates and leaves everything as it is; `--run_log` keeps what was printed."""

import re

import pytest
import torch
from conftest import QUICK

import train_student
import train_teacher
import transfer_student


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def last_row(folder):
    header, *rows = ((folder / "log.csv").read_text()).splitlines()
    return dict(zip(header.split(","), rows[-1].split(","), strict=True))


def said(row):
    top1, top5 = (f"{float(row[key]):.2f} %" for key in ("val_acc", "val_acc_top5"))
    return f"loss {float(row['val_loss']):.4f}  top-1 {top1}  top-5 {top5}\n"


@pytest.fixture(scope="module")
def runs(teacher, tmp_path_factory):
    """A student, and one that starts from it."""
    save = tmp_path_factory.mktemp("save")
    first = [*QUICK, "--epochs", "2", "--save_folder", str(save), "--distill", "kd", "--path_t", str(teacher)]
    train_student.main([*first, "--run_name", "first"])
    start = save / "student_model" / "first" / "ckpt_epoch_1.pth"
    torch.save(torch.load(start.with_name("last.pth"), weights_only=True), start)
    second = [*first, "--learning_rate", "0.5", "--path_s", str(start), "--run_name", "second"]
    train_student.main(second)
    return {"first": [*first, "--run_name", "first"], "second": second, "save": save}


def only_tested(main, command, expected, save, capsys):
    before = listing(save)
    capsys.readouterr()
    main([*command, "--test_only"])
    assert capsys.readouterr().out.endswith(expected)
    assert listing(save) == before


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_run(name, runs, capsys):
    """Its own last weights, not those that it started from."""
    folder = runs["save"] / "student_model" / name
    only_tested(train_student.main, runs[name], f"{folder}/last.pth: {said(last_row(folder))}", runs["save"], capsys)


def test_an_interrupted_run(runs, tmp_path, capsys):
    folder = tmp_path / "student_model" / "first"
    folder.mkdir(parents=True)
    (folder / "last.pth").write_bytes((runs["save"] / "student_model" / "first" / "last.pth").read_bytes())
    row = last_row(runs["save"] / "student_model" / "first")
    command = [*runs["first"], "--save_folder", str(tmp_path)]
    only_tested(train_student.main, command, f"{folder}/last.pth: {said(row)}", tmp_path, capsys)


@pytest.mark.parametrize("flag", ["--path_s", "--test_only"])
def test_a_file(flag, runs, tmp_path, capsys):
    """No teacher and no run is needed, and a run with other options is not in the way."""
    folder = runs["save"] / "student_model" / "first"
    expected = f"{folder}/last.pth: {said(last_row(folder))}"
    for place in (tmp_path, runs["save"]):
        command = [*QUICK, "--run_name", "second", "--save_folder", str(place)]
        command += ["--test_only"] * (flag == "--path_s") + [flag, f"{folder}/last.pth"]
        before = listing(place)
        train_student.main(command)
        assert capsys.readouterr().out.endswith(expected) and listing(place) == before


def test_teachers_and_probes(teacher, tmp_path, capsys):
    save = teacher.parents[2]
    command = [*QUICK, "--model", "resnet14", "--epochs", "1", "--save_folder", str(save), "--run_name", "t"]
    expected = f"{teacher}: {said(last_row(teacher.parent))}"
    only_tested(train_teacher.main, command, expected, save, capsys)
    other = [*QUICK, "--model", "resnet14", "--save_folder", str(tmp_path), "--test_only", str(teacher)]
    train_teacher.main(other)
    assert capsys.readouterr().out.endswith(expected) and not list(tmp_path.iterdir())
    probe = [*QUICK, "--path_s", str(teacher), "--epochs", "1", "--save_folder", str(tmp_path), "--run_name", "p"]
    transfer_student.main(probe)
    folder = tmp_path / "transfer" / "p"
    only_tested(transfer_student.main, probe, f"{folder}/last.pth: {said(last_row(folder))}", tmp_path, capsys)


@pytest.mark.parametrize("script, command, message", [
    (train_student, "--distill none --test_only", "--test_only: expected a run of these options, but there is no"),
    (train_student, "--test_only {teacher} --model_s resnet8", "--test_only .*: not a resnet8 .the file says "),
    (train_student, "--test_only nowhere.pth", "--test_only nowhere.pth: no such file"),
    (transfer_student, "--path_s {teacher} --test_only", "--test_only: expected a run of these options"),
])  # fmt: skip
def test_refused(script, command, message, teacher, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main([*QUICK, "--save_folder", str(tmp_path / "save"), *command.format(teacher=teacher).split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "save").exists()


def test_other_options_are_told(runs, capsys):
    with pytest.raises(SystemExit) as stop:
        train_student.main([*runs["first"], "--momentum", "0.5", "--test_only"])
    assert stop.value.code == 2 and "--momentum was 0.9, is 0.5" in capsys.readouterr().err


# --run_log

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def without_times(path):
    lines = path.read_text().splitlines()
    assert all(re.match(TIME, line) for line in lines)
    return [re.sub(TIME, "", line) for line in lines]


def test_the_log_has_what_was_printed(teacher, tmp_path, capsys, monkeypatch):
    """All calls behind each other: a run, what has stopped one, the same run again."""
    log = tmp_path / "logs" / "run.log"
    command = [*QUICK, "--distill", "none", "--epochs", "1", "--save_folder", str(tmp_path), "--run_log", str(log)]
    train_student.main(command)
    with pytest.raises(SystemExit):
        train_student.main([*command, "--momentum", "0.5"])
    train_student.main(command)
    out, err = capsys.readouterr()
    lines = without_times(log)
    (error,) = err.splitlines()
    assert "--momentum was 0.9, is 0.5" in error
    assert [line for line in lines if line != error] == out.splitlines()
    assert lines[-3] == "this run is finished; --resume never starts it afresh" and lines.index(error) == len(lines) - 4

    monkeypatch.setattr(train_student, "fit", lambda *args, **kwargs: print("50 %\r60 %") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_student.main([*command, "--run_name", "broken"])
    print("behind it")
    lines = without_times(log)
    assert lines[-1] == "ZeroDivisionError: division by zero" and "60 %" in lines


def test_a_log_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--distill", "none", "--run_log", f"{tmp_path}/file/run.log"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"--run_log {tmp_path}/file/run.log: " in error and error.count("\n") == 1
