"""What tells a right implementation of a method on logits or relations from a wrong one."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, weights
from fakes import FakeNet, batch, output, pair
from torch import Tensor

import models
import train_student
from distiller_zoo import Batch, Distiller, Output, Pair, find_method, kd_loss
from distiller_zoo.criterion import teacher_outputs
from distiller_zoo.mt import confidence, most_confident
from distiller_zoo.triplet import negatives

EACH = ["kl", "kl --kl_k 3", "kl --kl_T 2", "xekl", "sup", "hinton", "mt", "mt --mt_choice most-conf", "triplet_cosine"]
EACH += ["mt --mt_choice most-conf_u", "tfkd", "tfkd --tfkd_form reg"]  # means of the samples' own losses
STRATEGIES = ["most-conf", "most-conf_u", "flip-st", "flip-t", "flip-avg", "self-dist"]
PARTITIONS = [f"dp --dp_strategy {strategy}" for strategy in STRATEGIES]
TRIPLETS = ["triplet", "triplet --triplet_distance l2"]
METHODS = [*EACH, *PARTITIONS, *TRIPLETS, "cd", "cd --cd_reduce mean"]
N = 12


def keywords(command: str) -> tuple[str, dict]:
    """A method's name and its keyword values, as the script reads them from its flags."""
    opt = train_student.parse(["--distill", *command.split()])
    values = train_student.settle(opt)
    return opt.distill[0], values[opt.distill[0]]


def build(command: str, s: Output, t: Output) -> Distiller:
    name, values = keywords(command)
    return find_method(name)(pair(s, t), **values)


def example(seed: int, n: int = N, classes: int = 10, pooled: int = 12, scale: float = 2.0) -> Output:
    g = torch.Generator().manual_seed(seed)
    z, h = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (classes, pooled))
    return output(logits=(scale * z).requires_grad_(), pooled=h.requires_grad_())


def change(o: Output, f: Any) -> Output:
    return o._replace(logits=f(o.logits.detach()).requires_grad_(), pooled=f(o.pooled.detach()).requires_grad_())


def loss_of(method: Distiller, s: Output, *t: Output, labels: Tensor | None = None) -> Tensor:
    return method(s, teacher_outputs(method, t), batch(s, labels=labels))


def slopes(loss: Tensor, s: Output) -> list[Tensor]:
    grads = torch.autograd.grad(loss, [s.logits, s.pooled], allow_unused=True)
    return [g for g in grads if g is not None]


def kl(z_s: Tensor, z_t: Tensor) -> Tensor:
    """Of one sample's logits."""
    p_s, p_t = z_s.softmax(0), z_t.softmax(0)
    return sum(q * (q / p).log() for p, q in zip(p_s, p_t, strict=True))


# ---- equality, equal gradients ----


@pytest.mark.parametrize("command", ["kl", "kl --kl_k 3", "xekl", "sup", "mt", "cd", "tfkd", "triplet_cosine"])
def test_zero_at_equality(command: str) -> None:
    """The method's own part; XEKL's and Sup's cross entropy is the loop's."""
    t = example(0)
    s = change(t, torch.clone)
    loss = loss_of(build(command, s, t), s, t)
    assert loss.abs() < 1e-14 and all(g.abs().max() < 1e-14 for g in slopes(loss, s))


def test_hinton_and_kd_differ_by_the_teachers_entropy() -> None:
    s, t = example(0), example(1)
    ours = loss_of(build("hinton", s, t), s, t)
    kd = loss_of(build("kd", s, t), s, t)
    torch.testing.assert_close(*slopes(ours, s), *slopes(kd, s), rtol=1e-12, atol=1e-15)
    p_t = (t.logits.detach() / 4).softmax(1)
    torch.testing.assert_close(ours - kd, -16 * (p_t * p_t.log()).sum(1).mean())


