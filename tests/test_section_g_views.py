"""Checks of the methods with several views of a sample: what a right implementation has and a wrong one has not."""

import json

import pytest
import torch
from conftest import QUICK, weights
from fakes import batch, output, pair

import dataset
import train_student
from distiller_zoo import find_method
from distiller_zoo.criterion import Criterion
from helper.trainee import Trainee

SSKD, UDA = find_method("sskd"), find_method("uda")


def outputs(samples: int = 3, views: int = 4):
    torch.manual_seed(0)
    n = samples * views
    s = output(logits=torch.randn(n, 10).requires_grad_(), pooled=torch.randn(n, 6).requires_grad_())
    t = output(logits=torch.randn(n, 10).requires_grad_(), pooled=torch.randn(n, 8).requires_grad_())
    return s, t, batch(s, views=views)


def reached(module: torch.nn.Module) -> list[bool]:
    return [p.grad is not None and bool(p.grad.any()) for p in module.parameters()]


# ---- gradient reach ----


def test_each_head_learns_in_its_stage_alone():
    s, t, seen = outputs()
    method = SSKD(pair(s, t))
    method.init_loss(s, t, seen).backward()
    assert all(reached(method.head_t)) and not any(reached(method.head_s))
    assert all(x.grad is None for x in (s.logits, s.pooled, t.logits, t.pooled))
    method.zero_grad(set_to_none=True)
    method(s, t, seen).backward()
    assert all(reached(method.head_s)) and not any(reached(method.head_t))
    assert s.logits.grad.any() and s.pooled.grad.any() and t.logits.grad is None and t.pooled.grad is None
    # the plain view's logits belong to the cross entropy and the KD term
    assert not s.logits.grad[::4].any()


def test_consistency_moves_the_augmented_view_alone():
    s, t, seen = outputs(views=2)
    UDA(pair(s, t))(s, None, seen).backward()
    assert s.logits.grad[1::2].any() and not s.logits.grad[::2].any()


def test_labels_and_kd_of_the_views():
    """SSKD's see the plain view, UDA's both: with weights of a half each, the mean of both views' losses."""
    s, t, seen = outputs(views=2)
    kd = find_method("kd")(pair(s, t), kd_T=5.0)
    total = sum(Criterion(0.5, 0.5, kd, {"uda": UDA(pair(s, t))}, [0.0])(s, [t], seen).values())
    each = []
    for view in range(2):
        s_view, t_view = (x._replace(logits=x.logits[view::2]) for x in (s, t))
        each.append(
            0.5 * torch.nn.functional.cross_entropy(s_view.logits, seen.labels) + 0.5 * kd(s_view, t_view, seen)
        )
    torch.testing.assert_close(total, 0.5 * each[0] + 0.5 * each[1])


# ---- zero at equality ----


def test_zero_at_equality():
    s, _, seen = outputs()
    method = SSKD(pair(s, s))
    method.head_t.load_state_dict(method.head_s.state_dict())
    assert method(s, s, seen).abs() < 1e-5
    twice = output(logits=s.logits[:3].repeat_interleave(2, 0))
    assert UDA(pair(twice, twice))(twice, None, batch(twice, views=2)).abs() < 1e-6


def test_right_answers_are_kept_whatever_the_ratio():
    """With ratio 0 only rows that the teacher has right count, and none at all gives zero, not NaN."""
    s, t, seen = outputs()
    options = {"sskd_tf_ratio": 0.0, "sskd_ss": 0.0, "sskd_tf": 1.0}
    right = t._replace(logits=torch.nn.functional.one_hot(seen.labels.repeat_interleave(4), 10).float())
    wrong = right._replace(logits=-right.logits)
    every = SSKD(pair(s, t), sskd_ss=0.0, sskd_tf=1.0)
    some = SSKD(pair(s, t), **options)
    assert torch.equal(every(s, right, seen), some(s, right, seen))
    assert some(s, wrong, seen) == 0 and every(s, wrong, seen) > 0


