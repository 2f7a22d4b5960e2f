"""The networks: against the reference numbers, and everything registered against the contract."""

import json
import subprocess
import sys
from pathlib import Path

import check_models
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models import Network, create_model, is_model, model_names

GOLDEN = Path(__file__).parent / "golden"
SMALL = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2_0.5")  # one a file, quick
CASES = [(file, *case) for file in ("models_numeric", "models") for case in check_models.load(GOLDEN / f"{file}.json")]


@pytest.fixture(scope="module", params=model_names())
def network(request) -> Network:
    """Every registered network in turn; a test sets the mode it needs."""
    torch.manual_seed(0)
    return create_model(request.param, num_classes=7)


def images(batch: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch + height + width))


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


# reference numbers


@pytest.mark.parametrize("check", [pytest.param(c, id=f"{f}-{n}") for f, n, c in CASES if is_model(n)])
def test_golden(check):
    check()


def test_golden_covers_every_listed_network():
    assert set(model_names()) - {"resnet26"} <= {name for file, name, _ in CASES if file == "models"}


def test_resnet26_lies_halfway_between_two_that_it_covers():
    """One block a stage more than resnet20, one less than resnet32; the last one's names are a superset."""
    shapes = {n: {k: v.shape for k, v in create_model(f"resnet{n}", 100).state_dict().items()} for n in (20, 26, 32)}
    count = {n: sum(p.numel() for p in create_model(f"resnet{n}", 100).parameters()) for n in (20, 26, 32)}
    assert shapes[20].items() < shapes[26].items() < shapes[32].items()
    assert count[26] - count[20] == count[32] - count[26] == 2 * 9 * (16**2 + 32**2 + 64**2) + 4 * (16 + 32 + 64)


@pytest.fixture
def numbers() -> dict:
    data = json.loads((GOLDEN / "models_numeric.json").read_text())
    del data["models"]["wrn_16_2"]
    return data


