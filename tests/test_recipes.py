"""configs/ilsvrc2012: the published values, and each recipe's two steps on a made-up folder in ImageNet's layout."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, plausible
from PIL import Image

import train_student

# torchdistill's, in all for one GPU: epochs, batch, rate, after which epochs it falls, weight decay, r, a, b
PUBLISHED = {
    "kd": (100, 256, 0.1, [30, 60, 90], 1e-4, 0.5, 0.5, 0),
    "at": (100, 256, 0.1, [30, 60, 90], 1e-4, 1, 0, 1000),
    "ft": (90, 256, 0.1, [30, 60], 1e-4, 1, 0, 1000),
    "crd": (100, 256, 0.1, [30, 60, 90], 1e-4, 1, 0, 0.8),
    "tfkd": (90, 256, 0.1, [30, 60, 80], 1e-4, 0.9, 0, 0.1),
    "sskd": (100, 256, 0.1, [30, 60, 90], 5e-4, 1, 0.9, 1),
    "l2": (90, 512, 0.2, [30, 60], 1e-4, 1, 0, 15),
    "pad_l2": (30, 512, 0.002, [], 1e-4, 1, 0, 1),
}
OWN = {
    "kd": {"kd_T": 1},
    "at": {"at_last": 2, "at_p": 2},
    "ft": {"init_epochs": 1, "init_learning_rate": 0.01, "ft_k": 0.5, "ft_flat_norm": "l1"},
    "crd": {"feat_dim": 128, "nce_k": 16384, "nce_t": 0.07, "nce_m": 0.5, "mode": "exact", "sync_bn": True},
    "tfkd": {"tfkd_T": 1, "tfkd_form": "self", "model_t": ["torchvision:resnet18"]},
    "sskd": {
        "init_epochs": 30, "init_learning_rate": 0.1, "init_lr_decay_epochs": [10, 20], "kd_T": 4, "sskd_ss": 10,
        "sskd_tf": 2.7, "sskd_ss_T": 0.5, "sskd_tf_T": 4, "sskd_ss_ratio": 0.75, "sskd_tf_ratio": 1,
    },
    "l2": {},
    "pad_l2": {},
}  # fmt: skip
METHODS = list(PUBLISHED)
SHORT = "--image_size 32 --limit_train 8 --batch_size 4 --epochs 1 --device cpu --num_workers 1".split()


def config(method):
    return ["--config", str(ROOT / "configs" / "ilsvrc2012" / f"{method}.json")]


def test_every_config_is_a_recipe():
    assert sorted(METHODS) == sorted(path.stem for path in (ROOT / "configs" / "ilsvrc2012").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_published_values(method):
    opt = train_student.parse(config(method))
    train_student.settle(opt)
    found = (opt.epochs, opt.batch_size, opt.learning_rate, opt.lr_decay_epochs, opt.weight_decay)
    assert (*found, opt.gamma, opt.alpha, *opt.beta) == PUBLISHED[method]
    common = {"momentum": 0.9, "nesterov": False, "model_t": ["torchvision:resnet34"], "sync_bn": False}
    common |= {"dataset": "imagenet", "model_s": "torchvision:resnet18", "adjust_lr": False, "lr_decay_rate": 0.1}
    expected = common | OWN[method]
    assert {key: getattr(opt, key) for key in expected} == expected


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's layout in small, and teachers that know nothing."""
    here = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part, n in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            (here / part / wnid).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
                image.save(here / part / wnid / f"{wnid}_{i}.JPEG")
    for name in ("resnet18", "resnet34"):
        torch.save(plausible(f"torchvision:{name}", 2, torch.randn(4, 3, 32, 32)), here / f"{name}.pth")
    return here


@pytest.mark.parametrize("method", METHODS)
def test_two_steps(method, imagenet, tmp_path):
    teacher = OWN[method].get("model_t", ["torchvision:resnet34"])[0].split(":")[1]
    command = [*config(method), "--data_folder", str(imagenet), *SHORT]
    command += ["--path_t", str(imagenet / f"{teacher}.pth"), "--save_folder", str(tmp_path), "--run_name", "r"]
    command += {"crd": "--nce_k 4", "sskd": "--init_epochs 1", "pad_l2": f"--path_s {imagenet}/resnet18.pth"}.get(
        method, ""
    ).split()
    train_student.main(command)
    folder = tmp_path / "student_model" / "r"
    (row,) = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()[1:]]
    assert float(row[1]) == PUBLISHED[method][2] and np.isfinite(float(row[2]))
    assert (folder / "init_log.csv").exists() == (method in ("ft", "sskd"))
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["model_name"] == "torchvision:resnet18" and state["model"]["bn1.num_batches_tracked"] >= 2


def test_the_sweep(teacher, python, tmp_path):
    """PAD-L2 goes on from L2, which is trained before it; a second call trains nothing."""
    variables = {
        "PYTHON": python, "SAVE": tmp_path, "DATASET": "digits", "METHODS": "pad_l2 kd tfkd l2", "TEACHER": teacher,
        "TEACHER_18": teacher, "OPTIONS": " ".join([*QUICK[2:], "--epochs 1 --model_t resnet14 --model_s resnet8"]),
    }  # fmt: skip
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    command = ["bash", ROOT / "scripts" / "run_imagenet_distill.sh"]
    said = [subprocess.run(command, env=environment, text=True, capture_output=True) for _ in range(2)]
    assert [done.returncode for done in said] == [0, 0], said
    assert [done.stdout.count("this run is finished") for done in said] == [1, 4]
    assert "| digits | resnet8 | resnet14 | pad_l2 |" in said[0].stdout
    runs = tmp_path / "student_model"
    options = {path.name: json.loads((path / "options.json").read_text())["options"] for path in runs.iterdir()}
    assert options.keys() == {f"ilsvrc2012_{method}_1" for method in ("l2", "pad_l2", "kd", "tfkd")}
    assert options["ilsvrc2012_pad_l2_1"]["path_s"] == str(runs / "ilsvrc2012_l2_1" / "last.pth")
    assert options["ilsvrc2012_kd_1"]["adjust_lr"] and not options["ilsvrc2012_l2_1"]["adjust_lr"]
