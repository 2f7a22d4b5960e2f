"""What tells a right implementation of the methods since 2020 from a wrong one, where reference numbers do not."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import QUICK, weights
from fakes import Fixed, batch, output, pair, sgd_options
from test_methods import EQUAL, example, make_output, views_of
from torch import Tensor

import dataset
import models
import train_student
from dataset.base import Shared
from distiller_zoo import KD, Batch, Output, Pair, find_method, method_names
from distiller_zoo.adapters import ClassifierMap, classify, standardise
from distiller_zoo.criterion import Criterion
from distiller_zoo.cskd import Partners
from distiller_zoo.dkd import decoupled
from distiller_zoo.kd import kd_each
from distiller_zoo.reviewkd import hierarchical
from helper.labels import LabelLoss
from helper.step import Precision, Update, parameter_groups

LOGITS = ["dkd", "lskd", "dist", "rld", "normkd", "normkd dkd", "luminet", "eakd", "eakd dkd", "dtkd", "ctkd", "cskd"]
CERTAIN = [
    "dkd",
    "nkd",
    "rld",
    "ofa",
    "wkd_l",
    "normkd dkd",
    "eakd dkd",
    "sdd dkd",
    "sdd nkd",
    "dtkd",
    "ttm",
    "wttm",
    "dist",
]


def build(words: str, s: Output, t: Output, **options: object):
    name, _, form = words.partition(" ")
    options |= {f"{name}_form": form} if form else {}
    return find_method(name)(pair(s, t), **options)


def logits(seed: int, n: int = 6, classes: int = 10, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(z: Tensor) -> Output:
    return output(logits=z.clone().requires_grad_())


# ---- logits ----


@pytest.mark.parametrize("words", LOGITS)
def test_zero_at_equality(words: str) -> None:
    z = logits(0)
    if words == "rld":  # pairs the label with the teacher's favourite
        z[torch.arange(6), torch.arange(6) % 2] = 20.0
    if words == "cskd":
        z = z.repeat_interleave(2, 0)
    s, t = of(z), of(z)
    loss = build(words, s, t).double()(s, t, batch(s, views=2 if words == "cskd" else 1))
    rounding = 1e-4 if words == "dist" else 1e-6  # its correlations have 1e-8 in the denominator
    assert abs(loss.item()) < rounding
    assert torch.autograd.grad(loss, s.logits)[0].abs().max() < rounding


def test_dkd_is_kd_in_parts() -> None:
    z_s, z_t, labels = logits(0) / 4, logits(1) / 4, torch.arange(6)
    target, others = decoupled(z_s, z_t, labels)
    share = 1 - z_t.softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(target + share * others, kd_each(z_s, z_t, 1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("words", CERTAIN)
@pytest.mark.parametrize("right", [True, False])
def test_certain_networks(words: str, right: bool) -> None:
    """Logits that are hundreds apart in float32, where the reference code gives NaN."""
    z = torch.zeros(6, 10)
    z[torch.arange(6), (torch.arange(6) % 2) if right else 5] = 400.0
    for z_t in (z, torch.randn(6, 10), -z):
        s, t = example()
        s, t = s._replace(logits=z.clone().requires_grad_()), t._replace(logits=z_t)
        loss = build(words, s, t)(s, t, batch(s))
        assert loss.isfinite()
        read = [x for x in (s.logits, s.pooled, *s.feats) if x.requires_grad]
        assert all(g is None or g.isfinite().all() for g in torch.autograd.grad(loss, read, allow_unused=True))


def test_ttm_of_power_one_is_kl() -> None:
    s, t = of(logits(0)), of(logits(1))
    expected = kd_each(s.logits, t.logits, 1.0).mean()
    for name in ("ttm", "wttm"):  # whose weights are then one
        torch.testing.assert_close(build(name, s, t, ttm_gamma=1.0)(s, t, batch(s)), expected)


def test_standardised_logits() -> None:
    z = logits(0)
    torch.testing.assert_close(standardise(z), standardise(7 * z - 3), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(standardise(z).std(1), torch.ones(6, dtype=z.dtype), rtol=1e-6, atol=0)
    assert not standardise(torch.full((2, 5), 0.1)).any(), "rounding is no deviation"


@pytest.mark.parametrize("views", [1, 2])
def test_option_in_front_of_methods(views: int) -> None:
    """KD and every method see standardised logits of both networks, the labels the student's own; but for what asks."""
    s, t = of(logits(0)), of(logits(1))
    s, t = (o._replace(feats=[torch.randn(6, 3, 2, 2, dtype=torch.float64)]) for o in (s, t))
    seen = batch(s, views=views)
    methods = {"dkd": build("dkd", s, t), "srrl": build("srrl", s, t).double()}
    criterion = Criterion(1.0, 1.0, KD(pair(s, t)), methods, [1.0, 1.0])
    plain = criterion(s, [t], seen)
    criterion.standardise = True
    found = criterion(s, [t], seen)
    given = (o._replace(logits=standardise(o.logits)) for o in (s, t))
    criterion.standardise = False
    expected = criterion(next(given), [next(given)], seen)
    assert torch.equal(found["ce"], plain["ce"]) and torch.equal(found["srrl"], plain["srrl"])
    assert torch.equal(found["kd"], expected["kd"]) and torch.equal(found["dkd"], expected["dkd"])
    assert found["kd"] != plain["kd"] and found["dkd"] != plain["dkd"]


