"""Every registered method trains on pairs of equal and of different architectures, or says why it cannot."""

import json

import pytest
import torch
from conftest import plausible, weights
from fakes import student_for

import dataset
import train_student
from distiller_zoo import Distiller, find_method, method_names

PAIRS = ["resnet20:resnet8", "wrn_16_2:resnet8", "vgg13:MobileNetV2", "ResNet50:ShuffleV1"]
# what a method cannot do mathematically, and how it says so
REFUSALS = {
    ("fsp", "wrn_16_2:resnet8"): "fsp needs equal channels, not [16, 16, 32, 64] and [16, 32, 64, 128]",
    ("fsp", "vgg13:MobileNetV2"): "fsp needs equal channels, not",
    ("fsp", "ResNet50:ShuffleV1"): "fsp needs equal channels, not",
    ("kdsvd", "wrn_16_2:resnet8"): "kdsvd needs equal channels, not [16, 32, 64] and [32, 64, 128]",
    ("kdsvd", "vgg13:MobileNetV2"): "kdsvd needs equal channels, not",
    ("kdsvd", "ResNet50:ShuffleV1"): "kdsvd needs equal channels, not",
    ("sfd", "wrn_16_2:resnet8"): "sfd needs equal channels, not [16, 16, 32, 64] and [16, 32, 64, 128]",
    ("sfd", "vgg13:MobileNetV2"): "sfd needs equal channels, not",
    ("sfd", "ResNet50:ShuffleV1"): "sfd needs equal channels, not",
}
MORE = {"catkd": "-b 0.1"}  # the squared logits of a teacher that knows nothing are in the hundreds


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    here = tmp_path_factory.mktemp("teachers")
    data = dataset.load("digits", ".", limit_train=20)
    images = next(
        iter(dataset.ValBatches(data.train_images, data.train_labels, 20, data.mean, data.std, device="cpu"))
    ).images
    for name in (pair.split(":")[0] for pair in PAIRS):
        (here / name).mkdir()
        torch.save({"model": plausible(name, 10, images)}, here / name / "weights.pth")
    return here


# a variant of another method has its modules, and logits have one shape whatever the networks: one pair will do
ONE_PAIR = {name for name in method_names() if Distiller not in find_method(name).__bases__}
WIDE = {"semckd"}  # its projectors have four times a wide teacher's channels, squared
ONE_PAIR |= {"hinton", "kl", "mt", "tfkd", "triplet", "triplet_cosine"}
ONE_PAIR |= {
    "ctkd",
    "dist",
    "dkd",
    "dtkd",
    "eakd",
    "luminet",
    "mlkd",
    "nkd",
    "normkd",
    "rld",
    "ttm",
    "wsld",
    "crld",
    "cskd",
    "dml",
    "pskd",
}


@pytest.mark.parametrize(
    ("method", "pair"),
    [(m, p) for m in method_names() for p in PAIRS[: 1 if m in ONE_PAIR else 2 if m in WIDE else None]],
)
def test_two_epochs(method, pair, teachers, tmp_path, capsys):
    model_t, model_s = pair.split(":")
    model_s = student_for(method, model_s)
    # a method that asks for several views of a sample gets half the samples
    n, batch = (20, 10) if find_method(method).views is Distiller.views else (10, 5)
    command = f"--dataset digits --device cpu --limit_train {n} --limit_val 10 --batch_size {batch}"
    command += " --epochs 2 --init_epochs 1"
    command += (
        f" --path_t {teachers}/{model_t}/weights.pth --model_s {model_s} --distill {method} --save_folder {tmp_path}"
    )
    # teachers that know nothing and tiny batches: a small rate keeps every method finite
    command += f" --run_name r --learning_rate 0.001 {MORE.get(method, '')}"
    if (method, pair) in REFUSALS:
        with pytest.raises(SystemExit) as stop:
            train_student.main(command.split())
        assert stop.value.code == 2 and REFUSALS[method, pair] in capsys.readouterr().err
        assert not (tmp_path / "student_model").exists()
        return
    train_student.main(command.split())
    folder = tmp_path / "student_model" / "r"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 2
    assert all(w.isfinite().all() for w in weights(folder / "last.pth").values())
