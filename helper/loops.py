"""The training loop, which serves teacher, initialisation, distillation and probe, and the validation loop."""

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, parallel
from .interrupt import Signals
from .meters import Meters
from .run import Run
from .slow import SlowWeights
from .util import Diverged, Stopped, UserError, peak_memory_mb, rng_state, set_rng_state


class Stage(NamedTuple):
    """A part of a run with an optimiser of its own."""

    name: str  # "" for the training that is validated, and whose last epoch is the result
    epochs: int
    loss: Callable[..., dict[str, Tensor]]  # (student's Output, teachers' Outputs, batch) -> weighted terms
    learning_rate: float
    decay_epochs: Sequence[int] = ()  # the rate falls after each of these
    teachers: Sequence[nn.Module] = ()  # empty: no term of the loss asks for them
    caches: Sequence[Callable[..., Any]] = ()  # of the teachers, (teacher, images, batch) -> its Output; empty: none
    runs_student: bool = True  # False: the loss reads the first teacher alone, whose Output is given in its place
    train_mode: bool = True  # False: the student stays in eval mode, its BatchNorm statistics as they are

    @property
    def log(self) -> str:
        return f"{self.name}_log.csv" if self.name else "log.csv"


class Precision:
    """`--amp`: what the networks compute in. Losses are float32 whatever this says."""

    def __init__(self, amp: str, device: torch.device) -> None:
        self.device, self.dtype = device, {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


class Step(nn.Module):
    """Networks and loss: what of a step DDP must see as one module. Returns weighted terms and the student's logits."""

    def __init__(
        self,
        stage: Stage,
        student: nn.Module,
        teachers: list[nn.Module],
        criterion: nn.Module,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.student, self.criterion = student, criterion
        # in a list, so that they are no part of what DDP trains
        self.teachers, self.loss, self.precision = teachers, stage.loss, precision
        self.caches, self.runs_student = stage.caches or [directly] * len(teachers), stage.runs_student

    def forward(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        images = batch.images.flatten(0, 1) if batch.images.dim() == 5 else batch.images
        with self.precision.autocast():
            s = self.student(images, is_feat=True) if self.runs_student else None
            with torch.no_grad():
                t = [answer(teacher, images, batch) for answer, teacher in zip(self.caches, self.teachers, strict=True)]
        s = s or t[0]
        return self.loss(s, t, batch), s.logits.detach()


def directly(teacher: nn.Module, images: Tensor, batch: Any) -> Any:
    return teacher(images, is_feat=True)


def fit(
    run: Run,
    stages: list[Stage],
    opt: argparse.Namespace,
    *,
    student: nn.Module,
    criterion: nn.Module,
    batches: Any,
    val_batches: Iterable,
    device: torch.device,
    facts: dict[str, Any],
    slow: SlowWeights | None = None,
    beside: dict[str, nn.Module] | None = None,
) -> None:
    """Trains the stages in order, from the step where the run was interrupted, and writes its result.

    `criterion` is what the checkpoint keeps beside the student (adapters, banks); the stages' losses are made of it.
    `facts` go into every checkpoint and into summary.json. `slow`: what is validated and saved in the student's place.
    `beside`: networks whose predictions are saved with the student's, by name.
    Raises Stopped, after saving, for SIGTERM and Ctrl-C.
    """
    precision = Precision(opt.amp, device)
    if opt.sync_bn:
        parallel.sync_batch_norms(student, criterion)

    if opt.compile:  # the networks share a forward method, compiled for each of them, its modes and sizes of batches
        torch._dynamo.config.cache_size_limit = 64

    def ready(network: nn.Module) -> nn.Module:
        # on a GPU each size of batch becomes a CUDA graph: one launch in the place of hundreds
        graphs = {"mode": "reduce-overhead", "dynamic": False} if device.type == "cuda" else {}
        return parallel.spread(torch.compile(network, **graphs) if opt.compile else network, device)

    network = ready(student)
    kept = slow.network if slow else student  # what is validated, and saved as the result
    tested = ready(kept) if slow else network
    done = {stage.log: 0 for stage in stages}
    best_acc, part = -1.0, None
    if run.state:
        with run.going_on():
            student.load_state_dict(run.state["fast"] if slow else run.state["model"])
            kept.load_state_dict(run.state["model"])
            criterion.load_state_dict(run.state["criterion"])
            precision.scaler.load_state_dict(run.state["scaler"])
            rng = run.state["rng"]  # of each process; before there could be several, of the one
            set_rng_state(rng[parallel.rank() % len(rng)] if isinstance(rng, list) else rng)
            done = {log: int(run.state["done"][log]) for log in done}
            best_acc, facts = float(run.state["best_acc"]), dict(run.state["facts"])
            if parts := run.state.get("parts"):
                if len(parts) != parallel.world():
                    raise UserError(
                        f"{run.folder}: expected {len(parts)} processes, which it had when it was stopped within an "
                        f"epoch, found {parallel.world()}"
                    )
                part = parts[parallel.rank()]
            passed = ", ".join(f"{n} epochs of {log}" for log, n in done.items())
            print(f"continuing {run.folder} after {passed}" + (f" and {part['meters']['steps']} steps" if part else ""))
    else:
        parallel.own_random_numbers(opt.seed)
    rate = parallel.world() if opt.adjust_lr else 1

    def keep(stage: Stage, optimizer: torch.optim.Optimizer, meters: Meters | None = None) -> None:
        """Writes last.pth. meters: of the epoch that has begun, where it is written within one."""
        state = {"model": kept.state_dict(), "epoch": done[stage.log], **facts}
        state |= {"stage": stage.log, "done": done, "best_acc": best_acc, "facts": facts}
        state |= {"criterion": criterion.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"scaler": precision.scaler.state_dict(), "rng": parallel.each(rng_state(parallel.world() == 1))}
        if slow:
            state["fast"] = student.state_dict()
        if meters:
            norms = [buffer.cpu() for buffer in parallel.own_statistics(student, kept, criterion)]
            state["parts"] = parallel.each({"meters": meters.state(), "norms": norms})
        run.save("last.pth", state)

    with run.open(device), Signals() as signals:
        for stage in stages:
            parameters = [p for p in (*student.parameters(), *criterion.parameters()) if p.requires_grad]
            optimizer = torch.optim.SGD(
                parameters,
                stage.learning_rate,
                momentum=opt.momentum,
                weight_decay=opt.weight_decay,
                nesterov=opt.nesterov,
                fused=True,
            )
            if opt.momentum:
                # the fused step would begin with stale memory, and leave it so where fp16 overflows
                for p in parameters:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
            teachers = [ready(teacher) for teacher in stage.teachers]
            forward = parallel.joined(Step(stage, network, teachers, criterion, precision))
            averaged = slow if not stage.name else None
            if averaged and not done[stage.log] and not part:
                averaged.restart(student)
            if run.state and run.state["stage"] == stage.log:
                with run.going_on():
                    optimizer.load_state_dict(run.state["optimizer"])
                    if part:
                        own = parallel.own_statistics(student, kept, criterion)
                        for buffer, saved in zip(own, part["norms"], strict=True):
                            buffer.copy_(saved)
            for epoch in range(done[stage.log] + 1, stage.epochs + 1):
                lr = rate * stage.learning_rate * opt.lr_decay_rate ** sum(epoch > e for e in stage.decay_epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                meters, part = Meters(device, part and part["meters"]), None
                pause = functools.partial(keep, stage, optimizer, meters)
                row = {"epoch": epoch, "lr": lr}
                row |= train(
                    run, stage, epoch, forward, student, criterion, batches, optimizer, precision, opt,
                    meters, signals, pause, averaged,
                )  # fmt: skip
                parallel.unite(student, kept, criterion)
                if not stage.name:
                    row |= validate(val_batches, tested, precision)
                    if not row["val_loss"] < float("inf"):
                        raise Diverged(f"epoch {epoch}: the validation loss is {row['val_loss']} after the last step")
                check(f"{stage.name} epoch {epoch}".lstrip(), precision, student, kept, criterion)
                row["peak_memory_mb"] = round(peak_memory_mb(device), 1)
                print(as_line(row, stage), flush=True)

                run.log(stage.log, row)
                done[stage.log] = epoch
                weights = {"model": kept.state_dict(), "epoch": epoch, **facts}
                if not stage.name:
                    if row["val_acc"] > best_acc:
                        best_acc = row["val_acc"]
                        run.save("best.pth", weights | {"accuracy": row["val_acc"]})
                    if epoch % opt.save_freq == 0:
                        run.save(f"ckpt_epoch_{epoch}.pth", weights | {"accuracy": row["val_acc"]})
                keep(stage, optimizer)
            optimizer.zero_grad(set_to_none=True)  # a parameter that the next stage leaves alone must have no gradient
        if opt.save_predictions:
            for name, net in {"": kept, **(beside or {})}.items():
                run.save_predictions(name, predict(val_batches, net, precision))
        run.finish(facts)


def train(
    run: Run,
    stage: Stage,
    epoch: int,
    forward: nn.Module,
    student: nn.Module,
    criterion: nn.Module,
    batches: Any,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    opt: argparse.Namespace,
    meters: Meters,
    signals: Signals,
    keep: Callable[[], None],
    slow: SlowWeights | None = None,
) -> dict[str, float]:
    """One epoch, or what the meters have not seen of it. Returns the training columns of its row.

    `keep` saves the run within the epoch, every --save_steps and, before Stopped is raised, for a signal.
    """
    student.train(stage.train_mode)
    criterion.train()
    criterion.set_epoch(epoch)
    label = f"{stage.name} " if stage.name else ""
    # disable=None: no bar where the output is no terminal
    quiet = True if parallel.rank() else None
    first, steps = meters.steps, len(batches)
    rest = batches.epoch(epoch, first)
    bar = tqdm(rest, f"{label}epoch {epoch}", steps, leave=False, disable=quiet, initial=first)
    for step, batch in enumerate(bar, first + 1):
        if opt.compile:
            torch.compiler.cudagraph_mark_step_begin()  # the graphs may write over the last step's outputs
        terms, logits = forward(batch)
        precision.step(sum(terms.values()), optimizer)
        if slow:
            slow.update(student, (epoch - 1) * steps + step)
        meters.add(terms, logits[:: len(logits) // len(batch.labels)], batch.labels, batch.total)
        if step % opt.print_freq == 0 or step % opt.tb_freq == 0:
            means = meters.read(epoch, label)
            bar.set_postfix(loss=f"{means['loss']:.3f}", acc=f"{means['acc']:.1f}")
            if step % opt.tb_freq == 0:
                points = {f"{label}step_{name}": value for name, value in means.items()}
                run.scalars.log(points, (epoch - 1) * steps + step)
        number = signals.asked()
        if number or (opt.save_steps and step % opt.save_steps == 0 and step < steps):
            meters.read(epoch, label)
            check(f"{label}epoch {epoch}, step {step}", precision, student, criterion)
            keep()
        if number:
            raise Stopped(number, f"step {step} of {label}epoch {epoch}; the same command goes on there")
    means = meters.read(epoch, label)
    seconds = meters.seconds
    return {
        "train_loss": means["loss"],
        "train_acc": means["acc"],
        "train_seconds": round(seconds, 3),
        "images_per_second": round(meters.images / seconds, 1),
    }


def check(when: str, precision: Precision, *networks: nn.Module) -> None:
    """Raises Diverged where the last step has left what no later step shows in time, and no checkpoint may hold."""
    state = [(k, x) for network in networks for k, x in network.state_dict().items() if x.is_floating_point()]
    finite = torch.stack([x.isfinite().all() for _, x in state])
    if not finite.all():
        raise Diverged(f"{when}: {state[int(finite.int().argmin())][0]} is not finite after the last step")
    if precision.scaler.get_scale() < 2**-16:
        raise Diverged(
            f"{when}: the gradients overflow in fp16 even when they are scaled down to 1/65536; try --amp bf16"
        )


@torch.no_grad()
def validate(val_batches: Iterable, model: nn.Module, precision: Precision) -> dict[str, float]:
    """Cross entropy and accuracy in percent over a whole set, of which each process has a part: each sample once."""
    model.eval()
    sums = torch.zeros(3, device=precision.device, dtype=torch.float64)
    images = 0
    for batch in val_batches:
        with precision.autocast():
            logits = model(batch.images)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1]), 1).indices == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
        images += len(batch.labels)
    sums = parallel.total(torch.cat([sums, sums.new_tensor([images])]))
    loss, top1, top5 = (sums[:3] / sums[3]).tolist()
    return {"val_loss": loss, "val_acc": 100.0 * top1, "val_acc_top5": 100.0 * top5}


def test(
    run: Run, name: str, network: nn.Module, val_batches: Iterable, opt: argparse.Namespace, device: torch.device
) -> None:
    """`--test_only`: says how the network does with the weights that the run has found; without any, as it is."""
    if run.state:
        checkpoint.load_weights(network, name, run.state, "--test_only", run.tested)
    row = validate(val_batches, parallel.spread(network, device), Precision(opt.amp, device))
    print(f"{run.tested}: loss {row['val_loss']:.4f}  top-1 {row['val_acc']:.2f} %  top-5 {row['val_acc_top5']:.2f} %")


@torch.no_grad()
def predict(val_batches: Iterable, model: nn.Module, precision: Precision) -> Tensor:
    """[N, 3] in the order of the set: label, predicted class, its probability."""
    model.eval()
    found = []
    for batch in val_batches:
        with precision.autocast():
            logits = model(batch.images)
        confidence, prediction = logits.float().softmax(1).max(1)
        found.append(torch.stack([batch.labels.double(), prediction.double(), confidence.double()], 1))
    return torch.cat(parallel.each(torch.cat(found).cpu()))


def as_line(row: dict[str, Any], stage: Stage) -> str:
    line = f"epoch {row['epoch']}/{stage.epochs}  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}"
    if "val_acc" in row:
        line += f"  train {row['train_acc']:.2f}  val {row['val_acc']:.2f} (top-5 {row['val_acc_top5']:.2f})"
    else:
        line = f"{stage.name} {line}"
    return f"{line}  {row['train_seconds']:.1f} s  {row['images_per_second']:.0f} images/s"