def test_option_on_the_command_line(teacher, tmp_path) -> None:
    """--standardise in front of KD is the method that has it inside."""
    found = []
    for n, flags in enumerate(["kd --standardise -a 0 -r 0.1 -b 9 --kd_T 2", "kd_ls", "kd -a 9 -r 0.1 --kd_T 2"]):
        command = [*QUICK, "--path_t", str(teacher), "--epochs", "1", "--save_folder", str(tmp_path)]
        train_student.main([*command, "--run_name", str(n), "--distill", *flags.split()])
        found.append(weights(tmp_path / "student_model" / str(n) / "last.pth"))
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    assert not torch.equal(found[0]["fc.weight"], found[2]["fc.weight"])


READS_LOGITS_AS_THEY_ARE = {"deit_hard", "dml", "lskd", "ofa", "pskd", "srrl"}


@pytest.mark.parametrize("name", method_names())
def test_standardised_where_logits_are_compared(name: str) -> None:
    """A method is standardisable exactly where its loss depends on logits, but for those that need their scale."""
    s, t = example(8)
    method = find_method(name)(pair(s, t))
    criterion = Criterion(0.0, methods={name: method}, betas=[1.0])
    seen, all_teachers = batch(s, views=views_of(name)), [t]
    if name in ("pskd", "rrd", "crd"):
        criterion.eval()
    other = s._replace(logits=s.logits.flip(1) * 2), [t._replace(logits=t.logits.roll(1, 1) ** 2)]
    states = [copy.deepcopy(criterion.state_dict()) for _ in range(3)]

    def value(s: Output, t: list[Output]) -> Tensor:
        criterion.load_state_dict(states.pop())
        torch.manual_seed(0)
        return criterion(method.wrap(Fixed(s))(None, is_feat=True), t, seen)[name].detach()

    plain, changed = value(s, all_teachers), value(*other)
    criterion.standardise = True
    standardised = value(s, all_teachers)
    assert (plain != standardised) == find_method(name).standardisable
    assert (plain != changed) == (find_method(name).standardisable or name in READS_LOGITS_AS_THEY_ARE)


BY_SAMPLE = [name for name in method_names() if find_method(name).has_per_sample()]


def test_methods_that_weigh_samples() -> None:
    assert set(BY_SAMPLE) == set(
        "kd lskd dkd nkd rld normkd dtkd ctkd wsld hinton luminet wkd_l ttm wttm kl xekl sdd mlkd".split()
        + ["deit_hard", "deit_soft"]
    )


@pytest.mark.parametrize("name", BY_SAMPLE)
def test_weights_of_samples(name: str) -> None:
    """Each sample's loss counts as much as its entropies say, by the formula; equal weights leave the loss as it is."""
    s, t = example(6)
    method = find_method(name)(pair(s, t))
    seen = batch(s, views=views_of(name))
    criterion = Criterion(0.0, methods={name: method}, betas=[1.0])
    plain = criterion(s, [t], seen)[name]
    torch.testing.assert_close(plain, method(s, t, seen))
    each = method.per_sample(s, t, seen)
    assert each.shape == (len(s.logits),) and each.dtype == torch.float32
    criterion.ea_bound = 4.6
    p_s, p_t = ((o.logits.double() / 3).softmax(1) for o in (s, t))
    h_s, h_t = (-(p * p.log()).sum(1) for p in (p_s, p_t))
    weight = ((h_t + h_t * h_s / 4.6) / 2).float().detach()
    expected = (weight * each).mean() + (plain - each.mean())
    found = criterion(s, [t], seen)[name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain)


