"""One training step: networks, loss, gradients, optimiser. Recorded as a CUDA graph or not, the same lines run."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .optimizers import OPTIMIZERS

MAPS = ("feats", "preacts")  # the parts of an Output that only some losses read


class Precision:
    """`--amp`: what the networks compute in. Losses are float32 whatever this says."""

    def __init__(self, amp: str, device: torch.device) -> None:
        self.device, self.dtype = device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


class Part(NamedTuple):
    """What a batch is of an update, which takes the mean over the samples of several (`--accumulate`)."""

    share: float = 1.0  # of the update's samples
    first: bool = True
    last: bool = True


WHOLE = Part()


class Update:
    """Turns the terms of a loss into gradients and these into a step of the optimiser.

    Another rule of descent is a subclass with a `step` of its own. groups: as of `parameter_groups`; a group's
    `lr_scale` multiplies its rate.
    """

    def __init__(self, groups: list[dict[str, Any]], precision: Precision, opt: argparse.Namespace) -> None:
        self.scaler, self.clip_grad = precision.scaler, opt.clip_grad
        self.fresh = opt.accumulate == 1  # each step has gradients of its own; else all that are recorded share them
        self.optimizer = OPTIMIZERS[opt.opt](groups, opt)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def rates(self) -> tuple[float, ...]:
        return tuple(group["lr"] for group in self.optimizer.param_groups)

    def step(self, terms: dict[str, Tensor], part: Part = WHOLE) -> None:
        if part.first:
            self.optimizer.zero_grad(set_to_none=self.fresh)
        loss = sum(terms.values())
        self.scaler.scale(loss if part == WHOLE else loss * part.share).backward()
        if part.last:
            self.descend()

    def descend(self) -> None:
        """The optimiser's step. Gradients longer than `--clip_grad`, all parameters' together, become as long."""
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Stage(NamedTuple):
    """A part of a run with an optimiser of its own."""

    name: str  # "" for the training that is validated, and whose last epoch is the result
    epochs: int
    loss: Callable[..., dict[str, Tensor]]  # (student's Output, teachers' Outputs, batch) -> weighted terms
    rate: Callable[[int], float]  # of each epoch, from 1
    asks_teachers: bool = False  # True: the loss reads the teachers' Outputs
    reads: Sequence[str] = ()  # the maps of the Outputs that the loss reads, of MAPS
    runs_student: bool = True  # False: the loss reads the first teacher alone, whose Output is given in its place
    train_mode: bool = True  # False: the student stays in eval mode, its BatchNorm statistics as they are
    update: type[Update] = Update  # the rule of descent

    @property
    def log(self) -> str:
        return f"{self.name}_log.csv" if self.name else "log.csv"


def only(output: Any, reads: Sequence[str]) -> Any:
    """The Output without the maps that nobody reads."""
    return output._replace(**{part: () for part in MAPS if part not in reads})


class Features(nn.Module):
    """A network that returns an Output with the maps that are read, and no others.

    A compiled network has to keep all that it returns, and its backward pass starts with zeros for what was not used.
    """

    def __init__(self, network: nn.Module, reads: Sequence[str]) -> None:
        super().__init__()
        self.network, self.reads = network, tuple(reads)

    def forward(self, images: Tensor) -> Any:
        return only(self.network(images, is_feat=True), self.reads)


def rows_of(images: Tensor) -> Tensor:
    """The images of a batch as the networks take them: [B, V, C, H, W] becomes [B * V, C, H, W]."""
    return images.flatten(0, 1) if images.dim() == 5 else images


class Step(nn.Module):
    """Student and loss: what of a step DDP must see as one module. Returns weighted terms and the student's logits."""

    def __init__(self, stage: Stage, student: nn.Module, criterion: nn.Module, precision: Precision) -> None:
        """student: as `Features`; criterion: what the stage's loss is made of."""
        super().__init__()
        self.student, self.criterion = student, criterion
        self.loss, self.runs_student, self.precision = stage.loss, stage.runs_student, precision

    def forward(self, batch: Any, t: Sequence[Any]) -> tuple[dict[str, Tensor], Tensor]:
        if self.runs_student:
            with self.precision.autocast():
                s = self.student(rows_of(batch.images))
        else:
            s = t[0]
        return self.loss(s, t, batch), s.logits.detach()


def parameter_groups(networks: Iterable[nn.Module], own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups for an optimiser: every parameter that requires a gradient once, those of the groups `own` in these."""
    own = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in own]
    taken = {id(p) for group in own for p in group["params"]}
    rest = {id(p): p for network in networks for p in network.parameters() if p.requires_grad and id(p) not in taken}
    return [{"params": list(rest.values())}, *(group for group in own if group["params"])]
