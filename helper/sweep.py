"""`--sweep`: several students in one process, each with its own options and folder, as if it were trained alone."""

import argparse
import copy
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import nn

from dataset import Augment, ImageSet, Views, augmentation

from . import captured, checkpoint, parallel, progress
from .devices import free_memory_mb, used_memory_mb
from .interrupt import Signals
from .loading import images_of, test_batches, train_batches, val_batches
from .loops import Group, fit_groups
from .parsing import Parser, count
from .run import Run
from .step import Precision
from .teacher_cache import open_caches
from .teacher_memory import remembered
from .teachers import Teachers
from .trainee import Trainee
from .util import Failed, UserError, as_user_error, rng_state
from .validation import validate

# what all students of a sweep have in common, because they share it
COMMON = "path_t model_t pretrained_t teacher_ahead cache_teacher cache_gb cache_dtype".split()
COMMON += "dataset data_folder image_size batch_size loader memory_gb num_workers limit_train limit_val".split()
COMMON += ["val_split", "accumulate"]
COMMON += "aug reprob mixup cutmix".split()
COMMON += "device amp compile graph deterministic sync_bn adjust_lr test_only resume save_folder run_log quiet".split()
MEASURED_STEPS = captured.WARM_UPS + 2  # of the first student's optimiser, which say how much memory one takes
ROOM = 0.8  # of the free memory that students may take


class Job(NamedTuple):
    """A student that is to be trained."""

    item: str
    trial: str  # where --seed or the item gives one
    opt: argparse.Namespace

    @property
    def label(self) -> str:
        return f"{self.item} #{self.trial}" if self.trial else self.item


def add_options(parser: Parser) -> None:
    group = parser.add_argument_group("several students at once")
    group.add_argument(
        "--sweep",
        metavar="ITEMS",
        help='"none; kd; crd -a 1": values of --distill with options of their own, or a file',
    )
    group.add_argument(
        "--at_once", type=count, metavar="N", help="students in memory; default: as many as there is room"
    )


def items(text: str) -> list[list[str]]:
    """The words of each item: items are parted by `;` or the ends of lines, of a file those that # does not begin."""
    with as_user_error(f"--sweep {text!r}"):
        if os.path.isfile(text):
            text = "\n".join(line for line in Path(text).read_text().splitlines() if not line.lstrip().startswith("#"))
        found = [shlex.split(item) for item in text.replace("\n", ";").split(";")]
    return [words for words in found if words]


def shown(words: list[str], seed: int | None) -> tuple[str, str]:
    """The item as people know it, and its trial: the run's name says no more than they do."""
    rest, trial = list(words), "" if seed is None else str(seed)
    for flag in ("--run_name", "--trial", "-t"):
        while flag in rest[:-1]:
            place = rest.index(flag)
            trial = trial if flag == "--run_name" else rest[place + 1]
            del rest[place : place + 2]
    return shlex.join(rest), trial


def jobs(parse: Callable[[list[str]], argparse.Namespace], argv: list[str] | None) -> list[Job]:
    """What the command line asks for: with --sweep a job for each item and seed, else one.

    Raises UserError for what the students of a sweep cannot have each for itself.
    """
    argv = sys.argv[1:] if argv is None else argv
    opt = parse(argv)
    if not opt.sweep:
        if opt.at_once:
            raise UserError("--at_once has no effect without --sweep")
        return [Job("", "", opt)]
    if opt.test_only is not None:
        raise UserError("--sweep: --test_only takes one student")
    seeds = opt.seed if isinstance(opt.seed, list) else [opt.seed]
    found = []
    for words in items(opt.sweep):
        for seed in seeds:
            own = ["--sweep=", "--distill", *words]
            own += [f"--seed={seed}", f"--trial={seed}"] if seed is not None else []
            with naming(shlex.join(words)):
                one = parse([*argv, *own])
            one.sweep = opt.sweep
            for key in COMMON:
                if getattr(one, key) != getattr(opt, key):
                    raise UserError(f"--sweep {shlex.join(words)!r}: --{key} is the same for all students")
            found.append(Job(*shown(words, seed), one))
    if not found:
        raise UserError(f"--sweep {opt.sweep!r}: names no student")
    return found


