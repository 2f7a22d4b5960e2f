"""Every registered method on fake networks, its plain twin, and what the methods with a memory remember."""

import functools
import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fakes import Fixed, batch, output, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

import crd  # noqa: F401  (registers its methods)
import dataset
from crd.memory import MemoryBanks, Queue
from crd.negatives import Negatives
from distiller_zoo import Batch, Distiller, Output, find_method, method_names, method_options
from distiller_zoo.adapters import Regressor, pair_maps
from distiller_zoo.criterion import Criterion, teacher_outputs
from distiller_zoo.rkd import relations
from helper.step import MAPS, Features, Precision, Stage, Step

NAMES = method_names()
SMALL = {"feat_dim": 8, "nce_k": 16}
# (channels, size) of stem and stages
EQUAL = [(4, 8), (4, 8), (6, 4), (8, 2)]
DEEPER = [(5, 12), (5, 12), (7, 6), (8, 3), (9, 3)]
NO_GRADIENT = {"icd": {"b"}}  # cancels in the softmax
EQUAL_CHANNELS = {"fsp", "kdsvd", "sfd"}
INITIAL_ONLY = {"ab", "fsp", "none"}  # forward is zero


def make_output(shapes: list[tuple[int, int]], n: int, pooled: int, dtype: torch.dtype, leaf: bool = True) -> Output:
    feats = [torch.randn(n, c, h, h).to(dtype) for c, h in shapes]
    preacts = [torch.randn(n, c, h, h).to(dtype) for c, h in shapes]
    logits, vector = torch.randn(n, 10).to(dtype), torch.randn(n, pooled).to(dtype)
    out = output(logits=logits, feats=feats, preacts=preacts, pooled=vector, dist=[logits.flip(1) / 2])
    for x in tensors(out) if leaf else []:
        x.requires_grad_()
    return out


def tensors(o: Output) -> list[Tensor]:
    return [o.logits, *o.feats, *o.preacts, o.pooled, *o.dist]


def change(o: Output, f: Any) -> Output:
    """f applied to every tensor; the results are leaves."""
    return tree_map(lambda x: f(x.detach()).requires_grad_(), o)


def build(name: str, s: Output, t: Output, **options: Any) -> Distiller:
    cls = find_method(name)
    small = {key: SMALL[key] for key in method_options(cls) if key in SMALL}
    return cls(pair(s, t), **small | options)


def losses(method: Distiller, s: Output, t: Output, b: Batch) -> list[Tensor]:
    seen = method.wrap(Fixed(s))(None, is_feat=True)
    return [method(seen, teacher_outputs(method, [t]), b)] + ([method.init_loss(s, t, b)] if method.init_loss else [])


def example(n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Output, Output]:
    torch.manual_seed(0)
    return make_output(EQUAL, n, 12, dtype), make_output(EQUAL, n, 20, dtype)


@functools.cache
def views_of(name: str) -> int:
    """How many rows of an output belong to one sample."""
    augment = build(name, *example()).views(dataset.InMemory(torch.zeros(50, 3, 8, 8).byte(), (0.5,) * 3, (0.5,) * 3))
    images = augment(torch.arange(2), augment.draw(2, torch.Generator()))
    return images.shape[1] if images.dim() == 5 else 1


@pytest.mark.parametrize("name", NAMES)
def test_scalar_and_gradients(name: str) -> None:
    views = views_of(name)
    s, t = example(6 * views)
    method = build(name, s, t)
    found = losses(method, s, t, batch(s, views=views))
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in found)
    if any(loss.requires_grad for loss in found):
        sum(found).backward()
    for key, p in method.named_parameters():
        if p.requires_grad and key not in NO_GRADIENT.get(name, ()):
            assert p.grad is not None and p.grad.any(), f"{key} gets no gradient"
    assert all(x.grad is None for x in tensors(t)), "the teacher gets a gradient"
    assert any(x.grad is not None and x.grad.any() for x in tensors(s)) or name == "none"


class NoMaps(tuple):
    """Stands for a network's maps, and is not to be looked at."""

    def refuse(self, *args: Any) -> None:
        raise LookupError("maps are read")

    __getitem__ = __iter__ = __len__ = __bool__ = refuse


@pytest.mark.parametrize("part", MAPS)
@pytest.mark.parametrize("name", NAMES)
def test_reads_maps_or_says_that_it_does_not(name: str, part: str) -> None:
    """Of either network: what a method does not read is not handed on to it."""
    views = views_of(name)
    s, t = example(6 * views)
    method, read = build(name, s, t), False
    for pair_ in ((s._replace(**{part: NoMaps()}), t), (s, t._replace(**{part: NoMaps()}))):
        try:
            losses(method, *pair_, batch(s, views=views))
        except LookupError:
            read = True
    assert read == (part in method.reads)
    if method.relational and part not in method.reads:
        assert getattr(method.compared(t), part) == (), "maps travel between processes"


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    cls = find_method(name)
    assert len(cls.weights) == 3 and all(find_method(alias) is cls for alias in cls.aliases)
    assert inspect.getmodule(cls).__doc__ and all(p.default is not p.empty for p in method_options(cls).values())


