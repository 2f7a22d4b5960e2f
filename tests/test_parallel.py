"""Several processes compute what one computes; a run of several processes goes on where it was killed.

Run as a script (by the test), this file is a process of its own that forks into the ranks.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.run
from conftest import QUICK, ROOT
from fakes import pair
from test_methods import DEEPER, EQUAL, SMALL, make_output
from test_resume import equal, results
from torch import Tensor, nn
from torch.nn.parallel import scatter_gather
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import crd  # noqa: F401  registers its methods
import dataset
import models
import train_teacher
from dataset.base import Batch, Shared
from dataset.batches import bounds
from distiller_zoo import KD, Output, find_method, method_names, method_options
from distiller_zoo.criterion import Criterion
from helper import parallel, sync_bn
from helper.step import MAPS, Features, Precision, Stage, Step
from helper.util import UserError
from helper.validation import predict, validate

CPU = torch.device("cpu")
HALF = ((0.5,) * 3, (0.5,) * 3)  # mean and deviation
VARIANTS = [
    ("at", {"at_p": 1, "at_stem": True}),
    ("catkd", {"catkd_normalise": True}),
    ("cc", {"cc_kernel": "gaussian"}),
    ("cd", {"cd_reduce": "mean"}),
    ("crd", {"memory_type": "queue", "enqueue": "before"}),
    ("crd", {"mode": "relax"}),
    ("eakd", {"eakd_form": "dkd"}),
    ("mgd", {"mgd_mask": "det"}),
    ("normkd", {"normkd_form": "dkd"}),
    ("sdd", {"sdd_form": "nkd", "sdd_cells": "1,2,4"}),
    ("wkd_f", {"wkd_grid": 2}),
    ("dp", {"dp_strategy": "flip-avg"}),
    ("fsp", {"fsp_norm": True}),
    ("ft_flat", {"ft_flat_norm": "l2"}),
    ("icd", {"icd_trainable": False}),
    ("kl", {"kl_k": 3}),
    ("mt", {"mt_choice": "most-conf"}),
    ("pkd", {"pkd_unit": True}),
    ("rrd", {"memory_type": "momentum"}),
    ("sfd", {"sfd_reduce": "mean", "sfd_norm": "max"}),
    ("sp", {"sp_maps": "all"}),
    ("sup", {"on_flip": "distill,distill,nothing"}),
    ("tfkd", {"tfkd_form": "reg"}),
    ("triplet", {"triplet_distance": "l2"}),
]
CASES = [(name, {}) for name in method_names()] + VARIANTS
KEYS = [" ".join([name, *map(str, options.values())]) for name, options in CASES]
WORLDS = (2, 3)


class Given(models.Network):
    """A network whose outputs are given and which scales each of their elements. An image's last pixel says whose."""

    def __init__(self, given: Output) -> None:
        super().__init__()
        self.fc = nn.Linear(given.pooled.shape[1], given.logits.shape[1]).requires_grad_(False)
        self.given = given
        self.scales = nn.ParameterList(torch.ones_like(x[0]) for x in tree_leaves(given))

    def forward(self, images: Tensor, is_feat: bool = True) -> Output:
        rows = images[:, -1, -1, -1].long()
        leaves, tree = tree_flatten(self.given)
        return tree_unflatten([x[rows] * scale for x, scale in zip(leaves, self.scales, strict=True)], tree)


def doubled(o: Output) -> Output:
    return tree_map(lambda x: x.detach().double(), o)


def close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * max(1.0, largest))