@contextmanager
def naming(item: str) -> Iterator[None]:
    """Lets an error say of which item it is; empty: there is no sweep."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--sweep {item!r}: {error}" if item else str(error)) from None


def check_device(device: torch.device) -> None:
    if parallel.is_distributed() or parallel.gpu_count(device) > 1:
        raise UserError("--sweep: expected one device; --device cuda:0 chooses one, torchrun starts several")


def check_network(network: nn.Module, size: tuple[int, int]) -> None:
    """Raises UserError for a network on the CPU that draws random numbers, of which there is one generator for all."""
    before, statistics = torch.get_rng_state(), {key: x.clone() for key, x in network.state_dict().items()}
    network.train()(torch.zeros(2, 3, *size))
    network.load_state_dict(statistics)
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    if drawn:
        raise UserError("--sweep: the student draws random numbers as it trains (dropout); train it alone")


class Shared:
    """What all students have in common: images, teachers, and groups of those that see the same batches."""

    def __init__(
        self, opt: argparse.Namespace, data: ImageSet, teachers: Sequence[nn.Module], device: torch.device
    ) -> None:
        self.opt, self.data, self.teachers, self.device = opt, data, teachers, device
        self.val_batches, self.test_batches = val_batches(opt, data, device), test_batches(opt, data, device)
        self.precision = Precision(opt.amp, device)
        self.asked = Teachers(teachers, self.precision, ahead=opt.teacher_ahead, compiled=opt.compile, graph=opt.graph)
        self.groups: dict[Hashable, Group] = {}
        self.augments: dict[Hashable, Augment] = {}
        self.accuracies: list[float] = []

    def augment(self, seed: int) -> Augment:
        """The views that methods make theirs of. Images in memory are there once; those in files are read by seed."""
        key = None if isinstance(self.data.train_images, torch.Tensor) else seed
        if key not in self.augments:
            self.augments[key] = augmentation(self.data, self.device, self.opt.aug, self.opt.reprob)
        return self.augments[key]

    def group(self, trainee: Trainee, views: Augment | Views) -> Group:
        """The group of the trainee, which it joins later: that of its seed and of the very same views."""
        opt = trainee.opt
        key = opt.seed, id(views)  # the group holds the views, so that no others get their number
        if key not in self.groups:
            teachers = copy.copy(self.asked)
            if opt.cache_teacher:
                teachers.caches = open_caches(opt, self.teachers, views, self.data, self.device)
            batches = train_batches(opt, self.data, views, self.device)
            self.groups[key] = Group(batches, self.val_batches, self.test_batches, teachers)
        asked = any(stage.asks_teachers for stage in trainee.stages)
        if asked and trainee.next_stage and "teacher_acc" not in trainee.facts:
            found = self.teacher_accuracies(trainee.run.made_of["data"])
            trainee.facts["teacher_acc"] = found if len(found) > 1 else found[0]
        return self.groups[key]

    def teacher_accuracies(self, images: dict[str, Any]) -> list[float]:
        """Of each teacher, in percent. images: their digests, as of `identity.of`."""
        if self.accuracies:
            return self.accuracies
        opt, device = self.opt, self.precision.device.type
        tested = self.test_batches or self.val_batches  # what was set apart, teachers may have been trained on
        common = {key: digest for key, digest in images.items() if key.startswith("val ")}
        common |= {"shown": images_of(self.data), "amp": opt.amp, "device": device, "torch": torch.__version__}
        bar = progress.Bar("teacher's validation", opt.quiet)
        for teacher, network in zip(self.teachers, opt.model_t, strict=True):

            def measure(teacher: nn.Module = teacher) -> float:
                return validate(tested, teacher, self.precision, bar)["val_acc"]

            about = common | {"weights": checkpoint.hashed(sorted(teacher.state_dict().items()))}
            self.accuracies.append(remembered(opt.save_folder, network, about, measure))
        if not opt.quiet:
            print("teacher accuracy: " + ", ".join(f"{acc:.2f} %" for acc in self.accuracies))
        return self.accuracies


def train(
    waiting: Sequence[Any], build: Callable[[Any], tuple[Group, Trainee]], finished: Callable[[Trainee], None]
) -> None:
    """Trains all, as many at once as --at_once says or as there is room for.

    waiting: each with a `job` and a `run`; build: the student of one, and the group that it may join; finished: what
    comes when it has its result. Those that fail are told by `report`.
    """
    queue = deque(waiting)
    at_once = queue[0].job.opt.at_once
    with Signals() as signals:
        while queue:
            with ExitStack() as stack:
                groups, here, places = [], [], []
                while queue and len(here) < (at_once or 1):
                    one = queue.popleft()
                    try:
                        group, trainee = build(one)
                    except UserError as error:
                        one.run.failed = str(error)
                        print(f"{one.job.label}: error: {error}", flush=True)
                        continue
                    trainee.label, trainee.rng, group.tolerant = one.job.label, rng_state(), True
                    places += [trainee.place] if trainee.run.state else []
                    stack.enter_context(trainee.run.open(trainee.device))
                    group.trainees.append(trainee)
                    here.append(trainee)
                    groups += [group] if group not in groups else []
                    if at_once is None and queue:
                        at_once = room(group, trainee)
                left = sum(epochs_of(one) for one in queue)
                if places and not here[0].opt.quiet:
                    print(resumed(places, len(here)) + progress.left(progress.seconds_left(here, left)), flush=True)
                fit_groups(groups, signals, left)
                for trainee in here:
                    if not trainee.run.failed:
                        finished(trainee)
                for group in groups:
                    group.trainees.clear()
    refused = [one.run for one in waiting if one.run.failed and not one.run.lock]
    for run in refused if len(refused) < len(waiting) else ():  # where none was trained, nothing is written
        run.fail(run.failed)


def epochs_of(one: Any) -> int:
    """That are left of a student who waits."""
    done = one.run.state["done"] if one.run.state else {}
    return one.job.opt.epochs - done.get("log.csv", 0)


def resumed(places: Sequence[str], students: int) -> str:
    """places: where those go on that were begun before."""
    different = list(dict.fromkeys(places))
    more = ", ..." if len(different) > 2 else ""
    return f"continuing {len(places)} of {students} students {', '.join(different[:2])}{more}"


def room(group: Group, trainee: Trainee) -> int | None:
    """How many students like this one there may be, itself included. Its first steps are trained to see what one takes;
    None: no step was left of its epoch."""
    before = used_memory_mb(trainee.device)
    group.choose()
    group.begin(together=1)
    steps = group.steps()
    made = sum(1 for _ in zip(range(MEASURED_STEPS * trainee.opt.accumulate), steps, strict=False))
    steps.close()
    taken = max(used_memory_mb(trainee.device) - before, 1.0)
    return 1 + int(ROOM * free_memory_mb(trainee.device) / taken) if made else None


def report(runs: list[tuple[Job, Run]]) -> None:
    """Prints a table in Markdown: a row an item, over its seeds: accuracy of the last epoch in percent, its deviation,
    and the best epoch's, of the test set. Raises Failed where some have no result."""
    items: dict[str, list[dict]] = {}
    for job, run in runs:
        if not run.failed:
            items.setdefault(job.item, []).append(run.summary)
    print("\n| student | seeds | last epoch | best epoch |\n| --- | --- | --- | --- |")
    for item, found in items.items():
        keys = ("test_acc", "best_test_acc") if "test_acc" in found[0] else ("last_acc", "best_acc")
        last, best = ([summary[key] for summary in found] for key in keys)
        deviation = f" ± {stdev(last):.2f}" if len(last) > 1 else ""
        print(f"| {item} | {len(last)} | {mean(last):.2f}{deviation} | {mean(best):.2f} |")
    print()
    failed = [f"{job.label}: {run.failed}" for job, run in runs if run.failed]
    if failed:
        raise Failed(f"{len(failed)} of {len(runs)} students have no result: {'; '.join(failed)}")