DISASTERS = {
    "zero rows": lambda x: torch.cat([torch.zeros_like(x[:2]), x[2:]]),
    "duplicates": lambda x: torch.cat([x[:1], x[:1], x[2:]]),
    "all equal": lambda x: x[:1].expand_as(x).clone(),
    "all zero": torch.zeros_like,
    "constant": torch.ones_like,
    "constant maps": lambda x: x.flatten(1)[:, :1].expand(len(x), x[0].numel()).reshape(x.shape).clone(),
    "one": lambda x: x[: len(x) // 6].clone(),  # sample, in all its views
    "two": lambda x: x[: len(x) // 3].clone(),
    "large": lambda x: x * 100,
    "tiny": lambda x: x * 1e-6,
    "relu": lambda x: x.relu(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("name", NAMES)
def test_finite(name: str, disaster: str, dtype: torch.dtype) -> None:
    views = views_of(name)
    s, t = example(6 * views, dtype)
    method = build(name, s, t)
    bad, other = change(s, DISASTERS[disaster]), change(t, DISASTERS[disaster])
    kept = change(t, lambda x: x[: len(bad.logits)].clone())
    for teacher in (kept, other):
        found = losses(method, bad, teacher, batch(bad, views=views))
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in found)
        if any(loss.requires_grad for loss in found):
            sum(found).backward()
        grads = [x.grad for x in (*tensors(bad), *method.parameters()) if x.grad is not None]
        assert all(g.isfinite().all() for g in grads)
        if disaster != "tiny":  # a unit vector's gradient does grow as the vector shrinks
            assert all(g.abs().max() < 1e8 for g in grads), "a floor of 1e-12 shows in a gradient"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deep_student", [False, True])
def test_unequal_networks(name: str, deep_student: bool) -> None:
    """Other depth, channels and sizes: the method runs, or says at once what does not fit."""
    torch.manual_seed(0)
    shapes = (DEEPER, EQUAL) if deep_student else (EQUAL, DEEPER)
    views = views_of(name)
    s, t = (make_output(x, 6 * views, d, torch.float32) for x, d in zip(shapes, (12, 20), strict=True))
    if name in EQUAL_CHANNELS:
        with pytest.raises(ValueError, match=r"needs equal channels, not \[.*\] and \["):
            build(name, s, t)
        return
    assert all(loss.isfinite() for loss in losses(build(name, s, t), s, t, batch(s, views=views)))


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ab", "kdsvd", "fsp", "sp", "ofd", "pkd", "sfd"])
def test_no_maps(name: str) -> None:
    s, t = output(pooled=torch.zeros(2, 4)), output(pooled=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="0"):
        build(name, s, t)


@pytest.mark.parametrize(
    ("name", "options"),
    [("kd", {"kd_T": 0.0}), ("fitnet", {"hint_layer": 4}), ("ft", {"ft_k": 0.1}), ("vid", {"vid_variance": 0.0})]
    + [("at", {"at_last": 4}), ("sup", {"on_flip": "distill,nothing"}), ("sup", {"on_flip": "drop,drop,drop"})]
    + [("kl", {"kl_T": 0.0}), ("hinton", {"kd_T": 0.0}), ("tfkd", {"tfkd_T": 0.0}), ("mt", {"mt_T": 0.0})]
    + [("sskd", {"sskd_ss_T": 0.0}), ("sskd", {"sskd_tf_ratio": 1.5})]
    + [("crd", {"nce_k": 0}), ("rrd", {"nce_k": 0})],
)
def test_wrong_options(name: str, options: dict) -> None:
    with pytest.raises(ValueError, match=r"\d|found"):
        build(name, *example(), **options)


def test_pairs_from_the_deep_end() -> None:
    a, b = [torch.zeros(1) for _ in range(3)], [torch.zeros(1) for _ in range(5)]
    assert [(x is a[i], y is b[i + 2]) for i, (x, y) in enumerate(pair_maps(a, b))] == [(True, True)] * 3


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_regressor_fits(h_s: int, w_s: int, h_t: int, w_t: int) -> None:
    s, t = torch.zeros(2, 3, h_s, w_s), torch.zeros(2, 4, h_t, w_t)
    out = Regressor(s.shape, t.shape, relu=True)(s)
    larger = h_s >= h_t and w_s >= w_t
    assert out.shape == (t.shape if larger or (2 * h_s, 2 * w_s) == (h_t, w_t) else (2, 4, h_s, w_s))


# Plain twins: the formula as the paper or the reference writes it, with loops, in float64.


def pooled_to(x: Tensor, h: int) -> Tensor:
    return x if x.shape[2] == h else F.adaptive_avg_pool2d(x, h)


def stage_pairs(s: Output, t: Output, first: int = 1) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(s.feats[first:], t.feats[first:], strict=True))
    return [tuple(pooled_to(x, min(a.shape[2], b.shape[2])) for x in (a, b)) for a, b in pairs]


def twin_kd(m: Distiller, s: Output, t: Output) -> Tensor:
    total, T = 0.0, m.kd_T
    for z_s, z_t in zip(s.logits, t.logits, strict=True):
        p_s, p_t = (z_s / T).softmax(0), (z_t / T).softmax(0)
        total = total + sum(q * (q.log() - p.log()) for p, q in zip(p_s, p_t, strict=True))
    return total * T * T / len(s.logits)


def twin_kl(m: Distiller, s: Output, t: Output) -> Tensor:
    total = 0.0
    for z_s, z_t in zip(s.logits, t.logits, strict=True):
        kept = sorted(range(len(z_t)), key=lambda c: -z_t[c].item())[: m.k or None]
        p_s, p_t = (z[kept].softmax(0) for z in (z_s, z_t))
        total = total + (p_t * (p_t.log() - p_s.log())).sum() / len(s.logits)
    return total


def twin_xekl(m: Distiller, s: Output, t: Output) -> Tensor:
    return twin_kl(m, s, t)


def twin_sup(m: Distiller, s: Output, t: Output) -> Tensor:
    found = []
    for i, (z_s, z_t) in enumerate(zip(s.logits, t.logits, strict=True)):
        if not (z_s.argmax() == i % 2 and z_t.argmax() != i % 2):
            found.append((z_t.softmax(0) * (z_t.log_softmax(0) - z_s.log_softmax(0))).sum())
    return sum(found) / len(found) if found else 0.0 * s.logits.sum()


def twin_hinton(m: Distiller, s: Output, t: Output) -> Tensor:
    pairs = zip(s.logits, t.logits, strict=True)
    return -16 * sum(((z_t / 4).softmax(0) * (z_s / 4).softmax(0).log()).sum() for z_s, z_t in pairs) / len(s.logits)


def twin_deit_hard(m: Distiller, s: Output, t: Output) -> Tensor:
    rows = zip(s.dist[0], t.logits, strict=True)
    return -sum(z.softmax(0)[max(range(10), key=lambda c: z_t[c].item())].log() for z, z_t in rows) / len(s.logits)


def twin_deit_soft(m: Distiller, s: Output, t: Output) -> Tensor:
    pairs = [((z / 3).softmax(0), (z_t / 3).softmax(0)) for z, z_t in zip(s.dist[0], t.logits, strict=True)]
    return 9 * sum((q * (q / p).log()).sum() for p, q in pairs) / len(pairs)


def twin_cd(m: Distiller, s: Output, t: Output) -> Tensor:
    def rows(x: Tensor) -> list[Tensor]:
        x = [a / a.norm() for a in x]
        return [torch.stack([(a * b).sum() for b in x]).softmax(0) for a in x]

    return sum((q * (q / p).log()).sum() for p, q in zip(rows(s.pooled), rows(t.pooled), strict=True))


def twin_triplet(m: Distiller, s: Output, t: Output) -> Tensor:
    """Labels alternate, so the next sample is the negative, but for the last of an odd batch, whose next one is its own
    class: it takes the one after."""
    total, n = 0.0, len(s.logits)
    for i in range(n):
        j = (i + 1) % n if (i + 1) % n % 2 != i % 2 else (i + 2) % n
        near, far = (
            1 - F.cosine_similarity(s.logits[i], x, dim=0) for x in (t.logits[i], s.logits[j].detach())
        )  # fmt: skip
        total = total + (near - far + m.margin).clamp(min=0) / n
    return total


def twin_triplet_cosine(m: Distiller, s: Output, t: Output) -> Tensor:
    return sum(1 - F.cosine_similarity(a, b, dim=0) for a, b in zip(s.logits, t.logits, strict=True)) / len(s.logits)


def twin_tfkd(m: Distiller, s: Output, t: Output) -> Tensor:
    p_s, p_t = s.logits.softmax(1), t.logits.softmax(1)
    return sum((q * (q / p).log()).sum() for p, q in zip(p_s, p_t, strict=True)) / len(p_s)


def twin_mt(m: Distiller, s: Output, t: Output) -> Tensor:
    p_s, p_t = (s.logits / 5).softmax(1), (t.logits / 5).softmax(1)
    return 25 * sum((q * (q / p).log()).sum() for p, q in zip(p_s, p_t, strict=True)) / len(p_s)


def twin_dp(m: Distiller, s: Output, t: Output) -> Tensor:
    """The images are white, so the old student's logits are sums of its weights."""
    total, old = 0.0, (m.start.head.weight.sum(1) + m.start.head.bias).softmax(0)
    for i, (z_s, z_t) in enumerate(zip(s.logits, t.logits, strict=True)):
        p_t = z_t.softmax(0)
        target = p_t if p_t[i % 2] > old[i % 2] else old
        total = total + (target * (target / z_s.softmax(0)).log()).sum() / len(s.logits)
    return total


def attention(f: Tensor, p: int) -> Tensor:
    a = sum(c**p for c in f) / len(f)
    return a / a.norm()


def twin_at(m: Distiller, s: Output, t: Output) -> Tensor:
    total = 0.0
    for a, b in stage_pairs(s, t):
        for f_s, f_t in zip(a, b, strict=True):
            total = total + ((attention(f_s, m.p) - attention(f_t, m.p)) ** 2).mean() / len(a)
    return total


def twin_sp(m: Distiller, s: Output, t: Output) -> Tensor:
    def gram(f: Tensor) -> Tensor:
        g = torch.stack([torch.stack([(x * y).sum() for y in f]) for x in f])
        return torch.stack([row / row.norm() for row in g])

    return ((gram(s.feats[-1]) - gram(t.feats[-1])) ** 2).sum() / len(s.logits) ** 2


def twin_cc(m: Distiller, s: Output, t: Output) -> Tensor:
    d = (m.embed_s(s.pooled) - m.embed_t(t.pooled)).abs()
    return sum((d[i] * d[i + 1]).sum() for i in range(len(d) - 1)) / (len(d) - 1)


def twin_vid(m: Distiller, s: Output, t: Output) -> Tensor:
    total = 0.0
    for level, (f_s, f_t) in zip(m.levels, stage_pairs(s, t), strict=True):
        mean = level.regressor(f_s)
        for c, scale in enumerate(level.log_scale):
            var = torch.log1p(scale.exp()) + 1e-5
            total = total + 0.5 * ((mean[:, c] - f_t[:, c]) ** 2 / var + var.log()).mean() / f_t.shape[1]
    return total


def twin_rkd(m: Distiller, s: Output, t: Output) -> Tensor:
    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        n = len(x)
        d = torch.stack([(a - b).square().sum().clamp(min=1e-12).sqrt() for a in x for b in x]).view(n, n)
        d = d * (1 - torch.eye(n))
        e = [[F.normalize(b - a, dim=0) for b in x] for a in x]
        return d / d[d > 0].mean(), torch.stack([(e[i][j] * e[i][k]).sum() for i, j, k in triples(n)])

    (d_s, a_s), (d_t, a_t) = plain(s.pooled), plain(t.pooled)
    return m.w_distance * F.smooth_l1_loss(d_s, d_t) + m.w_angle * F.smooth_l1_loss(a_s, a_t)


def test_rkd_takes_rounding_for_equality() -> None:
    """Two rows that differ by rounding alone have no direction: unguarded, noise would be scaled to length one."""
    torch.manual_seed(0)
    x = torch.randn(16, 64) + 5
    x[1] = x[0] + 1e-6 * torch.randn(64)
    distance, cosine = relations(x)
    assert not cosine[0, 1].any() and not cosine[1, 0].any()
    assert distance[0, 1] < 1e-5 and cosine.abs().max() < 1.001


def triples(n: int) -> list[tuple[int, int, int]]:
    return [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]


def twin_pkt(m: Distiller, s: Output, t: Output) -> Tensor:
    def rows(x: Tensor) -> Tensor:
        x = [a / (a.norm() + 1e-7) for a in x]
        p = torch.stack([torch.stack([((a * b).sum() + 1) / 2 for b in x]) for a in x])
        return torch.stack([row / row.sum() for row in p])

    p_s, p_t = rows(s.pooled), rows(t.pooled)
    return (p_t * torch.log((p_t + 1e-7) / (p_s + 1e-7))).mean()


def twin_nst(m: Distiller, s: Output, t: Output) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(x * y).sum() ** 2 for x in a for y in b]).mean()

    total = 0.0
    for maps_s, maps_t in stage_pairs(s, t):
        for f_s, f_t in zip(maps_s, maps_t, strict=True):
            u, v = ([c.flatten() / c.norm() for c in f] for f in (f_s, f_t))
            total = total + (kernel(v, v) + kernel(u, u) - 2 * kernel(u, v)) / len(maps_s)
    return total


