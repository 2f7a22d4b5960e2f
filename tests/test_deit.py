"""Networks with a distillation head, timm's own, and the two methods that train it apart from the class head."""

import json
import signal
from importlib.util import find_spec

import pytest
import torch
from conftest import QUICK, weights
from kill_harness import equal, results

import models
import train_student
import transfer_student
from helper import export
from helper.trainee import Trainee

timm = pytest.importorskip("timm")

TINY = "timm:deit_tiny_distilled_patch16_224"
SIZES = {"deit_tiny_distilled_patch16_224": 32, "pit_ti_distilled_224": 64, "efficientformer_l1": None}
DIGITS = models.Images((64, 64), (0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
FORMATS = ["torchscript", *(["onnx"] if all(map(find_spec, export.FORMATS["onnx"].packages)) else [])]


def small(name: str) -> models.Network:
    torch.manual_seed(0)
    size = SIZES[name] or 224
    return models.create_model(f"timm:{name}", 7, DIGITS._replace(size=(size, size)))


@pytest.mark.parametrize("name", SIZES)
def test_the_packages_answers(name: str) -> None:
    """Bit for bit, with its own weights; in training timm returns both heads' answers, and so does the Output."""
    network = small(name)
    size = {"img_size": SIZES[name]} if SIZES[name] else {}
    theirs = timm.create_model(name, num_classes=7, **size)
    assert list(network.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(network.state_dict())
    images = torch.randn(3, 3, *[SIZES[name] or 224] * 2)
    with torch.no_grad():
        out, x = network.eval()(images, is_feat=True), network.fit(images)
        assert torch.equal(out.logits, theirs.eval()(x)) and torch.equal(network(images), out.logits)
        z = network.head(out.pooled)
        torch.testing.assert_close((z + out.dist[0]) / 2, out.logits, rtol=0, atol=1e-6)
        assert not torch.allclose(z, out.logits, atol=1e-3)

        network.separate_heads = True
        assert torch.equal(network(images, is_feat=True).logits, out.logits), "the mean in eval mode"
        for module in theirs.modules():
            module.training = isinstance(module, type(theirs))  # BatchNorm and dropout as in eval mode
        theirs.set_distilled_training(True)
        network.training = True
        apart = network(images, is_feat=True)
        assert all(torch.equal(a, b) for a, b in zip((apart.logits, *apart.dist), theirs(x), strict=True))
        network.separate_heads = False
        assert torch.equal(network(images, is_feat=True).logits, out.logits), "and where no method asks"


def test_new_classifiers() -> None:
    network = small("deit_tiny_distilled_patch16_224").eval()
    keys = list(network.state_dict())
    network.reset_head(5)
    out = network(torch.randn(2, 3, 32, 32), is_feat=True)
    assert list(network.state_dict()) == keys and out.logits.shape == out.dist[0].shape == (2, 5)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "efficientvim_m1", "levit_128s", "repvit_m0_9"])
def test_other_classifiers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="its classifier is a .*, not one linear layer"):
        models.sketch(f"timm:{name}")


# ---- runs ----


def command(teacher, save, *more: str) -> list[str]:
    few = "--limit_train 40 --limit_val 20 --batch_size 10 --epochs 2 --learning_rate 0.001 --run_name r".split()
    return [*QUICK, *few, "--path_t", str(teacher), "--model_s", TINY, "--save_folder", str(save), *more]


def distil(teacher, save, *more: str):
    train_student.main(command(teacher, save, *more))
    return save / "student_model" / "r"


