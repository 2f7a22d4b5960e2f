"""A run is its options and what it was made of: weights and images by their content, whatever their place."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from kill_harness import equal, results
from PIL import Image
from test_digest import make_tree

import evaluate_kd
import models
import train_student
import train_teacher
import transfer_student
from helper import checkpoint, export
from helper.run import Run
from helper.trainee import Trainee
from scripts import summarize

RUN = ["--epochs", "3", "--run_name", "r"]


def student(teacher: Path, save: Path, *more: str) -> list[str]:
    place = ["--path_t", str(teacher), "--save_folder", str(save)]
    return [*QUICK, *RUN, *place, "--model_s", "resnet8", "--distill", "kd", *more]


def on_tree(data: Path, save: Path, *more: str) -> list[str]:
    where = ["--dataset", "folder", "--data_folder", str(data), "--image_size", "16", "--save_folder", str(save)]
    return [*RUN, *where, "--model", "resnet8", "--batch_size", "4", "--num_workers", "1", "--device", "cpu", *more]


def refused(main: Callable, arguments: list[str], capsys, *messages: str) -> str:
    """Runs a script in this process. Returns its one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    for message in messages:
        assert re.search(message, error), (message, error)
    return error


def lost(main: Callable, arguments: list[str], epoch: int = 3) -> None:
    """The run, lost at the end of that epoch."""

    def log(self: Run, name: str, row: dict, real=Run.log) -> None:
        if row["epoch"] == epoch:
            raise RuntimeError("power cut")
        real(self, name, row)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Run, "log", log)
        main(arguments)


def finished(main: Callable, arguments: list[str], capsys) -> None:
    """The command says that the run is finished, and trains nothing."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "step", None)
        main(arguments)
    assert "this run is finished" in capsys.readouterr().out


def altered(source: Path, target: Path) -> None:
    """A checkpoint of the same network with other weights."""
    state = torch.load(source, weights_only=True)
    state["model"]["fc.bias"] = state["model"]["fc.bias"] + 1
    torch.save(state, target)


def same(found: Path, expected: Path) -> None:
    for a, b in zip(results(found), results(expected), strict=True):
        if isinstance(a, dict):
            a.get("options", {}).pop("path_t", None), b.get("options", {}).pop("path_t", None)
            a.get("options", {}).pop("data_folder", None), b.get("options", {}).pop("data_folder", None)
        assert equal(a, b)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    """A finished student's folder."""
    save = tmp_path_factory.mktemp("whole")
    train_student.main(student(teacher, save))
    return save / "student_model" / "r"


@pytest.fixture(scope="module")
def cut_short(teacher, tmp_path_factory) -> Path:
    """The save folder of the same student, lost in its last epoch."""
    save = tmp_path_factory.mktemp("cut")
    lost(train_student.main, student(teacher, save))
    return save


@pytest.fixture
def cut(cut_short, tmp_path) -> Path:
    return shutil.copytree(cut_short, tmp_path / "save")


# ---- what an earlier run has left ----


def test_afresh_means_without_anything_of_the_run_before(teacher, tmp_path):
    """All that the project writes goes, and nothing else."""
    more = ["--save_predictions", "--export", "torchscript,pt2", "--save_freq", "1"]
    train_student.main(student(teacher, tmp_path, *more, "--distill", "ab", "--init_epochs", "1"))
    folder = tmp_path / "student_model" / "r"
    (folder / "student.onnx").touch()
    (folder / "last.prev.pth").touch()
    (folder / ".best.pth.123.tmp").touch()
    own = {"notes.txt", "my_log.csv", "my.pth", "predictions_of_mine.csv", "best.pth.old", ".notes.tmp", "my.json"}
    for name in own:
        (folder / name).touch()
    events = {path.name for path in folder.glob("events*")}
    assert events and len(list(folder.glob("predictions*.csv"))) == 3 and (folder / "init_log.csv").is_file()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainee, "step", lambda *given: 1 / 0)
        train_student.main(student(teacher, tmp_path, "--resume", "never"))
    left = {path.name for path in folder.iterdir()} - own
    assert {name for name in left if not name.startswith("events")} == {"options.json", ".lock"}
    assert not left & events and all((folder / name).is_file() for name in own)