@pytest.mark.parametrize("form", ["kd", "dkd"])
def test_eakd_is_a_method_with_the_weights(form: str) -> None:
    s, t = of(logits(0)), of(logits(1))
    criterion = Criterion(0.0, methods={form: build(form, s, t)}, betas=[1.0])
    criterion.ea_bound = 100.0
    expected = build(f"eakd {form}", s, t)(s, t, batch(s))
    torch.testing.assert_close(criterion(s, [t], batch(s))[form], expected, rtol=1e-7, atol=0)
    if form == "kd":
        criterion = Criterion(0.0, 1.0, KD(pair(s, t)))
        criterion.ea_bound = 100.0
        assert torch.equal(criterion(s, [t], batch(s))["kd"], expected)


def test_relations_are_neither_weighed_nor_standardised() -> None:
    """As in the authors' MLD with EA and LS: KD alone is."""
    z_s, z_t = logits(0, 8), logits(1, 8)
    s, t = of(z_s), of(z_t)
    method = build("mlkd", s, t)
    criterion = Criterion(0.0, methods={"mlkd": method}, betas=[1.0])
    criterion.standardise, criterion.ea_bound = True, math.log(10)
    seen = batch(s, views=2)
    found = criterion(s, [t], seen)["mlkd"]
    p_s, p_t = ((z / 3).softmax(1) for z in (z_s, z_t))
    h_s, h_t = (-(p * (p + 1e-10).log()).sum(1) for p in (p_s, p_t))
    weight = (h_t + h_t * h_s / math.log(10)) / 2
    expected = method.batch_term(s, t, seen)
    a, b = standardise(z_s), standardise(z_t)
    for T in (4.0, 3.0, 5.0, 2.0, 6.0):
        kd = weight * kd_each(a, b, T)
        expected = expected + 0.5 * kd[::2].mean() + (kd[1::2] if T in (4.0, 3.0, 5.0) else kd[::2]).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "flags",
    ["dkd --standardise", "mlkd --standardise", "mlkd --ea_weights 4.6", "mlkd --standardise --ea_weights 4.6"]
    + ["dkd --ea_weights", "kd --ea_weights", "ctkd --ea_weights", "wttm,crd -a 0 -b 4,0.8 --ttm_gamma 0.2 --nce_k 8"],
)
def test_published_combinations(flags: str, teacher, tmp_path) -> None:
    command = [*QUICK, "--path_t", str(teacher), "--epochs", "1", "--save_folder", str(tmp_path), "--run_name", "r"]
    train_student.main([*command, "--distill", *flags.split()])
    told = train_student.parse(["--config", str(tmp_path / "student_model" / "r" / "options.json")])
    assert (told.standardise, told.ea_weights) == (
        "--standardise" in flags, 4.6 if "4.6" in flags else 100.0 if "--ea" in flags else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("fitnet --standardise", "--standardise has no effect: --distill fitnet does not compare logits"),
        ("none --standardise", "--standardise has no effect: --distill none does not compare logits"),
        ("dkd,sdd -b 0,1 --standardise", "--standardise has no effect: --distill dkd,sdd does not compare logits"),
        ("dist --ea_weights", "--ea_weights: the loss of dist is not a mean over samples in --distill dist"),
        ("eakd --ea_weights", "--ea_weights: the loss of eakd is not a mean over samples in --distill eakd"),
        (
            "dkd,sp,at --ea_weights",
            "--ea_weights: the loss of sp, at is not a mean over samples in --distill dkd,sp,at",
        ),
        ("none --ea_weights", "--ea_weights: no loss compares logits in --distill none"),
        ("kd --ea_weights 0", "--ea_weights: expected a number above 0, found 0"),
    ],
)
def test_plug_ins_without_effect(flags: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--path_t", "missing.pth", "--distill", *flags.split()])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


def test_ctkd_learns_to_make_it_hard() -> None:
    s, t = of(logits(0)), of(logits(1))
    method = build("ctkd", s, t, ctkd_lr=3.0).double()
    shares = []
    for method.epoch in (1, 5, 10, 40):
        loss = method(s, t, batch(s))
        (against,) = torch.autograd.grad(loss, method.theta)
        T = (1 + 20 * method.theta.sigmoid()).detach().requires_grad_()
        slope = torch.autograd.grad((kd_each(s.logits, t.logits, 1.0) * 0 + kd_at(s, t, T)).mean(), T)[0]
        sigmoid = method.theta.sigmoid()
        shares.append((against / (slope * 20 * sigmoid * (1 - sigmoid))).item())
    assert not method.follows_epoch, "a recorded step stays as it is"
    assert shares == pytest.approx([-(1 - math.cos(math.pi * e / 10)) / 2 for e in (1, 5, 10, 10)])
    network = torch.nn.Linear(2, 2)
    criterion = Criterion(methods={"ctkd": method}, betas=[1.0])
    groups = parameter_groups([network, criterion], criterion.groups())
    opt = sgd_options(learning_rate=0.1)
    update = Update(groups, Precision("off", torch.device("cpu")), opt)
    update.set_rate(0.1)
    assert update.rates() == pytest.approx((0.1, 0.3)) and groups[1]["params"] == [method.theta]


def kd_at(s: Output, t: Output, T: Tensor) -> Tensor:
    p_t = (t.logits.detach() / T).softmax(1)
    return T**2 * (p_t * (p_t.log() - (s.logits.detach() / T).log_softmax(1))).sum(1)


def test_rld_where_the_teacher_errs() -> None:
    """Nothing is said about the classes that the teacher likes better than the label."""
    z_t = torch.tensor([[1.0, 5.0, 3.0, 0.0, -1.0]], dtype=torch.float64)
    s, t = of(logits(0, 1, 5)), of(z_t)
    method = build("rld", s, t, rld_alpha=0.0)
    seen = batch(s, labels=torch.tensor([0]))
    (grad,) = torch.autograd.grad(method(s, t, seen), s.logits)
    assert not grad[0, :3].any() and grad[0, 3:].all()
    worst = batch(s, labels=torch.tensor([4]))
    assert method(s, t, worst) == 0, "no class is left"


# ---- features ----


def test_hierarchical_loss_of_equal_maps() -> None:
    f = torch.randn(2, 3, 8, 8)
    assert hierarchical(f, f) == 0
    torch.testing.assert_close(hierarchical(f, f + 1), torch.tensor(1.0))


NETWORKS = {"resnet8": "feats", "wrn_16_2": "preacts", "vgg8": "feats", "ResNet18": "feats", "ShuffleV1": "feats"}
NETWORKS |= {"MobileNetV2": "", "ShuffleV2": ""}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_that_a_classifier_reads(name: str) -> None:
    """The logits are the mean over space of what the classifier says of its cells, before any training too."""
    torch.manual_seed(0)
    network, images = models.create_model(name, 10), torch.randn(2, 3, 32, 32)
    found = ClassifierMap(models.probe(network, images))
    assert "".join(found.part) == NETWORKS[name]
    o = network.eval()(images, is_feat=True)
    cells = classify(network.head, found(o))
    torch.testing.assert_close(cells.mean((2, 3)), o.logits, rtol=1e-4, atol=1e-5)
    assert cells.shape[2:] == (o.feats[-1].shape[2:] if NETWORKS[name] else (1, 1))


@pytest.mark.parametrize("name", ["catkd", "sdd"])
@pytest.mark.parametrize("nets", [("resnet8", "wrn_10_2"), ("vgg8", "resnet8"), ("MobileNetV2", "vgg8")])
def test_by_the_students_own_classifier(name: str, nets: tuple[str, str]) -> None:
    """Of which the loss is a function too, though it is no part of the method."""
    student, teacher = (models.create_model(net, 10) for net in nets)
    images = torch.randn(4, 3, 32, 32)
    given = Pair(models.probe(student, images), models.probe(teacher, images), student, teacher, torch.arange(4))
    method = find_method(name)(given)
    s, t = student.train()(images, is_feat=True), teacher.eval()(images, is_feat=True)
    method(s, t, batch(s)).backward()
    assert student.head.weight.grad.any() and not any(p.requires_grad for p in method.parameters())
    assert teacher.head.weight.grad is None and not any("head_s" in key for key in method.state_dict())
    same = find_method(name)(given._replace(t=given.s, teacher=student))
    s = student.eval()(images, is_feat=True)
    assert same(s, s, batch(s)).abs() < 1e-6


def region_logits(network: torch.nn.Module, f: Tensor, cells: int) -> Tensor:
    """[B, K, cells * cells] of a map whose size that divides, row by row, with loops."""
    step, found = f.shape[2] // cells, []
    for i in range(cells):
        for j in range(cells):
            region = f[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3))
            found.append(region @ network.head.weight.T + network.head.bias)
    return torch.stack(found, 2)


