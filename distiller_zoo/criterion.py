"""The total loss: gamma * cross entropy + alpha * KD + sum of beta_i * method_i.

With several processes (DDP), the mean of their losses, and of their gradients, equals that of the whole batch. A mean
over samples is multiplied by the process's share of the samples. A relational loss is computed by every process on
all-gathered outputs.
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
    """The weighted terms of the loss, by name. A term with weight 0 is not computed.

    Holds what trains beside the student (adapters) and what is saved with it (memory banks). With several teachers, KD
    is the mean over them.

    Args:
        gamma: weight of the cross entropy (-r).
        alpha: weight of KD (-a).
        kd: the KD loss; needed unless alpha is 0.
        methods: losses by name.
        betas: weight of each method (-b), in their order.
        warm_up: epochs in which the betas rise to their full values; overrides the methods' own.
    """

    standardise = False  # --standardise: methods and KD see logits of mean 0 and deviation 1 over the classes
    ea_bound: float | None = None  # --ea_weights: weight samples by their entropies, of which this is the largest

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
        self.label_loss = LabelLoss()  # the script may replace it

    @property
    def has_init(self) -> bool:
        return any(method.init_loss for method in self.methods.values())

    @property
    def init_runs_student(self) -> bool:
        return any(method.init_loss and method.init_runs_student for method in self.methods.values())

    @property
    def reads(self) -> set[str]:
        """The feature maps of the Outputs that `forward` reads."""
        pairs = zip(self.methods.values(), self.full_betas, strict=True)
        return {part for method, beta in pairs if beta for part in method.reads}

    @property
    def init_reads(self) -> set[str]:
        return {part for method in self.methods.values() if method.init_loss for part in method.reads}

    @property
    def not_capturable(self) -> list[str]:
        """Names of the methods whose steps no CUDA graph can record."""
        return [name for name, method in self.methods.items() if not method.capturable]

    def generators(self) -> list[torch.Generator]:
        """The generators that the methods draw from."""
        found = (getattr(module, "generator", None) for module in self.modules())
        return [generator for generator in found if isinstance(generator, torch.Generator)]

    def groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the methods' parameters that train differently from the student's."""
        groups = (group for method in self.methods.values() for group in method.groups())
        return [group for group in groups if group.keys() != {"params"}]

    def set_epoch(self, epoch: int) -> None:
        """Sets the warm-up weights of this epoch (from 1). The run's `warm_up` overrides the methods' own."""

        def risen(ramp: int) -> float:
            return min(epoch / ramp, 1.0) if ramp else 1.0

        for i, method in enumerate(self.methods.values()):
            method.epoch = epoch
            self.betas[i] = self.full_betas[i] * risen(method.warm_up if self.warm_up is None else self.warm_up)
            if not i and method.kd_warm_up:
                self.alpha = self.full_alpha * risen(method.kd_warm_up if self.warm_up is None else self.warm_up)

    def numbers(self) -> tuple[float, ...]:
        """The Python numbers that a recorded step holds as constants."""
        epochs = [method.epoch for method in self.methods.values() if method.follows_epoch]
        return self.gamma, self.alpha, *self.betas, *epochs

    def forward(self, s: Output, t: Sequence[Output], batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss.

        Args:
            s: the student's Output, [B, ...], or [B * V, ...] for V views, those of a sample side by side.
            t: an Output for each teacher.
            batch: B samples.

        Returns:
            A scalar for each term, by name: "ce", "kd", and the methods'.
        """
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
                # the KD term (-a) may have this name already
                terms[name] = beta * value + terms.get(name, 0.0)
        return terms

    def loss(self, method: Distiller, s: Output, t: Any, batch: Batch) -> Tensor:
        """One method's loss with --standardise and --ea_weights applied. t: as the method takes it."""
        s_m, t_m = (self.seen(o) for o in (s, t)) if self.standardise and method.standardisable else (s, t)
        if not method.has_per_sample():
            return method(s_m, t_m, batch)
        each = method.per_sample(s_m, t_m, batch)
        if self.ea_bound is not None:
            each = each * importance(*(entropy(o.logits, 3.0) for o in (s, t)), self.ea_bound)
        return each.mean() + method.batch_term(s, t, batch)

    def seen(self, o: Any) -> Any:
        """An Output, a tuple of them, or None, with standardised logits."""
        if isinstance(o, Output):
            return o._replace(logits=standardise(o.logits), dist=tuple(map(standardise, o.dist)))
        return None if o is None else tuple(self.seen(one) for one in o)

    def init(self, s: Output, t: Sequence[Output], batch: Batch) -> dict[str, Tensor]:
        """The terms of the initialisation stage. They have no weights, as in RepDistiller."""
        return {name: over_all(m, m.init_loss, s, t, batch) for name, m in self.methods.items() if m.init_loss}


def over_all(method: Distiller, loss: Callable[..., Tensor], s: Output, t: Sequence[Output], batch: Batch) -> Tensor:
    """A method's loss: of this process's samples, or, if relational, of the whole batch."""
    if batch.whole is None or not method.relational:
        value = loss(s, teacher_outputs(method, t), batch)
        return value * batch.share if batch.whole else value
    s, *t = (gather(method.compared(o), batch.whole) for o in (s, *t))
    return loss(s, teacher_outputs(method, t), Batch(None, batch.whole.labels, batch.whole.index))


def teacher_outputs(method: Distiller, t: Sequence[Output]) -> Output | tuple[Output, ...] | None:
    """`t` as the method takes it."""
    if method.all_teachers:
        return tuple(t)
    return t[0] if t else None
