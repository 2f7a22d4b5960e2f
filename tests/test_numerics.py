"""Numbers that are not finite stop a run before they reach a checkpoint; an overflow of fp16 gradients does not."""

import functools
import os
import pkgutil
import re
import sys

import pytest
import torch
from fakes import FakeNet, batch
from test_methods import NAMES, build, change, example, losses, views_of
from test_parallel import finished, ranks
from test_resume import arguments, equal, results
from torch.utils._python_dispatch import TorchDispatchMode

import models
import train_student
from dataset.pixels import measure
from helper.step import Update
from helper.util import seed_everything

SMALL = "--limit_train 40 --limit_val 10 --batch_size 10 --epochs 2".split()  # 4 steps, 1 batch of validation


def inject(patch, place, call, value, counts=lambda owner: True):
    """Multiplies what the call-th of the calls that count returns by `value`; of a step, the loss."""
    owner, _, name = place.rpartition(".")
    owner, calls = pkgutil.resolve_name(owner), 0
    original = getattr(owner, name)

    def broken(*args, **kwargs):
        nonlocal calls
        calls += counts(args[0])
        if calls != call or not counts(args[0]):
            return original(*args, **kwargs)
        if name == "step":
            return original(args[0], {key: term * value for key, term in args[1].items()})
        found = original(*args, **kwargs)
        return found._replace(logits=found.logits * value) if isinstance(found, tuple) else found * value

    patch.setattr(owner, name, broken)


# The teacher has seen a dummy batch and the batch of validation before the training begins.
BREAKS = {
    "data": ("crd", "dataset:Augment.normalise", 8, "epoch 2, step 2: the term 'ce' of the loss is nan"),
    "teacher": ("crd", "models.base:Network.forward", 8, "epoch 2, step 2: the term 'kd' of the loss is nan"),
    "method": ("crd", "crd:CRD.forward", 6, "epoch 2, step 2: the term 'crd' of the loss is nan"),
    "initialisation": (
        "ab",
        "distiller_zoo.ab:AB.init_loss",
        8,
        "init epoch 2, step 4: the term 'ab' of the loss is nan",
    ),
    "validation": ("crd", "dataset:Augment.normalise", 11, "epoch 2: the validation loss is nan"),
    # what an epoch's last step does to the weights, no loss has seen
    "last gradient": ("crd", "helper.step:Update.step", 8, "epoch 2: the validation loss is nan"),
    "last gradient of an initialisation": ("ab", "helper.step:Update.step", 8, "init epoch 2: .* is not finite"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_nan_stops_the_run(what, teacher, tmp_path, capsys, monkeypatch):
    """One line, exit status 3, and the checkpoint of the epoch before, from which the same command goes on."""
    method, place, call, message = BREAKS[what]
    command = [*arguments(method, teacher, tmp_path), *SMALL]
    with monkeypatch.context() as patch:
        if what == "teacher":
            inject(patch, place, call, float("nan"), lambda network: not network.head.weight.requires_grad)
        else:
            inject(patch, place, call, float("nan"))
        with pytest.raises(SystemExit) as stop:
            train_student.main(command)
    error = capsys.readouterr().err
    assert stop.value.code == 3 and error.count("\n") == 1 and re.search(message, error), error
    folder = tmp_path / "student_model" / "r"
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in state["model"].values())
    train_student.main(command)
    assert "continuing" in capsys.readouterr().out and (folder / "summary.json").is_file()


def test_a_nan_in_one_of_two_processes_stops_both(python, teacher, tmp_path, port):
    command = [*arguments("crd", teacher, tmp_path), *SMALL]
    said = finished(ranks(python, 2, __file__, *command, port=port), status=3)
    assert [re.findall("error: .*", err) for _, err in said] == [
        ["error: epoch 2, step 1: the term 'ce' of the loss is nan"],
        [],
    ]
    state = torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in state["model"].values())


def half(teacher, save, *more):
    return [*arguments("crd", teacher, save), *SMALL, "--amp", "fp16", *more]


@pytest.fixture
def scaled_by(monkeypatch):
    """Sets the scale of the loss that fp16 starts with; PyTorch's 65536 suits these networks."""
    scaler = torch.amp.GradScaler
    return lambda scale: monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(scaler, init_scale=scale))


