"""What a user gets wrong: one line that says so, exit status 2, nothing written."""

import os
import re
import subprocess
import time

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from PIL import Image

import evaluate_kd
import train_student
import train_teacher
import transfer_student
from benchmarks import loader, step_time
from helper import checkpoint
from helper.util import UserError
from scripts import compare_predictions, procedures, summarize, unpack


@pytest.fixture(scope="module")
def bad(tmp_path_factory, teacher):
    """A folder of broken inputs; `{bad}`, `{teacher}` and its folder `{run}` stand for paths in the commands below."""
    tmp_path = tmp_path_factory.mktemp("bad")
    whole = teacher.read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(os.urandom(1000))
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    torch.save({"model": torch.load(teacher, weights_only=True)["model"]}, tmp_path / "nameless.pth")
    (tmp_path / "wrong.safetensors").write_bytes(b"no")

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
    (tmp_path / "alpha.json").write_text('{"alpha": 0.5}')
    (tmp_path / "file").write_text("")
    header = "index,label,prediction,confidence\n"
    (tmp_path / "text.csv").write_text(header + "0,cat,1,1\n")
    (tmp_path / "huge.csv").write_text(header + f"0,{10**30},1,1\n")
    (tmp_path / "long.csv").write_text(header + "1" * 200000)
    (tmp_path / "teachers.csv").write_text("modelname,modeltop1,path\nresnet8,70,x.pth\n")
    return tmp_path