def test_xekl_is_kl_with_labels() -> None:
    s, t = example(0), example(1)
    parts = [loss_of(build(command, s, t), s, t) for command in ("xekl --kl_k 4", "kl --kl_k 4")]
    assert parts[0] == parts[1] and find_method("xekl").weights == (0.5, 0.0, 0.5)


# ---- top k ----


@pytest.mark.parametrize("k", [0, 2, 9, 10, 1000])
def test_top_k(k: int) -> None:
    s, t = example(0), example(1)
    total = 0.0
    for z_s, z_t in zip(s.logits, t.logits.detach(), strict=True):
        kept = sorted(range(10), key=lambda c: -z_t[c])[: k or None]
        total = total + kl(z_s[kept], z_t[kept]) / N
    ours = loss_of(build(f"kl --kl_k {k}", s, t), s, t)
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*slopes(ours, s), *slopes(total, s), rtol=1e-9, atol=1e-12)


# ---- label-guided selection ----


def logits_of(*predictions: int) -> Output:
    z = torch.randn(len(predictions), 4, generator=torch.Generator().manual_seed(len(predictions))).double()
    z = z + 8 * F.one_hot(torch.tensor(predictions), 4)
    return output(logits=z.requires_grad_())


def test_sup_selects() -> None:
    """Labels 0: only the teacher right, only the student, both, both wrong alike, both wrong each its way."""
    s, t, labels = logits_of(1, 0, 0, 1, 1), logits_of(0, 1, 0, 1, 2), torch.zeros(5, dtype=torch.int64)
    each = torch.stack([kl(a, b) for a, b in zip(s.logits, t.logits.detach(), strict=True)])
    for positive, negative, neutral in list(product((True, False), repeat=3))[:-1]:
        keep = torch.tensor([positive, negative, neutral, neutral, neutral])
        flags = ",".join("distill" if on else "nothing" for on in (positive, negative, neutral))
        ours = loss_of(build(f"sup --on_flip {flags}", s, t), s, t, labels=labels)
        torch.testing.assert_close(ours, each[keep].mean())
        assert torch.autograd.grad(ours, s.logits)[0].any(1).tolist() == keep.tolist()


def test_sup_of_samples_that_are_all_left_out() -> None:
    s, t, labels = logits_of(0, 0), logits_of(0, 0), torch.zeros(2, dtype=torch.int64)
    assert not loss_of(build("sup --on_flip distill,nothing,nothing", s, t), s, t, labels=labels)


def test_sup_with_every_group_is_xekl() -> None:
    s, t = example(0), example(1)
    sup = loss_of(build("sup --on_flip distill,distill,distill", s, t), s, t)
    torch.testing.assert_close(sup, loss_of(build("xekl", s, t), s, t), rtol=1e-14, atol=0)


# ---- several teachers, partition ----


def test_confidence() -> None:
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 5.0]])
    torch.testing.assert_close(confidence(z, None), z.softmax(1).amax(1))
    torch.testing.assert_close(confidence(z, torch.tensor([1, 2])), z.softmax(1)[[0, 1], [1, 2]])
    many = torch.stack([z, -z])
    torch.testing.assert_close(confidence(many, torch.tensor([1, 2]))[1], confidence(-z, torch.tensor([1, 2])))


def test_equal_confidence_keeps_the_first() -> None:
    z = torch.tensor([[2.0, 0.0, 1.0]])
    other = z[:, [1, 0, 2]]
    assert torch.equal(most_confident([z, other], None), z) and torch.equal(most_confident([other, z], None), other)