def twin_fsp(m: Distiller, s: Output, t: Output) -> Tensor:
    def flow(low: Tensor, high: Tensor) -> Tensor:
        h = min(low.shape[2], high.shape[2])
        low, high = pooled_to(low, h), pooled_to(high, h)
        return torch.stack([(a * b).mean((1, 2)) for a in high.unbind(1) for b in low.unbind(1)])

    levels = range(len(s.feats) - 1)
    return sum(((flow(*s.feats[i : i + 2]) - flow(*t.feats[i : i + 2])) ** 2).mean() for i in levels)


def twin_ab(m: Distiller, s: Output, t: Output) -> Tensor:
    total, n = 0.0, len(m.connectors)
    for i, connect in enumerate(m.connectors):
        g_s, g_t = connect(s.preacts[i + 1]).flatten(), t.preacts[i + 1].flatten()
        for a, b in zip(g_s, g_t, strict=True):
            if b > 0 and a <= m.margin:
                total = total + 2.0 ** (i - n + 1) * (a - m.margin) ** 2
            elif b <= 0 and a > -m.margin:
                total = total + 2.0 ** (i - n + 1) * (a + m.margin) ** 2
    return total / len(s.logits) * 3 / 1000


def twin_ft(m: Distiller, s: Output, t: Output) -> Tensor:
    a, b = m.translator(s.feats[-1]), m.encoder(t.feats[-1]).detach()
    h = min(a.shape[2], b.shape[2])
    pairs = zip(pooled_to(a, h), pooled_to(b, h), strict=True)
    return sum((attention(a, m.p1) - attention(b, m.p1)).abs().mean() for a, b in pairs) / len(s.logits)