@pytest.mark.parametrize("method", ["deit_hard", "deit_soft"])
def test_resumed_tested_and_exported(method: str, teacher, tmp_path, monkeypatch, capsys) -> None:
    """A run that is stopped within an epoch goes on as if it had not been; its files average both heads."""
    whole = distil(teacher, tmp_path / "whole", "--distill", method)
    steps, step = [], Trainee.step

    def stopping(*args) -> None:
        step(*args)
        steps.append(args)
        if len(steps) == 6:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainee, "step", stopping)
    with pytest.raises(SystemExit):
        distil(teacher, tmp_path / "again", "--distill", method)
    again = distil(teacher, tmp_path / "again", "--distill", method)
    assert len(steps) == 8 and all(map(equal, results(again), results(whole)))

    state, start = weights(again / "last.pth"), models.create_model(TINY, 10)
    said = json.loads((again / "summary.json").read_text())
    assert said["epochs"] == 2
    capsys.readouterr()
    train_student.main([*QUICK, "--limit_val", "20", "--test_only", str(again / "last.pth")])
    assert f"{said['last_acc']:.2f}" in capsys.readouterr().out

    distil(teacher, tmp_path / "again", "--distill", method, "--export", ",".join(FORMATS))
    theirs = timm.create_model(TINY.removeprefix("timm:"), num_classes=10, img_size=32).eval()
    theirs.load_state_dict(state)
    network = models.create_model(TINY, 10, images_of(again))
    assert set(start.state_dict()) == set(state)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(network.fit(images))
        found = torch.jit.load(again / "student.pt")(images)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if "onnx" in FORMATS:
            import onnxruntime

            session = onnxruntime.InferenceSession(again / "student.onnx")
            found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def images_of(folder) -> models.Images:
    given = json.loads((folder / "student.json").read_text())["input"]
    return models.Images((32, 32), tuple(given["mean"]), tuple(given["std"]))


@pytest.mark.parametrize("flags, moving", [
    ("deit_hard -r 1e-30", {"head_dist"}),  # what the teacher says trains its head, what the labels say the other
    ("deit_soft -r 1e-30", {"head_dist"}),
    ("deit_hard -b 0", {"head", "head_dist"}),  # without the method the heads are one, as in timm
    ("kd", {"head", "head_dist"}),
    ("simkd", set()),
])  # fmt: skip
def test_heads_that_train(flags: str, moving: set[str], teacher, tmp_path) -> None:
    state = {}
    for rate in ("1e-3", "1e-30"):
        more = "--epochs", "1", "--weight_decay", "0", "--learning_rate", rate
        state[rate] = weights(distil(teacher, tmp_path / rate, "--distill", *flags.split(), *more) / "last.pth")
    changed = {key for key, x in state["1e-3"].items() if not torch.equal(x, state["1e-30"][key])}
    assert {key.removesuffix(".weight") for key in changed if key in ("head.weight", "head_dist.weight")} == moving


def test_it_teaches_and_is_probed(teacher, tmp_path) -> None:
    folder = distil(teacher, tmp_path, "--distill", "none", "--epochs", "1")
    more = "--model_s", "resnet8", "--epochs", "1", "--distill", "kd,srrl,catkd"
    distil(folder / "last.pth", tmp_path / "of", *more, "-b", "1,1e-3,1e-3")
    probe = [*QUICK, "--path_s", str(folder / "last.pth"), "--epochs", "1", "--run_name", "p"]
    transfer_student.main([*probe, "--save_folder", str(tmp_path)])
    before, after = weights(folder / "last.pth"), weights(tmp_path / "transfer" / "p" / "last.pth")
    changed = {key.split(".")[0] for key, x in before.items() if not torch.equal(x, after[key])}
    assert changed == {"head", "head_dist"}


@pytest.mark.parametrize("flags, message", [
    ("--distill deit_hard --model_s resnet8", "deit_hard needs a student with a distillation token (timm:deit_*_"
     "distilled_*), not ResNet"),
    ("--distill deit_soft --model_s timm:test_vit", "deit_soft needs a student with a distillation token"),
    ("--distill simkd,deit_soft", "cannot be combined: simkd changes the student's maps and heads, which deit_soft"),
])  # fmt: skip
def test_refused(flags: str, message: str, teacher, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        distil(teacher, tmp_path, *flags.split(), *(["-b", "1,1"] if "," in flags else []))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "student_model").exists()


def test_in_a_sweep(teacher, tmp_path) -> None:
    """Beside a student whose heads train as one, each is as it is alone."""
    items = {"a": "deit_hard --run_name a", "b": "kd --run_name b"}
    alone = [weights(distil(teacher, tmp_path / key, "--distill", items[key].split()[0]) / "last.pth") for key in items]
    train_student.main(command(teacher, tmp_path, "--sweep", "; ".join(items.values())))
    for key, expected in zip(items, alone, strict=True):
        found = weights(tmp_path / "student_model" / key / "last.pth")
        assert all(torch.equal(found[name], x) for name, x in expected.items())
