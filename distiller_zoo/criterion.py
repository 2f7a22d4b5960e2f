"""The total loss: gamma * cross entropy + alpha * KD + sum of beta_i * method_i.

With several processes the mean of their losses is the whole batch's, and so is the mean of their gradients, which is
what DDP takes: a mean over samples is weighed by the process's share of them, a relational loss is computed by each
process on the outputs of all.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from helper.labels import LabelLoss, repeated

from .adapters import full, standardise
from .base import Batch, Distiller, Output
from .gather import gather
from .importance import entropy, importance
from .kd import KD


class Criterion(nn.Module):
    """Weighted terms by name; a term whose weight is 0 is not computed.

    Holds what trains beside the student (adapters) and what must be saved with it (banks). With several teachers, KD is
    the mean of each one's.
    """

    standardise = False  # set by the script: the methods and KD see logits of mean 0 and deviation 1 over the classes
    ea_bound: float | None = None  # set by the script: samples weigh by their entropies, of which this is the largest

    def __init__(
        self,
        gamma: float = 1.0,
        alpha: float = 0.0,
        kd: KD | None = None,
        methods: dict[str, Distiller] | None = None,
        betas: list[float] | None = None,
        warm_up: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha, self.full_alpha, self.full_betas = gamma, alpha, alpha, betas or []
        self.betas, self.warm_up = list(self.full_betas), warm_up
        self.kd = kd
        self.methods = nn.ModuleDict(methods or {})
        self.label_loss = LabelLoss()  # or what the script sets in its place

    @property
    def has_init(self) -> bool:
        return any(method.init_loss for method in self.methods.values())

    @property
    def init_runs_student(self) -> bool:
        return any(method.init_loss and method.init_runs_student for method in self.methods.values())

    @property
    def reads(self) -> set[str]:
        """The maps of the Outputs that `forward` reads."""
        weighed = zip(self.methods.values(), self.full_betas, strict=True)
        return {part for method, beta in weighed if beta for part in method.reads}

    @property
    def init_reads(self) -> set[str]:
        return {part for method in self.methods.values() if method.init_loss for part in method.reads}

    @property
    def not_capturable(self) -> list[str]:
        """The methods whose steps cannot be recorded."""
        return [name for name, method in self.methods.items() if not method.capturable]

    def generators(self) -> list[torch.Generator]:
        """Those that the methods draw from."""
        found = (getattr(module, "generator", None) for module in self.modules())
        return [generator for generator in found if isinstance(generator, torch.Generator)]

    def groups(self) -> list[dict[str, Any]]:
        """Of the methods' parameters, for the optimiser: those that train differently from the student's."""
        groups = (group for method in self.methods.values() for group in method.groups())
        return [group for group in groups if group.keys() != {"params"}]

    def set_epoch(self, epoch: int) -> None:
        """Lets the methods' weights rise as far as they have in that epoch, from 1. `warm_up` goes before their own."""

        def risen(ramp: int) -> float:
            return min(epoch / ramp, 1.0) if ramp else 1.0

        for i, method in enumerate(self.methods.values()):
            method.epoch = epoch
            self.betas[i] = self.full_betas[i] * risen(method.warm_up if self.warm_up is None else self.warm_up)
            if not i and method.kd_warm_up:
                self.alpha = self.full_alpha * risen(method.kd_warm_up if self.warm_up is None else self.warm_up)

    def numbers(self) -> tuple[float, ...]:
        """What a recorded step has as constants."""
        epochs = [method.epoch for method in self.methods.values() if method.follows_epoch]
        return self.gamma, self.alpha, *self.betas, *epochs

    def forward(self, s: Output, t: Sequence[Output], batch: Batch) -> dict[str, Tensor]:
        """s: [B, ...] or, of V views, [B * V, ...] with the views of a sample side by side; t: one Output a teacher."""
        terms = {}
        first_only = not all(method.label_all_views for method in self.methods.values())
        labelled = slice(None, None, len(s.logits) // len(batch.labels) if first_only else 1)
        logits = s.logits[labelled]
        if self.gamma:
            labels = repeated(batch, len(logits) // len(batch.labels))
            terms["ce"] = self.gamma * self.label_loss.share(batch) * self.label_loss(full(logits), *labels)
        if self.alpha:
            s_kd, *t_kd = (x._replace(logits=x.logits[labelled]) for x in (s, *t))
            terms["kd"] = self.alpha * batch.share * sum(self.loss(self.kd, s_kd, x, batch) for x in t_kd) / len(t_kd)
        for (name, method), beta in zip(self.methods.items(), self.betas, strict=True):
            if beta:
                value = over_all(method, functools.partial(self.loss, method), s, t, batch)
                # -a may have a term of this name already
                terms[name] = beta * value + terms.get(name, 0.0)
        return terms

    def loss(self, method: Distiller, s: Output, t: Any, batch: Batch) -> Tensor:
        """The method's loss with what --standardise and --ea_weights do to it. t: as the method takes it."""
        s_m, t_m = (self.seen(o) for o in (s, t)) if self.standardise and method.standardisable else (s, t)
        if not method.has_per_sample():
            return method(s_m, t_m, batch)
        each = method.per_sample(s_m, t_m, batch)
        if self.ea_bound is not None:
            each = each * importance(*(entropy(o.logits, 3.0) for o in (s, t)), self.ea_bound)
        return each.mean() + method.batch_term(s, t, batch)

    def seen(self, o: Any) -> Any:
        """An Output, several, or None, with standardised logits."""
        if isinstance(o, Output):
            return o._replace(logits=standardise(o.logits), dist=tuple(map(standardise, o.dist)))
        return o and tuple(self.seen(one) for one in o)

    def init(self, s: Output, t: Sequence[Output], batch: Batch) -> dict[str, Tensor]:
        """The terms of the initialisation stage, unweighted as in RepDistiller."""
        return {name: over_all(m, m.init_loss, s, t, batch) for name, m in self.methods.items() if m.init_loss}


def over_all(method: Distiller, loss: Callable[..., Tensor], s: Output, t: Sequence[Output], batch: Batch) -> Tensor:
    """The loss of a method, for this process's part of the batch or, relational, for all of it."""
    if batch.whole is None or not method.relational:
        value = loss(s, taught(method, t), batch)
        return value * batch.share if batch.whole else value
    s, *t = (gather(method.compared(o), batch.whole) for o in (s, *t))
    return loss(s, taught(method, t), Batch(None, batch.whole.labels, batch.whole.index))


def taught(method: Distiller, t: Sequence[Output]) -> Output | tuple[Output, ...] | None:
    """What the method takes for `t`."""
    return tuple(t) if method.all_teachers else t[0] if t else None
