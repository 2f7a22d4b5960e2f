"""Compares our methods with reference numbers: python tests/check_golden.py DIR

DIR holds manifest.json and one .npz per method (its `format` entry explains both). One line a case (method/variant),
`N passed, M failed` last; exit status 1 on any failure, or where nothing passed.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import Fixed, batch, output, pair  # noqa: E402

import crd  # noqa: E402, F401  (registers its methods)
import distiller_zoo  # noqa: E402
from distiller_zoo import Distiller, find_method  # noqa: E402
from distiller_zoo.criterion import Criterion  # noqa: E402
from distiller_zoo.dml import mutual  # noqa: E402

TOLERANCE = 1e-9


class Case:
    """One variant of a method: its arrays, and the module that a stateful method carries from call to call."""

    def __init__(self, name: str, entry: dict, arrays: dict[str, np.ndarray], before: "Case | None") -> None:
        self.variant = name
        self.hyper, self.modules, self.no_gradient = entry["hyper"], entry["modules"], entry["no_gradient"]
        self.arrays = {key.partition("/")[2]: arrays[key] for key in entry["arrays"] if key.startswith(name + "/")}
        if len(self.arrays) != len(entry["arrays"]):
            raise ValueError(f"arrays outside {name}/: {sorted(entry['arrays'])}")
        self.inputs = {key: self._tensor(f"in/{key}") for key in self._section("in")}
        for key in self._section("grad"):
            self.inputs[key].requires_grad_()
        self.before = before
        self.module: Distiller | None = before.module if before else None
        self.parameters: dict[str, nn.Parameter] = before.parameters if before else {}
        self.state: dict[str, Tensor] = before.state if before else {}

    def _section(self, section: str) -> list[str]:
        return [key.partition("/")[2] for key in self.arrays if key.startswith(section + "/")]

    def _tensor(self, key: str) -> Tensor:
        x = torch.from_numpy(np.array(self.arrays[key]))
        return x.double() if x.is_floating_point() else x

    def maps(self, prefix: str) -> list[Tensor]:
        """Inputs g_s0, g_s1, ... in level order."""
        found = sorted((int(key[len(prefix) :]), x) for key, x in self.inputs.items() if key.startswith(prefix))
        if not found:
            raise KeyError(f"no input {prefix}0")
        return [x for _, x in found]

    def build(
        self,
        name: str,
        s: dict,
        t: dict,
        labels: Tensor | None = None,
        teacher_bns: Sequence[nn.BatchNorm2d] = (),
        batch_size: int = 64,
        **options: object,
    ) -> Distiller:
        """The registered method for outputs of these contents, in float64; on a second call the one of the first."""
        self.s, self.t = output(**s), output(**t)
        if self.module is None:
            given = pair(self.s, self.t, labels, teacher_bns)._replace(batch_size=batch_size)
            self.module = find_method(name)(given, **options).double()
        return self.module

    def load(self, prefixes: dict[str, nn.Module | nn.Parameter], state: dict[str, Tensor] | None = None) -> None:
        """Copies param/<prefix>.* into our modules by order and shape, and state/* into buffers by name."""
        if self.before:
            return
        for prefix, ours in prefixes.items():
            names = [f"param/{prefix}"] if isinstance(ours, nn.Parameter) else self._names(prefix)
            targets = [ours] if isinstance(ours, nn.Parameter) else list(ours.parameters())
            shapes = [tuple(self.arrays[name].shape) for name in names], [tuple(p.shape) for p in targets]
            if shapes[0] != shapes[1]:
                raise ValueError(f"{prefix} has shapes {shapes[0]}, ours {shapes[1]}")
            for name, target in zip(names, targets, strict=True):
                target.data.copy_(self._tensor(name))
                self.parameters[name.partition("/")[2]] = target
        if missing := set(self._section("param")) - set(self.parameters):
            raise ValueError(f"no module of ours holds {sorted(missing)}")
        self.state = state or {}
        for key in self._section("state"):
            self.state[key].copy_(self._tensor(f"state/{key}"))

    def _names(self, prefix: str) -> list[str]:
        """Keys of a module's parameters in registration order."""
        (module,) = (m for m in self.modules if m["prefix"] == prefix)
        paths = [(layer["path"], tensor) for layer in module["layers"] for tensor in layer["tensors"]]
        return [f"param/{'.'.join(filter(None, (prefix, path, tensor)))}" for path, tensor in paths]

    def call(self) -> Tensor:
        """The loss of our method on the outputs that build() was given."""
        return self.module(self.s, self.t, batch(self.s, self.inputs.get("idx"), self.inputs.get("target")))

    def total(self, gamma: float, alpha: float, beta: float, standardise: bool = False, **options: object) -> Tensor:
        """The whole loss around our method: cross entropy, KD and beta times the method; its terms become the state."""
        kd = find_method("kd")(pair(self.s, self.t), **options)
        criterion = Criterion(gamma, alpha, kd, {"method": self.module}, [beta])
        criterion.standardise = standardise
        self.state = criterion(self.s, [self.t], batch(self.s, labels=self.inputs.get("target")))
        return sum(self.state.values())

    def compare(self, loss: Tensor) -> None:
        """Raises AssertionError naming the first array that differs."""
        for p in self.parameters.values():
            p.grad = None
        loss.backward()
        grads = {f"grad/{key}": self.inputs[key].grad for key in self._section("grad")}
        for key in {*self._section("gradp"), *self._section("gradp_stat"), *self.no_gradient} - {""}:
            parameter = self.parameters.get(key.removeprefix("param/"))
            if key in self.no_gradient:
                where = self.inputs[key.removeprefix("in/")] if key.startswith("in/") else parameter
                assert where is not None and (where.grad is None or not where.grad.any()), f"{key} has a gradient"
            elif key in self._section("gradp"):
                grads[f"gradp/{key}"] = parameter.grad
            else:
                grads[f"gradp_stat/{key}"] = torch.stack([parameter.grad.sum(), parameter.grad.norm()])
        largest = max((np.abs(self.arrays[key]).max() for key in grads), default=0.0)
        self._close("out/loss", loss, 1e-15)
        for key, grad in grads.items():
            assert grad is not None, f"{key}: we have none"
            self._close(key, grad, 1e-12 * largest)  # gradients of round-off only
        for key in self._section("out"):
            if not key.startswith("loss"):  # loss_levels and loss_* are parts of a sum that we do not return
                assert key in self.state, f"out/{key}: we keep no such state"
                self._close(f"out/{key}", self.state[key], 0.0)

    def _close(self, key: str, ours: Tensor, floor: float) -> None:
        theirs = self._tensor(key)
        assert ours.shape == theirs.shape, f"{key}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
        scale = theirs.abs().max().item()
        worst = (ours.detach() - theirs).abs().max().item()
        # "not <=" so that NaN fails too
        assert worst <= TOLERANCE * scale + floor, f"{key}: differs by {worst:.2e} at values up to {scale:.2e}"


def kd(case: Case) -> Tensor:
    case.build("kd", {"logits": case.inputs["y_s"]}, {"logits": case.inputs["y_t"]}, kd_T=case.hyper["T"])
    case.load({})
    return case.call()


def triplet(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    case.build("triplet_cosine", {"logits": i["y_s"]}, {"logits": i["y_t"]})
    case.load({})
    loss = case.total(0.0, h["lambda_"], 1 - h["lambda_"], kd_T=h["T"])
    case.state["cosine"] = case.state["method"] / (1 - h["lambda_"])
    return loss


def tfkd_self(case: Case) -> Tensor:
    return _tfkd(case, tfkd_form="self")


def tfkd_reg(case: Case) -> Tensor:
    return _tfkd(case, tfkd_form="reg", tfkd_correct=case.hyper["correct_prob"])


def _tfkd(case: Case, **options: object) -> Tensor:
    """The reference averages over classes and makes up for it with a multiplier."""
    h, y_s = case.hyper, case.inputs["y_s"]
    case.build("tfkd", {"logits": y_s}, {"logits": case.inputs.get("y_t", y_s)}, tfkd_T=h["T"], **options)
    case.load({})
    return case.total(1 - h["alpha"], 0.0, h["alpha"] * h["multiplier"] / y_s.shape[1])


def fitnet(case: Case) -> Tensor:
    case.build("fitnet", {"feats": [case.inputs["f_s"]]}, {"feats": [case.inputs["f_t"]]}, hint_layer=0)
    case.load({"regressor": case.module.regressor})
    return case.call()


def ab(case: Case) -> Tensor:
    g_s, g_t = case.maps("g_s"), case.maps("g_t")  # the list starts behind the stem
    case.build("ab", {"preacts": [g_s[0], *g_s]}, {"preacts": [g_t[0], *g_t]}, ab_margin=case.hyper["margin"])
    case.load({"connector": case.module.connectors})
    return case.module.init_loss(case.s, case.t, batch(case.s))


def at(case: Case) -> Tensor:
    return _on_stages(case, "at", at_p=case.hyper["p"])


def at_paper(case: Case) -> Tensor:
    return _on_stages(case, "at_paper")


def nst(case: Case) -> Tensor:
    return _on_stages(case, "nst")


def sp(case: Case) -> Tensor:
    case.build("sp", {"feats": case.maps("g_s")}, {"feats": case.maps("g_t")}, sp_maps="all")
    case.load({})
    return case.call()


def vid(case: Case) -> Tensor:
    return _on_stages(case, "vid", levels="levels", vid_variance=case.hyper["init_pred_var"])


def _on_stages(case: Case, name: str, levels: str | None = None, **options: object) -> Tensor:
    """For methods that read all maps behind the stem; levels: the module list with one module a stage, if any."""
    g_s, g_t = case.maps("g_s"), case.maps("g_t")
    module = case.build(name, {"feats": [g_s[0], *g_s]}, {"feats": [g_t[0], *g_t]}, **options)
    modules = {f"{name}{i}": m for i, m in enumerate(getattr(module, levels))} if levels else {}
    for m in modules.values():
        m.eps = case.hyper["eps"]
    case.load(modules)
    return case.call()


def cc(case: Case) -> Tensor:
    return _on_pooled(case, "cc", feat_dim=case.hyper["feat_dim"])


def cc_kernel(case: Case) -> Tensor:
    h, e_s, e_t = case.hyper, case.inputs["e_s"], case.inputs["e_t"]
    options = {"cc_gamma": h["gamma"], "cc_order": h["max_p"]} if "gamma" in h else {}
    module = case.build("cc", {"pooled": e_s}, {"pooled": e_t}, cc_kernel=h["type"], **options)
    case.load({})
    return module.kernel_loss(e_s, e_t)


def rkd(case: Case) -> Tensor:
    return _on_pooled(case, "rkd", rkd_distance=case.hyper["w_d"], rkd_angle=case.hyper["w_a"])


def pkt(case: Case) -> Tensor:
    return _on_pooled(case, "pkt")


def cse_l2(case: Case) -> Tensor:
    i, weight = case.inputs, case.hyper["l2_weight"]
    case.build("cse_l2", {"pooled": i["f_s"], "logits": i["y_s"]}, {"pooled": i["f_t"]})
    case.load({})
    loss = case.total(1.0, 0.0, weight)
    case.state["l2"] = case.state["method"] / weight
    return loss


def pad_l2(case: Case) -> Tensor:
    i = case.inputs
    module = case.build("pad_l2", {"pooled": i["f_s"]}, {"pooled": i["f_t"]})
    module.eps = case.hyper["eps"]
    case.load({m["prefix"]: module.var_estimator for m in case.modules})
    return module.adaptive_loss(i["f_s"], i["f_t"], i["log_var"]) if "log_var" in i else case.call()


def icd(case: Case) -> Tensor:
    h = case.hyper
    fixed = {"icd_trainable": False, "nce_t": h["nce_t"]} if "nce_t" in h else {}
    return _on_pooled(case, "icd", feat_dim=h["feat_dim"], icd_alpha=h["alpha"], **fixed)


def _on_pooled(case: Case, name: str, labels: Tensor | None = None, **options: object) -> Tensor:
    """For methods that read the pooled features; loads every parameter and buffer that the case names."""
    module = case.build(name, {"pooled": case.inputs["f_s"]}, {"pooled": case.inputs["f_t"]}, labels, **options)
    for key in ("eps", "max_tau"):  # constants of ours that the case may set
        if key in case.hyper:
            assert hasattr(module, key), f"ours has no constant {key}"
            setattr(module, key, case.hyper[key])
    prefixes = {m["prefix"]: getattr(module, m["prefix"]) for m in case.modules}
    scalars = {key: getattr(module, key) for key in ("tau", "b") if f"param/{key}" in case.arrays}
    case.load(prefixes | scalars, dict(module.memory.named_buffers()) if hasattr(module, "memory") else {})
    if "contrast_idx" in case.inputs:
        i = case.inputs
        return module.contrast_loss(i["f_s"], i["f_t"], i["idx"], i["contrast_idx"])
    return case.call()


def _options(case: Case, *names: str) -> dict[str, object]:
    return {name: case.hyper[name] for name in names}


def crd_momentum(case: Case) -> Tensor:
    options = _options(case, "feat_dim", "nce_k", "nce_t", "nce_m")
    return _on_pooled(case, "crd", torch.arange(case.hyper["n_data"]) % 2, **options)


def crd_queue(case: Case) -> Tensor:
    return _on_pooled(
        case, "crd", memory_type="queue", enqueue="before", **_options(case, "feat_dim", "nce_k", "nce_t")
    )


def rrd_momentum(case: Case) -> Tensor:
    options = _options(case, "feat_dim", "nce_k", "nce_t", "nce_m", "nce_t_s", "nce_t_t")
    return _on_pooled(case, "rrd", torch.arange(case.hyper["n_data"]) % 2, memory_type="momentum", **options)


def rrd_queue(case: Case) -> Tensor:
    return _on_pooled(case, "rrd", enqueue="before", **_options(case, "feat_dim", "nce_k", "nce_t_s", "nce_t_t"))


def ft(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {f"ft_{key}": h[key] for key in ("k", "p1", "p2") if key in h}
    f_t = i.get("f_t", i.get("factor_t"))
    module = case.build("ft", {"feats": [i.get("f_s", i.get("factor_s", f_t))]}, {"feats": [f_t]}, **options)
    paraphraser = nn.ModuleList([module.encoder, module.decoder])
    prefixes = {"translator": module.translator, "paraphraser": paraphraser}
    case.load({m["prefix"]: prefixes[m["prefix"]] for m in case.modules})
    if "factor_s" in i:
        return module.factor_loss(i["factor_s"], i["factor_t"])
    return case.call() if "f_s" in i else module.init_loss(case.s, case.t, batch(case.s))


def ft_flat(case: Case) -> Tensor:
    f_s, f_t = case.inputs["factor_s"], case.inputs["factor_t"]
    module = case.build("ft_flat", {"feats": [f_s]}, {"feats": [f_t]}, ft_flat_norm=f"l{case.hyper['p']}")
    case.load({})
    return module.factor_loss(f_s, f_t)


def fsp(case: Case) -> Tensor:
    return _fsp(case, norm=False)


def fsp_norm(case: Case) -> Tensor:
    return _fsp(case, norm=True)


def _fsp(case: Case, norm: bool) -> Tensor:
    module = case.build("fsp", {"feats": case.maps("g_s")}, {"feats": case.maps("g_t")}, fsp_norm=norm)
    case.load({})
    return module.init_loss(case.s, case.t, batch(case.s))


def ofd(case: Case) -> Tensor:
    g_s, g_t = case.maps("g_s"), case.maps("g_t")
    bns = [nn.BatchNorm2d(len(case.inputs[f"bn_bias{i}"])).double() for i in range(len(g_t))]
    for i, bn in enumerate(bns):
        bn.weight.data, bn.bias.data = case.inputs[f"bn_weight{i}"], case.inputs[f"bn_bias{i}"]
    module = case.build("ofd", {"preacts": [g_s[0], *g_s]}, {"preacts": [g_t[0], *g_t]}, teacher_bns=bns)
    case.load({"connectors": module.connectors})
    return case.call()


def pkd(case: Case) -> Tensor:
    g_s, g_t, h = case.maps("g_s"), case.maps("g_t"), case.hyper
    s, t = ({"logits": case.inputs[y], "feats": [g[0], *g]} for y, g in (("y_s", g_s), ("y_t", g_t)))
    case.build("pkd", s, t)
    case.load({})
    loss = case.total(1 - h["lambda_"], h["lambda_"], h["beta"], kd_T=h["T"])
    case.state["kd"] = case.state["ce"] + case.state["kd"]  # the reference's name for the sum
    return loss


def sfd(case: Case) -> Tensor:
    module = case.build("sfd", {"feats": case.maps("g_s")}, {"feats": case.maps("g_t")}, sfd_norm="max")
    module.eps = 1e-6  # inside the reference's distance
    case.load({})
    return case.call()


def kdsvd(case: Case) -> Tensor:
    return _kdsvd(case, rows=False)


def kdsvd_rows(case: Case) -> Tensor:
    return _kdsvd(case, rows=True)


def _kdsvd(case: Case, rows: bool) -> Tensor:
    """The reference's value depends on the signs that its decomposition returned: turn our vectors to them."""
    g_s, g_t = case.maps("g_s"), case.maps("g_t")
    options = {"kdsvd_k": case.hyper["k"], "kdsvd_rows": rows}
    module = case.build("kdsvd", {"feats": [g_s[0], *g_s]}, {"feats": [g_t[0], *g_t]}, **options)
    signed = iter([torch.from_numpy(case.arrays[f"aux/v_t{i}"]) for i in range(len(g_t))])
    module.orient = lambda v: v * (v * next(signed)).sum(1, keepdim=True).sign()
    case.load({})
    return case.call()


class Given(nn.Module):
    """Stands for a layer whose output the case holds."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def sskd(case: Case) -> Tensor:
    """The whole loss, cross entropy and KD included; the inputs are logits and what the heads give."""
    i, h = case.inputs, case.hyper
    s, t = ({"logits": i.get(f"y_{x}"), "pooled": i.get(f"ss_{x}", i["ss_t"])} for x in "st")
    renamed = {"ss_temp": "ss_T", "tf_temp": "tf_T", "ss_ratio": "ss_ratio", "tf_ratio": "tf_ratio"}
    module = case.build("sskd", s, t, **{f"sskd_{ours}": h[theirs] for theirs, ours in renamed.items() if theirs in h})
    case.load({})
    module.head_s, module.head_t = Given(s["pooled"]), Given(t["pooled"])
    seen = batch(case.s, labels=i.get("target"), views=4)
    if "target" not in i:
        return module.init_loss(case.s, case.t, seen)
    kd = find_method("kd")(pair(case.s, case.t), kd_T=h["kl_temp"])
    terms = Criterion(1.0, 1.0, kd, {"sskd": module}, [0.0])(case.s, [case.t], seen)
    (_, *tf), (_, *ss) = module.tf, module.ss
    case.state = {"ce": terms["ce"], "kl": terms["kd"]}
    for name in ("ss", "tf"):
        module.ss, module.tf = (float(name == "ss"), *ss), (float(name == "tf"), *tf)
        case.state[name] = module(case.s, case.t, seen)
    return sum(w * term for w, term in zip(h["loss_weights"], case.state.values(), strict=True))


def _on_logits(case: Case, name: str, method_options: dict, parts: dict[str, dict] | None = None) -> Distiller:
    """Builds a method that reads logits and labels. parts: the attributes to set for each part that the case names."""
    case.build(name, {"logits": case.inputs["y_s"]}, {"logits": case.inputs["y_t"]}, **method_options)
    case.load({})
    case.state = {part: with_attributes(case, changed) for part, changed in (parts or {}).items()}
    return case.module


def with_attributes(case: Case, changed: dict) -> Tensor:
    """The loss of the method while these of its attributes have other values."""
    before = {key: getattr(case.module, key) for key in changed}
    vars(case.module).update(changed)
    loss = case.call()
    vars(case.module).update(before)
    return loss


def dkd(case: Case) -> Tensor:
    h = case.hyper
    parts = {"tckd": {"alpha": 1.0, "beta": 0.0}, "nckd": {"alpha": 0.0, "beta": 1.0}}
    options = {"dkd_alpha": h["alpha"], "dkd_beta": h["beta"], "dkd_T": h["T"]}
    _on_logits(case, "dkd", options, parts)
    return case.call()


def dist(case: Case) -> Tensor:
    h = case.hyper
    parts = {"inter": {"beta": 1.0, "gamma": 0.0}, "intra": {"beta": 0.0, "gamma": 1.0}}
    options = {"dist_beta": h["beta"], "dist_gamma": h["gamma"], "dist_T": h["tau"]}
    _on_logits(case, "dist", options, parts)
    return case.call()


def nkd(case: Case) -> Tensor:
    h = case.hyper
    _on_logits(case, "nkd", {"nkd_gamma": h["gamma"], "nkd_T": h["T"]}, {"target_part": {"gamma": 0.0}})
    return case.call()


def lskd(case: Case) -> Tensor:
    """The method, and the option in front of another one."""
    h = case.hyper
    if "beta" not in h:
        _on_logits(case, "lskd", {"kd_T": h["T"]})
        return case.call()
    _on_logits(case, "dkd", {"dkd_alpha": h["alpha"], "dkd_beta": h["beta"], "dkd_T": h["T"]})
    return case.total(0.0, 0.0, 1.0, standardise=True)


def wsld(case: Case) -> Tensor:
    _on_logits(case, "wsld", {"wsld_T": case.hyper["T"]})
    loss = case.total(1.0, 0.0, case.hyper["alpha"])
    case.state["hard"] = case.state["ce"]
    return loss


def ttm(case: Case) -> Tensor:
    _on_logits(case, "ttm", {"ttm_gamma": case.hyper["l"]})
    return case.call()


def wttm(case: Case) -> Tensor:
    """Two variants, which are two methods."""
    _on_logits(case, case.variant, {"ttm_gamma": case.hyper["l"]})
    return case.call()


def reviewkd(case: Case) -> Tensor:
    i = case.inputs
    if "f_s0" in i:  # the loss between given maps
        case.load({})
        pairs = zip(case.maps("f_s"), case.maps("f_t"), strict=True)
        return sum(distiller_zoo.reviewkd.hierarchical(a, b) for a, b in pairs)
    f_s, f_t = case.maps("f_s"), case.maps("f_t")
    s = {"feats": [f_s[0], *f_s], "pooled": i["pooled_s"]}
    module = case.build("reviewkd", s, {"preacts": [f_t[0], *f_t], "pooled": i["pooled_t"]})
    case.load({"abfs": module.fusions})
    return case.call()


def catkd(case: Case) -> Tensor:
    h, cams = case.hyper, [F.adaptive_avg_pool2d(case.inputs[f"cam_{x}"], case.hyper["cam_resolution"]) for x in "st"]
    module = case.build("catkd", *({"feats": [cam]} for cam in cams), catkd_normalise=h["normalize"])
    case.load({})
    return module.distance(*cams)


def srrl(case: Case) -> Tensor:
    """Variant vector has pooled features in the place of maps, which are maps of one cell."""
    i = case.inputs
    f_s, f_t = (f if f.dim() == 4 else f[:, :, None, None] for f in (i["f_s"], i["f_t"]))
    t = {"logits": i["y_t"], "pooled": f_t.mean((2, 3))}
    module = case.build("srrl", {"feats": [f_s]}, t, srrl_logit=case.hyper.get("weight", 1.0))
    case.load({"transfer": module.connector, "cls_t": module.head})
    features = with_attributes(case, {"weight": 0.0})
    logit = with_attributes(case, {"weight": 1.0}) - features
    case.state = {"feat": features, "stat": features, "logit": logit}
    return case.call()


def semckd(case: Case) -> Tensor:
    """Each of the reference's embedders has a part that is never used."""
    unused = re.compile(r"(query|key)_\d\.regressor")
    case.modules = [m | {"layers": [x for x in m["layers"] if not unused.match(x["path"])]} for m in case.modules]
    case.arrays = {key: x for key, x in case.arrays.items() if not unused.search(key)}
    case.no_gradient = []
    g_s, g_t = case.maps("g_s"), case.maps("g_t")
    sized = {"feats": [g_s[0], *g_s]}, {"feats": [g_t[0], *g_t]}
    module = case.build("semckd", *sized, batch_size=len(g_s[0]), semckd_soft=case.hyper["soft"])
    case.load({"selfa": nn.ModuleList([*module.queries, *module.keys, *module.regressors])})
    return case.call()


def ofa(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    if "stages" not in h:
        case.load({})
        return distiller_zoo.ofa.adaptive_target(i["y_s"], i["y_t"], i["target"], h["T"], h["eps"])
    given = {stage: i[f"f_s{stage}"] for stage in h["stages"]}
    feats = [given.get(stage, next(iter(given.values()))) for stage in range(5)]
    projectors = [m for m in case.modules if m["prefix"] == "projector"]
    width = max(x["tensors"]["weight"][1] for m in projectors for x in m["layers"] if x["type"].startswith("Linear"))
    s = {"logits": i["y_s"], "feats": feats, "pooled": feats[-1].mean((2, 3))}
    t = {"logits": i["y_t"], "pooled": feats[-1].new_zeros(len(feats[-1]), width)}
    module = case.build("ofa", s, t, ofa_stages=",".join(map(str, given)), ofa_T=h["T"])
    module.eps = h["eps"]
    case.load({"projector": module.branches})
    unread = 0.0 * i["y_s"].sum()  # whose gradient is given, as zeros
    return module.branch_loss(case.s, case.t, batch(case.s, labels=i["target"])) + unread


def itrd(case: Case) -> Tensor:
    i = case.inputs
    options = {"itrd_corr": 1.0, "itrd_mutual": 1.0, "itrd_alpha": case.hyper["alpha"]}
    module = case.build("itrd", {"pooled": i["f_s"]}, {"pooled": i["f_t"]}, **options)
    case.load({"embed": module.embed})
    parts = {"correlation": {"mutual": 0.0}, "mutual": {"corr": 0.0}}
    case.state = {part: with_attributes(case, changed) for part, changed in parts.items()}
    return case.call()


def srd(case: Case) -> Tensor:
    """The reference's KD term has no T^2, and its logarithm the factor 2."""
    h, i = case.hyper, case.inputs
    s, t = ({"pooled": i[f"f_{x}"], "logits": i[f"y_{x}"]} for x in "st")
    module = case.build("srd", s, t, srd_exponent=h["exponent"])
    case.load({"linear": module.project})
    return case.total(0.0, h["temperature"] ** -2, 2.0, kd_T=h["temperature"])


def ickd(case: Case) -> Tensor:
    case.load({})
    distance = find_method("ickd").distance
    return sum(distance(a, b) for a, b in zip(case.maps("g_s"), case.maps("g_t"), strict=True))


def wkd_l(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {f"wkd_{key}": h[key] for key in ("gamma", "T", "reg", "sharpen")}
    module = case.build("wkd_l", {"logits": i["y_s"]}, {"logits": i["y_t"]}, **options)
    module.cost = F.relu(distiller_zoo.wkd_l.class_costs(i["prototypes"], h["sharpen"])) + 1e-8
    module.iterations = h["n_iter"]
    case.load({})
    case.state = {"target_part": with_attributes(case, {"gamma": 0.0})}
    return case.call()


def wkd_f(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {"wkd_grid": h["grid"], "wkd_ratio": h["mean_cov_ratio"]}
    module = case.build("wkd_f", {"feats": [i["f_s"]]}, {"feats": [i["f_t"]]}, **options)
    module.eps = h["eps"]
    case.load({})
    loss, module.ratio = module.distance(i["f_s"], i["f_t"]), 0.0
    deviations = module.distance(i["f_s"], i["f_t"])
    case.state = {"std_loss": deviations, "mean_loss": (loss - deviations) / h["mean_cov_ratio"]}
    return loss


def ega(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {"ega_node": h["node_weight"], "ega_edge": h["edge_weight"]}
    case.build("ega", {"pooled": i["f_s"]}, {"pooled": i["f_t"]}, **options)
    case.load({})
    return case.call()


def ctkd(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {"ctkd_start": h["t_start"], "ctkd_range": h["t_end"]}
    module = case.build("ctkd", {"logits": i["y_s"]}, {"logits": i["y_t"]}, **options)
    case.load({"theta": module.theta})
    reversals = []
    for module.epoch in range(len(case.arrays["aux/lambda_schedule"])):
        reversals.append(module.reversal)
    np.testing.assert_allclose(reversals, case.arrays["aux/lambda_schedule"], rtol=1e-9, atol=1e-15)
    module.epoch = int(np.abs(np.array(reversals) - h["lambda_"]).argmin())
    return case.call()


def simkd(case: Case) -> Tensor:
    f_s, f_t = case.inputs["f_s"], case.inputs["f_t"]
    t = {"feats": [f_t], "pooled": f_t.mean((2, 3))}
    module = case.build("simkd", {"feats": [f_s]}, t, simkd_factor=case.hyper["factor"])
    student = module.wrap(Fixed(case.s)).double()
    case.load({"projector": student.projector, "cls_t": student.fc})
    case.s = student(None, is_feat=True)
    case.state = {"pred_s": case.s.logits}
    return case.call()


def mlkd(case: Case) -> Tensor:
    i = case.inputs
    if "y_s" in i:  # one of the parts, at one temperature
        case.load({})
        level = {"cc": distiller_zoo.mlkd.class_level, "bc": distiller_zoo.mlkd.batch_level}[case.variant]
        return level(*(F.softmax(i[key] / case.hyper["T"], 1) for key in ("y_s", "y_t")))
    s, t = ({"logits": torch.stack([i[f"y_{x}_weak"], i[f"y_{x}_strong"]], 1).flatten(0, 1)} for x in "st")
    case.build("mlkd", s, t)
    case.load({})
    return case.total(2 * case.hyper["ce_weight"], 0.0, case.hyper["kd_weight"])


def rld(case: Case) -> Tensor:
    h = case.hyper
    options = {"rld_alpha": h["alpha"], "rld_beta": h["beta"], "rld_T": h["T"], "rld_label_T": h["alpha_T"]}
    module = _on_logits(case, "rld", options)
    parts = {"scd": {"beta": 0.0, "alpha": 1.0}, "mcd": {"alpha": 0.0, "beta": 1.0}}
    found = {}
    for part, changed in parts.items():
        vars(module).update(changed)
        found[part] = case.total(0.0, 0.0, 1.0, standardise=h["logit_stand"])
    module.alpha, module.beta = h["alpha"], h["beta"]
    loss = case.total(0.0, 0.0, 1.0, standardise=h["logit_stand"])
    case.state = found
    return loss


def normkd(case: Case) -> Tensor:
    h = case.hyper
    if "alpha" not in h:
        _on_logits(case, "normkd", {"normkd_T": h["T_norm"]})
        return case.call()
    options = {"normkd_form": "dkd", "normkd_alpha": h["alpha"], "normkd_beta": h["beta"], "normkd_T": h["T_norm"]}
    parts = {"tckd": {"alpha": 1.0, "beta": 0.0}, "nckd": {"alpha": 0.0, "beta": 1.0}}
    _on_logits(case, "normkd", options, parts)
    return case.call()


def luminet(case: Case) -> Tensor:
    _on_logits(case, "luminet", {"luminet_alpha": case.hyper["alpha"], "luminet_T": case.hyper["T"]})
    return case.call()


def eakd(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    options = {"eakd_T": h["T"], "eakd_entropy_T": h["t"], "eakd_bound": h["H_ub"]}
    options |= {"eakd_form": "dkd", "eakd_beta": h["beta"] / h["alpha"]} if "alpha" in h else {}
    module = _on_logits(case, "eakd", options)
    case.state = {"w": module.importance(i["y_s"], i["y_t"])}
    return h.get("alpha", 1.0) * case.call()


def pefd(case: Case) -> Tensor:
    i = case.inputs
    module = case.build("pefd", {"pooled": i["f_s"]}, {"pooled": i["f_t"]}, pefd_projectors=case.hyper["n_proj"])
    case.load({"proj": module.projectors})
    return case.call()


def sdd(case: Case) -> Tensor:
    """Given regions; in one variant given maps and classifiers."""
    h, i = case.hyper, case.inputs
    options = {"sdd_T": h["T"], "sdd_beta": h.get("beta", h.get("gamma", 0.0))}
    if "f_s" in i:
        classes = {m["prefix"]: m["layers"][0]["tensors"]["weight"][0] for m in case.modules}
        s, t = (
            {"logits": f.new_zeros(len(f), classes["fc_s"]), "feats": [f], "pooled": f.mean((2, 3))}
            for f in (i["f_s"], i["f_t"])
        )
        module = case.build("sdd", s, t, sdd_cells=re.sub(r"[^\d,]", "", h["M"]), **options)
        case.load({"fc_s": module.head_s[0].double(), "fc_t": module.head_t})
        return case.call()
    form = {"nkd": "nkd_all", "nkd_label_removed": "nkd"}.get(case.variant, case.variant)
    logits = ({"logits": i[f"y_{x}"][:, :, 0]} for x in "st")
    module = case.build("sdd", *logits, sdd_form=form, **options)
    case.load({})
    return module.of_regions(i["y_s"], i["y_t"], i["target"]).mean()


def kdpp(case: Case) -> Tensor:
    """The class means are given, and stay: the module is not in training."""
    i = case.inputs
    t = {"pooled": i["f_t"], "logits": i["f_t"].new_zeros(len(i["f_t"]), len(i["centers"]))}
    module = case.build("kdpp", {"pooled": i["f_s"]}, t).eval()
    module.sums, module.counts = i["centers"], torch.ones_like(module.counts)
    case.load({})
    return case.hyper["nd_loss_factor"] * case.call()


def mgd(case: Case) -> Tensor:
    i, h = case.inputs, case.hyper
    module = case.build("mgd", {"feats": [i["f_s"]]}, {"feats": [i["f_t"]]}, mgd_mask=h["mask"])
    case.load({"mgd": nn.ModuleList([module.align, module.generation])})
    return h["alpha_mgd"] * module.generated(i["f_s"], i["f_t"], i["mask"])


def dtkd(case: Case) -> Tensor:
    h = case.hyper
    options = {"dtkd_alpha": h.get("alpha", 1.0), "dtkd_beta": h.get("beta", 0.0), "dtkd_T": h["T"]}
    parts = {"dtkd": {"alpha": 1.0, "beta": 0.0}, "kd": {"alpha": 0.0, "beta": 1.0}}
    _on_logits(case, "dtkd", options, parts)
    if "ce_weight" not in h:
        return case.call()
    found = dict(case.state)
    loss = case.total(h["ce_weight"], 0.0, 1.0)
    case.state |= found
    return loss


def crld(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    s, t = ({"logits": torch.stack([i[f"y_{x}_weak"], i[f"y_{x}_strong"]], 1).flatten(0, 1)} for x in "st")
    options = {"crld_within": h["wv_weight"], "crld_across": h["cv_weight"], "crld_T": h["T"]}
    module = case.build("crld", s, t, **options)
    module.sure_weak, module.sure_strong = h["tau_w"], h["tau_s"]
    case.load({})
    return case.total(2 * h["ce_weight"], 0.0, 1.0)


def cskd(case: Case) -> Tensor:
    i = case.inputs
    s = {"logits": torch.stack([i["y_s"], i["y_pair"]], 1).flatten(0, 1)}
    case.build("cskd", s, s, cskd_T=case.hyper["T"])
    case.load({})
    if "lamda" not in case.hyper:
        return case.call()
    loss = case.total(1.0, 0.0, case.hyper["lamda"])
    case.state["cls"] = case.state["method"] / case.hyper["lamda"]
    return loss


def pskd(case: Case) -> Tensor:
    h, i = case.hyper, case.inputs
    module = case.build("pskd", {"logits": i["y_s"]}, {"logits": i["y_s"]}, i["target"], pskd_alpha=h["alpha_T"])
    module.epoch, module.epochs = h["epoch"] + 1, h["end_epoch"]
    module.past = i.get("past", module.past).clone()
    case.load({})
    case.state = {"past_new": module.past}
    return case.call()


def dml(case: Case) -> Tensor:
    z, peers = case.inputs["y_s"], [x for key, x in case.inputs.items() if key.startswith("y_peer")]
    case.state = {"ce": F.cross_entropy(z, case.inputs["target"]), "kl": mutual(z, peers)}
    return case.state["ce"] + case.state["kl"]


# Name in the manifest -> how to call our method on a case. A new method adds its function here.
ADAPTERS: dict[str, Callable[[Case], Tensor]] = {
    "kd": kd,
    "hint": fitnet,
    "at": at,
    "nst": nst,
    "sp": sp,
    "cc": cc,
    "vid": vid,
    "rkd": rkd,
    "pkt": pkt,
    "ab": ab,
    "ft": ft,
    "fsp": fsp,
    "crd": crd_momentum,
    "crd_fifo": crd_queue,
    "rrd_momentum": rrd_momentum,
    "rrd_fifo": rrd_queue,
    "icd": icd,
    "triplet": triplet,
    "tfkd_self": tfkd_self,
    "tfkd_reg": tfkd_reg,
    "ofd": ofd,
    "pkd": pkd,
    "sfd": sfd,
    "at_paper": at_paper,
    "ft_flat": ft_flat,
    "cse_l2": cse_l2,
    "pad_l2": pad_l2,
    "cc_kernel": cc_kernel,
    "fsp_norm": fsp_norm,
    "kdsvd": kdsvd,
    "kdsvd_rows": kdsvd_rows,
    "sskd": sskd,
    "dkd": dkd,
    "dist": dist,
    "nkd": nkd,
    "logitstd": lskd,
    "wsld": wsld,
    "ttm": ttm,
    "wttm": wttm,
    "reviewkd": reviewkd,
    "catkd": catkd,
    "srrl": srrl,
    "semckd": semckd,
    "ofa": ofa,
    "itrd": itrd,
    "srd": srd,
    "ickd": ickd,
    "wkd_l": wkd_l,
    "wkd_f": wkd_f,
    "ega": ega,
    "ctkd": ctkd,
    "simkd": simkd,
    "mlkd": mlkd,
    "rld": rld,
    "normkd": normkd,
    "luminet": luminet,
    "eakd": eakd,
    "pefd": pefd,
    "sdd": sdd,
    "kdpp": kdpp,
    "mgd": mgd,
    "dtkd": dtkd,
    "crld": crld,
    "cskd": cskd,
    "pskd": pskd,
    "dml": dml,
}


def read_manifest(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "manifest.json").read_text())["methods"]


def check(folder: Path, entry: dict, method: str, variant: str) -> None:
    """Runs one case; call2 of a stateful method runs call1 first. Raises where our numbers differ."""
    call = re.fullmatch(r"call(\d+)", variant)
    names = [f"call{i}" for i in range(1, int(call[1]) + 1)] if call else [variant]
    arrays = np.load(folder / entry["file"])
    before = None
    for name in names:
        case = Case(name, entry["variants"][name], arrays, before)
        loss = ADAPTERS[method](case)
        case.compare(loss)
        before = case


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not (Path(argv[0]) / "manifest.json").is_file():
        print("usage: python tests/check_golden.py DIR   (a folder with manifest.json and .npz files)", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    folder, passed, failed, missing = Path(argv[0]), 0, 0, []
    for method, entry in read_manifest(folder).items():
        if method not in ADAPTERS:
            print(f"skip {method}: no such method here")
            missing.append(method)
            continue
        for variant in entry["variants"]:
            try:
                check(folder, entry, method, variant)
            except Exception as e:  # whatever goes wrong in a case, the others still run
                print(f"FAIL {method}/{variant}: {e if isinstance(e, AssertionError) else repr(e)}")
                failed += 1
            else:
                print(f"ok  {method}/{variant}")
                passed += 1
    print(f"not here: {', '.join(missing) or 'none'}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
