"""What tells a right implementation of a feature method from a wrong one: equality, invariance, reach, repetition."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, weights
from fakes import batch, output, pair
from torch import Tensor, nn

import models
import train_student
from distiller_zoo import Batch, Distiller, Output, Pair, find_method
from distiller_zoo.criterion import Criterion
from distiller_zoo.ofd import margins, partial_l2

SHAPES = [(4, 8), (4, 8), (6, 4), (8, 2)]  # channels and size of stem and stages
METHODS = ["ofd", "pkd", "pkd --pkd_unit", "sfd", "sfd --sfd_norm max", "sfd --sfd_reduce mean", "cse_l2", "pad_l2"]
METHODS += ["at", "at --at_p 1 --at_stem", "at --at_last 2", "at_paper", "ft", "ft_flat", "ft_flat --ft_flat_norm l2"]
METHODS += ["cc", "cc --cc_kernel gaussian", "cc --cc_kernel bilinear", "fsp", "fsp --fsp_norm", "sp --sp_maps all"]


def keywords(command: str) -> tuple[str, dict]:
    """A method's name and its keyword values, as the script reads them from its flags."""
    opt = train_student.parse(["--distill", *command.split()])
    values = train_student.settle(opt)
    return opt.distill[0], values[opt.distill[0]]


def build(command: str, s: Output, t: Output) -> Distiller:
    name, values = keywords(command)
    return find_method(name)(pair(s, t), **values).double()


def example(n: int = 6, seed: int = 0, pooled: int = 12) -> Output:
    g = torch.Generator().manual_seed(seed)

    def maps() -> list[Tensor]:
        return [torch.randn(n, c, h, h, generator=g, dtype=torch.float64) for c, h in SHAPES]

    vector, logits = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (pooled, 10))
    return output(logits=logits, feats=[f.relu() for f in maps()], preacts=maps(), pooled=vector)


def change(o: Output, f) -> Output:
    return Output(f(o.logits), tuple(map(f, o.feats)), tuple(map(f, o.preacts)), f(o.pooled))


def loss_of(method: Distiller, s: Output, t: Output) -> Tensor:
    return method.init_loss(s, t, batch(s)) if method.name == "fsp" else method(s, t, batch(s))


@pytest.mark.parametrize("command", ["pkd", "pkd --pkd_unit", "sfd", "sfd --sfd_norm max", "sfd --sfd_reduce mean"]
    + ["cse_l2", "at", "at --at_p 1 --at_stem", "at_paper", "fsp", "fsp --fsp_norm", "sp --sp_maps all"])  # fmt: skip
def test_zero_at_equality(command: str) -> None:
    t = example()
    s = change(t, lambda x: x.clone().requires_grad_())
    loss = loss_of(build(command, s, t), s, t)
    loss.backward()
    assert loss == 0
    for x in (s.logits, *s.feats, *s.preacts, s.pooled):
        assert x.grad is None or not x.grad.any(), "a minimum has no slope"


@pytest.mark.parametrize("command", ["cc --cc_kernel gaussian", "cc --cc_kernel bilinear", "cc"])
def test_zero_at_equality_behind_equal_embeddings(command: str) -> None:
    s = t = example()
    method = build(command, s, t)
    method.embed_t = method.embed_s
    assert method(s, t, batch(s)) == 0


@pytest.mark.parametrize("command", ["ft", "ft_flat", "ft_flat --ft_flat_norm l2"])
def test_equal_factors(command: str) -> None:
    s, factor = example(), torch.randn(3, 4, 2, 2).double()
    assert build(command, s, s).factor_loss(factor, factor) == 0


def test_pad_at_equality() -> None:
    """The squared term is zero, and what remains is the mean log variance."""
    s = example()
    h, log_var = torch.randn(2, 6, 12).double()
    torch.testing.assert_close(build("pad_l2", s, s).adaptive_loss(h, h, log_var), log_var.mean())


def test_ofd_at_equality_and_below() -> None:
    margin = torch.tensor([-1.0, -0.5])
    t = torch.randn(3, 2, 4, 4).maximum(margin.view(-1, 1, 1))
    assert partial_l2(t, t, margin) == 0
    # below a target that is not positive everything will do, above it nothing else; a positive target is a target
    for s, target, expected in ((-3, -0.7, 0), (-0.7, -3, 0.09), (0.5, -0.2, 0.49), (-2, -0.2, 0), (-2, 0.5, 6.25)):
        s, target = (torch.full((1, 1, 1, 1), float(x)) for x in (s, target))
        assert partial_l2(s, target, margin[:1]).item() == pytest.approx(expected, abs=1e-6)


