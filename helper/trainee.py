"""One student in training: its run's folder, network, criterion, update, meters and slow weights."""

import argparse
import copy
import functools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import nn

from . import captured, checkpoint, optimizers, parallel, progress, sync_bn
from .devices import peak_memory_mb
from .labels import likelier
from .meters import Meters
from .run import Run, parsed
from .slow import SlowWeights
from .step import Features, Part, Precision, Stage, Step, only, parameter_groups
from .teachers import ready
from .util import Diverged, UserError, rng_state, set_rng_state
from .validation import predict, validate

RECENT = 5  # epochs whose time says how long the next ones take


class Networks(NamedTuple):
    """What a run trains, and what it looks at."""

    student: nn.Module
    criterion: nn.Module  # what the checkpoint keeps beside the student (adapters, banks); the stages' losses are its
    slow: SlowWeights | None = None  # what is validated and saved in the student's place
    beside: dict[str, nn.Module] = {}  # whose predictions are saved with the student's, by name


def on_own_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    """Queues what the method of a Trainee does on the device behind the trainee's other work."""

    @functools.wraps(method)
    def queued(self: "Trainee", *args: Any) -> Any:
        with captured.on(self.stream):
            return method(self, *args)

    return queued


class Trainee:
    """Goes through the stages of a run, from the step where it was interrupted.

    `step` is what every training step passes through. facts go into every checkpoint and into summary.json.
    rng: the global generators' states where other runs use them too; None: they are this run's.
    """

    rng: dict | None = None

    def __init__(
        self,
        run: Run,
        opt: argparse.Namespace,
        networks: Networks,
        stages: list[Stage],
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.run, self.opt, self.stages, self.facts, self.device = run, opt, stages, facts, device
        self.label = ""  # among several
        self.student, self.criterion, self.slow, self.beside = networks
        self.precision = Precision(opt.amp, device)
        if opt.sync_bn:
            sync_bn.sync_batch_norms(self.student, self.criterion)
        self.network = self.slow.network if self.slow else self.student  # what is validated, and saved as the result
        self.eval_network = ready(self.network, device, opt.compile)
        self.stream = captured.stream_for(device)
        self.record = captured.recorder(opt.graph, self.stream)
        unfit = [*self.criterion.not_capturable, *({opt.opt} & optimizers.NOT_CAPTURABLE)]
        if self.record and unfit:
            print(f"--graph auto: steps of {', '.join(unfit)} cannot be recorded and run as they are")
            self.record = None
        self.done = {stage.log: 0 for stage in stages}
        self.took = {stage.log: deque(maxlen=RECENT) for stage in stages}  # seconds of its last epochs
        self.best_acc, self.best_epoch, self.part = -1.0, 0, None
        self.stage: Stage | None = None
        self.within = False  # an epoch
        if run.state:
            with run.resume_errors():
                self._load(run.state)
        else:
            parallel.own_random_numbers(opt.seed)

    def _load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["fast"] if self.slow else state["model"])
        self.network.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        self.precision.scaler.load_state_dict(state["scaler"])
        rng = state["rng"]  # of each process; before there could be several, of the one
        set_rng_state(rng[parallel.rank() % len(rng)] if isinstance(rng, list) else rng)
        self.done = {log: int(state["done"][log]) for log in self.done}
        self.best_acc, self.best_epoch = float(state["best_acc"]), int(state["best_epoch"])
        self.facts = dict(state["facts"])
        if parts := state.get("parts"):
            if len(parts) != parallel.world_size():
                raise UserError(
                    f"{self.run.folder}: expected {len(parts)} processes, which it had when it was stopped within an "
                    f"epoch, found {parallel.world_size()}"
                )
            self.part = parts[parallel.rank()]
        for log, seconds in self.took.items():
            seconds.extend(row["train_seconds"] for row in parsed(self.run.logs.get(log, ""))[-RECENT:])

    @property
    def next_stage(self) -> Stage | None:
        """The stage that has epochs left; None: the training is over."""
        return next((stage for stage in self.stages if self.done[stage.log] < stage.epochs and not self.stale), None)

    @property
    def stale(self) -> bool:
        """Whether `--early_stop` ends the training, whose last epochs were none the best."""
        patience = self.opt.early_stop
        return patience is not None and self.done["log.csv"] - self.best_epoch >= patience

    @property
    def epoch(self) -> int:
        """The epoch that is to be trained, within its stage."""
        stage = self.next_stage
        return self.done[stage.log] + 1 if stage else 0

    @property
    def when(self) -> str:
        return f"{self.stage.name} epoch {self.epoch}".lstrip()

    @property
    def where(self) -> str:
        """The epoch that is to be trained, of how many."""
        return progress.epoch_of(self.next_stage, self.epoch)

    @property
    def place(self) -> str:
        """Where the training goes on, before it does."""
        steps = self.part["meters"]["steps"] if self.part else 0
        if not self.next_stage:
            return "after its last epoch"
        return (f"after step {steps} of " if steps else "at ") + self.where

    def epochs_left(self) -> dict[str, float]:
        """Of each stage, by its log."""
        if not self.next_stage:
            return {}
        found = {stage.log: float(stage.epochs - self.done[stage.log]) for stage in self.stages}
        if self.within:
            found[self.stage.log] -= self.meters.steps / len(self.sizes)
        return found

    def pace(self) -> dict[str, float]:
        """Seconds that an epoch takes in each stage that was measured, by its log: as the last ones did, else as the
        steps of this one do."""
        found = {log: mean(seconds) for log, seconds in self.took.items() if seconds}
        if self.within and self.meters.steps:
            found.setdefault(self.stage.log, self.meters.seconds * len(self.sizes) / self.meters.steps)
        return found

    @property
    def averaged(self) -> bool:
        """Whether slow weights follow in this stage."""
        return self.slow is not None and not self.stage.name

    # ---- a stage and an epoch begin ----

    @on_own_stream
    def begin_epoch(self, sizes: Sequence[int], together: int) -> None:
        """sizes: samples of each step of the epoch; together: how many are trained at once."""
        if not self.within:
            self._begin_epoch(sizes)
        self.meters.share(together)

    def _begin_epoch(self, sizes: Sequence[int]) -> None:
        self.within, stage = True, self.next_stage
        if self.stage is not stage:
            self._begin_stage(stage)
        self.sizes = sizes
        self.rate = stage.rate(self.epoch) * (parallel.world_size() if self.opt.adjust_lr else 1)
        self.update.set_rate(self.rate)
        self.meters.begin(self.part and self.part["meters"])
        self.part = None
        self.student.train(stage.train_mode)
        self.criterion.train()
        self.criterion.set_epoch(self.epoch)

    def _begin_stage(self, stage: Stage) -> None:
        if self.stage:  # a parameter that the new stage leaves alone must have no gradient
            self.update.optimizer.zero_grad(set_to_none=True)
        self.stage = stage
        groups = parameter_groups([self.student, self.criterion], self.criterion.groups())
        self.update = stage.update(groups, self.precision, self.opt)
        self.meters = Meters(self.device)
        features = ready(Features(self.student, stage.reads), self.device, self.opt.compile)
        self.forward = parallel.ddp(Step(stage, features, self.criterion, self.precision))
        self.compute = self._compute
        if self.record:
            self.compute = captured.Captured(self._compute, self.record, self._numbers, self.criterion.generators)
        if self.averaged and not self.done[stage.log] and not self.part:
            self.slow.restart(self.student)
        if self.run.state and self.run.state["stage"] == stage.log:
            with self.run.resume_errors():
                self.update.optimizer.load_state_dict(self.run.state["optimizer"])
                if self.part:
                    own = parallel.batch_norm_buffers(self.student, self.network, self.criterion)
                    for buffer, saved in zip(own, self.part["norms"], strict=True):
                        buffer.copy_(saved)

    # ---- a step ----

    @on_own_stream
    def step(self, batch: Any, t: tuple[Any, ...]) -> None:
        """One step on a batch of which the teachers say t."""
        t = tuple(only(output, self.stage.reads) for output in t) if self.stage.asks_teachers else ()
        part, steps, every = self.next_part, len(self.sizes), self.opt.accumulate
        self.compute(batch._replace(drawn=None), t, part)
        self.meters.count(batch.total)
        number, of_all = self.meters.steps, (self.epoch - 1) * steps + self.meters.steps
        if self.averaged and part.last:
            self.slow.update(self.student, (self.epoch - 1) * -(-steps // every) + -(-number // every))
        if number % self.opt.print_freq == 0 or number % self.opt.tb_freq == 0:
            means = self.meters.read(self.when)
            if number % self.opt.tb_freq == 0:
                label = f"{self.stage.name} step_".lstrip()
                self.run.scalars.log({label + name: value for name, value in means.items()}, of_all)
        save = self.opt.save_steps  # gradients are not saved: where they add up, the first whole update after that is
        if save and part.last and number // save > (number - every) // save and number < steps:
            self.pause()

    @property
    def whole(self) -> bool:
        """Whether no gradients wait for more steps."""
        return self.meters.steps % self.opt.accumulate == 0 or self.meters.steps == len(self.sizes)

    @property
    def next_part(self) -> Part:
        """What the next step is of an update; the last update of an epoch may have fewer of them."""
        every, number = self.opt.accumulate, self.meters.steps
        start = number - number % every
        sizes = self.sizes[start : start + every]
        return Part(self.sizes[number] / sum(sizes), number == start, number + 1 == start + len(sizes))

    def _compute(self, batch: Any, t: tuple[Any, ...], part: Part) -> None:
        """What of a step is recorded: it reads and changes tensors alone."""
        with parallel.no_sync(self.forward, not part.last):
            terms, logits = self.forward(batch, t)
            self.update.step(terms, part)
        self.meters.add(terms, logits[:: len(logits) // len(batch.labels)], likelier(batch), batch.total)

    def _numbers(self) -> tuple[float, ...]:
        """What a recorded step has as constants."""
        return *self.update.rates(), *self.criterion.numbers()

    # ---- what is kept of it ----

    @on_own_stream
    def pause(self) -> None:
        """Saves the run within the epoch, where its last step has left all as it should be."""
        self.meters.read(self.when)
        self._check(f"{self.when}, step {self.meters.steps}", self.student, self.criterion)
        norms = [buffer.cpu() for buffer in parallel.batch_norm_buffers(self.student, self.network, self.criterion)]
        self._save({"parts": parallel.all_gather({"meters": self.meters.state(), "norms": norms})})

    @on_own_stream
    def end_epoch(self, val_batches: Iterable) -> dict[str, Any]:
        """Validates, writes the epoch's row, and saves the run. Returns the row."""
        means, seconds = self.meters.read(self.when), self.meters.seconds
        row = {"epoch": self.epoch, "lr": self.rate, "train_loss": means["loss"], "train_acc": means["acc"]}
        row |= {"train_seconds": round(seconds, 3), "images_per_second": round(self.meters.images / seconds, 1)}
        row |= {f"loss_{name}": means[name] for name in self.meters.names}
        parallel.sync_buffers(self.student, self.network, self.criterion)
        stage = self.stage
        if not stage.name:
            row |= validate(val_batches, self.eval_network, self.precision, progress.Bar("validation", self.opt.quiet))
            if not row["val_loss"] < float("inf"):
                raise Diverged(f"{self.when}: the validation loss is {row['val_loss']} after the last step")
        self._check(self.when, self.student, self.network, self.criterion)
        row["peak_memory_mb"] = round(peak_memory_mb(self.device), 1)

        self.run.log(stage.log, row)
        weights = {"model": self.network.state_dict(), "epoch": row["epoch"], **self.facts}
        self.done[stage.log], self.within = row["epoch"], False
        if not stage.name:
            if row["val_acc"] > self.best_acc:
                self.best_acc, self.best_epoch = row["val_acc"], row["epoch"]
                self.run.save("best.pth", weights | {"accuracy": row["val_acc"]})
            if row["epoch"] % self.opt.save_freq == 0:
                self.run.save(f"ckpt_epoch_{row['epoch']}.pth", weights | {"accuracy": row["val_acc"]})
        self._save({})
        return row

    def _save(self, more: dict[str, Any]) -> None:
        """Writes last.pth."""
        state = {"model": self.network.state_dict(), "epoch": self.done[self.stage.log], **self.facts}
        state |= {"stage": self.stage.log, "done": self.done, "best_acc": self.best_acc}
        state |= {"best_epoch": self.best_epoch, "facts": self.facts}
        state |= {"criterion": self.criterion.state_dict(), "optimizer": self.update.optimizer.state_dict()}
        rng = self.rng or rng_state(parallel.world_size() == 1)
        state |= {"scaler": self.precision.scaler.state_dict(), "rng": parallel.all_gather(rng)}
        if self.slow:
            state["fast"] = self.student.state_dict()
        self.run.save("last.pth", state | more)

    def _check(self, when: str, *networks: nn.Module) -> None:
        """Raises Diverged where the last step has left what no later step shows in time, and no checkpoint may hold."""
        state = [(k, x) for network in networks for k, x in network.state_dict().items() if x.is_floating_point()]
        finite = torch.stack([x.isfinite().all() for _, x in state])
        if not finite.all():
            raise Diverged(f"{when}: {state[int(finite.int().argmin())][0]} is not finite after the last step")
        if self.precision.scaler.get_scale() < 2**-16:
            raise Diverged(
                f"{when}: the gradients overflow in fp16 even when they are scaled down to 1/65536; try --amp bf16"
            )

    @on_own_stream
    def finish(self, val_batches: Iterable, test_batches: Iterable | None = None) -> None:
        """Writes the run's result. test_batches: what it has not been validated on."""
        if self.opt.save_predictions:
            batches = test_batches or val_batches
            for name, net in {"": self.network, **self.beside}.items():
                self.run.save_predictions(name, predict(batches, net, self.precision), batches.classes, batches.paths)
        found = {"weights": checkpoint.digest({"model": self.network.state_dict()})}
        if self.opt.early_stop is not None:
            found["stopped_early"] = self.done["log.csv"] < self.stages[-1].epochs
        if test_batches:
            found |= self._test(test_batches)
        self.run.finish(self.facts | found)
        if not self.label and not parallel.rank():
            self.run.report()

    def _test(self, test_batches: Iterable) -> dict[str, float]:
        """How the last weights do on the test set, and those of the best epoch."""
        bar = progress.Bar("test", self.opt.quiet)
        last = validate(test_batches, self.eval_network, self.precision, bar)
        best = last
        if self.best_epoch < self.done["log.csv"]:
            network = copy.deepcopy(self.network)
            network.load_state_dict(checkpoint.load(self.run.folder / "best.pth", "the run's")["model"])
            best = validate(test_batches, parallel.data_parallel(network, self.device), self.precision, bar)
        return {"test_acc": last["val_acc"], "test_acc_top5": last["val_acc_top5"], "best_test_acc": best["val_acc"]}