def test_class_activations_and_regions_with_loops() -> None:
    """A resnet's last map, and a WRN's behind its last BatchNorm."""
    torch.manual_seed(0)
    student, teacher = (models.create_model(net, 10) for net in ("resnet8", "wrn_10_2"))
    images = torch.randn(4, 3, 32, 32)
    given = Pair(models.probe(student, images), models.probe(teacher, images), student, teacher, torch.arange(4))
    s, t = (net.double().eval()(images.double(), is_feat=True) for net in (student, teacher))
    seen, maps = batch(s, labels=torch.arange(4)), (s.feats[-1], t.preacts[-1].relu())
    cams = [region_logits(net, f, 2) for net, f in zip((student, teacher), maps, strict=True)]
    torch.testing.assert_close(find_method("catkd")(given).double()(s, t, seen), (cams[0] - cams[1]).square().mean())
    unit = [cam / cam.norm(dim=2, keepdim=True) for cam in cams]
    found = find_method("catkd")(given, catkd_normalise=True).double()(s, t, seen)
    torch.testing.assert_close(found, (unit[0] - unit[1]).square().mean())
    regions = [
        torch.cat([region_logits(net, f, n) for n in (1, 2, 4)], 2)
        for net, f in zip((student, teacher), maps, strict=True)
    ]
    expected = 0.0
    for b in range(4):
        whole = regions[1][b, :, 0].argmax() == b
        for n in range(21):
            z_s, z_t = (z[b, :, n] / 4 for z in regions)
            twice = 2 if (z_t.argmax() == b) != whole else 1
            kl = (z_t.softmax(0) * (z_t.log_softmax(0) - z_s.log_softmax(0))).sum()
            expected = expected + twice * 16 * kl / (4 * 21)
    torch.testing.assert_close(find_method("sdd")(given, sdd_cells="1,2,4").double()(s, t, seen), expected)


