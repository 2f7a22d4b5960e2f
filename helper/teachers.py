"""The frozen networks that are asked: one batch at a time, several batches at once, or from what a cache has kept."""

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import models
from dataset import ImageSet

from . import captured, checkpoint, loading, networks, parallel
from .step import Features, Precision, rows_of
from .util import UserError, as_user_error

Answered = tuple[Any, tuple[Any, ...]]  # a batch, and the Output of each teacher for it


def ready(network: nn.Module, device: torch.device, compiled: bool) -> nn.Module:
    """The network as it computes here: compiled for each size of batch, on all GPUs that the process drives."""
    if compiled:  # networks share a forward method, compiled for each of them, its modes and sizes of batches
        torch._dynamo.config.cache_size_limit = 64
        network = torch.compile(network, dynamic=False)
    return parallel.data_parallel(network, device)


class Teachers:
    """`answers` gives each batch with what the teachers say of it.

    ahead: batches that they are asked about at once. caches: a TeacherCache for each, or none. On one GPU the pass runs
    on a stream of its own, beside the steps that read its answers, and is recorded where `graph` is "auto".
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        precision: Precision,
        *,
        ahead: int = 1,
        compiled: bool = False,
        graph: str = "off",
    ) -> None:
        self.networks, self.precision, self.ahead, self.compiled = networks, precision, ahead, compiled
        self.caches: Sequence[Callable[..., Any]] = ()
        self.stream = captured.stream_for(precision.device)
        self.record = captured.recorder(graph, self.stream)
        self.passes: dict[tuple[str, ...], Callable[[Tensor], Any]] = {}  # by the maps that are read

    def answers(
        self, batches: Any, epoch: int, first: int, reads: Sequence[str] | None, readers: Sequence[Any] = ()
    ) -> Iterator[Answered]:
        """Steps first .. len(batches) - 1 of that epoch.

        reads: the maps of the Outputs that somebody reads; None: nobody asks the teachers. readers: streams that work
        on what is given. Batches are taken together from multiples of `ahead` on, wherever `first` is: a run that goes
        on asks the teachers as it did before.
        """
        start = first - first % self.ahead
        rest = batches.epoch(epoch, start)
        handover = Handover(self.stream, readers)
        waiting = deque()
        while True:
            with captured.on(self.stream):
                chunk = list(islice(rest, self.ahead))
                answered = list(zip(chunk, self.ask(chunk, reads, batches.batch_size), strict=True))
            waiting.append((answered, handover.made(answered)))
            if chunk and self.stream and len(waiting) == 1:
                continue  # while the steps work on a chunk, the next one is made
            answered, made = waiting.popleft()
            if not answered:
                return
            handover.give(made)
            yield from answered[max(first - start, 0) :]
            start += len(answered)

    @torch.no_grad()
    def ask(self, chunk: list[Any], reads: Sequence[str] | None, batch_size: int) -> list[tuple[Any, ...]]:
        """The Outputs of all teachers for each of the batches, which have `batch_size` samples or less."""
        if reads is None or not self.networks or not chunk:
            return [()] * len(chunk)
        images = [rows_of(batch.images) for batch in chunk]
        if self.caches:
            with self.precision.autocast():
                return [
                    tuple(cache(t, x, b) for cache, t in zip(self.caches, self.networks, strict=True))
                    for x, b in zip(images, chunk, strict=True)
                ]
        sizes = [len(x) for x in images]
        x = torch.cat(images) if len(images) > 1 else images[0]
        if self.ahead > 1 and (self.record or self.compiled):  # each size would be compiled and recorded anew
            views = sizes[0] // len(chunk[0].labels)
            x = F.pad(x, (0, 0) * 3 + (0, self.ahead * views * -(-batch_size // parallel.world_size()) - len(x)))
        outputs = self.passed(tuple(reads))(x)
        if self.record:
            outputs = tree_map(torch.clone, outputs)  # the next pass writes over them
        if self.ahead == 1:
            return [outputs]
        ends = list(accumulate(sizes))
        return [tree_map(lambda y, n=n, end=end: y[end - n : end], outputs) for n, end in zip(sizes, ends, strict=True)]

    def passed(self, reads: tuple[str, ...]) -> Callable[[Tensor], Any]:
        """The function of all teachers, which returns these maps."""
        if reads not in self.passes:
            networks = [ready(Features(t, reads), self.precision.device, self.compiled) for t in self.networks]

            def ask(x: Tensor) -> tuple[Any, ...]:
                with self.precision.autocast():
                    return tuple(network(x) for network in networks)

            self.passes[reads] = captured.Captured(ask, self.record) if self.record else ask
        return self.passes[reads]


class Handover:
    """From the stream that makes batches and answers to those that read them; does nothing where there is none."""

    def __init__(self, stream: "torch.cuda.Stream | None", readers: Sequence["torch.cuda.Stream | None"]) -> None:
        self.stream, self.readers, self.passed = stream, readers if stream else (), []

    def made(self, answered: list[Answered]) -> "torch.cuda.Event | None":
        """Says what the readers will read, so that its memory is not taken before they have."""
        if not self.stream:
            return None
        tensors = [x for x in tree_leaves(answered) if isinstance(x, Tensor) and x.is_cuda]
        for x in {x.untyped_storage().data_ptr(): x for x in tensors}.values():
            for reader in self.readers:
                x.record_stream(reader)
        return self.stream.record_event()

    def give(self, made: "torch.cuda.Event | None") -> None:
        """Lets the readers begin. Their steps on the chunk before the last one are waited for, so that the program is
        never more than two chunks ahead of the device, and of its memory."""
        for event in self.passed:
            event.synchronize()
        self.passed = [reader.record_event() for reader in self.readers]
        for reader in self.readers:
            reader.wait_event(made)


def named_teachers(opt: argparse.Namespace) -> tuple[str, list[str]]:
    """The flag that names the teachers, and what it names."""
    return ("--pretrained_t", opt.model_t) if opt.pretrained_t else ("--path_t", opt.path_t or [])


def load_teachers(opt: argparse.Namespace, told: dict[str, Any]) -> list[dict]:
    """Reads the teachers' files, {} for one that is gone, and settles which networks they are.

    told: options of the run that is there, which may know that too.
    """
    if opt.pretrained_t:
        opt.model_t = [models.at_own_size(name) for name in opt.model_t]
    if not opt.path_t:
        return []
    states = [checkpoint.load_if_there(path, "--path_t") for path in opt.path_t]
    if opt.model_t and len(opt.model_t) != len(states):
        raise UserError(f"--model_t: expected a network for each of {len(states)} --path_t, found {len(opt.model_t)}")
    found = [checkpoint.find_name(*state, models.is_model) for state in zip(states, opt.path_t, strict=True)]
    known = told.get("model_t")
    if not all(states) and isinstance(known, list) and [type(name) for name in known] == [str] * len(found):
        found = [name or other for name, other in zip(found, known, strict=True)]
    opt.model_t = opt.model_t or found
    if None in opt.model_t:
        path = checkpoint.existing(opt.path_t[opt.model_t.index(None)], "--path_t", "last.pth")
        raise UserError(f"--path_t {path}: neither the file nor its folder's name says its network; give --model_t")
    for name, state, path in zip(opt.model_t, states, opt.path_t, strict=True):
        if state:
            networks.sketch(name, state, "--path_t", path)
    return states


def all_teachers(opt: argparse.Namespace, states: list[dict], runs: Sequence[Any]) -> list[dict]:
    """What the files hold, or else the published weights, which these runs note.

    Raises UserError where a file is gone, and where a run began with other published weights.
    """
    for path in opt.path_t or []:
        checkpoint.existing(path, "--path_t", "last.pth")
    if opt.pretrained_t:
        with as_user_error("--pretrained_t"):
            states = [models.published_weights(name) for name in opt.model_t]
        for run in runs:
            run.begins_with("pretrained_t", checkpoint.digests("--pretrained_t", opt.model_t, states))
    return states


def build_teachers(
    opt: argparse.Namespace, states: list[dict], data: ImageSet, device: torch.device
) -> list[nn.Module]:
    """The networks with these weights, frozen."""
    flag, paths = named_teachers(opt)
    teachers = []
    for state, name, path in zip(states, opt.model_t or [], paths, strict=False):
        teacher = networks.restore(name, state, flag, path, len(data.classes), loading.images_of(data))
        teachers.append(teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False))
    return teachers
