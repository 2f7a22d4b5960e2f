"""The short form of long_runs.py: every method, in as few runs of the script as their views of the images allow."""

import gc
import os

import pytest
import torch
from conftest import QUICK
from fakes import student_for
from test_resume import equal, results

import train_student
from distiller_zoo import Distiller, find_method, method_names
from helper.trainee import Trainee

AS_ALL = (Distiller.views, Distiller.wrap, False)
PLAIN = [(cls.views, cls.wrap, cls.separate_heads) == AS_ALL for cls in map(find_method, method_names())]
ALIKE = [name for name, plain in zip(method_names(), PLAIN, strict=True) if plain]
GROUPS = [ALIKE, *([name] for name in method_names() if name not in ALIKE)]


def run(names, teacher, save):
    """Three epochs of four steps, after one of an initialisation."""
    few = "--image_size 8 --limit_train 32 --limit_val 10 --batch_size 8 --epochs 3 --init_epochs 1".split()
    weights = ",".join(["1e-3"] * len(names))
    command = [*QUICK, *few, "--path_t", str(teacher), "--save_folder", str(save), "--run_name", "r"]
    crowd = ["--nce_k", "16"] if "crd" in names else []
    crowd += ["--model_s", student_for(names[0], "resnet8")]
    train_student.main([*command, "--distill", ",".join(names), "-b", weights, "--learning_rate", "0.01", *crowd])
    return save / "student_model" / "r"


def held():
    """Tensors, their bytes, and open files."""
    gc.collect()
    plain = (torch.Tensor, torch.nn.Parameter)  # an exporter leaves some without memory
    tensors = [x for x in gc.get_objects() if type(x) in plain]
    return len(tensors), sum(x.nbytes for x in tensors), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("names", GROUPS, ids=["others" if len(names) > 1 else names[0] for names in GROUPS])
def test_nothing_piles_up_and_equal_seeds_give_equal_numbers(names, teacher, tmp_path, monkeypatch):
    first = results(run(names, teacher, tmp_path / "first"))
    samples, step = [], Trainee.step

    def watched(*args):
        step(*args)
        samples.append(None if len(samples) % 4 else held())

    monkeypatch.setattr(Trainee, "step", watched)
    second = results(run(names, teacher, tmp_path / "second"))
    assert samples[-4] == samples[-8]
    for a, b in zip(first, second, strict=True):
        assert equal(a, b)