def test_semckd_fills_up_a_small_batch() -> None:
    """A last batch that is smaller is one whose missing samples resemble none; a larger one is several."""
    torch.manual_seed(0)
    s, t = make_output(EQUAL, 4, 12, torch.float64), make_output(EQUAL, 4, 20, torch.float64)
    method = find_method("semckd")(pair(s, t)._replace(batch_size=6)).double()
    f = torch.randn(15, 3, 2, 2, dtype=torch.float64)
    found = method.similarities(f)
    assert found.shape == (15, 6) and not found[12:, 3:].any()
    flat = f.flatten(1)
    torch.testing.assert_close(found[6:12], flat[6:12] @ flat[6:12].T)
    torch.testing.assert_close(found[12:, :3], flat[12:] @ flat[12:].T)
    assert method(s, t, batch(s)).isfinite()


@pytest.mark.parametrize("name", ["itrd", "srd"])
def test_logarithms_end_where_networks_agree(name: str) -> None:
    """At a value and a gradient that are finite."""
    f = torch.randn(6, 5, dtype=torch.float64)
    s, t = output(pooled=f.clone().requires_grad_()), output(pooled=f)
    method = find_method(name)(pair(s, t)).double()
    linear = method.embed if name == "itrd" else method.project
    linear.weight.data.copy_(torch.eye(5))
    linear.bias.data.zero_()
    loss = method(s, t, batch(s))
    assert loss.isfinite() and torch.autograd.grad(loss, s.pooled)[0].isfinite().all()


def test_ofa_stages() -> None:
    s, t = example()
    for text in ("0", "4", "1,", "x", "1,5"):
        with pytest.raises(ValueError, match="expected some of 1..3, or all"):
            build("ofa", s, t, ofa_stages=text)
    assert build("ofa", s, t, ofa_stages="2,3").stages == [2, 3] and build("ofa", s, t).stages == [1, 2, 3]


