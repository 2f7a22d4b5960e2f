"""torchvision's and timm's networks under the contract. What needs timm is skipped where it is not installed."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
from collections import OrderedDict
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import QUICK, ROOT, weights
from torch import nn

import models
import train_student
import train_teacher
import transfer_student
from helper import checkpoint
from models import Images, create_model
from models.external import External, as_map

TIMM = find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not TIMM, reason="timm is optional")
DIGITS = Images((64, 64), (0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
NETWORKS = [
    *"torchvision:resnet18 torchvision:shufflenet_v2_x0_5 torchvision:mobilenet_v2 torchvision:mnasnet0_5".split(),
    *"torchvision:regnet_x_400mf torchvision:densenet121 torchvision:swin_t torchvision:vit_b_16".split(),
    *"timm:test_resnet timm:test_byobnet timm:test_efficientnet timm:test_nfnet timm:test_convnext".split(),
    *"timm:test_mambaout timm:test_vit timm:test_vit2 timm:mobilenetv4_conv_small timm:lcnet_050".split(),
    *"timm:convnext_atto timm:pvt_v2_b0 timm:vit_tiny_patch16_224 timm:swin_tiny_patch4_window7_224".split(),
]
RESNET = "torchvision:resnet18"
SMALL = "timm:test_resnet" if TIMM else RESNET  # behind it stands the same code


def package_network(name: str, **arguments) -> nn.Module:
    family, name = name.split(":")
    if family == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=7, **arguments)
    import timm

    return timm.create_model(name, num_classes=7, **arguments)


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch + height))


# every network


@pytest.fixture(scope="module", params=NETWORKS)
def network(request) -> External:
    if request.param.startswith("timm") and not TIMM:
        pytest.skip("timm is optional")
    torch.manual_seed(0)
    net = create_model(request.param, 7, DIGITS)
    net.name = request.param
    return net


@torch.no_grad()
def test_contract(network):
    network.eval()
    x = images()
    kept = x.clone()
    out = network(x, is_feat=True)
    assert isinstance(out, models.Output) and isinstance(network.head, nn.Linear)
    assert out.logits.shape == (2, 7) and out.pooled.shape == (2, network.head.in_features)
    assert len(out.feats) == len(out.preacts) >= 4
    assert [f.shape for f in out.feats] == [p.shape for p in out.preacts]
    assert all(f.dim() == 4 and len(f) == 2 and f.shape[2] == f.shape[3] <= 64 for f in out.feats)
    sides = [f.shape[2] for f in out.feats]
    assert sides == sorted(sides, reverse=True)
    assert out.preacts[0] is out.feats[0]
    torch.testing.assert_close(network.head(out.pooled), out.logits, rtol=0, atol=0)
    torch.testing.assert_close(network(x), out.logits, rtol=0, atol=0)
    assert torch.equal(x, kept)
    for feat, preact in zip(out.feats, out.preacts, strict=True):
        assert preact is feat or torch.equal(F.relu(preact), feat)


def test_gradients(network):
    network.train().zero_grad()
    out = network(images(), is_feat=True)
    assert all(x.requires_grad for x in (*out.feats, *out.preacts, out.pooled, out.logits))
    sum(x.square().mean() for x in (*out.feats, *out.preacts, out.pooled, out.logits)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    network.zero_grad()


@torch.no_grad()
def test_the_packages_weights(network):
    """They load under the package's own names, and the answers are the package's."""
    size = {"image_size": 64} if "vit_b" in network.name else {"img_size": 64} if network.size else {}
    theirs = package_network(network.name, **size).eval()
    assert list(network.state_dict()) == list(theirs.state_dict())
    checkpoint.load_weights(network, network.name, theirs.state_dict(), "--path_t", "file")
    x = network.eval().fit(images())
    torch.testing.assert_close(network(images()), theirs(x), rtol=0, atol=0)


@torch.no_grad()
def test_deepcopy(network):
    other = copy.deepcopy(network.eval())
    before = network(images(), is_feat=True)
    torch.testing.assert_close(other(images(), is_feat=True), before, rtol=0, atol=0)
    for parameter in other.parameters():
        parameter.zero_()
    assert not other(images(), is_feat=True).feats[-1].equal(before.feats[-1])
    torch.testing.assert_close(network(images(), is_feat=True), before, rtol=0, atol=0)


# what is read where


@torch.no_grad()
def test_stages_of_a_resnet():
    torch.manual_seed(0)
    network = create_model(RESNET, 7).eval()
    net, x = network.net, images()
    out = network(x, is_feat=True)
    x = net.relu(net.bn1(net.conv1(x)))
    torch.testing.assert_close(out.feats[0], x, rtol=0, atol=0)
    x = net.maxpool(x)
    for i in (1, 2, 3, 4):
        x = getattr(net, f"layer{i}")(x)
        torch.testing.assert_close(out.feats[i], x, rtol=0, atol=0)
        assert out.preacts[i].min() < 0  # a ReLU in place would have taken these


@needs_timm
@torch.no_grad()
def test_stages_are_timms_features():
    network = create_model(SMALL, 7).eval()
    theirs = package_network(SMALL, features_only=True).eval()
    theirs.load_state_dict(network.state_dict(), strict=False)
    for ours, other in zip(network(images(), is_feat=True).feats, theirs(images()), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_maps():
    image = torch.zeros(1, 3, 8, 16)
    tokens = torch.arange(10.0).view(1, 10, 1)  # two others, then two rows of four
    assert as_map(tokens, 2, image).tolist() == [[[[2, 3, 4, 5], [6, 7, 8, 9]]]]
    last = torch.arange(6.0).view(1, 1, 2, 3)
    assert as_map(last, "NHWC", image).shape == (1, 3, 1, 2) and as_map(last, "NHWC", image)[0, :, 0, 1].tolist() == [
        3,
        4,
        5,
    ]


@torch.no_grad()
def test_other_shapes():
    network = create_model(SMALL, 7).eval()
    out = network(images(1, 96, 64), is_feat=True)
    assert [tuple(f.shape[2:]) for f in out.feats[1:]] == [(24, 16), (12, 8), (6, 4), (3, 2)]


@needs_timm
@torch.no_grad()
def test_tokens_of_wide_images():
    network = create_model("timm:test_vit", 7, Images((32, 96), *DIGITS[1:])).eval()
    assert network(images(1, 32, 96), is_feat=True).feats[-1].shape[2:] == (2, 6)


# what goes in


@torch.no_grad()
def test_normalised_anew():
    """The data set's batches and the network's own normalisation of the same pixels are the same to it."""
    network, pixels = create_model(RESNET, 7, DIGITS).eval(), torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in DIGITS[1:])
    own = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(pixels)
    torch.testing.assert_close(network((pixels - mean) / std), network.net(own))
    assert torch.equal(create_model(RESNET, 7).fit(own), own)


@torch.no_grad()
def test_size_behind_an_at():
    network = create_model(f"{SMALL}@96", 7, DIGITS).eval()
    assert network.size == (96, 96) and network(images(), is_feat=True).feats[0].shape[2:] == (48, 48)
    expected = F.interpolate(network.fit(images()), (96, 96), mode="bilinear", antialias=True)
    torch.testing.assert_close(network.fit(images()), expected)


@needs_timm
@torch.no_grad()
def test_sizes_that_do_not_fit():
    """Rounded up to whole patches; where no size will do, the network's own."""
    assert create_model("timm:test_vit", 7, Images((40, 40), *DIGITS[1:])).size == (48, 48)
    assert create_model("timm:inception_v3", 7, Images((16, 16), *DIGITS[1:])).size == (299, 299)
    with pytest.raises(ValueError, match="timm:test_vit: does not take images of 100x100; its own are of 160x160"):
        create_model("timm:test_vit@100", 7)