def test_check_models_from_any_folder(tmp_path, numbers):
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps(numbers))
    done = subprocess.run([sys.executable, check_models.__file__, file], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["ok  resnet8x4", "1 passed, 0 failed"]
    assert done.returncode == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.update(params=1),
        lambda m: m["logits"][1].__setitem__(3, 0.5),
        lambda m: m["fill_check"].update(sd_abssum=1.0),
        lambda m: m["feats_preact_True"][2].update(wsum=m["feats_preact_True"][2]["wsum"] + 1e-3),
        lambda m: m["feats_preact_False"][1]["first"].__setitem__(0, float("nan")),
    ],
)
def test_check_models_fails(tmp_path, numbers, spoil, capsys):
    spoil(numbers["models"]["resnet8x4"])
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps(numbers))
    assert check_models.main([str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL resnet8x4: ") and ", got " in lines[0] and ", expected " in lines[0]
    assert lines[1:] == ["0 passed, 1 failed"]


def test_check_models_skips_what_is_not_here(tmp_path, numbers, capsys):
    numbers["models"] = {"alexnet": {}}
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps(numbers))
    assert check_models.main([str(file)]) == 1  # nothing passed
    assert capsys.readouterr().out.splitlines() == ["skip alexnet: no such network here", "0 passed, 0 failed"]


@pytest.mark.parametrize("text", ["{}", "not json", '{"recipe": "none", "models": {}}'])
def test_check_models_refuses_other_files(tmp_path, text):
    file = tmp_path / "numbers.json"
    file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        check_models.main([str(file)])
    assert stop.value.code == 2


# the contract, for every registered network


@pytest.mark.parametrize("batch, size", [(1, 32), (2, 64)])
@torch.no_grad()
def test_contract(network, batch, size):
    network.eval()
    x = images(batch, size, size)
    kept = x.clone()
    out = network(x, is_feat=True)
    assert isinstance(out, models.Output)
    assert out.logits.shape == (batch, 7)
    assert len(out.feats) == len(out.preacts) >= 4
    assert [f.shape for f in out.feats] == [p.shape for p in out.preacts]
    assert all(f.dim() == 4 and len(f) == batch for f in out.feats)
    assert out.pooled.shape == (batch, network.head.in_features)
    assert out.preacts[0] is out.feats[0]
    assert isinstance(network.head, nn.Linear)
    torch.testing.assert_close(network.head(out.pooled), out.logits, rtol=0, atol=0)
    torch.testing.assert_close(network(x), out.logits, rtol=0, atol=0)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_preacts_are_left_alone(network):
    out = network.eval()(images(), is_feat=True)
    for feat, preact in zip(out.feats[1:], out.preacts[1:], strict=True):
        assert preact.min() < 0  # an in-place ReLU would have taken these
        assert preact is feat or preact.untyped_storage().data_ptr() != feat.untyped_storage().data_ptr()


@pytest.mark.parametrize("is_feat", [False, True])
@torch.no_grad()
def test_each_batchnorm_runs_once(network, is_feat):
    network.train()
    before = [int(bn.num_batches_tracked) for bn in batch_norms(network)]
    network(images(), is_feat=is_feat)
    assert [int(bn.num_batches_tracked) for bn in batch_norms(network)] == [n + 1 for n in before]


def test_gradients_reach_every_parameter(network):
    network.train().zero_grad()
    out = network(images(4), is_feat=True)
    sum(t.square().mean() for t in (*out.feats, *out.preacts, out.pooled, out.logits)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, p in network.named_parameters() if p.dim() > 1 and not p.grad.any()] == []


def test_bn_before_relu(network):
    channels = [f.shape[1] for f in network.eval()(images(1), is_feat=True).feats[1:]]
    try:
        bns = network.get_bn_before_relu()
    except ValueError as error:
        assert type(network).__name__ in str(error)
        return
    assert [bn.num_features for bn in bns] == channels
    assert all(isinstance(bn, nn.BatchNorm2d) for bn in bns)


@torch.no_grad()
def test_state_dict_loads(network, request):
    other = create_model(request.node.callspec.params["network"], num_classes=7).eval()
    other.load_state_dict(network.eval().state_dict())
    torch.testing.assert_close(other(images()), network(images()), rtol=0, atol=0)


def test_reset_head(network):
    before, width = network.head, network.head.in_features
    keys = list(network.state_dict())
    network.reset_head(5)
    try:
        assert network.head is not before
        assert network.head.weight.shape == (5, width)
        assert list(network.state_dict()) == keys
        assert network.eval()(images(1)).shape == (1, 5)
    finally:
        network.reset_head(7)


def test_reset_head_keeps_dtype():
    model = create_model("resnet8", num_classes=7).double()
    model.reset_head(5)
    assert model.head.weight.dtype == torch.float64


# what is not a matter of the single network


@pytest.mark.parametrize("name, shape", [("resnet8", (224, 224)), ("MobileNetV2", (224, 224)), ("vgg8", (96, 64))])
@torch.no_grad()
def test_other_sizes(name, shape):
    assert create_model(name, num_classes=7).eval()(images(1, *shape)).shape == (1, 7)


@pytest.mark.parametrize("size, sides", [(32, (32, 16, 8, 4, 4)), (64, (64, 32, 16, 8, 4)), (48, (48, 24, 12, 6, 6))])
@torch.no_grad()
def test_vgg_pools_before_its_last_stage_from_64_pixels(size, sides):
    out = create_model("vgg8", num_classes=7).eval()(images(1, size, size), is_feat=True)
    assert tuple(f.shape[-1] for f in out.feats) == sides


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_channels_last(name):
    model = create_model(name, num_classes=7).double().eval()
    plain = model(images().double(), is_feat=True)
    model.to(memory_format=torch.channels_last)
    other = model(images().double().to(memory_format=torch.channels_last), is_feat=True)
    torch.testing.assert_close(other, plain)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in other.feats)  # no layer falls back


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast(name):
    model = create_model(name, num_classes=7).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images(4), is_feat=True)
    assert out.logits.dtype == torch.bfloat16
    out.logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    model = create_model(name, num_classes=7).train()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    plain = model(images(), is_feat=True)
    model.load_state_dict(kept)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(images(), is_feat=True)
    torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize(
    "name, key, std",
    [
        ("resnet8x4", "layer3.0.conv2.weight", (2 / (9 * 256)) ** 0.5),
        ("ResNet18", "layer4.0.shortcut.0.weight", (2 / 512) ** 0.5),
        ("wrn_16_2", "block3.layer.1.conv1.weight", (2 / (9 * 128)) ** 0.5),
        ("vgg8", "block4.0.weight", (2 / (9 * 512)) ** 0.5),
        ("vgg8", "classifier.weight", 0.01),
        ("MobileNetV2", "conv2.0.weight", (2 / 1280) ** 0.5),
        ("MobileNetV2", "classifier.0.weight", 0.01),
        ("ShuffleV2", "layer3.1.conv3.weight", (1 / (3 * 232)) ** 0.5),  # PyTorch's default
    ],
)
def test_initialisation(name, key, std):
    torch.manual_seed(0)
    weight = create_model(name, num_classes=100).get_parameter(key)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=0.05 * std)


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "MobileNetV2"])
def test_head_bias_starts_at_zero(name):
    assert not create_model(name, num_classes=7).head.bias.any()


