"""The scripts as a user runs them: RepDistiller's commands, checkpoints of all kinds, the probe, precision, the log."""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, plausible, weights

import models
import train_student
import train_teacher
import transfer_student
from helper import tb


def student(teacher, save, *arguments):
    train_student.main([*QUICK, "--path_t", str(teacher), "--epochs", "1", "--save_folder", str(save), *arguments])
    (folder,) = (save / "student_model").iterdir()
    return folder


# ---- RepDistiller's commands ----

REPDISTILLER = """
--distill kd --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
--distill hint --model_s resnet8x4 -a 0 -b 100 --trial 1
--distill attention --model_s resnet8x4 -a 0 -b 1000 --trial 1
--distill similarity --model_s resnet8x4 -a 0 -b 3000 --trial 1
--distill correlation --model_s resnet8x4 -a 0 -b 0.02 --trial 1
--distill vid --model_s resnet8x4 -a 0 -b 1 --trial 1
--distill rkd --model_s resnet8x4 -a 0 -b 1 --trial 1
--distill pkt --model_s resnet8x4 -a 0 -b 30000 --trial 1
--distill abound --model_s resnet8x4 -a 0 -b 1 --trial 1
--distill factor --model_s resnet8x4 -a 0 -b 200 --trial 1
--distill fsp --model_s resnet8x4 -a 0 -b 50 --trial 1
--distill nst --model_s resnet8x4 -a 0 -b 50 --trial 1
--distill crd --model_s resnet8x4 -a 0 -b 0.8 --trial 1
--distill crd --model_s resnet8x4 -a 1 -b 0.8 --trial 1
""".strip().splitlines()


@pytest.fixture
def repdistiller(repdistiller_folder, monkeypatch):
    monkeypatch.chdir(repdistiller_folder)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # of the official files
    return repdistiller_folder


@pytest.fixture(scope="module")
def repdistiller_folder(tmp_path_factory):
    """A working folder as RepDistiller's: made-up CIFAR-100 archives, its teacher's file, its pickled options."""
    here = tmp_path_factory.mktemp("repdistiller")
    rng = np.random.default_rng(0)
    (here / "data" / "cifar-100-python").mkdir(parents=True)
    for part, n in (("train", 128), ("test", 100)):
        images = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        batch = {"data": images, "fine_labels": [i % 100 for i in range(n)], "coarse_labels": [0] * n}
        with open(here / "data" / "cifar-100-python" / part, "wb") as file:
            pickle.dump(batch, file)
    with open(here / "data" / "cifar-100-python" / "meta", "wb") as file:
        pickle.dump({"fine_label_names": [f"class {i}" for i in range(100)]}, file)
    path = here / "save" / "models" / "resnet32x4_vanilla" / "ckpt_epoch_240.pth"
    path.parent.mkdir(parents=True)
    noise = torch.randn(20, 3, 32, 32)  # as the images are, normalised
    torch.save({"opt": argparse.Namespace(model="resnet32x4"), "model": plausible("resnet32x4", 100, noise)}, path)
    return here


@pytest.mark.parametrize("command", REPDISTILLER)
def test_repdistillers_commands(command, repdistiller):
    """Word for word; only the budget is cut."""
    command = f"--path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth {command}"
    train_student.main(
        [*command.split(), "--epochs", "1", "--init_epochs", "1", "--run_name", "r", "--resume", "never"]
    )
    summary = json.loads((repdistiller / "save" / "student_model" / "r" / "summary.json").read_text())
    assert summary["model_name"] == "resnet8x4" and summary["num_classes"] == 100 and summary["epochs"] == 1


def test_repdistillers_teacher_command(repdistiller):
    train_teacher.main(["--model", "wrn_16_1", "--epochs", "1"])
    folder = repdistiller / "save" / "models" / "wrn_16_1_cifar100_lr_0.05_decay_0.0005_trial_1"
    assert (folder / "last.pth").is_file()


