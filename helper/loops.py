"""The training loop, which serves teacher, initialisation, distillation, probe and several students at once."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from . import captured, progress
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
        return rows

    def finish(self, trainees: Iterable[Trainee]) -> None:
        """Those that have no epoch left write their result."""
        for trainee in trainees:
            if not trainee.next_stage:
                trainee.finish(self.val_batches, self.test_batches)

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
    if trainee.run.state and not trainee.opt.quiet:
        print(f"continuing {trainee.run.folder} {trainee.place}{progress.left(progress.seconds_left([trainee]))}")
    with trainee.run.open(trainee.device), Signals() as signals:
        fit_groups([group], signals)


def fit_groups(groups: list[Group], signals: Signals, waiting: int = 0) -> None:
    """The same for all trainees of all groups, whose runs are open. waiting: epochs of trainees that come later."""
    for group in groups:
        group.finish(group.trainees)  # who was interrupted between the last epoch and the end
    while any(trainee.next_stage for group in groups for trainee in group.trainees):
        for group in groups:
            group.choose()
        turn, start = [trainee for group in groups for trainee in group.turn], time.perf_counter()
        for group in groups:
            group.begin(len(turn))
        whole = not any(group.first for group in groups if group.turn)
        train(groups, signals, waiting)
        rows = [row for group in groups for row in group.end_epoch()]
        share = (time.perf_counter() - start) / len(rows) if rows else 0.0
        for trainee, stage, row in rows:  # of an epoch that was begun before, its log alone knows the time
            trainee.took[stage.log].append(share if whole else row["train_seconds"])
        if rows and not rows[0][0].opt.quiet:
            print(as_line(rows, seconds_left(groups, waiting)), flush=True)
        for group in groups:
            group.finish(group.turn)


def seconds_left(groups: list[Group], waiting: int) -> float | None:
    return progress.seconds_left([trainee for group in groups for trainee in group.trainees], waiting)


def train(groups: list[Group], signals: Signals, waiting: int) -> None:
    """One epoch, or what is left of it, of all groups: a step of each in turn."""
    shown = [trainee for group in groups for trainee in group.turn]
    label = shown[0].where if len(shown) == 1 else f"epoch {shown[0].epoch} of {len(shown)} students"

    def told() -> str:
        return progress.within_epoch([one.meters for one in shown]) + progress.left(seconds_left(groups, waiting))

    first, last = min(group.first for group in groups), max(len(group.batches) for group in groups)
    steps = zip_longest(*(group.steps() for group in groups))
    bar = progress.TrainingBar(steps, told, shown[0].opt.quiet, desc=label, total=last, initial=first)
    for _ in bar:
        turn = [trainee for group in groups for trainee in group.turn]
        if all(trainee.whole for trainee in turn) and (signal := signals.received()):
            begun = [trainee for trainee in turn if trainee.meters.steps]
            for trainee in begun:
                trainee.pause()
            place = f"step {begun[0].meters.steps} of {begun[0].when}" if begun else "the last checkpoint"
            raise Stopped(signal, f"{place}; the same command goes on there")


def as_line(rows: list[Row], remaining: float | None) -> str:
    """An epoch of one run, or of several that were trained at once."""
    trainee, stage, row = rows[0]
    if trainee.label:
        return progress.line_of_many([(trainee.label, row) for trainee, _, row in rows], remaining)
    return progress.line_of(row, progress.epoch_of(stage, row["epoch"]), remaining)