class Case:
    """A method in two steps of 7 and 8 samples, on given outputs, with all of its loss, cross entropy and KD."""

    def __init__(self, name: str, options: dict, init: bool) -> None:
        torch.manual_seed(0)
        cls = find_method(name)
        small = {key: SMALL[key] for key in method_options(cls) if key in SMALL}

        def build(shapes: list, views: int) -> tuple:
            s, t = (make_output(x, 8 * views, d, torch.float32) for x, d in ((EQUAL, 12), (shapes, 20)))
            return s, t, cls(pair(s, t), **small | options)

        try:
            s, t, method = build(DEEPER, 1)
        except ValueError:  # needs equal channels
            s, t, method = build(EQUAL, 1)
        augment = method.views(dataset.InMemory(torch.zeros(50, 3, 8, 8).byte(), *HALF))
        views = augment(torch.arange(2), augment.draw(2, torch.Generator())).shape[1:-3]
        if views:
            s, t, method = build(DEEPER, views[0])
        teachers = [Given(doubled(t)).requires_grad_(False)]
        if cls.all_teachers:
            other = make_output(EQUAL, len(t.logits), 20, torch.float32)
            teachers.append(Given(doubled(other)).requires_grad_(False))
        self.criterion = Criterion(0.5, 0.5, KD(pair(s, t)), {name: method}, [1.0]).double()
        self.student = method.wrap(Given(doubled(s))).double()
        loss = self.criterion.init if init else self.criterion
        self.teachers = teachers
        self.step = Step(Stage("", 1, loss, 0.1), Features(self.student, MAPS), self.criterion, Precision("off", CPU))
        self.batches = [self.batch(n, views) for n in (7, 8)]

    @staticmethod
    def batch(n: int, views: tuple[int, ...]) -> Batch:
        images = torch.randn(n, *views, 3, 8, 8, dtype=torch.float64)
        images[..., -1, -1, -1] = torch.arange(images.shape[:-3].numel()).view(images.shape[:-3]).double()
        index = torch.randperm(50)[:n]
        return Batch(images, index % 2, index)

    def run(self, forward: nn.Module, part: tuple[int, int] = (0, 1)) -> list[list[Tensor]]:
        """For each step the loss and the gradients."""
        found = []
        for batch in self.batches:
            own = share_out(batch, *part)
            terms, _ = forward(own, tuple(teacher(own.images.flatten(0, -4)) for teacher in self.teachers))
            loss = sum(terms.values())
            self.step.zero_grad(set_to_none=True)
            loss.backward()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.step.parameters()]
            value = loss.detach().clone()
            value = parallel.all_reduce(value) / part[1] if part[1] > 1 else value
            found.append([value, *(grad.clone() for grad in grads)])
        return found


def share_out(batch: Batch, rank: int, world: int) -> Batch:
    if world == 1:
        return batch
    cuts = bounds(len(batch.labels), world)
    whole = Shared(batch.labels, batch.index, tuple(b - a for a, b in pairwise(cuts)), rank)
    return Batch(*(x[cuts[rank] : cuts[rank + 1]] for x in batch[:3]), whole)


def as_one_process(name: str, options: dict, init: bool) -> None:
    one, many = Case(name, options, init), Case(name, options, init)
    expected = one.run(one.step)
    sync_bn.sync_batch_norms(many.step)
    found = many.run(parallel.ddp(many.step), parallel.rank_and_world_size())
    for step_found, step_expected in zip(found, expected, strict=True):
        for a, b in zip(step_found, step_expected, strict=True):
            close(a, b)
    remembered, wanted = many.criterion.state_dict(), one.criterion.state_dict()
    for key, value in wanted.items():
        close(remembered[key].double(), value.double())
    for key, values in zip(
        remembered, zip(*(r.values() for r in parallel.all_gather(remembered)), strict=True), strict=True
    ):
        assert all(torch.equal(value, values[0]) for value in values), f"{key} differs between processes"


