"""scripts/collect.sh: runs of other machines join a table that saw the same images and the same teacher."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from test_summarize import make_run

from scripts import summarize

DATA = {"train images": "a" * 32, "val images": "b" * 32, "train samples": 500, "classes": ["cat", "dog"]}
TEACHER = "c" * 32


def machine(save: Path, seed: int, data: dict | None = DATA, teacher: str | None = TEACHER, **options) -> Path:
    """A run on a machine; None: of a version that kept no such digest."""
    run = make_run(save / "student_model" / f"kd_{seed}", [1.0, 2.0, 70.0 + seed], seed, method="kd", **options)
    made_of = ({"data": data} if data else {}) | ({"weights": {"path_t": [teacher]}} if teacher else {})
    told = json.loads((run / "options.json").read_text()) | {"made_of": made_of}
    (run / "options.json").write_text(json.dumps(told))
    return run


def collect(tmp_path: Path, save: str) -> None:
    summarize.main([str(tmp_path / save), "--out", str(tmp_path / "results"), "--runs"])


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_machines_share_a_table(tmp_path, capsys) -> None:
    """Of which each run counts once, however often it is collected."""
    machine(tmp_path / "one", 1)
    files = {"classes": DATA["classes"], "train files": "e" * 32}  # images in files, whose bytes are not read
    machine(tmp_path / "two", 2, data=files)
    for save in ("one", "two", "two", "one"):
        collect(tmp_path, save)
        out, error = capsys.readouterr()
    assert error == "" and "Left out" not in out and out.count("| kd |") == 2 and str(tmp_path) not in out
    assert len(list((tmp_path / "results" / "runs").rglob("summary.json"))) == 2
    machine(tmp_path / "three", 3)
    collect(tmp_path, "three")
    rows = (tmp_path / "results" / "table.md").read_text()
    assert " 2 | 72.00 ± 1.41 |" in rows and "Left out" not in rows


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"data": DATA | {"train images": "d" * 32}}, "cifar100 of students: train images dddddddd, but aaaaaaaa in "),
        ({"data": DATA | {"train samples": 400}}, "cifar100 of students: train samples 400, but 500 in "),
        ({"data": DATA | {"classes": ["dog", "cat"]}}, "cifar100 of students: classes "),
        ({"teacher": "d" * 32}, "teacher resnet32x4 on cifar100: weights dddddddd, but cccccccc in "),
        ({"data": None}, "cifar100 of students: train images without a digest, but aaaaaaaa in "),
        ({"teacher": None}, "teacher resnet32x4 on cifar100: weights without a digest, but cccccccc in "),
    ],
)
def test_others_are_refused(other, reason, tmp_path, capsys) -> None:
    """In one line with both digests and the run; nothing is copied, not even those that would fit."""
    machine(tmp_path / "one", 1)
    collect(tmp_path, "one")
    before = everything(tmp_path / "results")
    machine(tmp_path / "two", 2)
    run = machine(tmp_path / "two", 3, **other)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        collect(tmp_path, "two")
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and error.count("\n") == 1
    assert f"error: {run}: {reason}" in error and error.endswith(
        "/results/runs/student_model/kd_1; nothing is copied\n"
    )
    assert everything(tmp_path / "results") == before


def test_another_teacher_or_kind_is_new_in_the_table(tmp_path, capsys) -> None:
    machine(tmp_path / "one", 1)
    collect(tmp_path, "one")
    machine(tmp_path / "two", 2, teacher="d" * 32, model_t=["vgg13"])
    make_run(tmp_path / "two" / "models" / "vgg13", [1, 2, 3], model="vgg13")  # whose data nothing is known of
    collect(tmp_path, "two")
    out, error = capsys.readouterr()
    assert "vgg13" in out and error == ""


@pytest.mark.parametrize("digests", [False, True])
def test_a_table_without_digests(digests, tmp_path, capsys) -> None:
    """Takes runs of older versions, and newer ones. Both times it says that nothing was compared."""
    machine(tmp_path / "one", 1, data=None, teacher=None)
    collect(tmp_path, "one")
    assert capsys.readouterr().err == ""
    machine(tmp_path / "two", 2, **({} if digests else {"data": None, "teacher": None}))
    collect(tmp_path, "two")
    assert capsys.readouterr().err == "no digests to compare with the table's data and teachers: 1 runs\n"
    assert (tmp_path / "results" / "runs" / "student_model" / "kd_2" / "summary.json").is_file()


def test_the_script(python, tmp_path) -> None:
    machine(tmp_path / "one", 1)
    log = tmp_path / "one" / "student_model" / "kd_1" / "log.csv"
    log.write_text(
        "epoch,lr,val_acc,images_per_second\n1,0.05,3.6999999999999997,11451.96\n2,5e-05,0.30000000000000004,9\n3,0,71.0,9\n"
    )
    machine(tmp_path / "two", 2, teacher="d" * 32)

    def call(save: str) -> subprocess.CompletedProcess:
        given = {"PYTHON": str(python), "SAVE": save, "RESULTS": "results", "FIGURES": ""}
        command = ["bash", ROOT / "scripts" / "collect.sh"]
        return subprocess.run(command, env=os.environ | given, cwd=tmp_path, text=True, capture_output=True)

    assert call("one").returncode == 0
    kept = (tmp_path / "results" / "runs" / "student_model" / "kd_1" / "log.csv").read_text()
    assert kept == "epoch,lr,val_acc,images_per_second\n1,0.05,3.7,11452\n2,5e-05,0.3,9\n3,0,71,9\n"
    before, refused = everything(tmp_path / "results"), call("two")
    assert refused.returncode == 2 and refused.stderr.startswith("summarize.py: error: two/student_model/kd_2: teacher")
    assert everything(tmp_path / "results") == before


def test_failed_runs_stay_in_the_table(tmp_path, capsys) -> None:
    """With their reason, which says nothing of the machine; a run that was mended has none."""
    machine(tmp_path / "one", 1)
    reason = f"epoch 2, step 1: the term 'kd' of the loss is nan, see {tmp_path}/one/t.log"
    for seed, accuracies in ((2, [1.0]), (3, [1.0, 2.0, 3.0])):
        run = make_run(
            tmp_path / "one" / "student_model" / f"sp_{seed}", accuracies, seed, method="crd", distill=["sp"]
        )
        told = json.loads((run / "options.json").read_text()) | {"failed": reason}
        (run / "options.json").write_text(json.dumps(told))
    page = tmp_path / "page.html"
    summarize.main([str(tmp_path / "one"), "--out", str(tmp_path / "results"), "--runs", "--html", str(page)])
    shown = reason.replace(f"{tmp_path}/", "")
    listed = f"student_model/sp_2: 1 of 3 epochs: {shown}"
    machine(tmp_path / "two", 4)
    failed = make_run(tmp_path / "two" / "student_model" / "sp_3", [1.0], 3, method="crd", distill=["sp"])
    told["made_of"] = {"data": DATA, "weights": {"path_t": [TEACHER]}}
    (failed / "options.json").write_text(json.dumps(told))  # where the other machine has a result
    collect(tmp_path, "two")
    out = capsys.readouterr().out
    for text in (out.split("### Students")[1], out.split("### Students")[2]):
        assert "Failed:\n\n- " in text and listed in text and "| sp |" in text
    kept = tmp_path / "results" / "runs" / "student_model" / "sp_3" / "summary.json"
    assert "sp_3" not in out.split("### Students")[1] and json.loads(kept.read_text())["last_acc"] == 3.0
    assert json.loads(f'"{listed}"') in page.read_text() and str(tmp_path) not in page.read_text()
    table = list(csv.DictReader((tmp_path / "results" / "table.csv").read_text().splitlines()))
    assert [(row["method"], row["seeds"], row["failed"]) for row in table if row["failed"]] == [
        ("sp", "0", f"seed {seed}: {shown}") for seed in (3, 2)
    ]
    assert not any(str(tmp_path) in text.decode() for text in everything(tmp_path / "results").values())
