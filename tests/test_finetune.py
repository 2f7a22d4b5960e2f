"""Trainings that begin with published weights, or with a file of other classes."""

import json

import pytest
import torch
from conftest import QUICK, weights

import models
import train_student
import train_teacher

NET = "timm:test_resnet"
TWO_HEADS = "timm:deit_tiny_distilled_patch16_224"


def head_of(state: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in state if key.startswith(("fc.", "head.", "classifier."))}


@pytest.fixture
def published(monkeypatch):
    """Weights of eleven classes, which the package would download."""
    torch.manual_seed(5)
    state = models.create_model(NET, 11).state_dict()
    family = models.base._families["timm"]
    monkeypatch.setattr(family, "download", lambda asked: state)
    return state


def start_of(script, tmp_path, *flags: str) -> dict[str, torch.Tensor]:
    """The weights after one epoch at a rate that moves nothing."""
    command = [*QUICK, "--learning_rate", "1e-30", "--weight_decay", "0", "--epochs", "1", "--lr_decay_epochs", ""]
    script.main([*command, "--save_folder", str(tmp_path), "--run_name", "r", *flags])
    (folder,) = tmp_path.glob("*/r")
    return weights(folder / "last.pth")


def learned(state: dict[str, torch.Tensor]) -> list[str]:
    return [key for key in state if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train_teacher, ["--model", NET, "--pretrained"]),
        (train_student, ["--distill", "none", "--model_s", NET, "--pretrained_s"]),
    ],
)
def test_published_weights_with_a_head_for_the_data(published, tmp_path, script, flags) -> None:
    found = start_of(script, tmp_path, *flags)
    assert head_of(found) and all(len(found[key]) == 10 for key in head_of(found))
    body = [key for key in learned(found) if key not in head_of(found)]
    assert body and all(torch.allclose(found[key], published[key]) for key in body)
    told = json.loads(next(tmp_path.glob("*/r/options.json")).read_text())
    assert told["made_of"]["weights"][flags[-1].removeprefix("--")]


def test_both_heads_are_new(tmp_path) -> None:
    images = models.Images((32, 32), (0.5,) * 3, (0.5,) * 3)
    file = str(tmp_path / "two.pth")
    torch.save({"model": models.create_model(TWO_HEADS, 7, images).state_dict(), "model_name": TWO_HEADS}, file)
    found = start_of(train_student, tmp_path, "--distill", "none", "--path_s", file, "--new_head", "--image_size", "32")
    assert len(found["head.weight"]) == len(found["head_dist.weight"]) == 10


def test_a_file_of_other_classes(tmp_path) -> None:
    torch.manual_seed(3)
    other = models.create_model("resnet8", 7).state_dict()
    torch.save({"model": other, "model_name": "resnet8"}, tmp_path / "other.pth")
    file = str(tmp_path / "other.pth")
    for script, flags in (
        (train_teacher, ["--model", "resnet8", "--initial_checkpoint", file, "--new_head"]),
        (train_student, ["--distill", "none", "--path_s", file, "--new_head"]),
    ):
        found = start_of(script, tmp_path / script.__name__, *flags)
        assert found["fc.weight"].shape == (10, 64)
        assert all(torch.allclose(found[key], other[key]) for key in learned(found) if not key.startswith("fc."))


def test_a_run_goes_on_by_the_same_weights_alone(tmp_path, capsys) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        torch.save(models.create_model("resnet8", 10).state_dict(), tmp_path / f"{name}.pth")
    (tmp_path / "c.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    command = [*QUICK, "--model", "resnet8", "--epochs", "1", "--save_folder", str(tmp_path), "--run_name", "r"]
    train_teacher.main([*command, "--initial_checkpoint", str(tmp_path / "a.pth")])
    train_teacher.main([*command, "--initial_checkpoint", str(tmp_path / "c.pth")])
    assert "this run is finished" in capsys.readouterr().out
    (tmp_path / "models" / "r" / "summary.json").unlink()
    with pytest.raises(SystemExit):
        train_teacher.main([*command, "--initial_checkpoint", str(tmp_path / "b.pth")])
    assert "that began with other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (train_teacher, "--new_head", "--new_head has no effect without --initial_checkpoint"),
        (
            train_teacher,
            "--pretrained --initial_checkpoint x",
            "--pretrained: expected no --initial_checkpoint beside it",
        ),
        (train_teacher, "--pretrained --model resnet8", "--pretrained: resnet8: no published weights"),
        (train_teacher, "--initial_checkpoint no.pth", "--initial_checkpoint no.pth: no such file"),
        (train_student, "--distill none --new_head", "--new_head has no effect without --path_s"),
        (train_student, "--distill none --pretrained_s --path_s x", "--pretrained_s: expected no --path_s beside it"),
        (
            train_student,
            "--distill none --pretrained_s --model_s resnet8",
            "--pretrained_s: resnet8: no published weights",
        ),
    ],
)
def test_what_is_refused(script, flags, message, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main([*QUICK, "--save_folder", str(tmp_path / "save"), *flags.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1 and not (tmp_path / "save").exists()