@pytest.mark.parametrize("choice", ["mean", "most-conf", "most-conf_u"])
@pytest.mark.parametrize("n_teachers", [1, 2, 3])
def test_mt(choice: str, n_teachers: int) -> None:
    s, teachers, labels = example(0), [example(i) for i in range(1, n_teachers + 1)], torch.arange(N) % 10
    total = 0.0
    for i, z_s in enumerate(s.logits):
        rows = [t.logits[i].detach() for t in teachers]
        if choice != "mean":
            score = [z.softmax(0)[labels[i]] if choice == "most-conf" else z.softmax(0).max() for z in rows]
            rows = [rows[max(range(n_teachers), key=lambda m: score[m])]]
        total = total + 25 * sum(kl(z_s / 5, z / 5) for z in rows) / len(rows) / N
    ours = loss_of(build(f"mt --mt_choice {choice}", s, teachers[0]), s, *teachers, labels=labels)
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*slopes(ours, s), *slopes(total, s), rtol=1e-9, atol=1e-12)


def chosen(strategy: str, old: Tensor, teachers: list[Tensor], label: int) -> Tensor:
    """One sample's target by the rules, spelt out."""

    def score(z: Tensor) -> float:
        return (z.softmax(0).max() if strategy == "most-conf_u" else z.softmax(0)[label]).item()

    new = max(teachers, key=score)
    right_old, right_new = int(old.argmax()) == label, int(new.argmax()) == label
    if strategy.startswith("most-conf"):
        return new if score(new) > score(old) else old
    if strategy == "flip-st":
        return new if right_new and not right_old else old
    if strategy == "flip-t":
        return old if right_old and not right_new else new
    if strategy == "flip-avg":
        return (old + new) / 2 if int(old.argmax()) != int(new.argmax()) else new
    return old


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n_teachers", [1, 3])
def test_dp(strategy: str, n_teachers: int) -> None:
    s, old, *teachers = (example(i, 60, 4).logits.detach() for i in range(n_teachers + 2))
    labels = torch.arange(60) % 4
    method = build(f"dp --dp_strategy {strategy}", output(logits=s), output(logits=s))
    target = method.choose(old, teachers, labels)
    rows = [chosen(strategy, old[i], [t[i] for t in teachers], int(labels[i])) for i in range(60)]
    torch.testing.assert_close(target, torch.stack(rows))
    sources = {(target == z).all(1).sum().item() for z in (old, *teachers)}
    assert strategy == "self-dist" or len(sources) > 1, "the example tells nothing apart"


def test_dp_keeps_the_student_as_it_was(tmp_path) -> None:
    """Without a gradient, in eval mode, in the checkpoint; zero loss where teacher, old and live student are one."""
    torch.manual_seed(0)
    student, images = models.create_model("resnet8", 10), torch.randn(6, 3, 16, 16)
    student(images)  # BatchNorm statistics that tell the modes apart
    student.eval()
    probe = models.probe(student, images)
    for command in PARTITIONS:
        name, values = keywords(command)
        method = find_method(name)(Pair(probe, probe, student, student, torch.arange(6)), **values).train()
        assert method.training and not any(m.training for m in method.start.modules())
        assert not any(p.requires_grad for p in method.parameters())
        s = student(images, is_feat=True)
        loss = method(s, (s,), Batch(images, torch.arange(6), torch.arange(6)))
        assert loss.abs() < 1e-6
        loss.backward()
        assert student.conv1.weight.grad.abs().max() < 1e-5
        student.zero_grad()
    before = copy.deepcopy(method.start.state_dict())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)
    s = student(images, is_feat=True)
    loss = method(s, (s,), Batch(images, torch.arange(6), torch.arange(6)))
    assert loss > 1e-3, "the old student must not follow the live one"
    assert all(torch.equal(x, before[key]) for key, x in method.start.state_dict().items())
    assert {f"start.{key}" for key in before} <= set(method.state_dict())


def test_dp_sees_every_view() -> None:
    s = example(0, 6)
    method = build("dp --dp_strategy self-dist", s, s)
    images = torch.randn(3, 2, 3, 8, 8)
    net: FakeNet = method.start
    expected = kd_loss(s.logits, net(images.flatten(0, 1)), 1.0)
    torch.testing.assert_close(method(s, (), Batch(images, torch.arange(3), torch.arange(3))), expected)