def twin_at_paper(m: Distiller, s: Output, t: Output) -> Tensor:
    total = 0.0
    for a, b in stage_pairs(s, t):
        for f_s, f_t in zip(a, b, strict=True):
            total = total + (attention(f_s, m.p) - attention(f_t, m.p)).norm() / len(a)
    return total


def twin_ft_flat(m: Distiller, s: Output, t: Output) -> Tensor:
    a, b = m.translator(s.feats[-1]), m.encoder(t.feats[-1]).detach()
    h = min(a.shape[2], b.shape[2])
    pairs = list(zip(pooled_to(a, h), pooled_to(b, h), strict=True))
    return sum((x / x.norm() - y / y.norm()).abs().mean() for x, y in pairs) / len(pairs)


def twin_ofd(m: Distiller, s: Output, t: Output) -> Tensor:
    """Without BatchNorms to read margins from: -1. The connector is written out."""
    total, n = 0.0, len(m.connectors)
    for i, (conv, bn) in enumerate(m.connectors):
        f = torch.stack([torch.tensordot(conv.weight[:, :, 0, 0], x, 1) for x in s.preacts[i + 1]])
        f = (f - f.mean((0, 2, 3), keepdim=True)) / (f.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        f = f * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)
        h = min(f.shape[2], t.preacts[i + 1].shape[2])
        for a, b in zip(pooled_to(f, h).flatten(), pooled_to(t.preacts[i + 1], h).flatten(), strict=True):
            if b > 0 or a > max(b, -1.0):
                total = total + 2.0 ** (i - n + 1) * (a - b.clamp(min=-1.0)) ** 2 / len(f)
    return total