def rank_main(rank: int, world: int, folder: Path) -> None:
    """All cases in this process; writes what went wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    wrong = {}
    for key, (name, options) in zip(KEYS, CASES, strict=True):
        try:
            as_one_process(name, options, init=False)
            if find_method(name).init_loss:
                as_one_process(name, options, init=True)
            wrong[key] = ""
        except Exception:
            wrong[key] = traceback.format_exc()
            if "differs between" not in wrong[key] and "assert_close" not in wrong[key]:
                break  # the others wait for what this one did not send
    (folder / f"{world}_{rank}.json").write_text(json.dumps(wrong))


def fork_ranks(folder: Path) -> None:
    import torch._dynamo  # noqa: F401  DDP loads it

    for world in WORLDS:
        children = []
        for rank in range(world):
            if (child := os.fork()) == 0:
                rank_main(rank, world, folder)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


@pytest.fixture(scope="module")
def compared(python, tmp_path_factory) -> dict[tuple[int, int], dict[str, str]]:
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([python, __file__, folder], check=True, cwd=ROOT, timeout=300)
    return {(w, r): json.loads((folder / f"{w}_{r}.json").read_text()) for w in WORLDS for r in range(w)}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("key", KEYS)
def test_processes_compute_what_one_computes(compared, key: str, world: int) -> None:
    """Losses, gradients and memory, in float64."""
    for rank in range(world):
        assert compared[world, rank].get(key, "not reached") == "", f"in process {rank}"


def ranks(python, world: int, *arguments: str, port: int, **environment: str) -> list[subprocess.Popen]:
    """The processes that torchrun would start, without it."""
    place = {"OMP_NUM_THREADS": "1"} | environment
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [python, *arguments], cwd=ROOT, env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip


def finished(processes: list[subprocess.Popen], status: int = 0) -> list[tuple[str, str]]:
    """What each has printed."""
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(said), said
    return said


def arguments(teacher: Path, save: Path, methods: str = "ab,crd -b 0,0.8 --init_epochs 1") -> list[str]:
    return ["train_student.py", *QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2",
            "--lr_decay_epochs", "1", "--mcl_tau", "0.5", "--save_predictions", "--save_folder", str(save),
            "--run_name", "r", "-a", "1", "--nce_k", "64", "--distill", *methods.split()]  # fmt: skip


def test_stopped_killed_and_started_again(python, teacher, tmp_path, port) -> None:
    """Two processes; SIGTERM reaches one of them, within an epoch; then one is killed; then torchrun starts them."""
    whole, broken = arguments(teacher, tmp_path / "whole"), arguments(teacher, tmp_path / "broken")
    said = finished(ranks(python, 2, *whole, port=port))
    assert "last epoch (2)" in said[0][0] and not said[1][0], "only the first process prints"
    killer = ["tests/killer.py", "SIGTERM", "helper.trainee:Trainee.step", "5"]
    said = finished(ranks(python, 2, *killer, *broken, port=port, KILLED_RANK="1"), status=143)
    assert "SIGTERM: stopped after step 2 of epoch 1;" in said[0][1] and "SIGTERM" not in said[1][1]
    said = finished(ranks(python, 3, *broken, port=port), status=2)
    assert "expected 2 processes, which it had when it was stopped within an epoch, found 3" in said[0][1]
    finished(ranks(python, 2, *broken, port=port, KILLED_IN="r:2"), status=137)
    folder = tmp_path / "broken" / "student_model" / "r"
    assert not (folder / "summary.json").exists()
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == 1
    run = [python, torch.distributed.run.__file__, "--standalone", "--nproc_per_node=2", "--no-python", python]
    done = subprocess.run([*run, *broken], cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0 and "continuing" in done.stdout, done.stderr
    found, expected = results(folder), results(tmp_path / "whole" / "student_model" / "r")
    for a, b in zip(found, expected, strict=True):
        assert equal(a, b)


PLACES = {
    "a step": ("helper.trainee:Trainee.step", 6),
    "validation": ("helper.trainee.validate", 1),
    "an initialisation": ("helper.trainee:Trainee.step", 2),
    "the teacher's validation": ("helper.sweep.validate", 1),
}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("where, lost", [*((where, 1) for where in PLACES), ("a step", 0)])
def test_a_process_is_killed_or_stopped(where, name, lost, python, teacher, tmp_path, port) -> None:
    """The other one says so and ends; one that was only stopped ends when it goes on."""
    place, when = PLACES[where]
    started = [__file__, "impatient", "4", name, place, str(when), *arguments(teacher, tmp_path)[1:]]
    both = ranks(python, 2, *started, port=port, KILLED_RANK=str(lost))
    pid = int(both[lost].stderr.readline())
    _, error = both[1 - lost].communicate(timeout=60)
    reasons = {"SIGKILL": "another process of this run has ended", "SIGSTOP": f"no sign of life of process {lost}"}
    assert both[1 - lost].returncode == 1 and reasons[name] in error and "Traceback" not in error
    if name == "SIGSTOP":
        os.kill(pid, signal.SIGCONT)
    _, error = both[lost].communicate(timeout=60)
    assert both[lost].returncode == (137 if name == "SIGKILL" else 1) and "Traceback" not in error, error


def test_a_process_waits_for_one_that_computes(python, teacher, tmp_path, port) -> None:
    """For longer than it would wait for one that was stopped."""
    busy = [__file__, "impatient", "4", "busy", "helper.trainee:Trainee.step", "2"]
    finished(ranks(python, 2, *busy, *arguments(teacher, tmp_path)[1:], port=port, KILLED_RANK="0"))
    assert (tmp_path / "student_model" / "r" / "summary.json").exists()


def test_synchronised_batch_norm_makes_it_the_run_of_one_process(python, teacher, tmp_path, port) -> None:
    """In float64, with an initialisation; --adjust_lr in two processes is twice the rate in one."""
    found = []
    for n, flags in ((1, "--learning_rate 0.002"), (2, "--learning_rate 0.001 --sync_bn --adjust_lr")):
        _, *run = arguments(teacher, tmp_path / str(n))
        finished(ranks(python, n, __file__, "float64", *run, "--epochs", "1", *flags.split(), port=port))
        folder = tmp_path / str(n) / "student_model" / "r"
        state, logs, summary, files = results(folder)
        rows = [{key: float(value or 0) for key, value in row.items()} for log in logs.values() for row in log]
        predictions = [line.split(",")[:3] for line in (folder / "predictions.csv").read_text().splitlines()]
        found.append((state, [row | {"lr": 0} for row in rows], predictions, files))
    (state_1, rows_1, *rest_1), (state_2, rows_2, *rest_2) = found
    assert rest_1 == rest_2 and len(rows_1) == len(rows_2) == 2 and len(rest_1[0]) == 51
    for row_1, row_2 in zip(rows_1, rows_2, strict=True):
        assert row_1 == pytest.approx(row_2, rel=1e-5)
    for part in ("model", "fast", "criterion"):
        for key, value in state_1[part].items():
            close(state_2[part][key].double(), value.double())


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--batch_size 4", "--batch_size 4: expected at least 2 samples for each of 3"),
        ("--device cuda:1", "cuda or cpu"),
    ],
)
def test_refused_under_torchrun(monkeypatch, capsys, flags: str, message: str) -> None:
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as stop:
        train_teacher.main(["--dataset", "digits", *flags.split()])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [10, 11, 12, 13, 16])
def test_shares_of_batches(n: int, world: int) -> None:
    """In order they are the batches of one process, whose last one may be too small for several."""
    images, labels = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8), torch.arange(n) % 5
    augment = dataset.InMemory(images, *HALF)
    one, *shares = (
        list(dataset.Batches(augment, labels, 8, seed=3, part=part).epoch(2))
        for part in [(0, 1), *((rank, world) for rank in range(world))]
    )
    assert len(shares[0]) == 1 + (n - 8 >= 2 * world)
    for whole, *parts in zip(one, *shares, strict=False):
        for field in range(3):
            assert torch.equal(torch.cat([part[field] for part in parts]), whole[field])
        assert sum(part.share for part in parts) == pytest.approx(world)
        assert all(part.total == len(whole.labels) for part in parts)
        if world > 1:
            assert all(torch.equal(part.whole.labels, whole.labels) for part in parts)
            assert all(torch.equal(part.whole.index, whole.index) for part in parts)
    both = (dataset.ValBatches(images, labels, 4, *HALF, device="cpu", part=(rank, world)) for rank in range(world))
    given = [batch for batches in both for batch in batches]
    assert torch.equal(torch.cat([batch.labels for batch in given]), labels)
    plain = dataset.ValBatches(images, labels, n, *HALF, device="cpu")
    assert torch.equal(torch.cat([batch.images for batch in given]), next(iter(plain)).images)


def test_too_small_shares() -> None:
    augment = dataset.InMemory(torch.zeros(9, 3, 8, 8).byte(), *HALF)
    with pytest.raises(ValueError, match="a batch of 5 leaves fewer than 2 samples for each of 3 processes"):
        dataset.Batches(augment, torch.zeros(9).long(), 5, seed=0, part=(0, 3))


class Chunks:
    """Stands in for the copies from one GPU to several."""

    @staticmethod
    def apply(devices, sizes, dim, x):
        return x.chunk(len(devices), dim)


class Joined:
    """And for those back."""

    @staticmethod
    def apply(device, dim, *parts):
        return torch.cat(parts, dim)


OTHERS = ["torchvision:resnet18", *(["timm:test_vit"] if importlib.util.find_spec("timm") else [])]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2_0.5", *OTHERS])
def test_data_parallel_on_stand_ins(name: str, monkeypatch) -> None:
    """torch's replicas in threads, scatter and gather, with the tensors left where they are: the Output is the same."""
    monkeypatch.setattr(scatter_gather, "Scatter", Chunks)
    monkeypatch.setattr(scatter_gather, "Gather", Joined)
    broadcast = "_broadcast_coalesced_reshape"
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, broadcast, lambda given, gpus, detach: [given for _ in gpus])
    torch.manual_seed(0)
    network = models.create_model(name, 10, models.Images((32, 32), *HALF)).double().eval()
    images = torch.randn(3, 3, 32, 32).double()
    with ThreadPoolExecutor() as pool:
        replicas, inputs = nn.parallel.replicate(network, [0, 1]), scatter_gather.scatter(images, [0, 1])
        parts = list(pool.map(lambda replica, x: replica(x, is_feat=True), replicas, inputs))
    found, expected = scatter_gather.gather(parts, 0), network(images, is_feat=True)
    assert type(found) is Output and [len(maps) for maps in found[1:3]] == [len(maps) for maps in expected[1:3]]
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)
    totals = (sum(x.square().sum() for x in tree_leaves(o)) for o in (found, expected))
    for a, b in zip(*(torch.autograd.grad(total, list(network.parameters())) for total in totals), strict=True):
        close(a, b)


