"""--aug, --reprob, --mixup and --cutmix: torchvision's numbers, and batches that depend on (seed, epoch) alone."""

import numpy as np
import pytest
import torch
from conftest import QUICK
from kill_harness import equal, results
from tape import Tape
from test_autoaugment import CPU, by_torchvision, in_memory, of_pil, some_images
from torchvision.transforms import autoaugment as published
from torchvision.transforms import v2

import dataset
import models
import train_student
import train_teacher
import transfer_student
from dataset.mixing import Mix, Mixing
from dataset.operations import Reach
from dataset.policies import POLICIES, SIGNED, UNSIGNED, Augmented, AugMix, RandAugment, WeakAndStrong
from distiller_zoo.cskd import Partners
from helper.captured import WARM_UPS, Captured
from helper.step import Precision
from helper.teachers import Teachers
from helper.trainee import Trainee

MIXINGS = [(0.4, 0.0), (0.0, 1.0), (0.8, 1.0)]


# ---- AugMix ----


def test_strengths_of_augmix():
    for shape in ((32, 32), (8, 8), (20, 29), (27, 64)):
        for name, (theirs, _) in published.AugMix()._augmentation_space(10, shape).items():
            if theirs.dim():
                assert Reach(10, across=1 / 3, bits=(4, 0)).strengths(name, *shape) == theirs.tolist()


@pytest.mark.parametrize("shape", [(32, 32), (20, 29)])
def test_augmix_is_its_formula(shape):
    policy, images = AugMix(shape, CPU), some_images(*shape)
    table = [("Identity", 0.0)] * 6
    space = published.AugMix()._augmentation_space(10, shape)
    assert sorted(space) == sorted([*SIGNED, *UNSIGNED])
    for name in (*SIGNED, *UNSIGNED):
        strengths, signed = space[name]
        for strength in strengths[:3].tolist() if strengths.dim() else [0.0] * 3:
            table += [(name, strength), (name, -strength if signed else strength)]
    assert len(policy.operations) == len(table)
    drawn = policy.draw(48, torch.Generator().manual_seed(0))
    index = torch.arange(48) % len(images)
    for image, code, ours in zip(images[index], drawn, policy(images[index], drawn), strict=True):
        own, *weights = code[9:].view(torch.float64).float()
        mixed = own * image
        for weight, rows in zip(weights, code[:9].view(3, 3).tolist(), strict=True):
            chain = image
            for row in rows:
                chain = of_pil(chain, by_torchvision(*table[row], v2.InterpolationMode.BILINEAR)) if row else chain
            mixed = mixed + weight * chain
        assert torch.equal(ours, mixed.to(torch.uint8))


def test_draws_of_augmix():
    n = 60_000
    policy = AugMix((32, 32), CPU)
    drawn = policy.draw(n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, policy.columns)
    rows, weights = drawn[:, :9].view(n, 3, 3), drawn[:, 9:].view(torch.float64)
    torch.testing.assert_close(weights.sum(1), torch.ones(n, dtype=torch.float64))
    lengths = (rows > 0).sum(2)
    assert torch.equal(rows > 0, torch.arange(3) < lengths.unsqueeze(2)), "a chain has no gap"
    for length in (1, 2, 3):
        assert abs((lengths == length).double().mean() - 1 / 3) < 4.5 * (2 / 9 / (3 * n)) ** 0.5
    real = rows[rows > 0]
    share = real.bincount(minlength=len(policy.operations))[6:] / len(real)
    assert real.min() == 6 and (share - 1 / 78).abs().max() < 4.5 * (1 / 78 / len(real)) ** 0.5
    assert abs(weights[:, 0].mean() - 0.5) < 4.5 * (1 / 12 / n) ** 0.5 and abs(weights[:, 0].var() - 1 / 12) < 0.002
    chains = weights[:, 1:] / weights[:, 1:].sum(1, keepdim=True)
    assert (chains.mean(0) - 1 / 3).abs().max() < 4.5 * (1 / 18 / n) ** 0.5
    assert (chains.var(0) - 1 / 18).abs().max() < 0.002


# ---- mixup and cutmix ----