def twin_pkd(m: Distiller, s: Output, t: Output) -> Tensor:
    differences = []
    for connect, f_s, f_t in zip(m.connectors, s.feats[1:], t.feats[1:], strict=True):
        h = min(f_s.shape[2], f_t.shape[2])
        differences.append((pooled_to(connect(f_s), h) - pooled_to(f_t, h)).flatten())
    return torch.cat(differences).square().mean()


def twin_sfd(m: Distiller, s: Output, t: Output) -> Tensor:
    def peaks(x: Tensor) -> Tensor:
        return torch.stack([channel.max() for channel in x])

    pairs = zip(s.feats, t.feats, strict=True)
    return sum(max((peaks(a) - peaks(b)).norm() for a, b in zip(f_s, f_t, strict=True)) for f_s, f_t in pairs)


def twin_cse_l2(m: Distiller, s: Output, t: Output) -> Tensor:
    return (F.linear(s.pooled, m.embed.weight, m.embed.bias) - t.pooled).square().mean()


def twin_pad_l2(m: Distiller, s: Output, t: Output) -> Tensor:
    linear, _, bn, _ = m.var_estimator
    h = F.linear(s.pooled, m.embed.weight, m.embed.bias)
    v = F.linear(h, linear.weight, linear.bias)
    v = (v - v.mean(0)) / (v.var(0, unbiased=False) + 1e-5).sqrt() * bn.weight + bn.bias
    return sum(((b - a) ** 2 / (1e-6 + c.exp()) + c).mean() for a, b, c in zip(h, t.pooled, v, strict=True)) / len(h)


def embeddings(m: Distiller, s: Output, t: Output) -> tuple[Tensor, Tensor]:
    z_s, z_t = (F.linear(f, e.weight, e.bias) for f, e in ((s.pooled, m.embed_s), (t.pooled, m.embed_t)))
    return F.normalize(z_s), F.normalize(z_t)


def twin_icd(m: Distiller, s: Output, t: Output) -> Tensor:
    z_s, z_t = embeddings(m, s, t)
    n = len(z_s)
    g = torch.stack([m.tau.exp() * (a * b).sum() + m.b for a in z_s for b in z_t]).view(n, n)
    p, q = g.softmax(1), g.softmax(0).T
    return sum(-p[i, i].log() for i in range(n)) / n + m.alpha * (q * (q.log() - p.log())).sum() / n


def twin_kdsvd(m: Distiller, s: Output, t: Output) -> Tensor:
    """With torch's own singular value decomposition and its derivative."""
    total, before = 0.0, None
    for f_s, f_t in zip(s.feats[1:], t.feats[1:], strict=True):
        v_t = torch.linalg.svd(f_t.flatten(2).mT, full_matrices=False).Vh[:, 0]
        v_t = torch.where(v_t.sum(1, keepdim=True) < 0, -v_t, v_t)
        v_s = torch.linalg.svd(f_s.flatten(2).mT, full_matrices=False).Vh[:, :4]
        cosine = (v_s @ v_t.unsqueeze(2)).squeeze(2)
        pick = cosine.abs().argmax(1)
        rows = torch.arange(len(pick))
        now = v_s[rows, pick] * cosine[rows, pick].sign().detach().unsqueeze(1), v_t
        if before:
            r_s, r_t = (torch.exp(-((a[:, :, None] - b[:, None]) ** 2) / 8) for a, b in zip(now, before, strict=True))
            total = total + ((r_s - r_t) ** 2).sum() / len(f_s)
        before = now
    return total


def twin_fitnet(m: Distiller, s: Output, t: Output) -> Tensor:
    f = m.regressor.conv(s.feats[2])
    mean, var = f.mean((0, 2, 3), keepdim=True), f.var((0, 2, 3), keepdim=True, unbiased=False)
    weight, bias = (p.view(1, -1, 1, 1) for p in m.regressor.bn.parameters())
    return (((f - mean) / (var + 1e-5).sqrt() * weight + bias).relu() - t.feats[2]).square().mean()


def twin_ickd(m: Distiller, s: Output, t: Output) -> Tensor:
    conv, bn = m.embed
    f = torch.stack([torch.tensordot(conv.weight[:, :, 0, 0], x, 1) for x in s.feats[-1]])
    f = (f - f.mean((0, 2, 3), keepdim=True)) / (f.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    f = f * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)

    def alike(x: Tensor) -> Tensor:
        gram = torch.stack([torch.stack([(a * b).sum() for b in x]) for a in x])
        return torch.stack([row / row.norm() for row in gram])

    n, c = t.feats[-1].shape[:2]
    return sum(((alike(a) - alike(b)) ** 2).sum() for a, b in zip(f, t.feats[-1], strict=True)) / (c * n * n)