# what follows "train_student.py --path_t {teacher}", where the command does not say another, and what it is told
STUDENT = [
    # names
    ("--model_s resnet9", r"--model_s/--student_name: unknown network 'resnet9'; near: .*resnet8"),
    ("--model_s ResNet8", r"--model_s/--student_name: unknown network 'ResNet8'; near: resnet8,"),
    ("--model_s mobilenetv2", r"unknown network 'mobilenetv2'; near: MobileNetV2"),
    ("--model_s wrn_17_2", r"--model_s/--student_name: .*17"),
    ("--model_s torchvision:resnet", r"unknown network 'torchvision:resnet'; near: torchvision:resnet"),
    ("--distill kdd", r"--distill/--kd_method: unknown method 'kdd'; near: kd"),
    ("--distill KD", r"unknown method 'KD'; near: kd,"),
    ("--distill kd,kd", r"--distill/--kd_method: expected different names"),
    ("--distill kd,", r"--distill/--kd_method: unknown method ''"),
    ("--dataset cifar1000", r"--dataset: unknown data set 'cifar1000'; near: cifar100"),
    ("--dataset CIFAR-100", r"--dataset: unknown data set 'CIFAR-100'; near: cifar100,"),
    # checkpoints
    ("--path_t {bad}/missing.pth", r"--path_t .*missing.pth: no such file"),
    ("--path_t {bad}", r"--path_t .*: is a folder, not a file\n"),
    ("--path_t {run}", r"--path_t {run}: is a folder, not a file; did you mean {run}/last.pth\?"),
    ("--path_t {teacher} --model_t resnet14 resnet20", r"--model_t: expected a network for each of 1 --path_t"),
    ("--path_t {teacher} {teacher} --distill at", r"--path_t: at takes one teacher, found 2"),
    ("--path_t {bad}/truncated.pth", r"--path_t .*truncated.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/noise.pth", r"--path_t .*noise.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/empty.pth", r"--path_t .*empty.pth: truncated, or not a checkpoint"),
    ("--path_t {bad}/list.pth", r"--path_t .*list.pth: expected a dict of tensors, found list"),
    ("--path_t {bad}/nothing.pth --model_t resnet14", r"--path_t .*nothing.pth: holds no tensors"),
    ("--path_t {bad}/wrong.safetensors", r"--path_t .*wrong.safetensors: (broken|needs the package)"),
    ("--path_t {bad}/nameless.pth", r"--path_t .*nameless.pth: neither the file .* give --model_t"),
    ("--path_t {bad}/config.json", r"--path_t .*config.json: truncated, or not a checkpoint"),
    ("--model_t resnet20", r"--path_t .*last.pth: not a resnet20 \(the file says resnet14\): .* is missing"),
    ("--model_t vgg8", r"--path_t .*last.pth: not a vgg8 \(the file says resnet14\)"),
    ("--path_s {teacher} --model_s resnet8", r"--path_s .*: not a resnet8 .the file says resnet14.: .* part of it"),
    ("--path_s {bad}/missing.pth", r"--path_s .*missing.pth: no such file"),
    ("--pretrained_t", r"--pretrained_t: expected --model_t beside it, and no --path_t"),
    ("--path_t", r"--path_t: expected at least one argument"),
    # numbers
    ("--batch_size 0", r"--batch_size: expected a whole number of at least 2, found 0"),
    ("--batch_size many", r"--batch_size: expected a whole number of at least 2, found 'many'"),
    ("--epochs 0", r"--epochs: expected a whole number of at least 1, found 0"),
    ("--epochs -1", r"--epochs: expected a whole number of at least 1, found -1"),
    ("--epochs 2.5", r"--epochs: expected a whole number of at least 1, found '2.5'"),
    ("--epochs 1e3", r"--epochs: expected a whole number of at least 1, found '1e3'"),
    (f"--epochs 1{'0' * 400}", r"--epochs: expected a whole number of at least 1, below 2\*\*63, found 1000"),
    ("--learning_rate 0", r"--learning_rate: expected a number above 0, found 0"),
    ("--learning_rate nan", r"--learning_rate: expected a number above 0, found nan"),
    ("--learning_rate inf", r"--learning_rate: expected a number above 0, .*found inf"),
    ("--learning_rate 0,1", r"--learning_rate: expected a number above 0, found '0,1'"),
    ("--weight_decay -1", r"--weight_decay: expected a number of at least 0, found -1"),
    ("--momentum 9", r"--momentum: expected a number from 0 to 1, found 9"),
    ("--momentum 0 --nesterov", r"--nesterov: expected a --momentum above 0 beside it"),
    ("--lr_decay_epochs 1,x", r"--lr_decay_epochs: expected epochs that rise, like 150,180,210, found '1,x'"),
    ("--lr_decay_epochs 210,150", r"--lr_decay_epochs: expected epochs that rise, like 150,180,210, found '210,150'"),
    ("--lr_decay_epochs=-5,150", r"--lr_decay_epochs: expected epochs that rise, .*found '-5,150'"),
    ("--lr_decay_rate 10", r"--lr_decay_rate: expected a number from 0 to 1, found 10"),
    ("--image_size 0", r"--image_size: expected a whole number of at least 2, found 0"),
    ("--image_size 1", r"--image_size: expected a whole number of at least 2, found 1"),
    ("--image_size 4 --model_s vgg8", r"--model_s vgg8 does not take images of 4x4: Given input size"),
    ("--distill cc --cc_order 1000", r"--cc_order: expected a whole number from 1 to 100, found 1000"),
    ("--distill fitnet --hint_layer -1", r"--hint_layer: expected a whole number from 0 to 1000, found -1"),
    ("--distill crd --feat_dim 1000000000", r"--feat_dim: expected a whole number from 1 to 65536, found 1000000000"),
    ("--distill crd --nce_k 9223372036854775808", r"--nce_k: expected a whole number from 1 to 16777216, found 9223"),
    ("--distill vid --vid_variance 1e6", r"--vid_variance: expected a number from 0.0001 to 500, found 1e6"),
    ("--image_size 1000000", r"--dataset digits: --image_size 1000000: 1797 images of that size take 5391000 GB"),
    ("--trial first", r"--trial first: not a number, so --seed must be given"),
    ("--trial 1/2 --seed 1", r"--trial 1/2: is part of the run's name, expected one without /"),
    ("--seed -1", r"--seed: expected a whole number of at least 0, found -1"),
    ("--limit_train 3", r"--limit_train: expected 10 .* found 3"),
    ("--limit_train 100000", r"--limit_train: expected 10 .* found 100000"),
    ("--limit_val 0", r"--limit_val: expected a whole number of at least 1, found 0"),
    ("--mcl_tau 1.5", r"--mcl_tau: expected a number from 0 to 1, found 1.5"),
    # weights and options of methods
    ("-a -1", r"--alpha: expected a number of at least 0, found -1"),
    ("-b 1,-2", r"--beta: expected a number of at least 0, found -2"),
    ("-b 1,2", r"-b: expected a weight for each of kd, found 2"),
    ("--distill crd,at -b 0.8", r"-b: expected a weight for each of crd, at, found 1"),
    ("-b 0.8 100", r"'100' belongs to no option; --help_all lists them"),
    ("-r 0 -a 0 -b 0", r"-r, -a and -b are all 0: the loss would be 0"),
    ("--nce_k 5", r"--nce_k has no effect here: it belongs to .*crd"),
    ("--distill crd --nce_k 0", r"--nce_k: expected a whole number from 1 to 16777216, found 0"),
    ("--distill crd --nce_t 0", r"--nce_t: expected a number from 0.001 to 1000, found 0"),
    ("--distill rrd --nce_t_t -1", r"--nce_t_t: expected a number from 0.001 to 1000, found -1"),
    ("--distill icd --feat_dim 0", r"--feat_dim: expected a whole number from 1 to 65536, found 0"),
    ("--distill crd --mode other", r"--mode: invalid choice: 'other' \(choose from 'exact', 'relax'\)"),
    ("--distill ab --ab_margin -1e30", r"--ab_margin: expected a number from 0 to 1000000000, found -1e30"),
    ("--distill sup --on_flip distill", r"--on_flip: expected three of distill or nothing, .*one .*found distill"),
    ("--distill ab --init_epochs 0", r"--init_epochs 0: ab would have no effect, because its weight \(-b\) is 0"),
    ("--distill at --warm_up 2", r"--warm_up 2: expected at most the --epochs, 1"),
    ("--distill fitnet --hint_layer 9", r"--distill fitnet: .*9"),
    ("--kd_T 0", r"--kd_T/--temperature: expected a number from 0.001 to 1000, found 0"),
    ("--kd_T nan", r"--kd_T/--temperature: expected a number from 0.001 to 1000, found nan"),
    ("--kd_T hot", r"--kd_T/--temperature: expected a number from 0.001 to 1000, found 'hot'"),
    # flags
    ("--nosuch 1", r"unknown option --nosuch; --help_all lists all"),
    ("--model_s resnet9 --epoch 3", r"unknown option --epoch; near: --epochs"),
    ("--epochs 0 -z 3", r"unknown option -z; --help_all lists all"),
    ("--lr 0.1", r"unknown option --lr; near: --learning_rate"),
    ("--wd 0.1", r"unknown option --wd; near: --weight_decay"),
    ("--bs 3", r"unknown option --bs; near: --batch_size"),
    ("--temp 3", r"unknown option --temp; near: --temperature"),
    ("--workers 3", r"unknown option --workers; near: --num_workers"),
    ("--learning-rate 3", r"unknown option --learning-rate; near: --learning_rate"),
    ("--epoch 3", r"unknown option --epoch; near: --epochs"),
    ("--batch-size 32", r"unknown option --batch-size; near: --batch_size"),
    ("--learning_rat=0.1", r"unknown option --learning_rat; near: --learning_rate"),
    ("-epochs 3", r"-epochs: long options have two dashes, --epochs"),
    ("-trial 3", r"-trial: long options have two dashes, --trial"),
    ("--epochs", r"--epochs: expected one argument"),
    ("--resume yes", r"--resume: invalid choice: 'yes' \(choose from 'auto', 'never'\)"),
    ("--amp fp8", r"--amp: invalid choice: 'fp8' \(choose from 'off', 'bf16', 'fp16'\)"),
    ("--export pdf", r"--export: expected some of onnx,torchscript,pt2, found 'pdf'"),
    # devices, folders, files
    ("--device tpu", r"--device tpu: expected cpu, or cuda, cuda:1, ... where there are GPUs: "),
    ("--device gpu", r"--device gpu: expected cpu, or cuda, cuda:1, ..."),
    pytest.param(
        "--device cuda", r"--device cuda: expected cpu, or cuda", marks=pytest.mark.skipif("torch.cuda.is_available()")
    ),
    ("--save_folder {bad}/file/save", r"--save_folder .*: .* is not a folder that can be written"),
    ("--save_folder {bad}/file", r"--save_folder .*/file: .*/file is not a folder that can be written"),
    ("--run_name ../elsewhere", r"--run_name ../elsewhere: expected a folder's name, .* without /"),
    ("--run_log {bad}", r"--run_log {bad}: .*Is a directory"),
    ("--test_only {bad}/missing.pth", r"--test_only .*missing.pth: no such file"),
    ("--cache_teacher {bad}/file", r"--cache_teacher {bad}/file: .*Not a directory"),
    ("--cache_gb 1", r"--cache_gb has no effect without --cache_teacher"),
    ("--loader ram", r"--loader: invalid choice: 'ram'"),
    ("--config {bad}/missing.json", r"--config .*missing.json: no such file"),
    ("--config {bad}", r"--config {bad}: is a folder, not a file"),
    ("--config {run}", r"--config {run}: is a folder, not a file; did you mean {run}/options.json\?"),
    ("--config {teacher}", r"--config .*last.pth: not JSON"),
    ("--config {bad}/broken.json", r"--config .*broken.json: not JSON"),
    ("--config {bad}/config.json", r"--config .*: unknown option 'epoch'; near: epochs"),
    ("--dataset folder --data_folder {bad}/nowhere", r"--dataset folder: .*nowhere"),
    ("--dataset folder --data_folder {bad}/file", r"--dataset folder: .*/file: expected a folder that holds train/"),
    ("--dataset folder --data_folder {bad}/no_images", r"--dataset folder: .*no_images.* train"),
    ("--dataset folder --data_folder {bad}/one_class", r"--dataset folder: .*one_class.* at least 2 classes"),
    ("--dataset folder --data_folder {bad}/undecodable", r"--dataset folder: .*dog/2.png: cannot be decoded"),
    ("--dataset tinyimagenet --data_folder {bad}", r"--dataset tinyimagenet: .*bash scripts/get_tinyimagenet.sh"),
    ("--dataset cifar10.1 --data_folder {bad}", r"--dataset cifar10.1: .*expected cifar10.1_v6_data.npy and "),
    ("--dataset imagenet --data_folder {bad}", r"--dataset imagenet: .*expected train/ and one of val/, test/, valid/"),
]