@needs_timm
@torch.no_grad()
def test_weights_of_another_size():
    """A file with positions for 160 pixels serves a network for 64, as timm itself converts it."""
    theirs = package_network("timm:test_vit")
    network = create_model("timm:test_vit", 7, DIGITS).eval()
    checkpoint.load_weights(network, "timm:test_vit", theirs.state_dict(), "--path_t", "file")
    assert network.state_dict()["pos_embed"].shape[1] == 17
    theirs.set_input_size(64)
    torch.testing.assert_close(network(images()), theirs.eval()(network.fit(images())))


# parts of other modules and threads


def test_state_inside_another_module():
    inner = create_model(SMALL, 7, DIGITS)
    outer = nn.Sequential(OrderedDict(student=inner, rest=nn.Linear(7, 7)))
    state = {key: value.clone() for key, value in outer.state_dict().items()}
    expected = [f"student.{key}" for key in package_network(SMALL).state_dict()]
    assert list(state) == [*expected, "rest.weight", "rest.bias"]
    with torch.no_grad():
        inner.head.weight.zero_()
    outer.load_state_dict(state)
    assert inner.head.weight.any()


def replicate(module: nn.Module) -> nn.Module:
    """What nn.DataParallel makes for another device, on this one."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        setattr(replica, name, replicate(child) if child is not None else None)
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter * 1)
    return replica


def test_replicas_in_threads():
    network = create_model(SMALL, 7, DIGITS).eval()
    parts = images(8).split(2)
    expected = [network(part, is_feat=True) for part in parts]
    found: list = [None] * len(parts)
    start = threading.Barrier(len(parts))

    def work(i: int) -> None:
        replica = replicate(network)
        start.wait()
        found[i] = [replica(parts[i], is_feat=True) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, one in zip(found, expected, strict=True):
        for out in outputs:
            torch.testing.assert_close(out, one)
    sum(out.feats[-1].square().mean() + out.logits.square().mean() for out, *_ in found).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    network = create_model(SMALL, 7, DIGITS).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(), is_feat=True), network(images(), is_feat=True))


@torch.no_grad()
def test_reset_head():
    network = create_model(SMALL, 7).eval()
    keys = list(network.state_dict())
    network.reset_head(5)
    out = network(images(), is_feat=True)
    assert list(network.state_dict()) == keys and out.logits.shape == (2, 5)
    assert torch.equal(network.head(out.pooled), out.logits)


def test_no_margins():
    with pytest.raises(ValueError, match="names no BatchNorms before"):
        create_model(SMALL, 7).get_bn_before_relu()


def test_building_takes_no_other_random_numbers():
    torch.manual_seed(0)
    theirs = package_network("torchvision:regnet_x_400mf").state_dict()
    for _ in range(2):  # the second finds the network known
        torch.manual_seed(0)
        ours = create_model("torchvision:regnet_x_400mf", 7, DIGITS).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name, rate", [(RESNET, 0.05), ("torchvision:mobilenet_v2", 0.01), ("timm:test_vit", 0.01)])
def test_learning_rates(name, rate):
    if TIMM or not name.startswith("timm"):
        assert models.sketch(name).learning_rate == rate


# names and errors


@pytest.mark.parametrize(
    "name, message",
    [
        ("torchvision:resnet19", "unknown network 'torchvision:resnet19'; near: torchvision:resnet18"),
        ("torchvison:resnet18", "unknown network 'torchvison:resnet18'; near: .*torchvision:"),
        ("torchvision:", "unknown network 'torchvision:'; near: torchvision:vgg11,"),
        ("torchvision:resnet18@big", "torchvision:resnet18@big: expected a size in pixels after the @"),
        ("torchvision:squeezenet1_1", "cannot be used here: its classifier is a Conv2d, not one linear layer"),
        ("torchvision:googlenet", "cannot be used here: it has several classifiers in training"),
        pytest.param("timm:resnet19", "near: timm:resnet18", marks=needs_timm),
        pytest.param("timm:crossvit_tiny_240", "its classifier is a ModuleList, not one linear", marks=needs_timm),
    ],
)
def test_refused(name, message):
    with pytest.raises(ValueError, match=message):
        models.sketch(name)


def test_is_model():
    assert models.is_model("torchvision:resnet34") and models.is_model("torchvision:resnet34@96")
    assert not models.is_model("torchvision:resnet35")


def test_timm_is_optional(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert not models.is_model("timm:resnet18")
    with pytest.raises(SystemExit) as stop:
        train_teacher.main([*QUICK, "--model", "timm:resnet18", "--save_folder", str(tmp_path)])
    assert stop.value.code == 2
    assert "--model: timm:NAME needs the package timm (pip install timm)" in capsys.readouterr().err
    torch.save({"model": {"fc.weight": torch.zeros(10, 3)}, "model_name": "timm:resnet18"}, tmp_path / "file.pth")
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--path_t", str(tmp_path / "file.pth"), "--save_folder", str(tmp_path)])
    assert stop.value.code == 2
    assert "file.pth: timm:NAME needs the package timm" in capsys.readouterr().err


# the scripts


def run(script, folder, *arguments):
    """On a few digits of 64 pixels, one epoch."""
    common = "--dataset digits --image_size 64 --device cpu --limit_train 20 --limit_val 10 --batch_size 10 --epochs 1"
    common += f" --learning_rate 0.001 --save_folder {folder} --run_name r"
    script.main([*common.split(), *arguments])


PAIR = ("timm:test_resnet", "timm:test_vit") if TIMM else (RESNET, "torchvision:shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def external_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("external")
    run(train_teacher, folder, "--model", PAIR[0])
    return folder / "models" / "r" / "last.pth"


@pytest.mark.parametrize("method", ["fitnet", "at", "crd", "simkd"])
def test_distillation(method, external_teacher, tmp_path):
    run(train_student, tmp_path, "--path_t", str(external_teacher), "--model_s", PAIR[1], "--distill", method)
    folder = tmp_path / "student_model" / "r"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    state = weights(folder / "last.pth")
    own = create_model(PAIR[1], 10, DIGITS).net.state_dict()
    if method == "simkd":  # in the place of its classifier
        assert {key.removeprefix("network.") for key in state} - own.keys() and "fc.weight" in state
    else:
        assert list(state) == list(own)
    assert all(w.isfinite().all() for w in state.values())
    if method == "crd":
        run(transfer_student, tmp_path, "--path_s", str(folder / "last.pth"), "--image_size", "32")
        assert (tmp_path / "transfer" / "r" / "summary.json").is_file()


def test_local_weights(tmp_path):
    """A package's own state dict as the teacher, a network of ours as the student."""
    torch.manual_seed(0)
    state = create_model(PAIR[0], 10).net.state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    path = str(tmp_path / "theirs.pth")
    run(train_student, tmp_path, "--path_t", path, "--model_t", PAIR[0], "--model_s", "resnet8", "--distill", "kd,sp")
    assert (tmp_path / "student_model" / "r" / "summary.json").is_file()