def twin_wkd_f(m: Distiller, s: Output, t: Output) -> Tensor:
    total, f_s, f_t = 0.0, m.regressor(s.feats[-1]), t.feats[-1]
    h = min(f_s.shape[2], f_t.shape[2])
    for a, b in zip(pooled_to(f_s, h).flatten(0, 1), pooled_to(f_t, h).flatten(0, 1), strict=True):
        deviations = [(((x - x.mean()) ** 2).sum() / max(x.numel() - 1, 1) + 1e-5).sqrt() for x in (a, b)]
        total = total + m.ratio * (a.mean() - b.mean()) ** 2 + (deviations[0] - deviations[1]) ** 2
    return total / len(f_s)


def twin_semckd(m: Distiller, s: Output, t: Output) -> Tensor:
    def embedded(embed: Any, f: Tensor) -> Tensor:
        """Of a batch that is filled up to 64 samples."""
        gram = torch.stack([torch.stack([(x * y).sum() for y in f]) for x in f])
        z = embed(torch.cat([gram, gram.new_zeros(len(f), 64 - len(f))], 1))
        return torch.stack([row / row.norm() for row in z])

    total = 0.0
    keys = [embedded(embed, f) for embed, f in zip(m.keys, t.feats[1:], strict=True)]
    for embed, row, f_s in zip(m.queries, m.regressors, s.feats[1:], strict=True):
        query = embedded(embed, f_s)
        attention = torch.stack([(query * key).sum(1) for key in keys], 1).softmax(1)
        for j, (regress, f_t) in enumerate(zip(row, t.feats[1:], strict=True)):
            h = min(f_s.shape[2], f_t.shape[2])
            distance = ((regress(pooled_to(f_s, h)) - pooled_to(f_t, h)) ** 2).mean((1, 2, 3))
            total = total + (attention[:, j] * distance).sum() / (len(f_s) * len(m.queries))
    return total


def twin_srrl(m: Distiller, s: Output, t: Output) -> Tensor:
    g = m.connector(s.feats[-1]).flatten(2).mean(2)
    return ((g - t.pooled) ** 2).mean() + ((g @ m.head.weight.T + m.head.bias - t.logits) ** 2).mean()


