"""The procedures of scripts/, end to end on the shipped digits, twice: the second time nothing is trained."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, weights

from scripts import procedures

FEW = " ".join([*QUICK[2:], "--epochs", "1"])


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """The procedures share teachers and students."""
    return tmp_path_factory.mktemp("save")


@pytest.fixture
def call(python, save):
    def run(script: str, status: int = 0, **variables: object) -> str:
        given = {"PYTHON": python, "SAVE": save, "DATASET": "digits", "SEEDS": 1, "OPTIONS": FEW} | variables
        environment = os.environ | {"TEACHER_OPTIONS": FEW} | {key: str(value) for key, value in given.items()}
        done = subprocess.run(
            ["bash", ROOT / "scripts" / script],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        return done.stdout

    return run


def twice(call, script: str, runs: int, **variables: object) -> str:
    """Calls it, and again. Returns the table."""
    first, again = (call(script, **variables) for _ in range(2))
    assert again.count("this run is finished") == runs
    last = [list(re.finditer(r"^\|.*(\n\|.*)*", text, re.M))[-1].start() for text in (first, again)]  # sweeps print one
    assert first[last[0] :] == again[last[1] :]
    return again[last[1] :]


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(table: str, name: str) -> list[str]:
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line)
    return [row[header.index(name)] for row in rows]


def test_takd(call, save):
    table = twice(call, "run_takd.sh", 6, PAIR="resnet14:resnet8", ASSISTANTS="resnet14 resnet8")
    assert column(table, "student") == ["alone", "directly", "assistant", "assistant", "by the last assistant"]
    assert column(table, "network") == ["resnet8", "resnet8", "resnet14", "resnet8", "resnet8"]
    assert column(table, "teacher") == ["", "resnet14", "resnet14", "resnet14", "resnet8"]
    (path,) = (save / "tables").glob("takd_*.csv")
    rows = lines(path)
    # each is taught by the one before it
    assert float(rows[4]["teacher_acc"].strip("[]")) == float(rows[3]["last_mean"])
    assert float(rows[1]["gain"]) == pytest.approx(float(rows[1]["last_mean"]) - float(rows[0]["last_mean"]))
    assert str(save) not in table + path.read_text() and path.with_suffix(".md").read_text() == table


def test_allkd(call):
    teachers = {"STUDENT": "resnet8", "TEACHERS": "resnet8 resnet14"}
    table = twice(call, "run_allkd.sh", 8, **teachers, SEEDS="1 2")
    assert column(table, "student") == ["alone", "by resnet8", "by resnet14"]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", cell) for cell in column(table, "last epoch"))
    accuracy = dict(zip(column(table, "student"), column(table, "last epoch"), strict=True))
    best = max(("by resnet8", "by resnet14"), key=lambda name: float(accuracy[name].split()[0]))
    assert table.splitlines()[-1] == f"Best: {best}, {accuracy[best].split()[0]}"


def test_kdparam(call, save):
    table = twice(call, "run_kdparam.sh", 5, PAIR="resnet14:resnet8", TEMPERATURES="1 5", ALPHAS="0.3 1.0")
    assert table.splitlines()[0] == "| alpha \\ T | 1 | 5 |" and column(table, "alpha \\ T") == ["0.3", "1"]
    (path,) = (save / "tables").glob("kdparam_*.csv")
    assert [(row["alpha"], row["T"]) for row in lines(path)] == [
        ("0.3", "1.0"), ("0.3", "5.0"), ("1.0", "1.0"), ("1.0", "5.0"),
    ]  # fmt: skip
    # there alpha is the share of the cross entropy: 0.7 of it is what 0.3 of KD leaves
    cinic = twice(call, "run_kdparam.sh", 2, PAIR="resnet14:resnet8", TEMPERATURES=5, ALPHAS=0.7, GRID="cinic")
    assert column(cinic, "alpha \\ T") == ["0.7"] and column(cinic, "5") == column(table, "5")[:1]


def test_multikd(call):
    table = twice(call, "run_multikd.sh", 5, STUDENT="resnet8", ENSEMBLE="2")
    assert column(table, "student") == ["alone", "by the first", "by all"]
    assert column(table, "teacher") == ["", "resnet8", "resnet8+resnet8"]
    given = call("run_multikd.sh", STUDENT="resnet8", TEACHERS="resnet14 resnet8", METHOD="mt")
    assert column(given[given.index("| ") :], "teacher") == ["", "resnet14", "resnet14+resnet8"]


@pytest.fixture(scope="module")
def resnet8(python, save):
    """A checkpoint of a student."""
    command = [python, "train_teacher.py", "--dataset", "digits", "--save_folder", save, "--model", "resnet8"]
    subprocess.run([*command, "--run_name", "resnet8_vanilla", *FEW.split()], cwd=ROOT, check=True)
    return save / "models" / "resnet8_vanilla" / "last.pth"


@pytest.mark.parametrize("method", ["kl", "xekl --mcl_tau 0.5"])
def test_one_teacher_after_the_other(method, call, save, resnet8):
    given = {"STUDENT_FILE": resnet8, "TEACHERS": f"resnet14 {resnet8}", "METHOD": method}
    table = twice(call, "contdist_job.sh", 3, **given)
    assert column(table, "the last") == ["", "resnet14", "resnet8"] and column(table, "teachers") == ["0", "1", "2"]


def test_killed_in_the_middle_of_a_sequence(call, save, resnet8):
    given = {"STUDENT_FILE": resnet8, "TEACHERS": f"resnet14 {resnet8}", "METHOD": "dp --mcl_tau 0.5"}
    given["OPTIONS"] = FEW + " --epochs 2"
    killed = call("contdist_job.sh", 1, **given, RUN_NAME="cut", KILLED_IN="cut_teacher2_1:2")
    assert "not run, for the reason above: cut_teacher2, seed 1" in killed
    assert column(killed[killed.index("| ") :], "teachers") == ["0", "1"]
    again = call("contdist_job.sh", **given, RUN_NAME="cut")
    assert again.count("this run is finished") == 2
    assert f"continuing {save}/student_model/cut_teacher2_1 at epoch 2/2" in again
    call("contdist_job.sh", **given, RUN_NAME="whole")
    cut, whole = (save / "continual" / name / "history.csv" for name in ("cut", "whole"))
    assert cut.read_text() == whole.read_text() and len(lines(cut)) == 3
    cut, whole = (weights(save / "student_model" / f"{name}_teacher2_1" / "last.pth") for name in ("cut", "whole"))
    assert all(torch.equal(cut[key], whole[key]) for key in whole)


def test_one_pair(call, save, resnet8):
    table = twice(call, "dist_job.sh", 2, STUDENT_FILE=resnet8, TEACHER="resnet14")
    (path,) = (save / "continual").glob("resnet8+resnet14_digits_sup_*/history.csv")
    assert column(table, "top-1") == [f"{float(row['top1']):.2f}" for row in lines(path)] and str(save) not in table


def write_run(folder: Path, **predictions: list[int]) -> None:
    folder.mkdir(parents=True)
    told = {"dataset": "digits", "epochs": 1, "seed": 1, "distill": ["kl"], "model_s": "resnet8", "model_t": ["vgg8"]}
    (folder / "options.json").write_text(json.dumps({"options": told}))
    (folder / "summary.json").write_text(json.dumps({"last_acc": 0, "best_acc": 0}))
    for name, found in predictions.items():
        rows = [f"{n},{n},{found[n]},1" for n in range(4)]  # sample n is of class n
        (folder / f"{name}.csv").write_text("\n".join(["index,label,prediction,confidence", *rows]))


def test_history(tmp_path, capsys):
    """Changes are those against the first student, the teacher is the one just heard."""
    first = {"predictions_start": [0, 9, 9, 9], "predictions_teacher1": [9, 1, 2, 9], "predictions": [0, 1, 9, 9]}
    second = {"predictions_start": [0, 1, 9, 9], "predictions_teacher1": [9, 1, 2, 3], "predictions": [9, 1, 2, 9]}
    for n, predictions in enumerate((first, second), 1):
        write_run(tmp_path / "student_model" / f"c{n}_1", **predictions)
    command = ["history", "--save", str(tmp_path), "--seeds", "1", "2", "--out", str(tmp_path / "h"), "c1", "c2"]
    procedures.main(command)
    assert (
        capsys.readouterr().out
        == (tmp_path / "h.md").read_text()
        == """\