def test_wkd_moves_less_between_near_classes() -> None:
    s, t = of(torch.zeros(1, 4)), of(torch.tensor([[0.0, 9.0, 0.0, 0.0]]).double())
    method = build("wkd_l", s, t, wkd_T=1.0).double()
    angle = torch.tensor([0.0, 1.0, 1.2, 3.0], dtype=torch.float64)
    from distiller_zoo.wkd_l import class_costs

    method.cost = class_costs(torch.stack([angle.cos(), angle.sin()], 1), 1.0)
    near, far = (
        of(torch.tensor([[0.0, 0.0, 0.0, 0.0]]).double().index_fill(1, torch.tensor([c]), 9.0)) for c in (2, 3)
    )
    losses = [method(o, t, batch(o, labels=torch.tensor([0]))) for o in (near, far)]
    assert losses[0] < losses[1]


# ---- methods that remember or draw ----


def test_kdpp_takes_the_mean_of_a_class() -> None:
    torch.manual_seed(0)
    s, t = (output(pooled=torch.randn(6, 5, dtype=torch.float64).requires_grad_()) for _ in range(2))
    method = find_method("kdpp")(pair(s, t)).double()
    method(s, t, batch(s))
    more = output(pooled=torch.randn(6, 5, dtype=torch.float64))
    found = method(s, more, batch(s))
    means = [torch.cat([t.pooled[c::2], more.pooled[c::2]]).mean(0) for c in (0, 1)]
    expected = 0.0
    for i, (f_s, f_t) in enumerate(zip(s.pooled, more.pooled, strict=True)):
        direction = means[i % 2] / means[i % 2].norm()
        expected = expected + (1 - (f_s * direction).sum() / max(f_s.norm(), f_t.norm())) / 6
    torch.testing.assert_close(found, expected)
    before = method.sums.clone()
    assert torch.equal(method.eval()(s, more, batch(s)), method(s, more, batch(s))) and torch.equal(method.sums, before)


@pytest.mark.parametrize("mask", ["cls", "det"])
def test_mgd_hides_a_share(mask: str) -> None:
    s, t = make_output([(4, 8), (64, 8)], 50, 5, torch.float32), make_output([(4, 8), (64, 8)], 50, 5, torch.float32)
    method = find_method("mgd")(pair(s, t), mgd_share=0.3, mgd_mask=mask)
    seen = []
    method.generated = lambda f_s, f_t, visible: seen.append(visible)
    for _ in range(2):
        method(s, t, batch(s))
    shape = (50, 64, 1, 1) if mask == "cls" else (50, 1, 8, 8)
    assert [x.shape for x in seen] == [shape] * 2 and not torch.equal(*seen)
    assert all(abs(x.double().mean() - 0.7) < 0.03 for x in seen)


def test_draws_of_two_processes_are_those_of_one() -> None:
    s, t = example()
    labels = torch.arange(6) % 2
    parts = [(slice(0, 4), 0), (slice(4, 6), 1)]
    whole = find_method("mgd")(pair(s, t))
    expected = whole.draws.rows(s.feats[-1], batch(s), (3,))
    for rows, rank in parts:
        method = find_method("mgd")(pair(s, t))
        method.draws.seed = whole.draws.seed
        shared = Shared(labels, torch.arange(6), (4, 2), rank)
        own = Batch(torch.zeros(1), labels[rows], torch.arange(6)[rows], shared)
        assert torch.equal(method.draws.rows(s.feats[-1][rows], own, (3,)), expected[rows])


def test_pskd_remembers_and_trusts_itself_more() -> None:
    torch.manual_seed(0)
    s = of(logits(0))
    method = find_method("pskd")(pair(s, s)._replace(epochs=10)).double()
    method.epoch, index = 1, torch.tensor([3, 0, 7, 10, 30, 49])
    seen = batch(s, index)
    torch.testing.assert_close(method(s, None, seen), F.cross_entropy(s.logits, seen.labels))
    torch.testing.assert_close(method.past[index], s.logits.detach().softmax(1))
    assert method.past[1].tolist() == [0.0, 1.0, *[0.0] * 8], "what was not seen yet has its label"
    method.epoch, past = 5, method.past[index].clone()
    new = of(logits(1))
    target = 0.6 * F.one_hot(seen.labels, 10) + 0.4 * past
    torch.testing.assert_close(method(new, None, seen), F.cross_entropy(new.logits, target))