def exported(folder: Path) -> None:
    """The exported network has the weights of the run's last checkpoint."""
    with pytest.warns(match="deprecated"):
        found = torch.jit.load(folder / "student.pt").state_dict()
    assert equal(dict(found), torch.load(folder / "last.pth", weights_only=True)["model"])


@pytest.mark.parametrize("moment", ["before the first step", "before the export"])
def test_an_export_is_of_the_run_that_is_there(moment, teacher, tmp_path, monkeypatch):
    command = student(teacher, tmp_path, "--export", "torchscript")
    train_student.main(command)
    command += ["--learning_rate", "0.2"]
    with monkeypatch.context() as patch, pytest.raises((RuntimeError, TypeError)):
        if moment == "before the export":
            patch.setattr(export, "save", None)
        else:
            patch.setattr(Trainee, "step", None)
        train_student.main([*command, "--resume", "never"])
    train_student.main(command)
    exported(tmp_path / "student_model" / "r")


def test_an_export_counts_where_it_names_the_last_weights_and_its_files(teacher, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "student_model" / "r")
    command = student(teacher, tmp_path, "--export", "torchscript")
    train_student.main(command)
    exported(folder)
    good = {name: (folder / name).read_bytes() for name in ("student.pt", "student.json")}
    finished(train_student.main, command, capsys)
    said = json.loads(good["student.json"])
    for name, content in {
        "student.pt": good["student.pt"][:-1],
        "student.json": json.dumps(said | {"weights": "0"}).encode(),
    }.items():
        (folder / name).write_bytes(content)
        train_student.main(command)
        exported(folder)
        finished(train_student.main, command, capsys)
    train_student.main(student(teacher, tmp_path, "--export", "pt2"))
    for formats in ("torchscript", "pt2", "pt2,torchscript"):  # the first is still there
        finished(train_student.main, student(teacher, tmp_path, "--export", formats), capsys)


def test_nothing_is_there_to_be_exported(teacher, whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "student_model" / "r")
    (folder / "last.pth").unlink()
    finished(train_student.main, student(teacher, tmp_path), capsys)
    refused(
        train_student.main, student(teacher, tmp_path, "--export", "torchscript"), capsys,
        f"--export torchscript: {folder} is finished, but its last.pth is gone: there is nothing to export",
    )  # fmt: skip


# ---- weights ----


def other_weights(main: Callable, arguments: list[str], capsys, flag: str, *paths: Path) -> None:
    digests = [checkpoint.digest(checkpoint.load(path)) for path in paths]
    words = f"{flag} {re.escape(str(paths[0]))}.* {digests[0]}.* {digests[1]}"
    refused(main, arguments, capsys, "holds a run that began with other weights", words)


def test_a_teacher_overwritten(teacher, whole, cut, tmp_path, capsys):
    file = tmp_path / "t.pth"
    altered(teacher, file)
    more = ["--model_t", "resnet14"]
    other_weights(train_student.main, student(file, cut, *more), capsys, "--path_t", file, teacher)
    other_weights(train_student.main, student(file, whole.parents[1], *more), capsys, "--path_t", file, teacher)
    other_weights(train_student.main, [*student(file, cut, *more), "--test_only"], capsys, "--path_t", file, teacher)
    train_student.main(student(file, cut, *more, "--resume", "never"))
    assert json.loads((cut / "student_model/r/options.json").read_text())["made_of"]["weights"] == {
        "path_t": [checkpoint.digest(checkpoint.load(file))]
    }


