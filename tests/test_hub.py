"""torch.hub finds every network, and loads checkpoints by the checks of --path_t."""

import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT, weights

import models
import train_student
from helper.util import UserError


def load(name: str, *arguments, **options) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), name, *arguments, source="local", **options)


@pytest.mark.parametrize("name", [*models.model_names(), "wrn_28_4"])
def test_every_network(name):
    with torch.device("meta"):
        network = load(name, num_classes=7)
    expected = models.sketch(name, num_classes=7).state_dict()
    assert {k: x.shape for k, x in network.state_dict().items()} == {k: x.shape for k, x in expected.items()}


def test_from_another_folder(tmp_path):
    """As a stranger uses it: no path is set, and an untrained network needs nothing but models/."""
    code = f"""
import sys, torch
network = torch.hub.load({str(ROOT)!r}, "resnet8x4", source="local", num_classes=100)
print(network(torch.zeros(2, 3, 32, 32)).shape, "helper" in sys.modules)
assert "resnet8x4" in torch.hub.list({str(ROOT)!r}, source="local")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 100]) False\n", done.stderr


@pytest.mark.parametrize("key", ["weights", "pretrained"])
def test_weights_of_a_run(key, teacher):
    network = load("resnet14", **{key: str(teacher)})
    assert network.head.out_features == 10
    assert all(torch.equal(x, network.state_dict()[k]) for k, x in weights(teacher).items())


def test_a_wrapped_student(teacher, tmp_path):
    """A method's network around the student is built here as for --path_t."""
    command = [*QUICK, "--image_size", "16", "--epochs", "1", "--path_t", str(teacher), "--model_s", "resnet8"]
    train_student.main([*command, "--distill", "simkd", "--save_folder", str(tmp_path), "--run_name", "r"])
    file = tmp_path / "student_model" / "r" / "last.pth"
    code = f"""
import torch
network = torch.hub.load({str(ROOT)!r}, "resnet8", source="local", weights={str(file)!r})
print(network(torch.zeros(2, 3, 16, 16)).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 10])\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet20"}, "not a resnet20 .the file says resnet14"),
        ({"num_classes": 100}, "has 10 classes, .* has 100"),
        ({"weights": "none.pth"}, "weights none.pth: no such file"),
        ({"weights": None, "pretrained": True}, "resnet14: no published weights"),
    ],
)
def test_weights_that_do_not_fit(arguments, message, teacher):
    given = {"name": "resnet14", "weights": str(teacher)} | arguments
    with pytest.raises((UserError, ValueError), match=message):
        load(given.pop("name"), **given)


def test_networks_of_packages():
    assert load("network", "torchvision:resnet18", num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