def twin_uda(m: Distiller, s: Output, t: Output) -> Tensor:
    total = 0.0
    for plain, changed in zip(s.logits[::2].detach(), s.logits[1::2], strict=True):
        total = total + (plain.softmax(0) * (plain.log_softmax(0) - changed.log_softmax(0))).sum()
    return total / (len(s.logits) // 2)


def twin_sskd(m: Distiller, s: Output, t: Output) -> Tensor:
    plain = range(0, len(s.logits), 4)
    rotated = [i for i in range(len(s.logits)) if i % 4]

    def cosines(head: Any, h: Tensor) -> Tensor:
        return torch.stack([F.cosine_similarity(head(h)[i], head(h)[list(plain)], dim=1) for i in rotated])

    def term(z_s: Tensor, z_t: Tensor, right: list[int], T: float, ratio: float) -> Tensor:
        rank = [int((row > row[answer]).sum()) for row, answer in zip(z_t, right, strict=True)]
        wrong = sorted((r, i) for i, r in enumerate(rank) if r)
        rows = [i for i, r in enumerate(rank) if not r] + [i for _, i in wrong[: int(ratio * len(wrong))]]
        p_s, p_t = (z_s / T).softmax(1), (z_t / T).softmax(1)
        return T * T * sum((p_t[i] * (p_t[i] / p_s[i]).log()).sum() for i in rows) / max(len(rows), 1)

    labels = [(i // 4) % 2 for i in rotated]  # of fakes.batch
    tf = term(s.logits[rotated], t.logits[rotated], labels, 4.0, 1.0)
    ss = term(cosines(m.head_s, s.pooled), cosines(m.head_t, t.pooled).detach(), [i // 4 for i in rotated], 0.5, 0.75)
    return 2.7 * tf + 10 * ss


TWINS = {name.removeprefix("twin_"): f for name, f in dict(globals()).items() if name.startswith("twin_")}


@pytest.mark.parametrize("name", TWINS)
@given(n=st.integers(2, 4), channels=st.integers(1, 4), size=st.integers(2, 5), seed=st.integers(0, 2**16))
@settings(max_examples=8, deadline=None)
def test_twin(name: str, n: int, channels: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    equal = name in EQUAL_CHANNELS
    shapes_s = [(2, size), (channels, size), (channels + 1, size), (3, max(size - 1, 1))]
    shapes_t = [(2, size), (channels + (not equal), size), (channels + 1, size), (3, max(size - 2, 1))]
    if name == "ab":  # its regressors' sizes are the golden numbers' matter
        shapes_t = shapes_s
    views = views_of(name)
    s = make_output(shapes_s, n * views, 5, torch.float64)
    t = make_output(shapes_t, n * views, 7, torch.float64, leaf=False)
    method = build(name, s, t).double()
    ours = losses(method, s, t, batch(s, views=views))[name in INITIAL_ONLY]
    theirs = TWINS[name](method, s, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    inputs = [x for x in (*tensors(s), *method.parameters()) if x.requires_grad]
    grads = [torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (ours, theirs)]
    for x, *pair_of_grads in zip(inputs, *grads, strict=True):
        a, b = (torch.zeros_like(x) if g is None else g for g in pair_of_grads)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_vid_starts_at_its_variance() -> None:
    method = build("vid", *example(), vid_variance=3.0)
    for level in method.levels:
        torch.testing.assert_close(F.softplus(level.log_scale) + level.eps, torch.full_like(level.log_scale, 3.0))


# Negatives


@given(st.integers(2, 6), st.integers(2, 60), st.integers(1, 80), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_negatives(classes: int, n_data: int, nce_k: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.randint(classes, (n_data,))
    labels[:2] = torch.tensor([0, 1])
    index = torch.randint(n_data, (7,))
    drawn = Negatives(labels, nce_k)(index)
    assert drawn.shape == (7, nce_k + 1) and (drawn[:, 0] == index).all()
    for row, own in zip(drawn[:, 1:].tolist(), index.tolist(), strict=True):
        others = (labels != labels[own]).nonzero().flatten().tolist()
        counts = [row.count(i) for i in others]
        assert sum(counts) == nce_k, "a negative of the own class"
        # distinct, or where that cannot be, as even as can be
        assert max(counts) <= math.ceil(nce_k / len(others)) and min(counts) >= nce_k // len(others)


@pytest.mark.parametrize("nce_k", [3, 10, 17])
def test_negatives_are_uniform(nce_k: int) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 5 + [1] * 9 + [2] * 4)[torch.randperm(18)]
    own, rows = int((labels == 2).nonzero()[0]), 20000
    drawn = Negatives(labels, nce_k)(torch.full((rows,), own))[:, 1:]
    expected = rows * nce_k / 14
    counts = torch.bincount(drawn.flatten(), minlength=18)[labels != 2]
    # a bound on chi-square with 13 degrees of freedom (99.99 %: 42); inclusion without repeats varies less
    assert ((counts - expected) ** 2 / expected).sum() < 42


def test_negatives_relaxed_positive() -> None:
    labels = torch.arange(30) % 3
    positive = Negatives(labels, 4, relax=True)(torch.full((3000,), 5))[:, 0]
    assert (labels[positive] == labels[5]).all() and torch.bincount(positive, minlength=30)[labels == 2].min() > 220


@pytest.mark.parametrize("name", ["crd", "rrd"])
def test_one_class_has_no_negatives(name: str) -> None:
    s, t = example()
    with pytest.raises(ValueError, match="two classes, not 1"):
        find_method(name)(pair(s, t, torch.ones(9, dtype=torch.int64)), memory_type="momentum")


# Memory


def memory_step(name: str, m: Distiller, s: Output, t: Output, index: Tensor, contrast: Tensor) -> tuple:
    """Loss, new banks and normalisers, with loops. Leaves the method as it is."""
    banks, n_data, T = m.memory, m.memory.n_data, m.memory.nce_t
    v1, v2 = embeddings(m, s, t)
    loss, Zs, scores, new = 0.0, [], [], []
    for v, bank, Z in ((v1, banks.memory_v2, banks.Z_v1), (v2, banks.memory_v1, banks.Z_v2)):
        bank = bank.clone()
        o = torch.stack(
            [torch.stack([(bank[i] * x).sum() / T for i in row]) for x, row in zip(v, contrast, strict=True)]
        )
        Z = o.exp().mean().detach() * n_data if Z < 0 else Z.clone()
        Zs.append(Z)
        scores.append(o.exp() / Z)
    if name == "crd":
        for o in scores:
            noise = (contrast.shape[1] - 1) / n_data
            loss = loss - (o[:, 0] / (o[:, 0] + noise + 1e-7)).log().sum() / len(o)
            loss = loss - (noise / (o[:, 1:] + noise + 1e-7)).log().sum() / len(o)
    else:
        p_t = (scores[1].detach() / m.t_t).softmax(1)
        loss = -(p_t * (scores[0] / m.t_s).log_softmax(1)).sum() / len(index)
    for v, bank in ((v1, banks.memory_v1), (v2, banks.memory_v2)):
        bank = bank.clone()
        for x, i in zip(v.detach(), index, strict=True):
            row = banks.nce_m * bank[i] + (1 - banks.nce_m) * x
            bank[i] = row / row.norm()
        new.append(bank)
    return loss, Zs, new


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("name", ["crd", "rrd"])
@given(seed=st.integers(0, 2**16), nce_k=st.integers(1, 12))
@settings(max_examples=5, deadline=None)
def test_memory_twin(name: str, gather: bool, seed: int, nce_k: int) -> None:
    torch.manual_seed(seed)
    s, t = make_output([], 4, 5, torch.float64), make_output([], 4, 7, torch.float64, leaf=False)
    method = build(name, s, t, nce_k=nce_k, feat_dim=3, memory_type="momentum").double()
    method.memory.gather = gather
    for _ in range(2):
        index = torch.randperm(50)[:4]
        contrast = method.negatives(index)
        contrast[:, -1] = contrast[:, 0]  # a sample that occurs twice in a row counts twice
        theirs, Zs, new = memory_step(name, method, s, t, index, contrast)
        ours = method.contrast_loss(s.pooled, t.pooled, index, contrast)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        wanted = [s.pooled, *(p for p in method.parameters() if p.requires_grad)]
        for a, b in zip(*(torch.autograd.grad(loss, wanted) for loss in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close([method.memory.Z_v1, method.memory.Z_v2], Zs, rtol=1e-12, atol=0)
        torch.testing.assert_close([method.memory.memory_v1, method.memory.memory_v2], new, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("enqueue", ["before", "after"])
@pytest.mark.parametrize("name", ["crd", "rrd"])
def test_queue_twin(name: str, enqueue: str) -> None:
    """Three steps of unequal size around a ring that none of them divides."""
    torch.manual_seed(0)
    s, t = make_output([], 4, 5, torch.float64), make_output([], 4, 7, torch.float64, leaf=False)
    method = build(name, s, t, nce_k=7, feat_dim=3, memory_type="queue", enqueue=enqueue).double()
    torch.testing.assert_close(method.memory.queue.norm(dim=1), torch.ones(7, dtype=torch.float64))
    ring, place = [row.clone() for row in method.memory.queue], 0
    for n in (4, 4, 1, 3):
        s, t = make_output([], n, 5, torch.float64), make_output([], n, 7, torch.float64, leaf=False)
        ours = method(s, t, batch(s))
        z_s, z_t = embeddings(method, s, t)
        old = torch.stack(ring)
        for z in z_t.detach():
            ring[place], place = z, (place + 1) % 7
        keys = torch.stack(ring) if enqueue == "before" else old
        if name == "crd":
            logits = torch.cat([(z_s * z_t).sum(1, keepdim=True), z_s @ keys.T], 1) / 0.07
            theirs = F.cross_entropy(logits, torch.zeros(n, dtype=torch.int64))
        else:
            p_t = (z_t.detach() @ keys.T / 0.02).softmax(1)
            theirs = -(p_t * (z_s @ keys.T / 0.1).log_softmax(1)).sum() / n
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        wanted = [s.pooled, *(p for p in method.parameters() if p.requires_grad)]
        for a, b in zip(*(torch.autograd.grad(loss, wanted) for loss in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(method.memory.queue, torch.stack(ring), rtol=1e-12, atol=1e-14)
        assert method.memory.queue_ptr.item() == place


def test_queue_takes_the_end_of_a_long_batch() -> None:
    queue, z = Queue(3, 2), torch.randn(5, 2)
    queue.push(z)
    assert torch.equal(queue.queue, z[2:])


def test_eval_leaves_the_memory_alone() -> None:
    s, t = example()
    for options in ({"memory_type": "momentum"}, {"memory_type": "queue"}):
        method = build("crd", s, t, **options).eval()
        before = {key: x.clone() for key, x in method.memory.state_dict().items()}
        assert method(s, t, batch(s)).isfinite()
        assert all(torch.equal(x, before[key]) for key, x in method.memory.state_dict().items())


@pytest.mark.parametrize("memory_type", ["momentum", "queue"])
@pytest.mark.parametrize("name", ["crd", "rrd"])
def test_saved_method_goes_on_alike(name: str, memory_type: str, tmp_path) -> None:
    """Banks, normalisers, pointer and random numbers come back bit for bit, and through a weights-only file."""
    s, t = example()
    first = build(name, s, t, memory_type=memory_type)
    for _ in range(2):
        first(s, t, batch(s))
    torch.save(first.state_dict(), tmp_path / "method.pth")
    torch.manual_seed(99)
    second = build(name, s, t, memory_type=memory_type)
    second(s, t, batch(s))
    second.load_state_dict(torch.load(tmp_path / "method.pth", weights_only=True))
    for _ in range(2):
        results = []
        for method in (first, second):
            loss = method(s, t, batch(s))
            results.append([loss.detach(), *torch.autograd.grad(loss, [s.pooled, method.embed_s.weight])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        saved = [list(method.state_dict().values()) for method in (first, second)]
        assert all(torch.equal(a, b) for a, b in zip(*saved, strict=True))


@pytest.mark.parametrize("name", [name for name in method_names() if not find_method(name).init_runs_student])
def test_initialisation_that_reads_the_teacher_alone(name: str) -> None:
    s, t = example(8)
    seen, method = batch(s, views=views_of(name)), build(name, s, t)
    assert torch.equal(method.init_loss(None, t, seen), method.init_loss(t, t, seen))
    ran = []
    student, teacher = torch.nn.Identity(), torch.nn.Identity()
    student.forward, teacher.forward = lambda *_, **__: ran.append(1), lambda *_, **__: t
    criterion = Criterion(methods={name: method})
    stage = Stage("init", 1, criterion.init, 0.1, asks_teachers=True, runs_student=criterion.init_runs_student)
    step = Step(stage, Features(student, ()), criterion, Precision("off", torch.device("cpu")))
    terms, logits = step(seen, (teacher(None),))
    assert not ran and torch.equal(logits, t.logits) and terms[name].requires_grad


def test_small_banks_are_scored_whole() -> None:
    assert not MemoryBanks(50000, 128, 16384, 0.07, 0.5).gather
    assert MemoryBanks(1300, 2, 100, 0.07, 0.5).gather


def test_nothing_waits_for_the_device() -> None:
    """No method reads a tensor's value on the host in a step, which would make a GPU's queue run dry."""
    for name in NAMES:
        s, t = example(6 * views_of(name))
        method, seen = build(name, s, t), batch(s, views=views_of(name))
        with NoReads():
            losses(method, s, t, seen)


class NoReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where a value travels to the host, or a result's shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "equal"), func
        return func(*args, **kwargs or {})