def test_a_teacher_elsewhere(teacher, whole, cut, tmp_path, monkeypatch, capsys):
    """The same weights in another place, as another kind of file."""
    shutil.copy(teacher, tmp_path / "x.pth")
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(teacher, weights_only=True)["model"], bare)
    monkeypatch.chdir(tmp_path)
    for path in ("x.pth", "./x.pth", bare):
        more = ["--model_t", "resnet14"] if path == bare else []
        finished(train_student.main, student(path, whole.parents[1], *more), capsys)
    train_student.main(student("../" + tmp_path.name + "/x.pth", cut))
    same(cut / "student_model" / "r", whole)


def test_a_teacher_that_is_gone(teacher, whole, cut, tmp_path, capsys):
    """A finished run does not need it."""
    gone = tmp_path / "gone" / "last.pth"
    finished(train_student.main, student(gone, whole.parents[1]), capsys)
    finished(train_student.main, student(gone, whole.parents[1], "--model_t", "resnet14"), capsys)
    train_student.main([*student(gone, whole.parents[1]), "--test_only"])
    refused(train_student.main, student(gone, cut), capsys, f"--path_t {gone}: no such file")
    refused(train_student.main, student(gone, tmp_path / "new"), capsys, f"--path_t {gone}: no such file")
    more = ["--model_t", "resnet20"]
    refused(train_student.main, student(gone, whole.parents[1], *more), capsys, "--model_t was .'resnet14'., is")
    named = cut / "resnet14_of_mine"
    named.mkdir()
    shutil.copy(teacher, named / "last.pth")
    options = whole / "options.json"
    text = options.read_text()
    for known in ([], ["resnet14", "x"], [1], "resnet14", None):
        told = json.loads(text)
        told["options"]["model_t"] = known
        options.write_text(json.dumps(told))
        refused(train_student.main, student(gone, whole.parents[1]), capsys, f"--path_t {gone}: no such file")
    options.write_text(text)
    command = student(named / "last.pth", cut)
    del command[command.index("--run_name") : command.index("--run_name") + 2]
    train_student.main(command)  # the folder's name is made of the teacher's network
    shutil.rmtree(named)
    finished(train_student.main, command, capsys)


def test_a_start_overwritten_moved_and_gone(whole, tmp_path, capsys):
    """--path_s of students and of probes."""
    start = tmp_path / "resnet8_start" / "s.pth"
    start.parent.mkdir()
    for main, kind, own in (
        (train_student.main, "student_model", ["--distill", "none", "--model_s", "resnet8"]),
        (transfer_student.main, "transfer", []),
    ):
        shutil.copy(whole / "last.pth", start)
        command = [*QUICK, *RUN, *own, "--save_folder", str(tmp_path)]
        lost(main, [*command, "--path_s", str(start)])
        altered(whole / "last.pth", start)
        other_weights(main, [*command, "--path_s", str(start)], capsys, "--path_s", start, whole / "last.pth")
        main([*command, "--path_s", str(whole / "last.pth")])
        assert (tmp_path / kind / "r" / "summary.json").is_file()
        other_weights(main, [*command, "--path_s", str(start)], capsys, "--path_s", start, whole / "last.pth")
        finished(main, [*command, "--path_s", str(tmp_path / "gone" / "x.pth")], capsys)
        more = ["--run_name", "new", "--path_s", f"{tmp_path}/gone/x.pth"]
        refused(main, [*command, *more], capsys, "--path_s .*/gone/x.pth: no such file")


def test_several_teachers(teacher, whole, tmp_path, capsys):
    others = [tmp_path / "a.pth", tmp_path / "b.pth"]
    shutil.copy(teacher, others[0])
    altered(teacher, others[1])
    command = [*QUICK, *RUN, "--distill", "kd", "--save_folder", str(tmp_path / "save"), "--path_t"]
    train_student.main([*command, *map(str, others)])
    finished(train_student.main, [*command, str(teacher), str(others[1])], capsys)
    other_weights(train_student.main, [*command, str(others[1]), str(teacher)], capsys, "--path_t", others[1], teacher)
    refused(train_student.main, [*command, str(teacher)], capsys, "--model_t was .*resnet14.*, is|other weights")