def test_several_gpus_are_driven_by_one_process(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(parallel, "choose_device", lambda name, *_: torch.device(name))
    for name, flag, refused in [
        ("cuda", "compile", True), ("cuda", "sync_bn", True), ("cuda:1", "compile", False), ("cpu", "sync_bn", False)
    ]:  # fmt: skip
        opt = argparse.Namespace(
            device=name,
            amp="off",
            batch_size=8,
            deterministic=False,
            **{"compile": False, "sync_bn": False, flag: True},
        )
        if refused:
            with pytest.raises(UserError, match=f"--{flag}: one process drives 2 GPUs"):
                parallel.start(opt)
        else:
            assert parallel.gpu_count(parallel.start(opt)) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_data_parallel() -> None:
    torch.manual_seed(0)
    network = models.create_model("resnet8", 10).cuda().eval()
    images = torch.randn(5, 3, 32, 32, device="cuda")
    spread = parallel.data_parallel(network, torch.device("cuda"))
    assert isinstance(spread, nn.DataParallel)
    for a, b in zip(tree_leaves(spread(images, is_feat=True)), tree_leaves(network(images, is_feat=True)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_validation_counts_every_sample_once() -> None:
    """Shares of unequal sizes, added up: what `parallel.all_reduce` does between processes."""
    images, labels = torch.randint(256, (11, 3, 32, 32), dtype=torch.uint8), torch.arange(11) % 10
    network = models.create_model("resnet8", 10)
    parts = [(0, 1), (0, 3), (1, 3), (2, 3)]
    sets = [dataset.ValBatches(images, labels, 4, *HALF, device="cpu", part=part) for part in parts]
    one, *shares = (validate(batches, network, Precision("off", CPU)) for batches in sets)
    for key, value in one.items():
        assert sum(share[key] * n for share, n in zip(shares, (3, 4, 4), strict=True)) / 11 == pytest.approx(value)
    whole, *rows = (predict(batches, network, Precision("off", CPU)) for batches in sets)
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-5, atol=1e-6)


def in_float64(argv: list[str]) -> None:
    import train_student

    torch.set_default_dtype(torch.float64)
    plain = dataset.Augment.normalise
    dataset.Augment.normalise = lambda self, x: plain(self, x).double()
    train_student.main(argv)


def impatient(seconds: str, name: str, place: str, when: str, *argv: str) -> None:
    """train_student.py, waiting so long for signs of life. KILLED_RANK gets a signal at a place, or is busy there."""
    import killer

    import train_student
    from helper import heartbeat

    def compute(*_: Any) -> None:
        end = time.monotonic() + 2.5 * int(seconds)
        while time.monotonic() < end:
            pass

    heartbeat.SILENT = int(seconds)
    print(os.getpid(), file=sys.stderr, flush=True)
    if os.environ["RANK"] == os.environ["KILLED_RANK"]:
        signal.signal(signal.SIGUSR1, compute)
        killer.patch(signal.SIGUSR1 if name == "busy" else signal.Signals[name], place, int(when))
    train_student.main(list(argv))


if __name__ == "__main__":
    if sys.argv[1] == "impatient":
        impatient(*sys.argv[2:])
    elif sys.argv[1] == "float64":
        in_float64(sys.argv[2:])
    else:
        fork_ranks(Path(sys.argv[1]))
