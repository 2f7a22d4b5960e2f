"""A student that a method puts a network around: trained, distilled from, validated, probed and exported."""

import json

import pytest
import torch
from conftest import QUICK, weights

import models
import train_student
import train_teacher
import transfer_student

SMALL = [*QUICK, "--image_size", "16", "--epochs", "2", "--lr_decay_epochs", "1"]


def distil(teacher, save, *more: str):
    command = [*SMALL, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(save), "--run_name", "r"]
    train_student.main([*command, *more])
    return save / "student_model" / "r"


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return distil(teacher, tmp_path_factory.mktemp("wrapped"), "--distill", "simkd", "--export", "torchscript")


def test_the_teachers_classifier_is_the_students(teacher, student) -> None:
    saved, taught = weights(student / "last.pth"), weights(teacher)
    assert torch.equal(saved["fc.weight"], taught["fc.weight"]) and torch.equal(saved["fc.bias"], taught["fc.bias"])
    assert not any(key.startswith("network.fc") for key in saved), "the student's own classifier is left out"
    plain = sum(p.numel() for p in models.create_model("resnet8", 10).parameters())
    found = json.loads((student / "summary.json").read_text())["parameters"]
    assert found == plain + sum(p.numel() for key, p in saved.items() if "projector" in key and counts(key))


def counts(key: str) -> bool:
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_it_is_validated_and_exported_as_it_was_trained(teacher, student, tmp_path, capsys) -> None:
    accuracy = json.loads((student / "summary.json").read_text())["last_acc"]
    capsys.readouterr()
    command = [*SMALL, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(student.parents[1])]
    train_student.main([*command, "--test_only", str(student / "last.pth"), "--distill", "none"])
    assert f"{accuracy:.2f}" in capsys.readouterr().out
    network = torch.jit.load(next(student.glob("*.pt")))
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("method", ["simkd", "kd", "at", "none"])
def test_another_run_starts_from_it(method, teacher, student, tmp_path) -> None:
    more = "--distill", method, "--path_s", str(student / "last.pth"), "--learning_rate", "1e-9"
    folder = distil(teacher, tmp_path, *more)
    before, after = weights(student / "last.pth"), weights(folder / "last.pth")
    assert before.keys() == after.keys()
    torch.testing.assert_close(after["projector.0.weight"], before["projector.0.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["at", "simkd", "reviewkd", "catkd"])
def test_it_teaches(method, student, tmp_path) -> None:
    folder = distil(student / "last.pth", tmp_path, "--distill", method)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2


def test_it_is_probed(student, tmp_path) -> None:
    command = [*SMALL, "--path_s", str(student / "last.pth"), "--save_folder", str(tmp_path), "--run_name", "p"]
    transfer_student.main(command)
    before, after = weights(student / "last.pth"), weights(tmp_path / "transfer" / "p" / "last.pth")
    assert torch.equal(before["projector.0.weight"], after["projector.0.weight"])
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_it_fits_one_teacher(student, tmp_path, capsys) -> None:
    """A student that was projected for a teacher of another width says so."""
    train_teacher.main([*SMALL, "--model", "wrn_10_2", "--save_folder", str(tmp_path), "--run_name", "t"])
    other = tmp_path / "models" / "t" / "last.pth"
    with pytest.raises(SystemExit) as stop:
        distil(other, tmp_path, "--distill", "simkd", "--path_s", str(student / "last.pth"))
    assert stop.value.code == 2 and "has a classifier of [10, 64] already" in capsys.readouterr().err