def test_published_weights(teacher, tmp_path, monkeypatch, capsys):
    """Those of the packages; a finished run does not ask for them."""
    weights = torch.load(teacher, weights_only=True)["model"]
    monkeypatch.setattr(models, "published_weights", lambda name: dict(weights))
    command = [*QUICK, *RUN, "--save_folder", str(tmp_path), "--distill", "kd", "--pretrained_t", "--model_t=resnet14"]
    lost(train_student.main, command)
    now = weights | {"fc.bias": weights["fc.bias"] + 1}
    with monkeypatch.context() as patch:
        patch.setattr(models, "published_weights", lambda name: now)
        words = f"--pretrained_t resnet14.* {checkpoint.digest(now)}.* {checkpoint.digest(weights)}"
        refused(train_student.main, command, capsys, words)
    train_student.main(command)
    monkeypatch.setattr(models, "published_weights", None)
    finished(train_student.main, command, capsys)


def test_sweeps(teacher, tmp_path, capsys):
    """Each student's folder says what it would say alone, and each is checked."""
    for save, items in ((tmp_path / "alone", ["none", "kd"]), (tmp_path / "sweep", ["none; kd"])):
        for item in items:
            command = [*QUICK, "--epochs", "1", "--save_folder", str(save), "--path_t", str(teacher)]
            train_student.main([*command, "--sweep" if ";" in item else "--distill", item])
    told = {
        save.name: {p.parent.name: json.loads(p.read_text())["made_of"] for p in save.rglob("options.json")}
        for save in (tmp_path / "alone", tmp_path / "sweep")
    }
    assert told["alone"] == told["sweep"] and len(told["sweep"]) == 2
    altered(teacher, tmp_path / "t.pth")
    command[-1] = str(tmp_path / "t.pth")
    arguments = [*command, "--model_t", "resnet14", "--sweep", "none; kd"]
    other_weights(train_student.main, arguments, capsys, "--path_t", tmp_path / "t.pth", teacher)
    command[-1] = str(tmp_path / "gone.pth")
    finished(train_student.main, [*command, "--model_t", "resnet14", "--sweep", "none; kd"], capsys)


def test_options_json_repeats_a_run_with_what_is_there_now(teacher, whole, tmp_path):
    """What a run was made of are no options."""
    config = json.loads((whole / "options.json").read_text())
    altered(teacher, tmp_path / "t.pth")
    config["options"] |= {"path_t": [str(tmp_path / "t.pth")], "save_folder": str(tmp_path), "epochs": 1}
    (tmp_path / "options.json").write_text(json.dumps(config))
    train_student.main(["--config", str(tmp_path / "options.json")])
    told = json.loads((tmp_path / "student_model" / "r" / "options.json").read_text())["made_of"]
    assert told["data"] == config["made_of"]["data"] and told["weights"] != config["made_of"]["weights"]


# ---- images ----


def add(root: Path) -> None:
    shutil.copy(root / "train" / "bee" / "0.bmp", root / "train" / "bee" / "9.bmp")


def replace(root: Path) -> None:
    Image.new("RGB", (8, 8), 7).save(root / "train" / "bee" / "1.bmp")


def remove(root: Path) -> None:
    (root / "val" / "cat" / "2.bmp").unlink()


def rename(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "ant").rename(root / part / "dog")


