"""The training loop, which serves teacher, initialisation, distillation, probe and several students at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from tqdm import tqdm

from . import captured, parallel
from .interrupt import Signals
from .step import MAPS, Stage
from .teachers import Teachers
from .trainee import Trainee
from .util import Diverged, Stopped

Row = tuple[Trainee, Stage, dict[str, Any]]


@dataclass(eq=False)
class Group:
    """Trainees that see the same batches, and share what the teachers say of them.

    test_batches: what is seen once, at the end, where val_batches are of another set. tolerant: where one of them
    diverges, it drops out and the others go on.
    """

    batches: Any
    val_batches: Iterable
    test_batches: Iterable | None = None
    teachers: Teachers | None = None
    trainees: list[Trainee] = field(default_factory=list)
    tolerant: bool = False
    turn: list[Trainee] = field(default_factory=list)  # who trains in this epoch

    def choose(self) -> None:
        """Gives the turn to those whose next epoch is the lowest: the others wait until these have caught up."""
        left = [trainee for trainee in self.trainees if trainee.next_stage]
        self.epoch = min((trainee.epoch for trainee in left), default=0)
        self.turn = [trainee for trainee in left if trainee.epoch == self.epoch]

    def begin(self, together: int) -> None:
        for trainee in self.turn[:1]:
            captured.wait_for_all(trainee.device)  # networks and images were made on the default stream
        for trainee in self.turn:
            trainee.begin_epoch(self.batches.sizes, together)
        self.first = min((trainee.meters.steps for trainee in self.turn), default=len(self.batches))

    def steps(self) -> Iterator[None]:
        """Trains the epoch, a step each time. Who was stopped within it joins in where that was."""
        if not self.turn:
            return
        asking = [trainee.stage.reads for trainee in self.turn if trainee.stage.asks_teachers]
        reads = [part for part in MAPS if any(part in each for each in asking)] if asking else None
        streams = [trainee.stream for trainee in self.turn]
        teachers = self.teachers or Teachers([], self.turn[0].precision)
        answers = teachers.answers(self.batches, self.epoch, self.first, reads, streams)
        for number, (batch, t) in enumerate(answers, self.first + 1):
            for trainee in list(self.turn):
                if trainee.meters.steps < number:
                    self.attempt(trainee, trainee.step, batch, t)
            yield

    def end_epoch(self) -> list[Row]:
        rows = []
        for trainee in list(self.turn):
            stage = trainee.stage
            if row := self.attempt(trainee, trainee.end_epoch, self.val_batches):
                rows.append((trainee, stage, row))
                if not trainee.next_stage:
                    trainee.finish(self.val_batches, self.test_batches)
        return rows

    def attempt(self, trainee: Trainee, act: Callable[..., Any], *given: Any) -> Any:
        """act(*given), or None where the trainee diverges and drops out."""
        try:
            return act(*given)
        except Diverged as error:
            trainee.run.fail(str(error))
            if not self.tolerant:
                raise
            self.turn.remove(trainee)
            self.trainees.remove(trainee)
            print(f"{trainee.label}: error: {error}; it drops out, its last checkpoint stays", flush=True)


def fit(trainee: Trainee, group: Group) -> None:
    """Trains one run to its end, from the step where it was interrupted, and writes its result.

    Raises Stopped, after saving, for SIGTERM and Ctrl-C.
    """
    group.trainees.append(trainee)
    with trainee.run.open(trainee.device), Signals() as signals:
        fit_groups([group], signals)


def fit_groups(groups: list[Group], signals: Signals) -> None:
    """The same for all trainees of all groups, whose runs are open."""
    for group in groups:
        for trainee in group.trainees:
            if not trainee.next_stage:  # it was interrupted between its last epoch and its end
                trainee.finish(group.val_batches, group.test_batches)
    while any(trainee.next_stage for group in groups for trainee in group.trainees):
        for group in groups:
            group.choose()
        together = sum(len(group.turn) for group in groups)
        for group in groups:
            group.begin(together)
        train(groups, signals)
        rows = [row for group in groups for row in group.end_epoch()]
        if rows:
            print(as_line(rows), flush=True)


def train(groups: list[Group], signals: Signals) -> None:
    """One epoch, or what is left of it, of all groups: a step of each in turn."""
    shown = [trainee for group in groups for trainee in group.turn]
    label = shown[0].when if len(shown) == 1 else f"epoch {shown[0].epoch} of {len(shown)} students"
    first, steps = min(group.first for group in groups), max(len(group.batches) for group in groups)
    # disable=None: no bar where the output is no terminal
    quiet = True if parallel.rank() else None
    bar = tqdm(zip_longest(*(group.steps() for group in groups)), label, steps, False, disable=quiet, initial=first)
    for number, _ in enumerate(bar, first + 1):
        if number % shown[0].opt.print_freq == 0 and (means := shown[0].meters.means):
            bar.set_postfix(loss=f"{means['loss']:.3f}", acc=f"{means['acc']:.1f}")
        turn = [trainee for group in groups for trainee in group.turn]
        if all(trainee.whole for trainee in turn) and (signal := signals.asked()):
            begun = [trainee for trainee in turn if trainee.meters.steps]
            for trainee in begun:
                trainee.pause()
            place = f"step {begun[0].meters.steps} of {begun[0].when}" if begun else "the last checkpoint"
            raise Stopped(signal, f"{place}; the same command goes on there")


def as_line(rows: list[Row]) -> str:
    """An epoch of one run, or of several that were trained at once."""
    seconds = sum(row["train_seconds"] for _, _, row in rows)
    images = sum(row["train_seconds"] * row["images_per_second"] for _, _, row in rows)
    end = f"  {seconds:.1f} s  {images / max(seconds, 1e-3):.0f} images/s"
    trainee, stage, row = rows[0]
    if trainee.label:
        found = [
            f"{trainee.label} {row['val_acc']:.2f}" if "val_acc" in row
            else f"{trainee.label} ({stage.name} loss {row['train_loss']:.4g})"
            for trainee, stage, row in rows
        ]  # fmt: skip
        return f"epoch {row['epoch']}: {', '.join(found)}{end}"
    line = f"epoch {row['epoch']}/{stage.epochs}  lr {row['lr']:.4g}  loss {row['train_loss']:.4f}"
    if "val_acc" in row:
        line += f"  train {row['train_acc']:.2f}  val {row['val_acc']:.2f} (top-5 {row['val_acc_top5']:.2f})"
    else:
        line = f"{stage.name} {line}"
    return line + end