@pytest.mark.parametrize("pair", ["resnet32x4:resnet8x4", "timm:test_vit torchvision:resnet18@96"])
def test_pairs_of_the_procedures(pair):
    script = 'source scripts/setup.sh; source scripts/procedures.sh; read_pair; echo "$model_t $model_s"'
    env = {**os.environ, "DATASET": "digits", "PAIR": pair, "PYTHON": "python"}
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == pair.replace("4:r", "4 r") + "\n", done.stderr


def test_published_weights(monkeypatch, tmp_path):
    """They are used at the size that they were trained on."""
    torch.manual_seed(0)
    state = create_model(PAIR[0], 10).net.state_dict()
    prefix, name = PAIR[0].split(":")
    family = models.base._families[prefix]
    monkeypatch.setattr(family, "download", lambda asked: {name: state}[asked])
    run(train_student, tmp_path, "--pretrained_t", "--model_t", PAIR[0], "--model_s", "resnet8", "--distill", "kd")
    options = json.loads((tmp_path / "student_model" / "r" / "options.json").read_text())["options"]
    assert options["model_t"] == [f"{PAIR[0]}@{family.own_size(name)}"] and options["pretrained_t"]


@pytest.mark.parametrize(
    "command, message",
    [
        ("--model_t torchvision:resnet18", r"--pretrained_t: torchvision:resnet18: no published weights: .*no network"),
        ("--model_t resnet8", r"--pretrained_t: resnet8: no published weights; .*torchvision:NAME have some"),
        ("", r"--pretrained_t: expected --model_t beside it"),
        ("--model_t torchvision:resnet18 --path_t file", r"--pretrained_t: expected --model_t .* no --path_t"),
    ],
)
def test_no_published_weights(command, message, monkeypatch, tmp_path, capsys):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--pretrained_t", "--save_folder", str(tmp_path / "save"), *command.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not (tmp_path / "save").exists()
    assert re.search(message, error), error


def test_published_weights_of_other_classes(monkeypatch, tmp_path, capsys):
    state = create_model(PAIR[0], 11).net.state_dict()
    prefix, name = PAIR[0].split(":")
    monkeypatch.setattr(models.base._families[prefix], "download", lambda asked: state)
    with pytest.raises(SystemExit) as stop:
        run(train_student, tmp_path / "save", "--pretrained_t", "--model_t", PAIR[0], "--model_s", "resnet8")
    assert stop.value.code == 2 and not (tmp_path / "save").exists()
    name = models.at_own_size(PAIR[0])
    assert f"--pretrained_t {name}: has 11 classes, the data set has 10" in capsys.readouterr().err


@needs_timm
def test_timm_without_a_network(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="timm:test_resnet: no published weights: .") as found:
        models.published_weights("timm:test_resnet")
    assert "\n" not in str(found.value)