# ---- options ----


def test_published_weights_and_rates_are_the_defaults(teacher, tmp_path):
    options = json.loads((student(teacher, tmp_path, "--distill", "kd") / "options.json").read_text())["options"]
    assert (options["gamma"], options["alpha"], options["beta"]) == (0.1, 0.9, [0.0])
    assert (options["kd_T"], options["learning_rate"], options["lr_decay_epochs"]) == (4.0, 0.05, [150, 180, 210])
    assert "nce_k" not in options


def test_other_names_of_options():
    theirs = "--kd_method sp --teacher_name wrn-28-4 --student_name WRN-16-2 --temperature 8"
    ours = "--distill sp --model_t wrn-28-4 --model_s WRN-16-2 --kd_T 8"
    assert train_student.parse(theirs.split()) == train_student.parse(ours.split())


@pytest.mark.parametrize("network, rate", [("MobileNetV2", 0.01), ("ShuffleV2_0.5", 0.01), ("resnet8", 0.05)])
def test_learning_rate_of_the_network(network, rate, tmp_path):
    command = [*QUICK, "--model_s", network, "--distill", "none", "--epochs", "1", "--save_folder", str(tmp_path)]
    train_student.main([*command, "--run_name", "own"])
    train_student.main([*command, "--run_name", "given", "--learning_rate", "0.03"])
    for name, expected in (("own", rate), ("given", 0.03)):
        options = json.loads((tmp_path / "student_model" / name / "options.json").read_text())["options"]
        assert options["learning_rate"] == expected


@pytest.mark.parametrize("arguments, rate", [("", 0.01), ("--init_learning_rate 0.02", 0.02)])
def test_initialisation_has_a_rate_of_its_own(arguments, rate, teacher, tmp_path):
    folder = student(teacher, tmp_path, "--distill", "ft", "--init_epochs", "1", *arguments.split())
    assert [row.split(",")[1] for row in (folder / "init_log.csv").read_text().splitlines()[1:]] == [str(rate)]
    assert (folder / "log.csv").read_text().splitlines()[1].split(",")[1] == "0.05"


def test_the_rate_of_an_initialisation_falls_too(teacher, tmp_path):
    """As published, unless the flag says otherwise."""
    folder = student(teacher, tmp_path, *"--distill ft --init_epochs 2 --init_lr_decay_epochs 1".split())
    rates = [float(row.split(",")[1]) for row in (folder / "init_log.csv").read_text().splitlines()[1:]]
    assert rates == pytest.approx([0.01, 0.001])
    for flags, epochs in (("sskd", [30, 45]), ("ft", []), ("sskd --init_lr_decay_epochs 5", [5])):
        opt = train_student.parse(["--distill", *flags.split()])
        train_student.settle(opt)
        assert opt.init_lr_decay_epochs == epochs


def test_several_methods_at_once(teacher, tmp_path):
    folder = student(teacher, tmp_path, "--distill", "crd,hint", "-b", "0.8,100", "--nce_k", "64", "--amp", "bf16")
    state = torch.load(folder / "last.pth", weights_only=True)["criterion"]
    assert any("crd" in key for key in state) and any("fitnet" in key for key in state)
    assert folder.name == "S-resnet8_T-resnet14_digits_crd,fitnet_r-1.0_a-0.0_b-0.8,100.0_1"