def test_learning_rates():
    slow = {name for name in model_names() if create_model(name, num_classes=7).learning_rate == 0.01}
    assert slow == {name for name in model_names() if name.startswith(("MobileNet", "Shuffle"))}


# names


@pytest.mark.parametrize("name, near", [("resnet8x5", "resnet8x4"), ("wrn_40", "wrn_40_2"), ("Shufflev2", "ShuffleV2")])
def test_unknown_name_is_told_the_near_ones(name, near):
    assert not is_model(name)
    with pytest.raises(ValueError, match=f"unknown network '{name}'.*{near}"):
        create_model(name, num_classes=7)


@pytest.mark.parametrize(
    "name, width, blocks", [("wrn_28_4", 256, 4), ("wrn_10_1", 64, 1), ("WRN-22-3", 192, 3), ("wrn-28-4", 256, 4)]
)
def test_wrn_of_any_depth_and_width(name, width, blocks):
    assert is_model(name)
    model = create_model(name, num_classes=7)
    assert model.head.in_features == width
    assert [len(stage.layer) for stage in (model.block1, model.block2, model.block3)] == [blocks] * 3


@pytest.mark.parametrize("name", ["wrn_17_2", "wrn_4_1", "wrn_0_1"])
def test_wrn_refuses_other_depths(name):
    depth = name.split("_")[1]
    with pytest.raises(ValueError, match=rf"6n\+4 .*not {depth}"):
        create_model(name, num_classes=7)


@torch.no_grad()
def test_wrn_preact_is_what_the_next_batchnorm_gives():
    model = create_model("wrn_16_2", num_classes=7).eval()
    out = model(images(), is_feat=True)
    for bn, feat, preact in zip(model.get_bn_before_relu(), out.feats[1:], out.preacts[1:], strict=True):
        torch.testing.assert_close(bn(feat), preact, rtol=0, atol=0)
    pooled = F.relu(out.preacts[-1]).mean((2, 3))
    torch.testing.assert_close(out.pooled, pooled)


@pytest.mark.parametrize("alias, name", [("ShuffleV2_1.0", "ShuffleV2"), ("ShuffleV2_2.0", "ShuffleV2_2")])
def test_shufflenet_aliases(alias, name):
    assert is_model(alias) and alias not in model_names()
    shapes = [p.shape for p in create_model(name, num_classes=7).parameters()]
    assert [p.shape for p in create_model(alias, num_classes=7).parameters()] == shapes


def test_model_dict():
    assert list(models.model_dict) == model_names()
    assert models.model_dict["resnet8"](num_classes=7).head.out_features == 7
