"""What runs call their folders, and that runs under the names of before go on."""

import argparse
import json

import pytest
from conftest import QUICK

import train_student
import train_teacher
import transfer_student
from helper.run import folder_of

NEW = "S-resnet8_T-None_digits_none_r-1.0_a-0.0_b-0.0_1"
OLD = "S:resnet8_T:None_digits_none_r:1.0_a:0.0_b:0.0_1"


def opt_of(save, **options):
    return argparse.Namespace(**{"save_folder": str(save), "run_name": None, "resume": "auto"} | options)


def test_a_name_has_neither_colon_nor_slash(tmp_path):
    assert folder_of("k", "S:timm:vit_T:a/b_r:1", opt_of(tmp_path)) == tmp_path / "k" / "S-timm-vit_T-a-b_r-1"
    assert folder_of("k", "S:x", opt_of(tmp_path, run_name="a:b")) == tmp_path / "k" / "a:b"


@pytest.mark.parametrize(
    ("there", "resume", "found"),
    [(["S:x"], "auto", "S:x"), (["S:x"], "never", "S-x"), (["S:x", "S-x"], "auto", "S-x"), ([], "auto", "S-x")],
)
def test_the_former_name_holds_where_only_that_is_there(tmp_path, there, resume, found):
    for name in there:
        (tmp_path / "k" / name).mkdir(parents=True)
    assert folder_of("k", "S:x", opt_of(tmp_path, resume=resume)) == tmp_path / "k" / found


def test_runs_go_on_under_their_former_names(tmp_path, capsys):
    save = tmp_path / "student_model"
    command = [*QUICK, "--distill", "none", "--model_s", "resnet8", "--save_folder", str(tmp_path)]
    train_student.main([*command, "--epochs", "2"])
    (save / NEW).rename(save / OLD)
    for path in save.glob("*/summary.json"):
        path.unlink()
    capsys.readouterr()
    train_student.main([*command, "--epochs", "2"])
    said = capsys.readouterr().out
    assert said.startswith(f"{save / OLD}: this run goes on under its former name") and "continuing" in said
    assert [path.name for path in save.iterdir()] == [OLD]
    train_student.main([*command, "--epochs", "2"])
    assert "this run is finished" in capsys.readouterr().out
    transfer_student.main(
        [*QUICK, "--path_s", str(save / OLD / "last.pth"), "--epochs", "1", "--save_folder", str(tmp_path)]
    )
    assert [path.name for path in (tmp_path / "transfer").iterdir()] == [f"{NEW}_to_digits_eval_1"]


@pytest.mark.parametrize("name", [None, "own"])
def test_a_teacher_of_the_former_default_trial_goes_on(name, tmp_path, capsys):
    def train(*more):
        command = [*QUICK, "--model", "resnet8", "--epochs", "1", "--save_folder", str(tmp_path), *more]
        train_teacher.main([*command, *(["--run_name", name] if name else [])])
        return capsys.readouterr().out

    train("--trial", "0")
    (folder,) = (tmp_path / "models").iterdir()
    told = json.loads((folder / "options.json").read_text())["options"]
    assert (told["trial"], told["seed"]) == ("0", 0) and "given" not in told
    said = train()
    assert said.startswith("--trial 0: ") and "this run is finished" in said
    assert [path for path in (tmp_path / "models").iterdir()] == [folder]
    if not name:
        train("--trial", "1")
        assert "--trial 0" not in train() and len(list((tmp_path / "models").iterdir())) == 2