def test_margins_are_the_mean_negative_responses() -> None:
    bn = nn.BatchNorm2d(6).double()
    bn.weight.data = torch.tensor([1.0, -2.0, 0.5, 1.0, 0.0, 0.0]).double()
    bn.bias.data = torch.tensor([0.0, 1.0, -0.7, 4.0, -0.3, 0.3]).double()
    expected = []
    for scale, mean in ((1.0, 0.0), (2.0, 1.0), (0.5, -0.7)):
        x = torch.linspace(mean - 10 * scale, 0, 200001).double()
        density = torch.exp(-(((x - mean) / scale) ** 2) / 2)
        expected.append((torch.trapezoid(x * density, x) / torch.trapezoid(density, x)).item())
    # hardly ever negative: -3 times the scale; without a scale: the shift, where that is negative
    torch.testing.assert_close(margins(bn).tolist(), [*expected, -3.0, -0.3, 0.0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("command", ["at", "at --at_p 1 --at_stem", "at --at_last 2", "at_paper", "sp --sp_maps all"]
    + ["ft --ft_p1 4", "pkd --pkd_unit"])  # fmt: skip
def test_rescaled_features(command: str) -> None:
    """Attention, similarity and unit vectors do not see a positive factor on either side."""
    s, t = example(seed=1), example(seed=2)
    method = build(command, s, t)
    if command.startswith("ft"):
        f_s, f_t = s.feats[-1], t.feats[-1]
        torch.testing.assert_close(method.factor_loss(3 * f_s, f_t / 7), method.factor_loss(f_s, f_t))
        return
    theirs = method(change(s, lambda x: 3 * x), change(t, lambda x: x / 7), batch(s))
    torch.testing.assert_close(theirs, method(s, t, batch(s)))


@pytest.mark.parametrize("command", [c for c in METHODS if not c.startswith(("cc", "sp"))])
def test_a_batch_twice(command: str) -> None:
    """Means over samples, and the batch's largest, stay; batch statistics do too."""
    s, t = example(seed=1), example(seed=2)
    method = build(command, s, t)
    twice = [change(o, lambda x: torch.cat([x, x])) for o in (s, t)]
    torch.testing.assert_close(loss_of(method, *twice), loss_of(method, s, t))


@pytest.mark.parametrize("command", METHODS)
def test_a_step_on_real_networks(command: str) -> None:
    """Every parameter of ours and the student's first convolution learn; the teacher stays as it was."""
    torch.manual_seed(0)
    teacher, student = models.create_model("resnet14", 10), models.create_model("resnet8", 10)
    teacher.eval().requires_grad_(False)
    before = {key: x.clone() for key, x in teacher.state_dict().items()}
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    name, values = keywords(command)
    method = find_method(name)(
        Pair(models.probe(student, images), models.probe(teacher, images), student, teacher, labels), **values
    )
    assert not any(p is q for p in method.parameters() for net in (teacher, student) for q in net.parameters())
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.01)
    with torch.no_grad():
        t = teacher(images, is_feat=True)
    s = student.train()(images, is_feat=True)
    b = Batch(images, labels, labels)
    (method(s, t, b) + (method.init_loss(s, t, b) if method.init_loss else 0)).backward()
    optimizer.step()
    assert student.conv1.weight.grad.any()
    for key, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), key
    assert all(torch.equal(x, before[key]) for key, x in teacher.state_dict().items())