| teachers | the last | its top-1 | seeds | top-1 | delta | of this step | gained | lost | transfer rate |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 0 |  |  | 1 | 25.00 |  |  |  |  |  |
| 1 | vgg8 | 50.00 | 1 | 50.00 | +25.00 | +25.00 | 25.00 | 0.00 | 50.00 |
| 2 | vgg8 | 75.00 | 1 | 50.00 | +25.00 | +0.00 | 50.00 | 25.00 | 66.67 |
"""
    )


def test_list_of_teachers(tmp_path, capsys):
    rows = [f"m{n},cnn,1,{accuracy},m{n}/last.pth" for n, accuracy in enumerate((70, 9.5, 80))]
    (tmp_path / "l.csv").write_text("\n".join(["modelname,modeltype,modelparams,modeltop1,path", *rows]))

    def drawn(*arguments: str) -> list[str]:
        procedures.main(["teachers", str(tmp_path / "l.csv"), *arguments])
        return [Path(line).parent.name for line in capsys.readouterr().out.split()]

    assert drawn() == ["m0", "m1", "m2"]
    assert drawn("--curriculum", "asc") == ["m1", "m0", "m2"] == drawn("--curriculum", "desc")[::-1]
    assert drawn("--n", "2") == drawn("--n", "2") and len({*drawn("--n", "2")}) == 2
    assert len({tuple(drawn("--n", "3", "--t_seed", str(seed))) for seed in range(20)}) > 1
    with pytest.raises(SystemExit):
        drawn("--n", "4")
    assert "has 3 teachers, 4 are asked for" in capsys.readouterr().err


def test_teachers_of_a_list(call, save, resnet8, tmp_path):
    listed = os.path.relpath(resnet8, tmp_path)
    (tmp_path / "l.csv").write_text(f"modelname,modeltop1,path\nresnet8,10,{listed}\n")
    out = call(
        "contdist_job.sh", STUDENT_FILE=resnet8, MODEL_LIST=tmp_path / "l.csv", N=1, CURRICULUM="asc", METHOD="kl"
    )
    assert column(out[out.index("| ") :], "the last") == ["", "resnet8"]


def test_a_run_that_is_refused_does_not_stop_the_others(call):
    out = call("run_allkd.sh", 1, STUDENT="resnet8", TEACHERS="nothing/here.pth resnet14")
    assert "not run, for the reason above: teacher nothing/here.pth" in out and "| by resnet14 |" in out