def new_class(root: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(root / part / "bee", root / part / "dog")


CHANGES = {
    "added": (add, "number of training images was 6, is 7"),
    "replaced": (replace, "training images"),
    "removed": (remove, "number of validation images was 6, is 5"),
    "renamed": (rename, r"class names .gone: ant; new: dog."),
    "another class": (new_class, r"class names .gone: none; new: dog."),
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    """A run on a folder of images: finished, lost, and its data."""
    place = tmp_path_factory.mktemp("trees")
    data = make_tree(place / "data")
    train_teacher.main(on_tree(data, place / "whole"))
    lost(train_teacher.main, on_tree(data, place / "cut"))
    return {"data": data, "whole": place / "whole", "cut": place / "cut"}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images(change, trees, tmp_path, capsys):
    """Between a kill and the resume, and after the end."""
    data = shutil.copytree(trees["data"], tmp_path / "data")
    alter, message = CHANGES[change]
    alter(data)
    for name in ("cut", "whole"):
        folder = shutil.copytree(trees[name], tmp_path / name) / "models" / "r"
        if change == "replaced" and name == "whole":
            Image.new("RGB", (9, 9), 7).save(data / "train" / "bee" / "1.bmp")  # of another size, which names it
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        words = f"{folder} holds a run on other data: .*{message}.*; --data_folder {data}"
        refused(train_teacher.main, on_tree(data, tmp_path / name), capsys, words)
        refused(train_teacher.main, on_tree(data, tmp_path / name, "--export", "pt2"), capsys, words)
        refused(train_teacher.main, on_tree(data, tmp_path / name, "--test_only"), capsys, words)
        assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    train_teacher.main(on_tree(data, tmp_path / name, "--resume", "never"))


def test_images_elsewhere(trees, tmp_path, capsys):
    """A folder may move, be copied, and for a finished run be gone; names of files alone are no other data."""
    data = shutil.copytree(trees["data"], tmp_path / "a" / "data", copy_function=shutil.copy)
    finished(train_teacher.main, on_tree(data, trees["whole"]), capsys)
    train_teacher.main(on_tree(data, trees["whole"], "--test_only"))
    train_teacher.main(on_tree(tmp_path / "gone", trees["whole"]))
    said = capsys.readouterr().out
    assert "this run is finished" in said and "its images are not there to be compared: --dataset folder: " in said
    cut = shutil.copytree(trees["cut"], tmp_path / "cut")
    train_teacher.main(on_tree(data, cut))
    same(cut / "models" / "r", trees["whole"] / "models" / "r")
    (data / "val" / "ant" / "0.bmp").rename(data / "val" / "ant" / "1.bmp")
    finished(train_teacher.main, on_tree(data, trees["whole"]), capsys)


def test_a_finished_run_opens_no_image(trees, capsys, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr("dataset.cache._load", None)
    finished(train_teacher.main, on_tree(trees["data"], trees["whole"]), capsys)


def test_images_that_stay_in_their_files(tmp_path, capsys):
    data = make_tree(tmp_path / "data")
    command = on_tree(data, tmp_path, "--loader", "stream", "--epochs", "1")
    train_teacher.main(command)
    finished(train_teacher.main, command, capsys)
    (data / "val" / "ant" / "0.bmp").rename(data / "val" / "ant" / "1.bmp")
    refused(train_teacher.main, command, capsys, "other data: files of validation images")


def test_other_subsets_say_what_differs(teacher, cut, capsys, monkeypatch):
    """Sets that are always in memory too: another version of the program may give other images."""
    import dataset

    real = dataset.load

    def load(*given):
        data = real(*given)
        data.train_images = data.train_images.flip(3)
        return data

    monkeypatch.setattr(dataset, "load", load)
    refused(train_student.main, student(teacher, cut), capsys, "holds a run on other data: training images; --data")


def test_the_table_keeps_data_apart(tmp_path, capsys):
    """Seeds are averaged where weights and images are the same, wherever they were."""
    data = {name: make_tree(tmp_path / name / "images") for name in ("a", "b", "c")}
    rename(data["c"])
    for seed, name in enumerate(data):
        command = on_tree(data[name], tmp_path / "save", "--epochs", "1", "--trial", str(seed), "--run_name", name)
        train_teacher.main(command)
    summarize.main([str(tmp_path / "save")])
    lines = [line for line in capsys.readouterr().out.splitlines() if "resnet8" in line]
    assert sorted(re.findall(r"\| (\d) \|", " ".join(lines))) == ["1", "2"] and all("data=" in line for line in lines)


def test_the_table_keeps_teachers_apart(teacher, tmp_path, capsys):
    other = tmp_path / "other.pth"
    altered(teacher, other)
    shutil.copy(teacher, tmp_path / "same.pth")
    for seed, path in enumerate((teacher, tmp_path / "same.pth", other)):
        more = ["--model_t", "resnet14", "--epochs", "1", "--seed", str(seed), "--run_name", str(seed)]
        train_student.main(student(path, tmp_path, *more))
    summarize.main([str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "resnet8" in line]
    assert sorted(re.findall(r"\| (\d) \|", " ".join(lines))) == ["1", "2"] and all("path_t=" in line for line in lines)


# ---- logs ----

EDITS = {
    "no last line end": lambda text: text.rstrip("\n"),
    "words": lambda text: text.replace("0.05", "a lot"),
    "fewer columns": lambda text: "\n".join(line.partition(",")[0] for line in text.splitlines()) + "\n",
    "not UTF-8": lambda text: text + "\udcff",
    "a huge field": lambda text: text + "1," + "9" * 200000 + "\n",
    "gone": None,
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_log(edit, teacher, whole, cut, capsys):
    """The checkpoint says what was measured; the file is written anew from it."""
    log = cut / "student_model" / "r" / "log.csv"
    if EDITS[edit]:
        log.write_text(EDITS[edit](log.read_text()), errors="surrogateescape")
    else:
        log.unlink()
    train_student.main(student(teacher, cut))
    same(log.parent, whole)
    log.write_bytes(b"\xff")
    finished(train_student.main, student(teacher, cut), capsys)
    train_student.main(student(teacher, cut, "--export", "torchscript"))
    same_but_export = [name for name in results(log.parent)[3] if not name.startswith("student.")]
    assert same_but_export == results(whole)[3] and log.read_text().count("\n") == 4


def test_log_and_checkpoint_say_the_same(whole):
    text = torch.load(whole / "last.pth", weights_only=True)["logs"]["log.csv"]
    assert (whole / "log.csv").read_text() == text
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_acc"]) == json.loads((whole / "summary.json").read_text())["last_acc"]


LOGS = {
    "none": (None, "not a checkpoint that a run can go on from"),
    "a row is missing": ({"log.csv": "epoch,val_acc\n1,2\n"}, "log.csv: expected a row for each of 2 epochs"),
    "words": ({"log.csv": "epoch,val_acc\n1,x\n2,y\n"}, "not as this run leaves it"),
    "a list": ({"log.csv": [1]}, "not as this run leaves it"),
    "another log": ({}, "log.csv: expected a row for each of 2 epochs"),
}


@pytest.mark.parametrize("name", LOGS)
def test_checkpoints_without_their_rows(name, teacher, cut, capsys):
    """Of an older version, or of strangers: before anything is trained."""
    logs, message = LOGS[name]
    path = cut / "student_model" / "r" / "last.pth"
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in (state | {"logs": logs}).items() if v is not None}, path)
    path.with_name("last.prev.pth").unlink()
    refused(train_student.main, student(teacher, cut), capsys, message)


def test_what_does_not_fit_is_said_whole(teacher, cut, capsys):
    path = cut / "student_model" / "r" / "last.pth"
    state = torch.load(path, weights_only=True)
    state["model"]["fc.bias"] = torch.zeros(9)
    torch.save(state, path)
    words = r"size mismatch for fc.bias: .*torch.Size\(\[9\]\).* torch.Size\(\[10\]\)"
    refused(train_student.main, student(teacher, cut), capsys, words)


def test_the_suite_reads_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = f"--mode nokd --student resnet8 --dataset digits --epochs 2 --results-dir {tmp_path}".split()
    command += "--limit_train 100 --limit_val 50 --device cpu".split()
    evaluate_kd.main(command)
    (curves,) = tmp_path.rglob("*_curves.csv")
    before = curves.read_text()
    for log in tmp_path.rglob("log.csv"):
        log.write_text("epoch,val_acc\n1,x\n")
    evaluate_kd.main(command)
    assert curves.read_text() == before
    (last,) = tmp_path.rglob("last.pth")
    state = torch.load(last, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "logs"}, last)
    refused(evaluate_kd.main, command, capsys, f"the run's {last}: lacks the accuracy of each epoch")


# ---- all at once ----


def test_everything_moves(teacher, tmp_path, capsys, monkeypatch):
    """A project that is moved, and its data folder renamed: resume, finished runs, --test_only, sweeps, the table."""
    old, new, moved = tmp_path / "old", tmp_path / "new", tmp_path / "moved"
    make_tree(old / "data")

    def commands(place: Path) -> dict[str, tuple[Callable, list[str]]]:
        images = place / ("images" if place in (new, moved) else "data")
        data = ["--dataset", "folder", "--data_folder", str(images), "--image_size", "16", "--device", "cpu"]
        common = [*data, "--batch_size", "4", "--epochs", "3", "--save_folder", str(place / "save")]
        files = {name: str(place / "save" / kind / name / "last.pth") for kind, name in
                 (("models", "resnet8_t"), ("student_model", "resnet8_s"))}  # fmt: skip
        taught = [*common, "--path_t", files["resnet8_t"], "--model_s", "resnet8"]
        return {
            "teacher": (train_teacher.main, [*common, "--model", "resnet8", "--run_name", "resnet8_t"]),
            "student": (train_student.main, [*taught, "--distill", "kd", "--run_name", "resnet8_s"]),
            "from it": (train_student.main, [*taught, "--distill", "sp", "--path_s", files["resnet8_s"]]),
            "probe": (transfer_student.main, [*common, "--path_s", files["resnet8_s"], "--run_name", "p"]),
            "sweep": (train_student.main, [*taught, "--sweep", "at; pkt -a 1"]),
        }

    for main, arguments in commands(old).values():
        main(arguments)
    expected = {p.parent.name: results(p.parent) for p in (old / "save").rglob("last.pth")}
    shutil.copytree(old, tmp_path / "cut")
    old.rename(new)
    (new / "data").rename(new / "images")
    for name, (main, arguments) in commands(new).items():
        finished(main, arguments, capsys)
        if name != "sweep":
            main([*arguments, "--test_only"])
    for main, arguments in list(commands(tmp_path / "cut").values())[:0:-1]:  # those who begin with others first
        lost(main, [*arguments, "--resume", "never"], epoch=3)
    (tmp_path / "cut").rename(moved)
    (moved / "data").rename(moved / "images")
    rows = {log: log.read_text().splitlines()[:2] for log in moved.rglob("log.csv")}
    capsys.readouterr()
    for name, (main, arguments) in commands(moved).items():
        if name not in ("sweep", "teacher"):
            main([*arguments, "--test_only"])  # of the interrupted run
            assert "this run is finished" not in capsys.readouterr().out
        main(arguments)
        said = capsys.readouterr().out
        assert "this run is finished" in said if name == "teacher" else "continuing" in said
    assert rows == {log: log.read_text().splitlines()[:2] for log in rows}, "the times of the first epoch"
    for path in (moved / "save").rglob("last.pth"):
        for a, b in zip(results(path.parent), expected[path.parent.name], strict=True):
            for part in (a, b) if isinstance(a, dict) and "options" in a else ():
                for key in ("path_t", "path_s", "data_folder"):
                    part["options"].pop(key, None)
            assert equal(a, b), path
    monkeypatch.chdir(tmp_path)
    os.environ.pop("RANK", None)
    summarize.main(["new/save", "moved/save"])
    assert "same options and seed as" in capsys.readouterr().out