# ---- the views ----


def augmentation():
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return dataset.InMemory(images, (0.5,) * 3, (0.5,) * 3, padding=1)


def test_four_rotations():
    s, t, _ = outputs()
    augment = augmentation()
    views = SSKD(pair(s, t)).views(augment)
    index, view = torch.arange(5), augment.draw(5, torch.Generator().manual_seed(1))
    assert torch.equal(view, views.draw(5, torch.Generator().manual_seed(1)))
    images, plain = views(index, view), augment(index, view)
    assert images.shape == (5, 4, 3, 8, 8)
    for quarter in range(4):
        assert torch.equal(images[:, quarter], plain.rot90(quarter, (2, 3)))
    flat = images.flatten(0, 1)
    assert flat.data_ptr() == images.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("distill", ["uda,sskd", "sskd,uda"])
def test_views_of_views_are_refused(distill, teacher, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--path_t", str(teacher), "--distill", distill, "--save_folder", str(tmp_path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "needs single images" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- whole runs ----

RUNS = {
    "uda": ["--distill", "uda", "-b", "0.1"],
    "sskd": ["--distill", "sskd", "--init_epochs", "1"],
}


def arguments(name, teacher, save, epochs=2):
    run = [*QUICK, "--path_t", str(teacher), "--epochs", str(epochs), "--save_folder", str(save), "--run_name", "r"]
    return [*run, *RUNS[name]]


@pytest.mark.parametrize("name", RUNS)
def test_one_epoch_and_exact_resume(name, teacher, tmp_path, monkeypatch):
    """A run that stops in the middle of an epoch ends, started again, where the uninterrupted one ends."""
    train_student.main(arguments(name, teacher, tmp_path / "whole"))
    steps = 0

    def step(*args, original=Trainee.step):
        nonlocal steps
        steps += 1
        if steps == (6 if name == "uda" else 10):  # four steps an epoch, and for sskd four more at the beginning
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainee, "step", step)
        with pytest.raises(SystemExit):
            train_student.main(arguments(name, teacher, tmp_path / "cut"))
    folders = [tmp_path / part / "student_model" / "r" for part in ("whole", "cut")]
    assert torch.load(folders[1] / "last.pth", weights_only=True)["epoch"] == 1
    train_student.main(arguments(name, teacher, tmp_path / "cut"))
    whole, cut = (torch.load(folder / "last.pth", weights_only=True) for folder in folders)
    for key in ("model", "criterion"):
        assert all(torch.equal(value, cut[key][place]) for place, value in whole[key].items())
    assert (folders[0] / "init_log.csv").exists() == (name == "sskd")
    options = json.loads((folders[0] / "options.json").read_text())["options"]
    expected = {"uda": (0.5, 0.5, [0.1], 5.0), "sskd": (0.1, 0.9, [1.0], 4.0)}[name]
    assert (options["gamma"], options["alpha"], options["beta"], options["kd_T"]) == expected
    assert (name == "sskd") == ("sskd_ss_T" in options)


def test_uda_without_kd_needs_no_teacher(tmp_path):
    command = [*QUICK, "--distill", "uda", "-r", "1", "-a", "0", "--epochs", "1", "--save_folder", str(tmp_path)]
    train_student.main([*command, "--run_name", "alone"])
    train_student.main([*command, "--run_name", "consistent", "-b", "1"])
    a, b = (weights(tmp_path / "student_model" / name / "last.pth") for name in ("alone", "consistent"))
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_heads_are_saved_with_the_criterion_alone(teacher, tmp_path):
    train_student.main(arguments("sskd", teacher, tmp_path, epochs=1))
    state = torch.load(tmp_path / "student_model" / "r" / "last.pth", weights_only=True)
    assert any("head_t" in key for key in state["criterion"]) and not any("head" in key for key in state["model"])