def refused(script, arguments, capsys, message, before=()):
    """Runs a script in this process, which must end with one line and write nothing."""
    with pytest.raises(SystemExit) as stop:
        script.main([*before, *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert error.count("\n") == 1 and "Traceback" not in error, error
    assert re.search(message, error), error


def filled(text, bad, teacher):
    return text.replace("{bad}", str(bad)).replace("{run}", str(teacher.parent)).replace("{teacher}", str(teacher))


def trained(script, command, bad, teacher, capsys, message):
    """One of the scripts that train."""
    save = bad / "save"
    before = [*QUICK, "--epochs", "1", "--save_folder", str(save)]
    arguments = filled(command, bad, teacher).split()
    refused(script, arguments, capsys, filled(message, bad, teacher), before)
    assert not save.exists()


@pytest.mark.parametrize("command, message", STUDENT)
def test_train_student(command, message, bad, teacher, capsys):
    if "--path_t" not in command:
        command = f"--path_t {{teacher}} {command}"
    trained(train_student, command, bad, teacher, capsys, message)


def test_teacher_of_another_class_count(bad, teacher, capsys):
    state = torch.load(teacher, weights_only=True)
    state["model"]["fc.weight"] = torch.zeros(7, 64)
    torch.save(state, bad / "seven.pth")
    message = r"--path_t .*seven.pth: has 7 classes, the data set has 10"
    trained(train_student, "--path_t {bad}/seven.pth", bad, teacher, capsys, message)


NO_TEACHER = [
    ("--distill none -a 0.5", "--path_t: --alpha 0.5 needs a teacher's checkpoint"),
    ("--distill none --config {bad}/alpha.json", "--path_t: --alpha 0.5 needs a teacher's checkpoint"),
    ("--distill uda", "--path_t: --distill uda needs a teacher's checkpoint"),
    ("--distill none,at", "--path_t: --distill none,at needs a teacher's checkpoint"),
    ("--distill none,at -b 0,0 -a 2", "--path_t: --alpha 2 needs a teacher's checkpoint"),
]


@pytest.mark.parametrize("command, message", NO_TEACHER)
def test_what_needs_a_teacher(command, message, bad, teacher, capsys):
    trained(train_student, command, bad, teacher, capsys, message)


@pytest.mark.parametrize("method", ["kd", "ab", "tfkd"])
def test_no_teacher(method, bad, teacher, capsys):
    message = f"--path_t: --distill {method} needs a teacher's checkpoint"
    trained(train_student, f"--distill {method}", bad, teacher, capsys, message)


OTHERS = [
    (train_teacher, "--model resnet", r"--model: unknown network 'resnet'; near: "),
    (train_teacher, "--model", r"--model: expected one argument"),
    (train_teacher, "--model resnet8 --batch_size 1", r"--batch_size: expected a whole number of at least 2, found 1"),
    (train_teacher, "--model resnet8 --path_t {teacher}", r"unknown option --path_t"),
    (train_teacher, "--model resnet8 --distill kd", r"unknown option --distill"),
    (train_teacher, "--models resnet8", r"unknown option --models; near: --model"),
    (train_teacher, "resnet8", r"'resnet8' belongs to no option"),
    (transfer_student, "--model_s resnet8", r"the following arguments are required: --path_s"),
    (transfer_student, "--path_s {bad}/nothing.pth --model_s resnet8", r"--path_s .*nothing.pth: holds no tensors"),
    (transfer_student, "--path_s {teacher} --model_s vgg8", r"--path_s .*: not a "),
    (transfer_student, "--path_s {teacher} --model_s resnet20", r"not a resnet20 \(the file says resnet14\)"),
    (transfer_student, "--path_s {teacher} --probe_bn never", r"--probe_bn: invalid choice: 'never'"),
    (transfer_student, "--path_s {run}", r"--path_s .*: is a folder, not a file; did you mean .*/last.pth"),
    (transfer_student, "--path_s {bad}/missing.pth", r"--path_s .*missing.pth: no such file"),
    (transfer_student, "--path_s {teacher} --dataset digit", r"--dataset: unknown data set 'digit'; near: digits"),
    (transfer_student, "--path_t {teacher}", r"unknown option --path_t; near: --path_s"),
]


@pytest.mark.parametrize("script, command, message", OTHERS)
def test_other_training(script, command, message, bad, teacher, capsys):
    trained(script, command, bad, teacher, capsys, message)


SUITE = "--dataset digits --device cpu --limit_train 100 --limit_val 50 --epochs 1 --results-dir {bad}/save"
TOOLS = [
    (evaluate_kd, f"{SUITE} --mode kdd", r"--mode: invalid choice: 'kdd' \(choose from 'nokd', 'kd', "),
    (evaluate_kd, f"{SUITE} --mode", r"--mode: expected at least one argument"),
    (evaluate_kd, f"{SUITE} --teacher resnet9", r"--teacher: unknown network 'resnet9'; near: resnet8"),
    (evaluate_kd, f"{SUITE} --nosuch", r"unknown option --nosuch"),
    (evaluate_kd, f"{SUITE} --config x.json", r"--config: every run has its own; --results-dir says where they are"),
    (evaluate_kd, f"{SUITE} --run_name x", r"--run_name: every run has its own"),
    (evaluate_kd, f"{SUITE} --batch-size 1", r"--batch_size: expected a whole number of at least 2, found 1"),
    (evaluate_kd, f"{SUITE} --optimizer adam", r"--optimizer: invalid choice: 'adam'"),
    (evaluate_kd, f"{SUITE} --teacher-checkpoint {{bad}}/x.pth", r"--teacher-checkpoint .*x.pth: no such file"),
    (evaluate_kd, f"{SUITE} --kdparam-alphas 2", r"--kdparam-alphas: expected a number from 0 to 1, found 2"),
    (evaluate_kd, f"{SUITE} --results-dir {{bad}}/file", r"--save_folder .*/file/digits: .* is not a folder"),
    (compare_predictions, "", r"the following arguments are required: PLACE"),
    (compare_predictions, "{bad}/nowhere", r"nowhere: no such file; runs write it with --save_predictions"),
    (compare_predictions, "{run}", r"predictions.csv: no such file; runs write it with --save_predictions"),
    (compare_predictions, "{bad}/config.json", r"config.json: expected the columns index,label,prediction,confidence"),
    (compare_predictions, "{teacher}", r"last.pth: .*"),
    (compare_predictions, "{bad}/text.csv {bad}/text.csv", r"text.csv: invalid literal for int.*'cat'"),
    (compare_predictions, "{bad}/huge.csv {bad}/huge.csv", r"huge.csv: "),
    (compare_predictions, "{bad}/long.csv {bad}/long.csv", r"long.csv: field larger than field limit"),
    (compare_predictions, "a b c", r"expected one place or two, found 3"),
    (compare_predictions, "{run} --teachr {run}", r"unknown option --teachr; near: --teacher"),
    (summarize, "", r"the following arguments are required: FOLDER"),
    (summarize, "{bad}/nowhere", r"nowhere: no such folder"),
    (summarize, "{bad}/no_images", r"no_images: no run in there"),
    (summarize, "{teacher}", r"last.pth: no such folder"),
    (summarize, "{run} --figures", r"--figures needs --out DIR, the folder for the pictures"),
    (summarize, "{run} --runs", r"--runs needs --out DIR"),
    (summarize, "{run} --figure", r"unknown option --figure; near: --figures"),
    (summarize, "{run} --out {bad}/file", r"--out .*/file: .*File exists"),
    (procedures, "", r"the following arguments are required: {table,grid,history,teachers,network}"),
    (procedures, "tabel", r"invalid choice: 'tabel' \(choose from 'table', "),
    (procedures, "table --save {bad}/s --seeds 1 --out {bad}/o", r"the following arguments are required: --row"),
    (procedures, "grid --save s --seeds 1 --out o --alpha_weighs b n", r"--alpha_weighs: invalid choice: 'b'"),
    (procedures, "teachers {bad}/nowhere.csv", r"nowhere.csv: .*No such file"),
    (procedures, "teachers {bad}/text.csv", r"text.csv: expected the columns modelname, .*modeltop1, path"),
    (procedures, "teachers {bad}/teachers.csv --n 9", r"teachers.csv: has 1 teachers, 9 are asked for"),
    (procedures, "teachers {bad}/teachers.csv --n -1", r"--n: expected a whole number of at least 0, found -1"),
    (procedures, "network {bad}/missing.pth", r"missing.pth: no such file"),
    (procedures, "network {bad}/nameless.pth", r"nameless.pth: neither the file nor its folder's name says"),
    (unpack, "", r"the following arguments are required: archive, folder"),
    (unpack, "{bad}/missing.zip {bad}", r"missing.zip: .*No such file"),
    (unpack, "{bad}/config.json {bad}", r"config.json: File is not a zip file"),
    (unpack, "{teacher} {bad}/nowhere", r"last.pth: .*No such file or directory: .*nowhere"),
    (step_time, "--pair resnet20", r"--pair: "),
    (step_time, "--methods kdd", r"--methods: unknown method 'kdd'; near: kd"),
    (step_time, "--threads 0", r"--threads: expected a whole number of at least 1, found 0"),
    (loader, "", r"the following arguments are required: --out"),
    (loader, "--out {bad}/o --dataset cifar10", r"--dataset: invalid choice: 'cifar10'"),
    (loader, "--out {bad}/o --data_folder {bad}/nowhere", r"nowhere: expected wnids.txt, train/ and val/"),
]


@pytest.mark.parametrize("script, command, message", TOOLS)
def test_tools(script, command, message, bad, teacher, capsys):
    before = sorted(bad.rglob("*"))
    refused(script, filled(command, bad, teacher).split(), capsys, message)
    assert sorted(bad.rglob("*")) == before


BASH = [
    ("run_cifar_distill.sh", {"PAIR": "resnet20"}, "PAIR=resnet20: expected teacher:student"),
    ("run_cifar_distill.sh", {"PAIR": "resnet9:resnet8"}, "--model: unknown network 'resnet9'; near: resnet8"),
    ("run_cifar_distill.sh", {"DATASET": "cifar1000"}, "--dataset: unknown data set 'cifar1000'; near: cifar100"),
    ("run_cifar_distill.sh", {"TEACHER": "no/where.pth"}, "error: no/where.pth: no such file"),
    ("run_cifar_vanilla.sh", {"SEEDS": "one"}, "--trial one: not a number, so --seed must be given"),
    ("run_cifar_transfer.sh", {}, "error: no finished run in .*; name checkpoints or run folders in STUDENTS"),
    ("run_kdparam.sh", {"GRID": "cinic10"}, "GRID=cinic10: expected cinic or nothing"),
    ("run_takd.sh", {"PAIR": ":resnet8"}, "PAIR=.*: expected teacher:student"),
    ("run_multikd.sh", {"ENSEMBLE": "three"}, "ENSEMBLE=three: expected a number of students"),
    ("dist_job.sh", {"TEACHER": "resnet20"}, "give STUDENT_FILE and TEACHER"),
    ("contdist_job.sh", {"TEACHERS": "resnet20"}, "give STUDENT_FILE, a checkpoint of the student"),
    ("contdist_job.sh", {"STUDENT_FILE": "x.pth", "STUDENT": "resnet8"}, "give TEACHERS or MODEL_LIST"),
    ("contdist_job.sh", {"STUDENT_FILE": "nowhere.pth"}, "checkpoint nowhere.pth: no such file"),
    ("quickstart.sh", {"EPOCHS": "0"}, "--epochs: expected a whole number of at least 1, found 0"),
    ("collect.sh", {}, "error: give RESULTS, the folder under results/"),
    ("collect.sh", {"OUT": "out"}, "error: give RESULTS, the folder under results/"),
    ("collect.sh", {"RESULTS": "out"}, "save: no such folder"),
]


@pytest.mark.parametrize("script, variables, message", BASH)
def test_bash(script, variables, message, python, tmp_path):
    environment = os.environ | {"PYTHON": str(python), "SAVE": str(tmp_path / "save")} | variables
    done = subprocess.run(["bash", ROOT / "scripts" / script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path), done.stderr


def test_a_file_cannot_hide_behind_a_good_name(bad, teacher, capsys):
    """A truncated file that still begins like a zip archive is truncated, not malicious."""
    whole = teacher.read_bytes()
    for part in (0.1, 0.9, 0.999):
        (bad / "cut.pth").write_bytes(whole[: int(len(whole) * part)])
        message = r"cut.pth: truncated, or not a checkpoint"
        trained(train_student, "--path_t {bad}/cut.pth", bad, teacher, capsys, message)


def test_a_key_that_comes_twice_is_found_at_once(tmp_path):
    """Among many: the time grows with their number, not with its square."""
    keys = ", ".join(f'"key{n}": 0' for n in range(40_000))
    (tmp_path / "c.json").write_text(f'{{{keys}, "key39999": 1}}')
    began = time.process_time()
    with pytest.raises(UserError, match="--config .*c.json: not JSON: 'key39999' stands there twice"):
        checkpoint.load_json(tmp_path / "c.json", "--config")
    assert time.process_time() - began < 5
