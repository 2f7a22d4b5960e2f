"""What files say of their networks: taken where nothing else is said, and never built before their weights are seen."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from torch import nn

import models
import train_student
import train_teacher
import transfer_student
from helper import checkpoint, networks
from helper.util import UserError
from models.wrapped import Wrapper

STUDENT = [*QUICK, "--epochs", "1", "--distill", "none"]


def saved(path: Path, network: str = "resnet8", **facts: Any) -> Path:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": models.create_model(network, 10).state_dict(), **facts}, path)
    return path


def refused(main: Any, arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


class Deep(Wrapper, name="deep"):
    """A wrapper whose size its argument says."""

    head_name = "network.fc"

    def __init__(self, network: nn.Module, *, layers: int) -> None:
        super().__init__(network, layers=layers)
        self.more = nn.ModuleList(nn.Linear(layers, layers) for _ in range(layers))


HOSTILE = {
    "deep": {"model_name": "wrn_16000_1"},
    "deeper": {"model_name": "wrn_400000_1"},
    "deepest": {"model_name": f"wrn_{'9' * 4000}_1"},
    "long number": {"model_name": f"wrn_{'9' * 9000}_1"},
    "wide": {"model_name": "wrn_40_100"},
    "wider": {"model_name": f"wrn_40_{'9' * 30}"},
    "package": {"model_name": "torchvision:vit_h_14"},
    "another": {"model_name": "resnet110"},
    "no string": {"model_name": 7, "wrapped": 7},
    "wrapped": {"model_name": "resnet8", "wrapped": [["deep", {"layers": 10**5}]]},
    "wrapped wide": {"model_name": "resnet8", "wrapped": [["deep", {"layers": 10**10}]]},
    "wrapped oddly": {"model_name": "resnet8", "wrapped": [["deep", {"layers": "many"}]]},
    "wrapped often": {"model_name": "resnet8", "wrapped": [["deep", {"layers": 0}]] * 10**5},
    "wrapped by none": {"model_name": "resnet8", "wrapped": [["nosuch", {}]]},
}
LOADERS = {
    "path_t": (train_student.main, [*STUDENT, "--distill", "kd", "--path_t"]),
    "path_s": (train_student.main, [*STUDENT, "--path_s"]),
    "test_only": (train_teacher.main, [*QUICK, "--test_only"]),
    "test_only of a student": (train_student.main, [*QUICK, "--test_only"]),
    "probe": (transfer_student.main, [*QUICK, "--path_s"]),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_refused_at_once(kind: str, loader: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if loader == "test_only" and "wrapped" in kind:
        pytest.skip("a teacher has no wrappers")
    path = saved(tmp_path / "x.pth", **HOSTILE[kind])
    main, arguments = LOADERS[loader]
    began = time.process_time()
    error = refused(main, [*arguments, str(path), "--save_folder", str(tmp_path / "save")], capsys)
    assert time.process_time() - began < 3  # a second, and room for what else the machine does
    assert "x.pth: " in error and len(error) < 1200 and not (tmp_path / "save").exists()


def test_many_tensors_of_one_storage_count_once(tmp_path: Path) -> None:
    one = torch.zeros(10**6)
    torch.save({"model": {str(n): one for n in range(5000)}}, tmp_path / "x.pth")
    began = time.process_time()
    with pytest.raises(UserError, match="--path_t .*not a wrn_994_100"):
        networks.sketch("wrn_994_100", checkpoint.load(tmp_path / "x.pth"), "--path_t", tmp_path / "x.pth")
    assert time.process_time() - began < 3


@pytest.mark.parametrize("name", ["wrn_16000_1", "wrn_16_1000", f"wrn_1{'0' * 30}_1"])
def test_networks_have_an_end(name: str) -> None:
    with pytest.raises(ValueError, match=r"at most \d+"):
        models.sketch(name)


# ---- values ----


def test_negative_variances(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved(tmp_path / "x.pth", model_name="resnet8")
    state = torch.load(path, weights_only=True)
    state["model"]["layer1.0.bn2.running_var"][3] = -1
    torch.save(state, path)
    error = refused(train_student.main, [*STUDENT, "--distill", "kd", "--path_t", str(path)], capsys)
    assert f"--path_t {path}: layer1.0.bn2.running_var holds variances below 0" in error


def test_plain_and_parallel_names_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved(tmp_path / "x.pth", model_name="resnet8")
    state = torch.load(path, weights_only=True)
    state["model"] |= {f"module.{key}": value for key, value in state["model"].items()}
    torch.save(state, path)
    error = refused(train_student.main, [*STUDENT, "--distill", "kd", "--path_t", str(path)], capsys)
    assert re.search(r"--path_t .*x.pth: holds conv1.weight and module.conv1.weight: one of two networks", error)
    state["model"] = {key: value for key, value in state["model"].items() if key.startswith("module.")}
    found = checkpoint.weights_of(state, "--path_t", path)
    assert found.keys() == models.create_model("resnet8", 10).state_dict().keys()


def test_a_classifier_of_two_minds(tmp_path: Path) -> None:
    """As many biases as classes."""
    path = saved(tmp_path / "x.pth", model_name="resnet8")
    state = torch.load(path, weights_only=True)
    state["model"]["fc.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"not a resnet8: fc.bias is \[7\], not \[10\]"):
        networks.restore("resnet8", state, "--path_t", path, 10, None)


# ---- names ----


@pytest.mark.parametrize(
    ("file", "name"),
    [("cifar100_resnet56-f2eff4c8.pt", "resnet56"), ("wrn_40_2.pth", "wrn_40_2"), ("best-wrn-28-4.pth", "wrn-28-4")]
    + [("ckpt_epoch_240.pth", "vgg8"), ("resnet32x4_to_resnet8x4.pth", "vgg8"), ("resnet8x4.best.pth", "resnet8x4")]
    + [("resnet8_resnet8.pth", "resnet8"), ("_".join("a" * 120), "vgg8")],
)
def test_names_of_files_and_folders(file: str, name: str) -> None:
    """The file's own name goes before its folder's, unless it names two networks."""
    assert checkpoint.find_name({}, f"save/vgg8_vanilla/{file}", models.is_model) == name
    assert checkpoint.find_name({"model_name": "vgg13"}, f"save/vgg8_vanilla/{file}", models.is_model) == "vgg13"


@pytest.mark.parametrize("folder", ["torchvision-resnet18_cifar100_lr_0.05", "torchvision:resnet18_cifar100_lr_0.05"])
def test_names_of_packages_in_folders(folder: str) -> None:
    assert checkpoint.find_name({}, f"save/models/{folder}/last.pth", models.is_model) == "torchvision:resnet18"


@pytest.mark.parametrize("named", ["by itself", "by its file"])
@pytest.mark.parametrize("loader", ["test_only", "test_only of a student", "path_s"])
def test_the_network_is_the_files(named: str, loader: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, facts = ("x.pth", {"model_name": "resnet14"}) if named == "by itself" else ("digits_resnet14-0.pth", {})
    path = saved(tmp_path / file, "resnet14", **facts)
    main, arguments = LOADERS[loader]
    tested = [*arguments, str(path), *(["--test_only"] if loader == "path_s" else [])]
    main(tested)
    assert f"{path}: loss " in capsys.readouterr().out
    flag = "--model" if main is train_teacher.main else "--model_s"
    main([*tested, flag, "resnet14"])
    error = refused(main, [*tested, flag, "resnet110"], capsys)
    assert "not a resnet110" in error and ("(the file says resnet14)" in error) == (named == "by itself")


def test_a_student_starts_as_the_network_of_its_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved(tmp_path / "x.pth", "resnet14", model_name="resnet14")
    train_student.main([*STUDENT, "--path_s", str(path), "--save_folder", str(tmp_path), "--run_name", "r"])
    done = torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)
    assert done["model_name"] == done["options"]["model_s"] == "resnet14"


@pytest.mark.parametrize("main", [train_teacher.main, train_student.main])
def test_the_data_set_is_the_files(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And its images' size."""
    options = {"dataset": "digits", "image_size": 16}
    path = str(saved(tmp_path / "x.pth", model_name="resnet8", options=options))
    main(["--device", "cpu", "--test_only", path])
    first = capsys.readouterr().out
    main(["--device", "cpu", "--test_only", path, "--dataset", "digits", "--image_size", "16"])
    assert capsys.readouterr().out == first
    main(["--device", "cpu", "--test_only", path, "--dataset", "digits"])
    assert capsys.readouterr().out != first
    error = refused(main, ["--test_only", path, "--dataset", "cifar10", "--data_folder", f"{tmp_path}/no"], capsys)
    assert "--dataset cifar10: " in error


@pytest.mark.parametrize(
    "options", [{"dataset": "digit"}, {"dataset": 7}, {"dataset": "digits", "image_size": "9" * 50}]
)
def test_a_data_set_that_is_none(options: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved(tmp_path / "x.pth", model_name="resnet8", options=options)
    error = refused(train_teacher.main, ["--test_only", str(path)], capsys)
    assert f"--test_only {path}: its options: " in error


def test_the_default_network_and_data_set_stay(tmp_path: Path) -> None:
    """Of files that say neither."""
    opt = train_teacher.parse(["--test_only", str(saved(tmp_path / "x.pth"))])
    networks.settle_data(opt)
    assert networks.named({"--test_only": opt.test_only}) is None
    assert (opt.dataset, opt.image_size) == ("cifar100", None)