def test_partners_are_of_the_class() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 1, 2])
    images = torch.arange(8).view(-1, 1, 1, 1).expand(8, 3, 8, 8).byte().contiguous()
    augment = dataset.InMemory(images, (0.0,) * 3, (1 / 255,) * 3, padding=0, flip=False)
    views, generator = Partners(augment, labels), torch.Generator().manual_seed(0)
    index = torch.randint(8, (400,), generator=generator)
    steps = [slice(0, 150), slice(150, None)]
    found = torch.cat(list(views.stream(index, views.draw(400, generator), steps)))[:, :, 0, 0, 0].round().long()
    assert torch.equal(found[:, 0], index)
    assert torch.equal(labels[found[:, 1]], labels[index])
    for c in range(3):
        assert set(found[labels[index] == c, 1].tolist()) == set((labels == c).nonzero().flatten().tolist())


@pytest.mark.parametrize("name", ["cskd", "pskd", "dml"])
def test_no_teacher(name: str, tmp_path) -> None:
    command = [*QUICK, "--distill", name, "--epochs", "2", "--lr_decay_epochs", "1", "--save_folder", str(tmp_path)]
    train_student.main([*command, "--run_name", "r"])
    assert (tmp_path / "student_model" / "r" / "summary.json").is_file()


class Body(torch.nn.Module):
    """A student of one layer, for the formula."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("label_loss", [LabelLoss(), LabelLoss(0.1, torch.rand(5, dtype=torch.float64) + 0.5)])
def test_dml_trains_each_network_as_if_it_were_the_student(label_loss: LabelLoss) -> None:
    """The gradient of every network is that of its own loss, with the others' predictions as constants."""
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 2, 2, dtype=torch.float64), torch.arange(6) % 5
    student = Body()
    s = output(logits=student(images))
    method = find_method("dml")(pair(s, s)._replace(anew=Body, label_loss=label_loss), dml_peers=2)
    assert list(method.beside()) == ["peer1", "peer2"]
    seen = Batch(images, labels, labels)
    criterion = Criterion(1.0, 0.0, None, {"dml": method}, [1.0])
    criterion.label_loss = label_loss
    sum(criterion(s, (), seen).values()).backward()
    networks = [student, *method.peers]
    for i, network in enumerate(networks):
        own = F.log_softmax(network(images), dim=1)
        loss = F.cross_entropy(own, labels, label_loss.weights, label_smoothing=label_loss.smoothing)
        for j, other in enumerate(networks):
            if i != j:
                p = other(images).softmax(1).detach()
                loss = loss + (p * (p.log() - own)).sum(1).mean() / 2
        (grad,) = torch.autograd.grad(loss, network.head.weight)
        torch.testing.assert_close(network.head.weight.grad, grad)


def test_dml_peers_differ_learn_and_are_told(tmp_path) -> None:
    command = [*QUICK, "--distill", "dml", "--dml_peers", "2", "--epochs", "2", "--lr_decay_epochs", "1"]
    train_student.main([*command, "--save_folder", str(tmp_path), "--run_name", "r", "--save_predictions"])
    folder = tmp_path / "student_model" / "r"
    assert {p.name for p in folder.glob("predictions*.csv")} == {
        "predictions.csv",
        "predictions_peer1.csv",
        "predictions_peer2.csv",
    }
    state = torch.load(folder / "last.pth")
    first = [state["criterion"][f"methods.dml.peers.{i}.conv1.weight"] for i in range(2)]
    steps = [state["criterion"][f"methods.dml.peers.{i}.bn1.num_batches_tracked"] for i in range(2)]
    assert not torch.equal(*first) and not torch.equal(first[0], state["model"]["conv1.weight"])
    assert steps[0] == steps[1] == state["model"]["bn1.num_batches_tracked"] > 0


def test_simkd_around_a_fixed_network() -> None:
    """Logits are the teacher's classifier on the mean of the projected map, which comes last among the features."""
    s, t = example()
    method = build("simkd", s, t)
    student = method.wrap(Fixed(s)).eval()
    o = student(None, is_feat=True)
    assert len(o.feats) == len(s.feats) + 1 and len(o.preacts) == len(s.preacts) + 1
    assert torch.equal(o.feats[-1], o.preacts[-1].relu())
    torch.testing.assert_close(o.logits, method.head_t[0](o.feats[-1].mean((2, 3))))
    assert method.wrap(student) is student
    assert models.layers_of(student) == [["simkd", {"channels": [8, 10, 20], "size": [1, 1]}]]
