"""configs/recipes: each is a set of options that hold together, says where it is from, and trains."""

import json

import pytest
import torch
from conftest import ROOT
from test_dataset import make_tree

import models
import train_student
import train_teacher

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.json"))
SMALL = "--dataset folder --image_size 32 --batch_size 4 --epochs 2 --warmup_epochs 1 --amp off --device cpu"
NETWORK = "timm:test_resnet"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_trains(path, tmp_path, monkeypatch) -> None:
    make_tree(tmp_path / "images", (40, 40))
    told = json.loads(path.read_text())
    assert told["about"].endswith(".") and told.keys() == {"about", "options"}
    monkeypatch.setattr(
        models.base._families["timm"], "download", lambda name: models.create_model(NETWORK, 3).state_dict()
    )
    torch.manual_seed(0)
    torch.save({"model": models.create_model(NETWORK, 2).state_dict(), "model_name": NETWORK}, tmp_path / "t.pth")
    command = ["--config", str(path), *SMALL.split(), "--data_folder", str(tmp_path / "images")]
    student = command + ["--path_t", str(tmp_path / "t.pth"), "--model_t", NETWORK]
    student += [] if "model_s" in told["options"] else ["--model_s", NETWORK]
    train_student.main([*student, "--save_folder", str(tmp_path), "--run_name", "r"])
    options = json.loads((tmp_path / "student_model" / "r" / "options.json").read_text())["options"]
    small = {word.removeprefix("--") for word in SMALL.split()} | {"model_t"}
    assert all(options[key] == value for key, value in told["options"].items() if key not in small)
    if "distill" not in told["options"]:  # it serves a teacher too
        train_teacher.main([*command, "--model", NETWORK, "--save_folder", str(tmp_path), "--run_name", "r"])
        assert (tmp_path / "models" / "r" / "summary.json").is_file()
