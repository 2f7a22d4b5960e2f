"""scripts/summarize.py: on made-up run folders, and on a real quick run with its figures."""

import csv
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import QUICK, ROOT

import crd  # noqa: F401  registers its methods
import train_student
import transfer_student
from distiller_zoo import find_method, method_names
from helper.run import as_csv
from scripts import summarize
from scripts.published import read_published
from scripts.runs_table import Run

OPTIONS = {"dataset": "cifar100", "data_folder": "./data", "epochs": 3, "momentum": 0.9, "device": None}
STUDENT = {"model_s": "resnet8x4", "model_t": ["resnet32x4"], "path_t": ["t/last.pth"], "init_epochs": 30}
WEIGHTS = {"none": (1.0, 0.0, 0.0), "kd": (0.1, 0.9, 0.0), "crd": (1.0, 0.0, 0.8)}


def make_run(folder: Path, accuracies: list[float], seed: int = 1, **options) -> Path:
    """A run folder with these validation accuracies, unfinished where they are fewer than the epochs."""
    folder.mkdir(parents=True)
    if method := options.pop("method", None):
        r, a, b = WEIGHTS[method]
        options = STUDENT | {"distill": [method], "gamma": r, "alpha": a, "beta": [b]} | options
    options = OPTIONS | {"trial": str(seed), "seed": seed, "run_name": None, "save_folder": str(folder)} | options
    (folder / "options.json").write_text(json.dumps({"options": options}))
    rows = [{"epoch": i, "val_acc": accuracy} for i, accuracy in enumerate(accuracies, 1)]
    if rows:
        (folder / "log.csv").write_text(as_csv(rows))
    if len(rows) == options["epochs"]:
        summary = {"last_acc": accuracies[-1], "best_acc": max(accuracies)}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def save(tmp_path: Path) -> Path:
    save = tmp_path / "save"
    make_run(save / "models" / "t", [60.0, 80.0, 79.0], seed=0, model="resnet32x4")
    for seed, last in ((1, 72.0), (2, 73.0), (3, 74.0)):
        make_run(save / "student_model" / f"none_{seed}", [50.0, 75.0, last], seed, method="none")
        make_run(save / "student_model" / f"crd_{seed}", [40.0, 60.0, last + 2], seed, method="crd", nce_k=16384)
    make_run(save / "student_model" / "kd", [1.0, 2.0, 73.5], method="kd", kd_T=4.0)
    return save


def table_of(out: str, kind: str) -> list[dict[str, str]]:
    lines = out.split(f"### {kind}\n\n")[1].splitlines()
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def by_method(out: str, kind: str = "Students") -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in table_of(out, kind)}