def test_equal_seeds_give_equal_students_whatever_the_method(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("helper.step.Update.step", lambda *_: None)
    first, second = (
        weights(student(teacher, tmp_path / method, "--distill", method) / "last.pth") for method in ("none", "fitnet")
    )
    assert all(torch.equal(first[k], second[k]) for k in first if "running" not in k)


def test_a_student_can_start_from_a_checkpoint(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("helper.step.Update.step", lambda *_: None)
    folder = student(teacher, tmp_path, "--distill", "none", "--model_s", "resnet14", "--path_s", str(teacher))
    found, expected = weights(folder / "last.pth"), weights(teacher)
    assert all(torch.equal(found[k], expected[k]) for k in found if "running" not in k and "num_batches" not in k)


# ---- checkpoints ----


def formats(state):
    yield "last.pth", state
    yield "bare.pth", state["model"]
    yield "state_dict.pth", {"state_dict": state["model"], "epoch": 3}
    yield "parallel.pth", {"model": {f"module.{k}": v for k, v in state["model"].items()}}
    yield "opt.pth", {"model": state["model"], "opt": argparse.Namespace(lr=0.05, decay=[150, 180])}
    yield "old.pth", {"model": {k: v for k, v in state["model"].items() if "num_batches_tracked" not in k}}


def test_checkpoints_of_all_kinds(teacher, tmp_path):
    """All give the same student, and the network is known by its folder where the file does not say."""
    here = tmp_path / "resnet14_vanilla"
    here.mkdir()
    state = torch.load(teacher, weights_only=True)
    paths = []
    for name, content in formats(state):
        torch.save(content, here / name)
        paths.append(here / name)
    torch.save(state["model"], here / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors = pytest.importorskip("safetensors.torch")
    contiguous = {k: v.contiguous() for k, v in state["model"].items()}
    safetensors.save_file(contiguous, here / "weights.safetensors")
    results = []
    for path in [*paths, here / "legacy.pth", here / "weights.safetensors"]:
        folder = student(path, tmp_path / path.name, "--distill", "kd", "--limit_val", "10")
        results.append(weights(folder / "last.pth"))
        assert json.loads((folder / "options.json").read_text())["options"]["model_t"] == ["resnet14"]
    for other in results[1:]:
        assert all(torch.equal(results[0][k], other[k]) for k in other)


def test_no_half_written_file_under_a_final_name(tmp_path, monkeypatch):
    from helper import checkpoint

    checkpoint.save(tmp_path / "last.pth", {"epoch": 1})

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "last.pth", {"epoch": 2})
    assert torch.load(tmp_path / "last.pth", weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


# ---- the probe ----


@pytest.mark.parametrize("probe_bn", ["eval", "train"])
def test_linear_probe(probe_bn, teacher, tmp_path):
    """The head learns, the network stays; its BatchNorm statistics too, unless they are asked to drift."""
    command = [*QUICK, "--path_s", str(teacher), "--epochs", "1", "--save_folder", str(tmp_path)]
    transfer_student.main([*command, "--probe_bn", probe_bn])
    (folder,) = (tmp_path / "transfer").iterdir()
    before, after = weights(teacher), weights(folder / "last.pth")
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {"fc.weight", "fc.bias"} <= moved
    drifted = any("running_mean" in key for key in moved)
    assert drifted == (probe_bn == "train") and not any("conv" in key for key in moved)


@pytest.mark.parametrize("network", ["vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "wrn_16_1"])
def test_probe_on_other_networks_and_class_counts(network, tmp_path):
    """A head of 7 classes is replaced, whatever the network calls it."""
    (tmp_path / network).mkdir()
    torch.save(models.create_model(network, 7).state_dict(), tmp_path / network / "weights.pth")
    command = [*QUICK, "--path_s", str(tmp_path / network / "weights.pth"), "--epochs", "1", "--limit_train", "20"]
    transfer_student.main([*command, "--limit_val", "10", "--save_folder", str(tmp_path), "--run_name", "r"])
    state = torch.load(tmp_path / "transfer" / "r" / "last.pth", weights_only=True)
    assert state["num_classes"] == 10 and state["model_name"] == network


# ---- precision ----


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision(amp, teacher, tmp_path):
    folder = student(teacher, tmp_path, "--distill", "kd", "--amp", amp)
    assert all(w.isfinite().all() and w.dtype != torch.bfloat16 for w in weights(folder / "last.pth").values())


def test_compile(teacher, tmp_path, monkeypatch):
    """Through torch.compile's front end alone: its code generation is not ours to test, and takes a minute."""
    compiled = []
    real = torch.compile

    def compile(module, dynamic):
        compiled.append(module)
        return real(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    plain = weights(student(teacher, tmp_path / "plain", "--distill", "kd") / "last.pth")
    assert not compiled
    folder = student(teacher, tmp_path / "compiled", "--distill", "kd", "--compile")
    assert len(compiled) == 3  # the student as it is trained, as it is validated, and the teacher
    for key, value in weights(folder / "last.pth").items():
        torch.testing.assert_close(value, plain[key])


# ---- the log ----


def test_run_folder(teacher):
    folder = teacher.parent
    files = {re.sub(r"\.out.*", "", path.name) for path in folder.iterdir()}
    assert files == {".lock", "options.json", "log.csv", "summary.json", "last.pth", "best.pth", "events"}
    header = (folder / "log.csv").read_text().splitlines()[0]
    assert header == (
        "epoch,lr,train_loss,train_acc,val_loss,val_acc,val_acc_top5,train_seconds,images_per_second,peak_memory_mb,"
        "loss_ce"
    )
    options = json.loads((folder / "options.json").read_text())
    assert {"options", "made_of", "versions", "commit", "host", "device", "processes"} == set(options)
    (events,) = folder.glob("events*")
    assert b"val_acc_top5" in events.read_bytes()


def test_goes_on_without_tensorboard_logger(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard_logger", None)
    monkeypatch.setattr(tb, "_warned", False)
    command = [*QUICK, "--distill", "none", "--epochs", "1", "--save_folder", str(tmp_path)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("a", "b"):
            train_student.main([*command, "--run_name", name])
    assert len([w for w in caught if "no TensorBoard events" in str(w.message)]) == 1
    assert (tmp_path / "student_model" / "b" / "log.csv").is_file()


# ---- bash ----


def bash(script, tmp_path, status=0, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "SAVE": str(tmp_path)} | variables
    done = subprocess.run(["bash", str(ROOT / "scripts" / script)], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


def test_quickstart(tmp_path):
    first = bash("quickstart.sh", tmp_path, EPOCHS="1")
    for method in ("none", "kd", "dkd"):
        assert re.search(rf"\| resnet8 \| resnet20 \| {method} \|", first)
    again = bash("quickstart.sh", tmp_path, EPOCHS="1")
    assert again.count("this run is finished") == 4


def test_distill_sweep(tmp_path):
    quick = " ".join(QUICK) + " --epochs 1"
    variables = {"PAIR": "resnet14:resnet8", "DATASET": "digits", "SEEDS": "1 2", "METHODS": "none; kd -a 0.5"}
    out = bash("run_cifar_distill.sh", tmp_path, TEACHER_OPTIONS=quick, OPTIONS=quick, **variables)
    variables |= {"PAIR": "resnet14:wrn_16_2", "METHODS": "fsp; none", "SEEDS": "1"}
    refused = bash("run_cifar_distill.sh", tmp_path, status=1, TEACHER_OPTIONS=quick, OPTIONS=quick, **variables)
    assert "1 of 2 students have no result: fsp #1: " in refused and "| wrn_16_2 | resnet14 | none |" in refused
    documented = tmp_path / "results"
    bash("collect.sh", tmp_path, RESULTS=str(documented), FIGURES="")
    assert len(list(documented.rglob("log.csv"))) == 6 and "resnet14" in (documented / "table.md").read_text()
    assert not [path for path in documented.rglob("*") if path.is_file() and str(tmp_path) in path.read_text()]
    assert re.search(r"\| resnet8 \| resnet14 \| kd \| 0.1 \| 0.5 \| 0.0 \| 2 \| [\d.]+ ± [\d.]+ \|", out), out