# ---- teacher-free ----


def test_virtual_teacher() -> None:
    s, labels = example(0, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    total = 0.0
    for z, label in zip(s.logits, labels, strict=True):
        u = torch.full((4,), 0.03 / 3, dtype=torch.float64)
        u[label] = 0.97
        q = (u / 8).softmax(0)
        total = total + (q * (q.log() - z.log_softmax(0))).sum() / 5
    method = build("tfkd --tfkd_form reg --tfkd_T 8 --tfkd_correct 0.97", s, s)
    ours = method(s, None, batch(s, labels=labels))
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("form", "T"), [("self", 1.0), ("reg", 20.0)])
def test_tfkd_temperature_is_the_forms(form: str, T: float) -> None:
    assert build(f"tfkd --tfkd_form {form}", example(0), example(1)).T == T


# ---- triplet ----


def test_negatives_are_the_next_of_another_class() -> None:
    assert negatives(torch.tensor([0, 0, 1, 1, 0])).tolist() == [2, 2, 4, 4, 2]
    assert negatives(torch.tensor([3, 3, 3])).tolist() == [1, 2, 0]
    assert negatives(torch.tensor([3])).tolist() == [0]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_triplet(metric: str) -> None:
    s, t, labels = example(0), example(1), torch.arange(N) // 2
    total = 0.0
    for i in range(N):
        a, p = (F.normalize(x.logits[i], dim=0) for x in (s, t))
        n = F.normalize(s.logits[(i + 2 - i % 2) % N].detach(), dim=0)
        near, far = ((1 - a @ x) if metric == "cosine" else (a - x).norm() for x in (p.detach(), n))
        total = total + max(near - far + 0.3, 0.0 * near) / N
    method = build(f"triplet --triplet_margin 0.3 --triplet_distance {metric}", s, t)
    ours = loss_of(method, s, t, labels=labels)
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*slopes(ours, s), *slopes(total, s), rtol=1e-9, atol=1e-12)


# ---- scale, repetition, reach, precision, classes ----


@pytest.mark.parametrize("command", ["cd", "cd --cd_reduce mean", "triplet", "triplet_cosine"])
def test_rescaled(command: str) -> None:
    s, t = example(0), example(1, pooled=20)
    method = build(command, s, t)
    theirs = loss_of(method, change(s, lambda x: 3 * x), change(t, lambda x: x / 7))
    torch.testing.assert_close(theirs, loss_of(method, s, t))


@pytest.mark.parametrize("command", [*EACH, *PARTITIONS])
def test_a_batch_twice_leaves_means(command: str) -> None:
    s, t = example(0), example(1)
    method, twice = build(command, s, t).double(), lambda x: torch.cat([x, x])
    loss = loss_of(method, change(s, twice), change(t, twice), labels=twice(torch.arange(N) % 2))
    torch.testing.assert_close(loss, loss_of(method, s, t), rtol=1e-12, atol=1e-14)


def test_a_batch_twice_doubles_the_sum_of_cd() -> None:
    """And adds nothing else: each row's probabilities are halved on both sides, so that their ratio stays."""
    s, t = example(0), example(1)
    doubled = [change(o, lambda x: torch.cat([x, x])) for o in (s, t)]
    for command, factor in (("cd", 2), ("cd --cd_reduce mean", 1)):
        method = build(command, s, t)
        torch.testing.assert_close(loss_of(method, *doubled), factor * loss_of(method, s, t))
    sum_, mean = (loss_of(build(command, s, t), s, t) for command in ("cd", "cd --cd_reduce mean"))
    torch.testing.assert_close(sum_, N * mean)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("command", METHODS)
