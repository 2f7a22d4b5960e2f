"""What a user gets wrong: one line that says so, exit status 2, nothing written."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image

import train_student
import train_teacher
import transfer_student


@pytest.fixture
def bad(tmp_path, teacher):
    """A folder of broken inputs; `{bad}` and `{teacher}` stand for paths in the commands below."""
    whole = teacher.read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(os.urandom(1000))
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    torch.save({"model": torch.load(teacher, weights_only=True)["model"]}, tmp_path / "nameless.pth")
    (tmp_path / "wrong.safetensors").write_bytes(b"no")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil_old.pth").write_bytes(pickle.dumps(Evil()))
    with zipfile.ZipFile(tmp_path / "evil_zip.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))
        file.writestr("archive/version", "3\n")

    def image(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)

    (tmp_path / "no_images").mkdir()
    for part in ("train", "val"):
        image(tmp_path / "one_class" / part / "cat" / "1.png")
        for name in ("cat", "dog"):
            image(tmp_path / "undecodable" / part / name / "1.png")
    (tmp_path / "undecodable" / "train" / "dog" / "2.png").write_bytes(b"not an image")
    (tmp_path / "config.json").write_text('{"epoch": 3}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "file").write_text("")
    return tmp_path


STUDENT = [
    ("--model_s resnet9", r"--model_s/--student_name: unknown network 'resnet9'; near: .*resnet8"),
    ("--model_s wrn_17_2", r"--model_s/--student_name: .*17"),
    ("--distill kdd", r"--distill/--kd_method: unknown method 'kdd'; near: kd"),
    ("--distill kd,kd", r"--distill/--kd_method: expected different names"),
    ("--distill kd,", r"--distill/--kd_method: unknown method ''"),
    ("--dataset cifar1000", r"--dataset: unknown data set 'cifar1000'; near: cifar100"),
    ("--path_t {bad}/missing.pth", r"--path_t .*missing.pth: no such file"),
    ("--path_t {bad}", r"--path_t .*: is a folder, not a file"),
    ("--path_t {bad}/truncated.pth", r"--path_t .*truncated.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/noise.pth", r"--path_t .*noise.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/empty.pth", r"--path_t .*empty.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/list.pth", r"--path_t .*list.pth: expected a dict of tensors, found list"),
    ("--path_t {bad}/nothing.pth --model_t resnet14", r"--path_t .*nothing.pth: holds no tensors"),
    ("--path_t {bad}/evil.pth", r"--path_t .*evil.pth: refused, its pickle asks for .*system"),
    ("--path_t {bad}/evil_old.pth", r"--path_t .*evil_old.pth: refused, its pickle asks for posix.system"),
    ("--path_t {bad}/evil_zip.pth", r"--path_t .*evil_zip.pth: refused, its pickle asks for posix.system"),
    ("--path_t {bad}/wrong.safetensors", r"--path_t .*wrong.safetensors: (broken|needs the package)"),
    ("--path_t {bad}/nameless.pth", r"--path_t .*nameless.pth: neither the file .* give --model_t"),
    ("--model_t resnet20", r"--path_t .*last.pth: not a resnet20 .the file says resnet14.: .* is missing"),
    ("--model_t vgg8", r"--path_t .*last.pth: not a vgg8"),
    ("--path_s {teacher} --model_s resnet8", r"--path_s .*: not a resnet8 .the file says resnet14.: .* part of it"),
    ("--batch_size 0", r"--batch_size: expected a whole number of at least 2, found 0"),
    ("--batch_size many", r"--batch_size: expected a whole number of at least 2, found 'many'"),
    ("--epochs 0", r"--epochs: expected"),
    ("--learning_rate 0", r"--learning_rate: expected a number above 0, found 0"),
    ("--learning_rate nan", r"--learning_rate: expected a number above 0, found nan"),
    ("--weight_decay -1", r"--weight_decay: expected a number of at least 0, found -1"),
    ("--lr_decay_epochs 1,x", r"--lr_decay_epochs: expected epochs that rise, like 150,180,210, found '1,x'"),
    ("-a -1", r"--alpha: expected a number of at least 0, found -1"),
    ("-b 1,-2", r"--beta: expected a number of at least 0, found -2"),
    ("-b 1,2", r"-b: expected a weight for each of kd, found 2"),
    ("-r 0 -a 0 -b 0", r"-r, -a and -b are all 0"),
    ("--nce_k 5", r"--nce_k has no effect here: it belongs to .*crd"),
    ("--distill crd --nce_k 0", r"--distill crd: nce_k must be at least 1"),
    ("--distill crd --mode other", r"--mode: invalid choice"),
    ("--distill fitnet --hint_layer 9", r"--distill fitnet: .*9"),
    ("--trial first", r"--trial first: not a number, so --seed must be given"),
    ("--device tpu", r"--device tpu: "),
    ("--nosuch 1", r"unknown option --nosuch; --help lists all"),
    ("--limit_train 3", r"--limit_train: expected 10 .* found 3"),
    ("--limit_train 100000", r"--limit_train: expected 10 .* found 100000"),
    ("--save_folder {bad}/file/save", r"--save_folder .*: .* is not a folder that can be written"),
    ("--config {bad}/missing.json", r"--config .*missing.json: "),
    ("--config {bad}/broken.json", r"--config .*broken.json: "),
    ("--config {bad}/config.json", r"--config .*: unknown option 'epoch'; near: epochs"),
    ("--dataset folder --data_folder {bad}/nowhere", r"--dataset folder: .*nowhere"),
    ("--dataset folder --data_folder {bad}/no_images", r"--dataset folder: .*no_images.* train"),
    ("--dataset folder --data_folder {bad}/one_class", r"--dataset folder: .*one_class.* at least 2 classes"),
    ("--loader disk", r"--loader: invalid choice: 'disk'"),
    ("--loader stream", r"--dataset digits: --loader stream: digits has no image files, it is always in memory"),
    ("--memory_gb 0", r"--memory_gb: expected a number above 0, found 0"),
    ("--dataset imagenet --data_folder {bad}/one_class", r"--dataset imagenet: .*one_class.* at least 2 classes"),
    ("--dataset folder --data_folder {bad}/undecodable", r"--dataset folder: .*dog/2.png: cannot be decoded"),
]


def refused(script, command, bad, teacher, capsys, message):
    save = bad / "save"
    arguments = command.format(bad=bad, teacher=teacher).split()
    with pytest.raises(SystemExit) as stop:
        script.main([*QUICK, "--epochs", "1", "--save_folder", str(save), *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and "Traceback" not in error
    assert re.search(message, error), error
    assert not save.exists() and not (bad / "executed").exists()


@pytest.mark.parametrize("command, message", STUDENT, ids=[command for command, _ in STUDENT])
def test_train_student(command, message, bad, teacher, capsys):
    if "--path_t" not in command:
        command = f"--path_t {{teacher}} {command}"
    refused(train_student, command, bad, teacher, capsys, message)


def test_teacher_of_another_class_count(bad, teacher, capsys):
    state = torch.load(teacher, weights_only=True)
    state["model"]["fc.weight"] = torch.zeros(7, 64)
    torch.save(state, bad / "seven.pth")
    message = r"--path_t .*seven.pth: has 7 classes, the data set has 10"
    refused(train_student, "--path_t {bad}/seven.pth", bad, teacher, capsys, message)


def test_no_teacher(bad, teacher, capsys):
    refused(train_student, "--distill kd", bad, teacher, capsys, r"--path_t: --distill kd needs a teacher's checkpoint")
    refused(train_student, "--distill ab", bad, teacher, capsys, r"--path_t: --distill ab needs a teacher's checkpoint")


@pytest.mark.parametrize(
    "script, command, message",
    [
        (train_teacher, "--model resnet", r"--model: unknown network 'resnet'; near: "),
        (train_teacher, "--model resnet8 --batch_size 1", r"--batch_size: expected"),
        (transfer_student, "--model_s resnet8", r"--path_s"),
        (transfer_student, "--path_s {bad}/nothing.pth --model_s resnet8", r"--path_s .*nothing.pth: holds no tensors"),
        (transfer_student, "--path_s {teacher} --model_s vgg8", r"--path_s .*: not a "),
        (transfer_student, "--path_s {teacher} --probe_bn never", r"--probe_bn: invalid choice"),
    ],
)
def test_other_scripts(script, command, message, bad, teacher, capsys):
    refused(script, command, bad, teacher, capsys, message)


def test_a_file_cannot_hide_behind_a_good_name(bad, teacher, capsys):
    """A truncated file that still begins like a zip archive is truncated, not malicious."""
    whole = teacher.read_bytes()
    for part in (0.1, 0.9, 0.999):
        (bad / "cut.pth").write_bytes(whole[: int(len(whole) * part)])
        refused(
            train_student, "--path_t {bad}/cut.pth", bad, teacher, capsys, r"cut.pth: truncated, or not a checkpoint"
        )
