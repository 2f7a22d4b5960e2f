"""`--export`: the file computes what the network computes, for any number of images, and needs nothing of ours."""

import json
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK, weights
from torch import nn

import models
import train_student
import train_teacher
from helper import export
from helper.util import UserError

FORMATS = ["torchscript", "pt2"] + (["onnx"] if all(map(find_spec, export.FORMATS["onnx"].packages)) else [])
IMAGES = models.Images((32, 32), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
OTHERS = [("MobileNetV2", "torchscript"), ("torchvision:resnet18", "torchscript"), ("wrn_16_1", "pt2")]
OTHERS += [("timm:test_vit", "pt2")] if find_spec("timm") else []
# reads the files without this project
READER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
folder, images = sys.argv[1], np.load(sys.argv[2])
assert json.load(open(f"{folder}/teacher.json"))["input"]["shape"] == ["batch", *images.shape[1:]]
run = {
    "teacher.pt": lambda path: torch.jit.load(path)(torch.from_numpy(images)).numpy(),
    "teacher.pt2": lambda path: torch.export.load(path).module()(torch.from_numpy(images)).numpy(),
}
if sys.argv[3] == "True":
    import onnxruntime
    run["teacher.onnx"] = lambda path: onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
found = {name: call(f"{folder}/{name}").tolist() for name, call in run.items()}
print(json.dumps(found))
"""


def batch(n=3):
    return SimpleNamespace(images=torch.randn(n, 3, *IMAGES.size))


def run_in(folder, *formats):
    summary = {"model_name": "a network", "parameters": 1, "last_acc": 50.0}
    return SimpleNamespace(stem=folder / "student", options={"export": list(formats)}, summary=summary)


def test_a_run_exports_its_network(tmp_path):
    """A finished one too; the files are read where this project is not there."""
    command = [*QUICK, "--model", "resnet8", "--epochs", "1", "--save_folder", str(tmp_path), "--run_name", "r"]
    train_teacher.main(command)
    folder = tmp_path / "models" / "r"
    before = weights(folder / "last.pth")
    train_teacher.main([*command, "--export", ",".join(FORMATS)])
    after = weights(folder / "last.pth")
    assert all(torch.equal(before[key], after[key]) for key in before)
    said = json.loads((folder / "teacher.json").read_text())
    assert said["input"]["shape"] == ["batch", 3, 32, 32] and said["output"]["shape"] == ["batch", 10]
    assert len(said["input"]["mean"]) == 3 and len(said["output"]["classes"]) == 10 and said["model_name"] == "resnet8"

    network = models.create_model("resnet8", 10).eval()
    network.load_state_dict(after)
    images = torch.randn(5, 3, 32, 32)
    np.save(tmp_path / "images.npy", images.numpy())
    arguments = [str(folder), str(tmp_path / "images.npy"), str("onnx" in FORMATS)]
    done = subprocess.run([sys.executable, "-c", READER, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(FORMATS)
    with torch.no_grad():
        for logits in found.values():
            torch.testing.assert_close(torch.tensor(logits), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, format", OTHERS)
def test_other_networks(name, format, tmp_path):
    """Single images too; the network itself stays as it is."""
    torch.manual_seed(0)
    network = models.create_model(name, 7, IMAGES).train()
    export.save(run_in(tmp_path, format), network, [batch(1)], IMAGES, "abcdefg")
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert json.loads((tmp_path / "student.json").read_text())["largest_difference"][format] < 1e-4


class Wrapped(nn.Module):
    """As a method may wrap the student: no `head`, another answer."""

    def __init__(self, network, other=None):
        super().__init__()
        self.network, self.other = network, other

    def forward(self, x, is_feat=False):
        logits = 2 * self.network(x)
        return logits if self.other is None else logits + self.other(x)


class Unsteady(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return float(self.calls)


def test_wrapped_students(tmp_path):
    network = models.create_model("resnet8", 10)
    export.save(run_in(tmp_path, "torchscript"), Wrapped(network), [batch()], IMAGES, "0123456789")
    with torch.no_grad(), pytest.warns(match="deprecated"):
        images = batch().images
        found, expected = torch.jit.load(tmp_path / "student.pt")(images), 2 * network.eval()(images)
    torch.testing.assert_close(found, expected)


def test_one_that_does_not_agree_is_refused(tmp_path):
    network = Wrapped(models.create_model("resnet8", 10), Unsteady())
    with pytest.raises(UserError, match="--export torchscript: its logits are .* from the network's, not 0.0"):
        export.save(run_in(tmp_path, "torchscript"), network, [batch()], IMAGES, "0123456789")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given, message", [
    ("onyx", "--export: expected some of onnx,torchscript,pt2, found 'onyx'"),
    ("pt2,onnx", "--export: onnx needs onnxscript (pip install onnxscript)"),
])  # fmt: skip
def test_refused_before_anything_is_trained(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda package: package != "onnxscript")
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--distill", "none", "--export", given, "--save_folder", str(tmp_path / "save")])
    assert stop.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "save").exists()