def test_gradients_reach_the_student_alone(command: str, classes: int) -> None:
    s, t = example(0, classes=classes), example(1, classes=classes, pooled=20)
    method = build(command, s, t).double()
    loss_of(method, s, t, labels=torch.arange(N) % classes).backward()
    ours, other = (s.pooled, s.logits) if command.startswith("cd") else (s.logits, s.pooled)
    assert ours.grad.any() and other.grad is None
    assert t.logits.grad is None and t.pooled.grad is None
    assert not any(p.requires_grad for p in method.parameters()), "these methods train nothing of their own"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("command", METHODS)
def test_half_precision(command: str, dtype: torch.dtype) -> None:
    """Loss and gradient are those of the rounded inputs in float32, and finite for logits of 100 as well."""
    for scale in (2.0, 100.0):
        s, t = (change(example(i, scale=scale), lambda x: x.to(dtype)) for i in (0, 1))
        method = build(command, s, t)
        loss = loss_of(method, s, t)
        assert loss.dtype == torch.float32 and loss.isfinite() and all(g.isfinite().all() for g in slopes(loss, s))
        if not command.startswith("dp"):  # whose old student computes in half precision as well
            single = [change(o, lambda x: x.float()) for o in (s, t)]
            torch.testing.assert_close(loss, loss_of(method, *single))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("command", METHODS)
def test_small_last_batch(command: str, n: int) -> None:
    s, t = example(0), example(1)
    method = build(command, s, t).double()
    few = [change(o, lambda x: x[:n]) for o in (s, t)]
    loss = loss_of(method, *few)
    assert loss.isfinite() and all(g.isfinite().all() for g in slopes(loss, few[0]))


# ---- the script ----


@pytest.mark.parametrize(
    ("command", "expected", "T"),
    [
        ("mt", (0.5, 0, 0.5), None),
        ("multikd", (0.5, 0, 0.5), None),
        ("triplet", (0, 0.5, 0.5), 5),
        ("triplet_cosine", (0, 0.5, 0.5), 5),
        ("xekl -r 0.32 -b 0.68 --kl_k 100", (0.32, 0, 0.68), None),
        ("cd", (0.1, 0, 10), None),
    ],
)
def test_weights_of_a_command(command: str, expected: tuple, T: float | None) -> None:
    opt = train_student.parse(["--distill", *command.split()])
    values = train_student.settle(opt)
    assert (opt.gamma, opt.alpha, *opt.beta) == expected and values.get("kd", {}).get("kd_T") == T


def distil(folder, *arguments: str):
    train_student.main([*QUICK, *arguments, "--epochs", "1", "--save_folder", str(folder), "--run_name", "r"])
    return folder / "student_model" / "r"


def test_no_teacher_asked_for(tmp_path) -> None:
    distil(tmp_path / "reg", "--distill", "tfkd", "--tfkd_form", "reg")
    distil(tmp_path / "self", "--distill", "dp", "--dp_strategy", "self-dist")
    for arguments in (["tfkd"], ["dp"]):
        with pytest.raises(SystemExit):
            distil(tmp_path / "none", "--distill", *arguments)


def test_several_teachers(teacher, tmp_path) -> None:
    """Equal teachers teach what one does; the checkpoint keeps the student that DP started from."""
    one = distil(tmp_path / "one", "--path_t", str(teacher), "--distill", "mt")
    two = distil(tmp_path / "two", "--path_t", str(teacher), str(teacher), "--distill", "mt")
    for a, b in zip(weights(one / "last.pth").values(), weights(two / "last.pth").values(), strict=True):
        torch.testing.assert_close(a, b)
    start = ["--path_s", str(one / "last.pth"), "--learning_rate", "0.001"]
    folder = distil(tmp_path / "dp", "--path_t", str(teacher), str(teacher), "--distill", "dp", *start)
    kept = torch.load(folder / "last.pth", weights_only=True)["criterion"]
    for key, x in weights(one / "last.pth").items():
        assert torch.equal(kept[f"methods.dp.start.{key}"], x)