@pytest.mark.parametrize("teacher", ["resnet14", "wrn_16_1", "vgg8", "ResNet18", "MobileNetV2", "ShuffleV1"])
def test_ofd_reads_the_teachers_margins(teacher: str) -> None:
    """One for each stage, in the channels of its map; -1 where the teacher names no BatchNorms."""
    net, images = models.create_model(teacher, 10), torch.zeros(2, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
    t = models.probe(net, images)
    method = find_method("ofd")(Pair(t, t, net, net, torch.zeros(2)))
    found = [method.get_buffer(f"margin{i}") for i in range(len(method.connectors))]
    assert [len(m) for m in found] == [f.shape[1] for f in t.preacts[1:]]
    if teacher.startswith("Shuffle"):
        assert all((m == -1).all() for m in found)
    else:  # without a shift, the mean of the negative half of a normal distribution
        for m, bn in zip(found, net.get_bn_before_relu(), strict=True):
            torch.testing.assert_close(m, -bn.weight.detach() * math.sqrt(2 / math.pi))


def test_other_projects_variants() -> None:
    """Linear attention on all four maps, similarity of all four, two stages' attention: against the plain formulas."""
    s, t = example(seed=1), example(seed=2)

    def linear(f: Tensor) -> Tensor:
        return F.normalize(f.sum(1).flatten(1))

    def squares(f: Tensor) -> Tensor:
        return F.normalize(f.square().mean(1).flatten(1))

    def gram(f: Tensor) -> Tensor:
        return F.normalize(f.flatten(1) @ f.flatten(1).T)

    pairs = list(zip(s.feats, t.feats, strict=True))
    for command, expected in (
        ("at --at_p 1 --at_stem", sum(F.mse_loss(linear(a), linear(b)) for a, b in pairs)),
        ("at --at_last 2", sum(F.mse_loss(squares(a), squares(b)) for a, b in pairs[2:])),
        ("sp --sp_maps all", sum((gram(a) - gram(b)).norm() ** 2 / 36 for a, b in pairs)),
    ):
        torch.testing.assert_close(build(command, s, t)(s, t, batch(s)), expected)


def test_pkd_unit_sums_squared_distances() -> None:
    s, t = example(seed=1), example(seed=2)
    pairs = [(a.flatten(1), b.flatten(1)) for a, b in zip(s.feats[1:], t.feats[1:], strict=True)]
    expected = sum((F.normalize(a) - F.normalize(b)).norm(dim=1).square().mean() for a, b in pairs)
    torch.testing.assert_close(build("pkd --pkd_unit", s, t)(s, t, batch(s)), expected)


@pytest.mark.parametrize(
    ("command", "weights", "T"),
    [
        ("rkd -r 0.5 -a 0.5 -b 1 --kd_T 5", (0.5, 0.5, 1), 5),
        ("pkd", (0.5, 0.5, 10), 5),
        ("at --at_p 1 --at_stem -b 30", (1, 0, 30), None),
        ("sfd", (1, 0, 1), None),
    ],
)
def test_weights_of_a_command(command: str, weights: tuple, T: float | None) -> None:
    opt = train_student.parse(["--distill", *command.split()])
    values = train_student.settle(opt)
    assert (opt.gamma, opt.alpha, *opt.beta) == weights
    assert values.get("kd", {}).get("kd_T") == T


@pytest.mark.parametrize(
    ("command", "epochs"),
    [("ft", 30), ("ft_flat", 1), ("ft_flat,ab", 30), ("ft_flat --init_epochs 0", 0), ("ft_flat,crd", 1), ("none", 30)],
)
def test_length_of_the_initialisation(command: str, epochs: int) -> None:
    """As published, the longest of several methods'; the flag goes before it."""
    opt = train_student.parse(["--distill", *command.split()])
    train_student.settle(opt)
    assert opt.init_epochs == epochs


def test_the_second_stage_starts_from_the_first(teacher, tmp_path) -> None:
    """`pad_l2` goes on from the student that `cse_l2` left."""
    common = [*QUICK, "--path_t", str(teacher), "--epochs", "1", "--save_folder", str(tmp_path)]
    train_student.main([*common, "--distill", "l2", "--run_name", "first"])
    first = tmp_path / "student_model" / "first" / "last.pth"
    second = ["--distill", "pad_l2", "--path_s", str(first), "--learning_rate", "1e-12", "--run_name", "second"]
    train_student.main([*common, *second])
    before, after = (weights(first.parents[1] / run / "last.pth") for run in ("first", "second"))
    learned = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(before[key], after[key], atol=1e-5) for key in learned)


def test_rkd_with_kd() -> None:
    s, t = example(seed=1), example(seed=2)
    rkd, kd = build("rkd", s, t), build("kd --kd_T 5", s, t)
    b = batch(s)
    terms = Criterion(0.5, 0.5, kd, {"rkd": rkd}, [1.0])(s, [t], b)
    p_t, log_s = (t.logits / 5).softmax(1), (s.logits / 5).log_softmax(1)
    expected = 0.5 * F.cross_entropy(s.logits, b.labels)
    expected = expected + 0.5 * 25 * F.kl_div(log_s, p_t, reduction="batchmean") + rkd(s, t, b)
    torch.testing.assert_close(sum(terms.values()), expected)