def stopped(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        summarize.main(list(map(str, arguments)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


# ---- the table ----


def test_the_table(save, capsys):
    summarize.main([str(save)])
    out = capsys.readouterr().out
    assert [row["method"] for row in table_of(out, "Students")] == ["none", "kd", "crd"]  # the best last
    rows = by_method(out)
    assert rows["crd"] == {
        "data": "cifar100", "network": "resnet8x4", "teacher": "resnet32x4", "method": "crd", "r": "1.0", "a": "0.0",
        "b": "0.8", "seeds": "3", "last epoch": "75.00 ± 1.00", "gain over none": "+2.00 [-0.27, +4.27]",
        "over kd": "+1.50", "published": "75.51 last", "over published": "-0.51", "best epoch": "75.00 ± 1.00",
    }  # fmt: skip
    assert (
        rows["kd"]["last epoch"] == "73.50"
        and rows["kd"]["seeds"] == "1"
        and rows["kd"]["gain over none"].split()[0] == "+0.50"
    )
    assert rows["none"]["best epoch"] == "75.00 ± 0.00" and rows["none"]["gain over none"] == ""
    assert rows["none"]["published"] == "72.50 last" and rows["kd"]["published"] == "73.33 last"
    (teacher,) = table_of(out, "Teachers")
    assert (
        teacher["published"] == "79.42 last"
        and teacher["over published"] == "-0.42"
        and "r" not in teacher
        and "gain over none" not in teacher
    )


def test_published_only_for_its_pairs_and_methods(save, tmp_path, capsys):
    make_run(save / "student_model" / "crdkd", [1, 2, 3], method="crd", alpha=1.0, nce_k=16384)
    summarize.main([str(save)])
    rows = table_of(capsys.readouterr().out, "Students")
    assert next(row for row in rows if row["a"] == "1.0")["published"] == ""  # not crd alone
    other = tmp_path / "other"
    make_run(other / "digits", [1, 2, 3], method="crd", dataset="digits")
    make_run(other / "pair", [1, 2, 3], method="crd", model_s="resnet8")
    summarize.main([str(other)])
    assert "published" not in capsys.readouterr().out


def test_published_numbers():
    published = read_published()
    cifar = [key for key in published if key[0] == "cifar100"]
    kinds = {epoch: [key for key in cifar if published[key].epoch == epoch] for epoch in ("last", "best", "unstated")}
    assert sum(map(len, kinds.values())) == len(cifar)
    assert len([key for key in kinds["last"] if key[2]]) == 13 * 13 - 7  # 13 pairs; FSP lacks 7 of them
    assert len([key for key in cifar if not key[2]]) == 15  # networks alone
    assert published["cifar100", "rrd+kd", "resnet32x4", "ShuffleV2"] == (76.83, "unstated")
    assert published["cifar100", "at", "vgg13", "MobileNetV2"] == (59.4, "last")
    assert published["cifar100", "dkd", "resnet32x4", "resnet8x4"] == (76.32, "best")
    pairs = {key[2:] for key in kinds["last"] if key[2]}
    assert len(pairs) == 13 and {key[2:] for key in cifar if key[2]} == pairs
    plug_ins = {"kd", "standardise", "dot"}
    for _, method, _, _ in cifar:
        name, *more = method.split("+")
        assert name in method_names() and set(more) <= plug_ins
        assert ("kd" in more) <= bool(find_method(name).weights[1] or name in ("crd", "icd", "rrd", "srrl", "ickd"))
    text = (ROOT / "results" / "published.csv").read_text().splitlines()
    assert len(text) - 1 == len(published) and not any("[M]" in line for line in text)
    assert ("cifar100", "fsp", "wrn_40_2", "wrn_40_1") not in published
    assert len(published) - len(cifar) == 8 + 2  # recipes, networks alone


def test_published_on_imagenet(tmp_path, capsys):
    """Published weights say the size that they are for."""
    pair = {"dataset": "imagenet", "model_s": "torchvision:resnet18", "model_t": ["torchvision:resnet34@224"]}
    make_run(tmp_path / "sskd", [1, 2, 70.0], method="none", distill=["sskd"], alpha=0.9, **pair)
    make_run(tmp_path / "l2", [1, 2, 70.0], method="none", distill=["cse_l2"], **pair)
    summarize.main([str(tmp_path)])
    rows = by_method(capsys.readouterr().out)
    assert (rows["sskd"]["published"], rows["cse_l2"]["published"]) == ("70.09 best", "71.08 best")


def test_like_is_compared_with_like(tmp_path, capsys):
    """A best epoch's number with the best epoch, the last one's with the last, an unstated one with neither."""
    for method in ("dkd", "crd", "dist", "dkd,at"):
        make_run(tmp_path / method, [70.0, 78.0, 76.0], method="none", distill=method.split(","), beta=[1.0])
    summarize.main([str(tmp_path), "--out", str(tmp_path / "out")])
    rows = by_method(capsys.readouterr().out)
    found = {method: (row["published"], row["over published"]) for method, row in rows.items()}
    assert found == {
        "dkd": ("76.32 best", "+1.68"), "crd": ("75.51 last", "+0.49"), "dist": ("76.31 unstated", ""),
        "dkd,at": ("", ""),
    }  # fmt: skip
    table = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert {row["method"]: row["published_epoch"] for row in table}["dkd"] == "best"


def test_plug_ins_have_numbers_of_their_own(tmp_path, capsys):
    make_run(tmp_path / "a", [1, 2, 70.0], method="none", distill=["dkd"], standardise=True, beta=[1.0])
    make_run(tmp_path / "b", [1, 2, 70.0], method="none", distill=["dkd"], ea_weights=100.0, beta=[1.0])
    make_run(tmp_path / "c", [1, 2, 70.0], method="kd", dot=0.075)
    make_run(tmp_path / "d", [1, 2, 70.0], method="kd", standardise=False, ea_weights=None, dot=None)
    summarize.main([str(tmp_path)])
    rows = table_of(capsys.readouterr().out, "Students")
    assert sorted((row["method"], row["published"]) for row in rows) == [
        ("dkd", ""), ("dkd", "77.01 best"), ("kd", "73.33 last"), ("kd", "75.12 best"),
    ]  # fmt: skip


def test_other_options_tell_rows_apart(save, capsys):
    make_run(save / "student_model" / "small", [1, 2, 70.0], method="crd", nce_k=64)
    make_run(save / "student_model" / "momentum", [1, 2, 70.0], method="kd", kd_T=4.0, momentum=0.5)
    summarize.main([str(save)])
    rows = {(row["method"], row["other options"]): row for row in table_of(capsys.readouterr().out, "Students")}
    assert rows.keys() == {
        ("none", ""), ("crd", "nce_k=64"), ("crd", "nce_k=16384"), ("kd", "momentum=0.5"), ("kd", "momentum=0.9"),
    }  # fmt: skip
    assert rows["crd", "nce_k=64"]["gain over none"].split()[0] == "-3.00"
    assert rows["kd", "momentum=0.5"]["gain over none"] == ""  # `none` was run with another momentum


@pytest.mark.parametrize("path_t, gain", [(None, "+1.00"), ("other/last.pth", "")])
def test_the_baseline_has_the_same_teacher_or_none(path_t, gain, tmp_path, capsys):
    make_run(tmp_path / "none", [1, 2, 70.0], method="none", path_t=path_t, model_t=None)
    make_run(tmp_path / "crd", [1, 2, 71.0], method="crd")
    summarize.main([str(tmp_path)])
    assert by_method(capsys.readouterr().out)["crd"].get("gain over none", "").split(" [")[0] == gain


def test_several_folders_make_one_row_and_no_run_counts_twice(tmp_path, capsys):
    for seed in (1, 2):
        make_run(tmp_path / f"host{seed}" / "r", [1, 2, 70.0 + seed], seed, method="crd", device=f"cuda:{seed}")
    make_run(tmp_path / "host3" / "r", [1, 2, 99.0], 1, method="crd", device="cuda:0")
    folders = [str(tmp_path / name) for name in ("host1", "host2", "host3", "host1", "host1/r")]
    summarize.main(folders)
    out = capsys.readouterr().out
    assert by_method(out)["crd"]["seeds"] == "2" and by_method(out)["crd"]["last epoch"] == "71.50 ± 0.71"
    assert f"Left out:\n\n- {tmp_path.name}/host3/r: same options and seed as {tmp_path.name}/host1/r\n" in out


def test_unfinished_and_broken_runs_are_named(save, capsys):
    make_run(save / "student_model" / "half", [40.0, 50.0], 4, method="crd")
    make_run(save / "student_model" / "begun", [], 5, method="crd")
    broken = save / "student_model" / "crd_1"
    (broken / "summary.json").write_text('{"last_acc": 7')
    (save / "student_model" / "crd_2" / "options.json").unlink()
    (save / "student_model" / "crd_3" / "summary.json").write_text('{"last_acc": 70.0}')
    (save / "student_model" / "none_3" / "options.json").write_text('{"options": {"dataset": "digits"}}')
    (save / "student_model" / "none_2" / "log.csv").write_bytes(b"epoch,val_acc\n1,\xff\n")
    summarize.main([str(save)])
    out = capsys.readouterr().out
    unfinished, unreadable = (
        part.split("\n\n")[0] for part in (out.split("Unfinished:\n\n")[1], out.split("read:\n\n")[1])
    )
    assert unfinished.splitlines() == [
        f"- save/student_model/{name}: {epochs} of 3 epochs" for name, epochs in (("begun", 0), ("half", 2))
    ]
    lines = unreadable.strip().splitlines()
    assert [Path(line[2:].split(": ")[0]).name for line in lines] == ["crd_1", "crd_2", "crd_3", "none_2", "none_3"]
    assert "lacks 'best_acc'" in lines[2] and "lacks epochs, seed" in lines[4]
    assert by_method(out).keys() == {"none", "kd"} and by_method(out)["none"]["seeds"] == "1"


def test_probes_are_grouped_as_their_students_are(save, capsys):
    for method in ("none", "crd"):
        for seed in (1, 2):
            source = save / "student_model" / f"{method}_{seed}" / "last.pth"
            options = {"model_s": "resnet8x4", "path_s": str(source), "probe_bn": "eval", "dataset": "cifar10"}
            last = 50.0 + seed + 3 * (method == "crd")
            make_run(save / "transfer" / f"{method}_{seed}", [1, 2, last], seed, **options)
    options["path_s"] = "elsewhere/wrn/ckpt.pth"
    make_run(save / "transfer" / "bare", [1, 2, 10.0], **options)
    summarize.main([str(save)])
    rows = by_method(capsys.readouterr().out, "Probes")
    assert rows.keys() == {"none", "crd", "wrn/ckpt.pth"}
    assert rows["crd"]["last epoch"] == "54.50 ± 0.71" and rows["crd"]["gain over none"].split()[0] == "+3.00"
    assert rows["crd"]["teacher"] == "resnet32x4" and "other options" not in rows["crd"]


# ---- the files ----


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files(save, tmp_path, capsys):
    make_run(save / "student_model" / "crdkd", [1, 2, 3], method="crd", alpha=1.0, nce_k=16384, kd_T=4.0)
    out = tmp_path / "new" / "out"
    summarize.main([str(save), "--out", str(out)])
    assert capsys.readouterr().out == (out / "table.md").read_text()
    row = next(row for row in read(out / "table.csv") if row["method"] == "crd" and row["a"] == "0.0")
    assert [float(row[f"last_seed_{seed}"]) for seed in (1, 2, 3)] == [74.0, 75.0, 76.0]
    assert (float(row["last_mean"]), float(row["last_deviation"]), float(row["published"])) == (75.0, 1.0, 75.51)
    curves = read(out / "curves.csv")
    assert {line["method"] for line in curves if line["kind"] == "students"} == {
        "none", "kd", "crd alpha=0.0", "crd alpha=1.0",
    }  # fmt: skip
    last = next(line for line in curves if line["method"] == "none" and line["epoch"] == "3")
    assert float(last["val_acc_mean"]) == 73.0 and float(last["val_acc_deviation"]) == statistics.stdev([72, 73, 74])
    assert next(line for line in curves if line["method"] == "kd")["val_acc_deviation"] == ""


def test_no_path_of_a_machine_in_the_files(save, tmp_path, monkeypatch, capsys):
    """Wherever the runs lie, and however that was typed: what is kept of them begins with the given folder's name."""
    home = str(tmp_path)
    make_run(save / "student_model" / "half", [40.0, 50.0], 4, method="crd", nce_k=16384)
    make_run(save / "student_model" / "again", [1, 2, 3], 1, method="crd", nce_k=16384)
    unreadable = make_run(save / "student_model" / "unreadable", [1, 2, 3], method="kd") / "options.json"
    unreadable.unlink()
    unreadable.mkdir()
    told = {"path_t": [f"{home}/save/models/t/last.pth", f"{home}/old/runs/u/last.pth"], "save_folder": f"{home}/save"}
    told |= {"data_folder": f"{home}/data", "cache_teacher": "cache"}
    run = make_run(save / "student_model" / "two\nlines", [1, 2, 3], method="kd", **told)
    (run / "init_log.csv").write_text("epoch\n1\n")
    monkeypatch.chdir(save)
    for typed in (str(save), f"{save}/", f"{home}/save/../save", "../save", "."):
        out = tmp_path / "out" / str(len(typed))
        summarize.main([typed, "--out", str(out), "--runs"])
        kept = out / "runs" / "student_model" / "two\nlines"
        assert {path.name for path in kept.iterdir()} == {"init_log.csv", "log.csv", "options.json", "summary.json"}
        assert json.loads((kept / "options.json").read_text())["options"] == Run(run).options | {
            "path_t": ["save/models/t/last.pth", "u/last.pth"], "save_folder": "save", "data_folder": "data",
        }  # fmt: skip
        assert (kept / "summary.json").read_text() == (run / "summary.json").read_text()
        assert not (out / "runs" / "student_model" / "half").exists()
        text = "".join(path.read_text() for path in out.rglob("*") if path.is_file())
        assert home not in text and "student_model/half: 2 of 3 epochs" in text
        assert "student_model/unreadable: options.json: Is a directory" in text
        assert (out / "table.md").read_text() == capsys.readouterr().out


def test_runs_of_several_folders_are_kept_apart(tmp_path):
    for host in ("a", "b"):
        make_run(tmp_path / host / "save" / "r", [1, 2, 3], method="kd")
    summarize.main([str(tmp_path / "a" / "save"), str(tmp_path / "b" / "save"), "--out", str(tmp_path / "o"), "--runs"])
    kept = (tmp_path / "o" / "runs").rglob("summary.json")
    assert sorted(str(path.parent.relative_to(tmp_path / "o")) for path in kept) == ["runs/a/save/r", "runs/b/save/r"]
    assert str(tmp_path) not in (tmp_path / "o" / "table.md").read_text()


def test_what_the_user_can_mend(save, tmp_path, capsys, monkeypatch):
    assert "nowhere: no such folder" in stopped(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no run in there" in stopped(capsys, tmp_path / "empty")
    assert "--figures needs --out" in stopped(capsys, save, "--figures")
    (tmp_path / "file").touch()
    assert "--out" in stopped(capsys, save, "--out", tmp_path / "file")
    find = importlib.util.find_spec
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name, m=module: None if name == m else find(name))
            error = stopped(capsys, save, "--out", tmp_path / "o", "--figures")
        assert f"needs the package {package} (pip install {package})" in error
    assert not (tmp_path / "o").exists()


def test_collect(python, tmp_path):
    """Whatever its folders are called."""
    run = make_run(tmp_path / "two\nlines *" / "student_model" / "r", [1, 2, 3], method="kd")
    environment = os.environ | {"PYTHON": str(python), "SAVE": str(tmp_path / "two\nlines *"), "FIGURES": ""}
    environment["RESULTS"] = "my results"
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "collect.sh"], env=environment, cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "my results" / "runs" / "student_model" / "r"
    assert (kept / "log.csv").read_text() == (run / "log.csv").read_text()
    assert not [p for p in (tmp_path / "my results").rglob("*") if p.is_file() and str(tmp_path) in p.read_text()]


# ---- figures ----


@pytest.fixture
def figures() -> ModuleType:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    return importlib.import_module("scripts.figures")


def test_class_means_by_hand(figures):
    logits = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 10.0, 5.0], [2.0, 4.0, 6.0]])
    said = figures.Outputs(logits, logits, np.array([0, 0, 1, 2]), ("a", "b", "c"))
    expected = [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    assert np.allclose(said.class_means(), expected)


@pytest.fixture(scope="module")
def real(teacher, tmp_path_factory) -> Path:
    """Two students of a few digits and a probe of one of them."""
    save = tmp_path_factory.mktemp("real")
    epochs = ["--epochs", "2", "--save_folder", str(save)]
    for method in ("none", "kd"):
        train_student.main([*QUICK, *epochs, "--path_t", str(teacher), "--distill", method, "--run_name", method])
    path_s = save / "student_model" / "kd" / "last.pth"
    transfer_student.main([*QUICK, *epochs, "--path_s", str(path_s)])
    return save


def test_figures(figures, real, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)  # test_figures.py has UMAP's
    summarize.main([str(real), "--out", str(tmp_path), "--figures"])
    kinds = ("correlation", "tsne", "cka", "reliability")
    runs = [f"{kind}_{method}.png" for kind in kinds for method in ("none", "kd")]
    curves = ["curves_students_digits_resnet8_resnet14.png", "curves_probes_digits_resnet8_resnet14.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(runs + curves)
    out = capsys.readouterr().out
    assert out.count("|T - S| max ") == 2 and by_method(out, "Probes").keys() == {"kd"}
    assert out.count("no UMAP: it needs the package umap-learn (pip install umap-learn)\n") == 1


def test_figures_of_the_first_run_that_can_be_read(figures, real, tmp_path, capsys):
    for seed in (1, 2, 3):
        folder = shutil.copytree(real / "student_model" / "kd", tmp_path / "save" / f"kd_{seed}")
        told = json.loads((folder / "options.json").read_text())
        told["options"]["seed"] = seed
        (folder / "options.json").write_text(json.dumps(told))
    (tmp_path / "save" / "kd_1" / "last.pth").unlink()
    summarize.main([str(tmp_path / "save"), "--out", str(tmp_path), "--figures"])
    assert [path.name for path in tmp_path.glob("cka*")] == ["cka_kd_2.png"]
    assert capsys.readouterr().out.count("no pictures of ") == 1


def test_figures_of_one_run_alone(figures, real, tmp_path):
    named = real / "student_model" / "kd"
    summarize.main([str(named), "--out", str(tmp_path), "--figures"])
    assert [path.name for path in tmp_path.glob("correlation*")] == ["correlation_kd.png"]
    summary = json.loads((named / "summary.json").read_text())
    data = Run(named).options
    said = figures.outputs(named / "last.pth", "resnet8", *(data[key] for key in figures.DATA))
    assert said.accuracy == pytest.approx(summary["last_acc"])  # the same network and images as when it was trained


def test_figures_pass_over_runs_without_checkpoints(figures, save, tmp_path, capsys):
    make_run(save / "student_model" / "two", [1, 2, 3], method="kd", path_t=["t/last.pth", "u/last.pth"])
    summarize.main([str(save), "--out", str(tmp_path), "--figures"])
    out = capsys.readouterr().out
    assert out.count("no pictures of ") == 8 and out.count("t/last.pth: no such file") == 7
    assert f"no pictures of {save / 'student_model' / 'two'}: not a student of one teacher" in out


def test_the_table_needs_no_plotting_package(save, monkeypatch, capsys):
    for module in ("matplotlib", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)
    summarize.main([str(save)])
    assert "### Students" in capsys.readouterr().out