def some_batches(mixing=None, n=50, part=(0, 1), seed=1, wrap=lambda augment: augment) -> dataset.Batches:
    images = torch.randint(256, (n, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = wrap(dataset.InMemory(images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), padding=1))
    batches = dataset.Batches(augment, torch.arange(n) % 5, 8, seed=seed, part=part)
    batches.mixing = Mixing(*mixing, (8, 12)) if mixing else None
    return batches


def assert_same(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip((*a[:3], *a.mixed), (*b[:3], *b.mixed), strict=True):
            assert torch.equal(x, y) and x.stride() == y.stride()


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("views", [False, True])
def test_mixed_as_by_torchvision(mixing, views):
    """The same share or box and the same partner: its pixels and its soft labels. Of several views each."""

    def wrap(augment):
        return WeakAndStrong(augment, RandAugment) if views else augment

    mixed, plain = some_batches(mixing, wrap=wrap), some_batches(wrap=wrap)
    kinds = set()
    for epoch in (1, 2):
        for batch, other, mix in zip(mixed.epoch(epoch), plain.epoch(epoch), redrawn(mixed, epoch), strict=True):
            assert other.mixed is None and torch.equal(batch.labels, other.labels)
            assert torch.equal(batch.index, other.index) and batch.images.stride() == other.images.stride()
            share = batch.mixed.share[0].item()
            assert batch.mixed.share.dtype == torch.float32 and (batch.mixed.share == share).all()
            assert batch.mixed.labels.shape == batch.labels.shape == batch.mixed.share.shape
            assert share == pytest.approx(mix.share)
            kinds.add(mix.box is None)
            theirs = v2.MixUp(num_classes=5) if mix.box is None else v2.CutMix(num_classes=5)
            if mix.box is None:
                theirs.make_params = lambda flat, mix=mix: {"lam": mix.share}
            else:
                (y1, y2), (x1, x2) = ((side.start, side.stop) for side in mix.box)
                box = {"box": (x1, y1, x2, y2), "lam_adjusted": mix.share}
                theirs.make_params = lambda flat, box=box: box
            images = [(a, b) for a, b in zip(batch.images.unbind(1), other.images.unbind(1), strict=True)]
            for ours, before in images if views else [(batch.images, other.images)]:
                expected, soft = theirs(before, other.labels)
                assert torch.equal(ours, expected)
            one, two = (torch.nn.functional.one_hot(y, 5) for y in (batch.labels, batch.mixed.labels))
            torch.testing.assert_close(share * one + (1 - share) * two, soft)
    assert kinds == {mixing[0] > 0, mixing[1] == 0}


def redrawn(batches: dataset.Batches, epoch: int) -> list[Mix]:
    """What `epoch` draws of the mixing."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Mixing.draw
        patch.setattr(Mixing, "draw", lambda *given: found.extend(mixes := draw(*given)) or mixes)
        next(batches.epoch(epoch))
    return found


def test_boxes_are_torchvisions(monkeypatch):
    mixing, theirs = Mixing(0, 1, (20, 29)), v2.CutMix(num_classes=5)
    rng = np.random.default_rng(0)
    for _ in range(300):
        share, y, x = rng.random(), int(rng.integers(20)), int(rng.integers(29))
        drawn = iter([x, y])
        monkeypatch.setattr(torch, "randint", lambda *_, drawn=drawn, **__: torch.tensor([next(drawn)]))
        theirs._dist = type("Given", (), {"sample": lambda *_, share=share: torch.tensor(share, dtype=torch.float64)})()
        params = theirs.make_params([torch.empty(3, 20, 29)])
        found = mixing.cut(share, (y, x))
        rows, columns = found.box
        assert (columns.start, rows.start, columns.stop, rows.stop) == params["box"]
        assert found.share == pytest.approx(params["lam_adjusted"])


@pytest.mark.parametrize("mixup, cutmix", [(0.2, 0.0), (1.0, 0.0), (0.0, 0.7), (0.2, 3.0)])
def test_draws_of_shares(mixup, cutmix):
    """Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1)); of both each has half of the batches."""
    n = 40_000
    found = Mixing(mixup, cutmix, (1000, 1000)).draw(n, torch.Generator().manual_seed(0))
    assert found == Mixing(mixup, cutmix, (1000, 1000)).draw(n, torch.Generator().manual_seed(0))
    cut = np.array([mix.box is not None for mix in found])
    expected = 0.5 if mixup and cutmix else bool(cutmix)
    assert abs(cut.mean() - expected) <= 4.5 * (expected * (1 - expected) / n) ** 0.5
    weighed = np.array([mix.share for mix in found])[~cut]
    if len(weighed):
        variance = 1 / (4 * (2 * mixup + 1))
        assert abs(weighed.mean() - 0.5) < 4.5 * (variance / len(weighed)) ** 0.5
        assert abs(weighed.var() / variance - 1) < 0.05
    inside = [m for m in found if m.box and all(0 < side.start and side.stop < 1000 for side in m.box)]
    sides = [tuple(side.stop - side.start for side in m.box) for m in inside]
    assert all(a == b for a, b in sides) and bool(sides) == bool(cutmix)


# ---- what batches depend on ----


WRAPS = {
    "mixed": lambda augment: augment,
    "erased": lambda augment: Augmented(augment, None, 0.5),
    **{name: lambda augment, name=name: Augmented(augment, name, 0.25) for name in POLICIES},
    "views": lambda augment: WeakAndStrong(Augmented(augment, "trivialaugment", 0.25), RandAugment, cutout=True),
    "partners": lambda augment: Partners(Augmented(augment, "randaugment", 0.25), torch.arange(50) % 5),
}


@pytest.mark.parametrize("name", WRAPS)
def test_batches_depend_on_seed_and_epoch_alone(name):
    """Resumed within an epoch, and as the parts of several processes, steps at once or not."""
    whole = list(some_batches((0.3, 1.0), wrap=WRAPS[name]).epoch(3))
    assert len(whole) == 7 and len(whole[-1].labels) == 2
    batches = some_batches((0.3, 1.0), wrap=WRAPS[name])
    list(batches.epoch(2))
    assert_same(batches.epoch(3, start_step=4), whole[4:])
    assert not list(batches.epoch(3, start_step=7))
    assert not torch.equal(next(batches.epoch(4)).images, whole[0].images)
    inner = batches.augment
    while inner is not None:
        inner.steps_at_once, inner = 3, getattr(inner, "augment", None)
    assert_same(batches.epoch(3, start_step=1), whole[1:])
    for world in (2, 3):
        shares = [some_batches((0.3, 1.0), part=(rank, world), wrap=WRAPS[name]).epoch(3) for rank in range(world)]
        for batch, *parts in zip(whole, *shares, strict=False):
            for field in range(3):
                assert torch.equal(torch.cat([part[field] for part in parts]), batch[field])
            for field in range(2):
                assert torch.equal(torch.cat([part.mixed[field] for part in parts]), batch.mixed[field])


def test_augmented_views_are_the_plain_ones_changed():
    """crop and flip as without, then the policy, then a hole of zeros; both views of a method have the same hole."""
    augment = in_memory(some_images())
    for name in POLICIES:
        views = Augmented(augment, name, 1.0)
        index, view = torch.arange(12), views.draw(12, torch.Generator().manual_seed(0))
        assert torch.equal(view[:, 0], augment.draw(12, torch.Generator().manual_seed(0)))
        drawn, box = view[:, 1:-4], view[:, -4:]
        expected = augment.normalise(views.policy(augment.crop(index, view[:, 0]), drawn))
        found = views(index, view)
        for ours, theirs, (top, left, height, width) in zip(found, expected, box.tolist(), strict=True):
            assert height and width
            hole = torch.zeros(1, 1, 1)
            assert torch.equal(ours, v2.functional.erase(theirs, top, left, height, width, hole))
        two = WeakAndStrong(views, RandAugment)
        both = two(index, two.draw(12, torch.Generator().manual_seed(0)))
        assert torch.equal(both[:, 0], found)
        for image, (top, left, height, width) in zip(both, box.tolist(), strict=True):
            assert not image[:, :, top : top + height, left : left + width].any()


@pytest.mark.parametrize("ahead", [1, 3])
def test_teacher_and_student_see_the_same_mixed_image(ahead):
    torch.manual_seed(0)
    teacher = models.create_model("resnet8", 5).eval()
    teachers = Teachers([teacher], Precision("off", CPU), ahead=ahead)
    for batch, (answer,) in teachers.answers(some_batches((0.5, 1.0)), 1, 2, ()):
        assert batch.mixed is not None
        with torch.no_grad():
            torch.testing.assert_close(answer.logits, teacher(batch.images), rtol=1e-4, atol=1e-5)


def test_recorded_steps_take_the_mixing_as_an_input():
    seen = torch.zeros(())

    def function(batch) -> None:
        seen.add_((batch.mixed.labels * batch.mixed.share).sum() + batch.images.sum() * 0)

    call, expected, steps = Captured(function, Tape()), 0.0, 0
    for epoch in (1, 2, 3):
        for batch in some_batches((0.5, 1.0)).epoch(epoch):
            call(batch._replace(drawn=None))
            expected, steps = expected + (batch.mixed.labels * batch.mixed.share).sum().item(), steps + 1
    assert steps > 2 * WARM_UPS and len(call.calls) == 2
    assert seen.item() == pytest.approx(expected, rel=1e-5)


# ---- scripts ----

ALL = ["--aug", "trivialaugment", "--reprob", "0.25", "--mixup", "0.4", "--cutmix", "1"]


def test_exact_resume_within_an_epoch(teacher, tmp_path, monkeypatch):
    run = [*QUICK, "--path_t", str(teacher), "--distill", "kd", "--epochs", "2", "--run_name", "r", "--save_steps", "1"]
    train_student.main([*run, *ALL, "--save_folder", str(tmp_path / "whole")])
    steps = 0

    def step(*given, original=Trainee.step):
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        original(*given)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainee, "step", step)
        train_student.main([*run, *ALL, "--save_folder", str(tmp_path / "cut")])
    train_student.main([*run, *ALL, "--save_folder", str(tmp_path / "cut")])
    whole, cut = (results(tmp_path / name / "student_model" / "r") for name in ("whole", "cut"))
    assert all(equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("aug", POLICIES)
def test_other_scripts(aug, tmp_path):
    more = ["--aug", aug, "--reprob", "0.5", "--epochs", "1", "--save_folder", str(tmp_path), "--run_name", "r"]
    train_teacher.main([*QUICK, "--model", "resnet8", *more])
    transfer_student.main([*QUICK, "--path_s", str(tmp_path / "models" / "r" / "last.pth"), *more])


@pytest.mark.parametrize("flags, message", [
    ("--aug augmix", "--cache_teacher: --aug augmix makes more images than can be kept"),
    ("--reprob 0.1", "--cache_teacher: --reprob 0.1 makes more images than can be kept"),
    ("--mixup 1", "--cache_teacher: --mixup 1.0 makes more images than can be kept"),
    ("--cutmix 0.5", "--cache_teacher: --cutmix 0.5 makes more images than can be kept"),
    ("--sweep kd;none\\ --mixup\\ 1", "--sweep 'none --mixup 1': --mixup is the same for all students"),
])  # fmt: skip
def test_refused(flags, message, teacher, tmp_path, capsys):
    cache = [] if "sweep" in flags else ["--cache_teacher", str(tmp_path / "cache")]
    flags = flags.replace("\\ ", "\0").split()
    flags = [flag.replace("\0", " ") for flag in flags]
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--path_t", str(teacher), "--save_folder", str(tmp_path / "s"), *cache, *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_students_of_a_sweep_are_as_alone(teacher, tmp_path):
    common = [*QUICK, "--path_t", str(teacher), "--epochs", "1", *ALL]
    train_student.main([*common, "--sweep", "kd; uda --model_s resnet14", "--save_folder", str(tmp_path / "sweep")])
    for item in (["kd"], ["uda", "--model_s", "resnet14"]):
        train_student.main([*common, "--distill", *item, "--save_folder", str(tmp_path / "alone")])
    folders = sorted((tmp_path / "alone" / "student_model").iterdir())
    assert len(folders) == 2
    for folder in folders:
        alone, together = (results(path) for path in (folder, tmp_path / "sweep" / "student_model" / folder.name))
        assert all(equal(a, b) for a, b in zip(alone, together, strict=True))