def test_an_overflow_skips_the_step_and_halves_the_scale(teacher, tmp_path, scaled_by):
    """The loss itself is finite, so the run goes on; nothing of the skipped steps is in weights or momentum."""
    scaled_by(2.0**40)
    train_student.main(half(teacher, tmp_path, "--epochs", "1"))
    state = torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)
    assert state["scaler"]["scale"] == 2.0**36
    assert not any(buffer["momentum_buffer"].any() for buffer in state["optimizer"]["state"].values())
    seed_everything(1)
    for name, start in models.create_model("resnet8", 10).named_parameters():
        assert torch.equal(state["model"][name], start)


def test_training_goes_on_after_an_overflow(teacher, tmp_path, scaled_by, monkeypatch):
    """And the scale that it has found is part of what an interrupted run goes on from."""
    scaled_by(2.0**22)
    train_student.main(half(teacher, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        inject(patch, "crd:CRD.forward", 6, float("nan"))
        train_student.main(half(teacher, tmp_path / "broken"))
    train_student.main(half(teacher, tmp_path / "broken"))
    found, expected = (results(tmp_path / name / "student_model" / "r") for name in ("broken", "whole"))
    assert 1 < 2.0**22 / expected[0]["scaler"]["scale"] < 2.0**8, "either no step or every step was skipped"
    for a, b in zip(found, expected, strict=True):
        assert equal(a, b)


def test_gradients_that_overflow_at_any_scale_stop_the_run(teacher, tmp_path, scaled_by, capsys, monkeypatch):
    scaled_by(2.0**-13)
    step = Update.step
    infinite = lambda terms: {k: v * float("inf") for k, v in terms.items()}  # noqa: E731
    monkeypatch.setattr(Update, "step", lambda self, terms, part: step(self, infinite(terms), part))
    with pytest.raises(SystemExit) as stop:
        train_student.main(half(teacher, tmp_path))
    assert stop.value.code == 3 and "epoch 1: the gradients overflow in fp16" in capsys.readouterr().err
    assert not (tmp_path / "student_model" / "r" / "last.pth").exists()


def test_the_deviation_of_constant_images_is_one():
    """Images are divided by it; for 239 the rounded formula gives 1e-16."""
    for value in (0, 239, 255):
        assert measure([torch.full((3, 3, 8, 8), value, dtype=torch.uint8)])[1] == (1.0, 1.0, 1.0)


def first_is_nan(x):
    return torch.cat([x[:1] * float("nan"), x[1:]])


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_hides_a_nan(name):
    """In what either network says of one sample: the loss is not finite, or it does not read that at all."""
    views = views_of(name)
    outputs = example(6 * views)

    def found(side, f):
        torch.manual_seed(0)
        given = [change(o, f) if i == side else o for i, o in enumerate(outputs)]
        return losses(build(name, *outputs), *given, batch(outputs[0], views=views))

    for side in (0, 1):
        for broken, other, plain in zip(*(found(side, f) for f in (first_is_nan, torch.exp, torch.clone)), strict=True):
            assert not broken.isfinite() or torch.equal(other, plain)


class NoHalf(TorchDispatchMode):
    """Raises where something is computed in half precision; what only moves numbers is let through."""

    moves = set(
        "_to_copy clone copy_ detach alias view _unsafe_view as_strided t transpose permute slice select unsqueeze "
        "expand cat stack index index_select gather split unbind topk where new_zeros empty_like zeros_like".split()
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        for x in found if isinstance(found, (tuple, list)) else [found]:
            half = isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16)
            assert not half or func.overloadpacket.__name__ in self.moves, f"{func} in half precision"
        return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_compute_in_float32(name, dtype):
    """Whatever the networks run in; the gradient returns to what they run in."""
    views = views_of(name)
    s, t = example(6 * views, dtype)
    method = build(name, s, t)
    for network in (module for module in method.modules() if isinstance(module, FakeNet)):  # they run as the others do
        network.forward = lambda images: t.logits
    with NoHalf():
        found = losses(method, s, t, batch(s, views=views))
    assert all(loss.dtype == torch.float32 for loss in found)


if __name__ == "__main__":  # one of two processes, of which the second has a NaN in its data
    if os.environ["RANK"] == "1":
        inject(pytest.MonkeyPatch(), "dataset:Augment.normalise", 7, float("nan"))
    train_student.main(sys.argv[1:])
