"""Steps that are recorded: what a replay reads and changes, when it is recorded anew, and that methods can be.

Without a GPU a tape (tape.py) stands for its graphs: it plays the same operations in the same memory, without Python.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK
from fakes import batch, sgd_options, student_for
from kill_harness import equal, results
from tape import Guard, Tape
from test_methods import NAMES, SMALL, build, example, losses, views_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import models
import train_student
from dataset.base import Batch
from distiller_zoo import KD, Distiller, Pair, find_method, method_options
from distiller_zoo.criterion import Criterion
from helper import captured
from helper.captured import WARM_UPS, Captured
from helper.meters import Meters
from helper.step import Features, Precision, Stage, Step, Update, parameter_groups
from helper.util import UserError

CPU = torch.device("cpu")


# ---- what is recorded ----


def test_inputs_are_copied_and_replays_read_the_copies() -> None:
    seen = torch.zeros(2)

    def function(x: torch.Tensor, pair: tuple) -> torch.Tensor:
        seen.add_(x * pair[0])
        return x + pair[0]

    call, given, expected = Captured(function, Tape()), torch.zeros(2), torch.zeros(2)
    for n in range(WARM_UPS + 4):
        given.fill_(n)
        found = call(given, (torch.full((2,), 2.0), None))
        expected += 2.0 * n
        given.fill_(float("nan"))  # the caller does with its own what it likes
        assert torch.equal(found, torch.full((2,), n + 2.0)) and torch.equal(seen, expected)


def test_what_changes_is_recorded_anew() -> None:
    """A shape, a dtype and a layout have calls of their own; a number that changes has a new recording, at once."""
    numbers, ran = [1.0], []

    def function(x: torch.Tensor) -> torch.Tensor:
        ran.append(tuple(x.shape))
        return x * numbers[0]

    call = Captured(function, Tape(), lambda: tuple(numbers))
    for _ in range(6):
        call(torch.ones(3))
    assert len(ran) == WARM_UPS + 1
    numbers[0] = 2.0
    assert [call(torch.ones(3)).tolist() for _ in range(2)] == [[2.0] * 3] * 2 and len(ran) == WARM_UPS + 2
    for x in (torch.ones(2), torch.ones(3).double(), torch.ones(3, 2), torch.ones(2, 3).T):
        before = len(ran)
        assert [torch.equal(call(x), 2 * x) for _ in range(6)] == [True] * 6
        assert len(ran) == before + WARM_UPS + 1
    call(torch.ones(3))
    assert ran[-1] == (3, 2), "the first shape's recording still holds"


def test_what_cannot_be_recorded_says_so() -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    call = Captured(lambda x: x, refuse)
    with pytest.raises(UserError, match="cannot be recorded: operation not permitted .*; try --graph off$"):
        for _ in range(WARM_UPS + 1):
            call(torch.ones(1))


@pytest.mark.parametrize(
    "step, message",
    [
        (lambda x: x.sum().item(), "reads values"),
        (lambda x: x[x > 0], "mask"),
        (lambda x: x.nonzero(), "depends on them"),
        (lambda x: x + torch.rand(3), "foreign generator"),
        (lambda x: x + torch.tensor(1.0), "from the host"),
        (lambda x: torch.linalg.eigh(x[:, None] * x), "how it went"),
    ],
)
def test_the_guard_catches(step, message) -> None:
    with pytest.raises(AssertionError, match=message), Guard():
        step(torch.ones(3))


# ---- steps of methods ----


class Student:
    """A student's whole step with a method: networks, all losses, optimiser, meters."""

    def __init__(self, name: str, init: bool, amp: str = "off") -> None:
        self.views, cls = views_of(name), find_method(name)
        torch.manual_seed(0)
        networks = [models.create_model(net, 10) for net in (student_for(name, "resnet8"), "resnet14")]
        self.student, self.teacher = networks[0], networks[1].eval().requires_grad_(False)
        images = torch.zeros(1, 3, 8, 8)
        s, t = models.probe(self.student, images), models.probe(self.teacher, images)
        pair = Pair(s, t, self.student, self.teacher, torch.arange(50) % 5)
        pair = pair._replace(anew=lambda: models.create_model("resnet8", 10))
        small = {key: SMALL[key] for key in method_options(cls) if key in SMALL}
        method = cls(pair, **small)
        self.student.separate_heads = method.separate_heads
        self.student = method.wrap(self.student)
        self.criterion = Criterion(0.5, 0.5, KD(pair), {name: method}, [0.1]).train()
        loss = self.criterion.init if init else self.criterion
        reads = self.criterion.init_reads if init else self.criterion.reads
        runs = not init or self.criterion.init_runs_student
        stage = Stage("", 1, loss, 0.01, asks_teachers=True, reads=reads, runs_student=runs)
        precision = Precision(amp, CPU)
        step = Step(stage, Features(self.student.train(), reads), self.criterion, precision)
        opt = sgd_options(learning_rate=0.01)
        self.update = Update(parameter_groups([self.student, self.criterion], self.criterion.groups()), precision, opt)
        self.meters, self.asked = Meters(CPU), Features(self.teacher, reads)

        def compute(batch: Batch, t: tuple) -> None:
            terms, logits = step(batch, t)
            self.update.step(terms)
            self.meters.add(terms, logits[:: self.views], batch.labels, batch.total)

        self.compute = compute

    def run(self, compute, steps: int = WARM_UPS + 3) -> None:
        generator = torch.Generator().manual_seed(1)
        for n in range(steps):
            samples = 4 if n == 1 else 6
            images = torch.randn(samples, self.views, 3, 8, 8, generator=generator)
            index = torch.randperm(50, generator=generator)[:samples]
            with torch.no_grad():
                t = (self.asked(images.flatten(0, 1)),)
            compute(Batch(images if self.views > 1 else images[:, 0], index % 5, index), t)

    def state(self) -> list[torch.Tensor]:
        momentum = [state["momentum_buffer"] for state in self.update.optimizer.state.values()]
        meters = [self.meters.sums, self.meters.hits, self.meters.seen, self.meters.bad_step]
        generators = [generator.get_state() for generator in self.criterion.generators()]
        return [*self.student.state_dict().values(), *self.criterion.buffers(), *momentum, *meters, *generators]


def guarded(student: Student) -> Callable[..., None]:
    def compute(*given: object) -> None:
        with Guard(student.criterion.generators()):
            student.compute(*given)

    return compute


STEPS = [(name, init) for name in NAMES for init in ([False, True] if find_method(name).init_loss else [False])]


@pytest.mark.parametrize("name, init", [each for each in STEPS if find_method(each[0]).capturable])
def test_a_replayed_step_is_the_step(name, init) -> None:
    """Bit for bit: no method, optimiser or meter needs Python between two steps, or reads a value on the host."""
    eager, recorded = Student(name, init), Student(name, init)
    eager.run(guarded(eager))
    recorded.run(Captured(recorded.compute, Tape(), recorded.criterion.numbers, recorded.criterion.generators))
    assert all(torch.equal(a, b) for a, b in zip(eager.state(), recorded.state(), strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if not find_method(name).capturable])
def test_a_method_that_says_it_cannot_be_recorded_cannot(name) -> None:
    student = Student(name, False)
    with pytest.raises(AssertionError):
        student.run(guarded(student))
    assert student.criterion.not_capturable == [name]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision(amp) -> None:
    """fp16's scale is found, and its steps are skipped, on the device."""
    eager, recorded = Student("crd", False, amp), Student("crd", False, amp)
    for student in (eager, recorded):
        if amp == "fp16":
            student.update.scaler._init_scale = 2.0**40
    eager.run(eager.compute)
    recorded.run(Captured(recorded.compute, Tape(), generators=recorded.criterion.generators))
    assert all(torch.equal(a, b) for a, b in zip(eager.state(), recorded.state(), strict=True))
    scales = [student.update.scaler.get_scale() for student in (eager, recorded)]
    assert scales[0] == scales[1] and (amp == "bf16" or scales[0] < 2.0**40)


def test_a_loaded_state_goes_to_the_generator_that_is_registered() -> None:
    first, second = Student("crd", False), Student("crd", False)
    (before,) = first.criterion.generators()
    first.run(first.compute, 2)
    second.criterion.load_state_dict(first.criterion.state_dict())
    first.criterion.load_state_dict(second.criterion.state_dict())
    (after,) = first.criterion.generators()
    assert after is before and torch.equal(after.get_state(), second.criterion.generators()[0].get_state())


def test_the_first_value_that_is_not_finite_is_named() -> None:
    meters = Meters(CPU)
    add = Captured(lambda a, b: meters.add({"ce": a, "kd": b}, torch.eye(2), torch.arange(2), 2), Tape())
    for step in range(8):
        bad = float("nan") if step in (5, 6) else float("inf") if step == 7 else 1.0
        add(torch.tensor(1.0 if step < 7 else bad), torch.tensor(bad))
        meters.count(2)
    from helper.util import Diverged

    with pytest.raises(Diverged, match="^epoch 3, step 6: the term 'kd' of the loss is nan$"):
        meters.read("epoch 3")


# ---- whole runs ----


@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr(Tape, "made", 0)
    monkeypatch.setattr(captured, "recorder", lambda graph, stream: Tape() if graph == "auto" else None)


def run(teacher, save, *more: str) -> tuple:
    few = "--image_size 8 --limit_train 70 --batch_size 16 --epochs 5 --lr_decay_epochs 4 --limit_val 10".split()
    command = [*QUICK, *few, "--path_t", str(teacher), "--model_s", "resnet8", "--save_folder", str(save)]
    train_student.main([*command, "--run_name", "r", *more])
    state, *rest = results(save / "student_model" / "r")
    state.pop("options")  # --graph is one of them
    return state, *rest


@pytest.mark.parametrize("flags", ["crd --nce_k 16 -a 1", "fitnet", "ab --init_epochs 2", "at --warm_up 2"])
def test_a_recorded_run_is_the_run(flags, teacher, tmp_path, taped) -> None:
    """With falling rates, rising weights, a stage of its own, and a smaller last batch that has its own recording."""
    words = ["--distill", *flags.split()]
    plain = run(teacher, tmp_path / "plain", *words, "--graph", "off")
    assert Tape.made == 0
    found = run(teacher, tmp_path / "taped", *words)
    assert Tape.made >= 5  # the teachers; the student, at two rates; its last batch, met five times, at two rates
    assert all(equal(a, b) for a, b in zip(plain, found, strict=True))


def test_a_method_that_cannot_be_recorded_runs_as_it_is(teacher, tmp_path, taped, capsys) -> None:
    run(teacher, tmp_path, "--distill", "kdsvd")
    assert Tape.made == 2, "the teachers, and their last batch"
    assert capsys.readouterr().out.count("steps of kdsvd cannot be recorded") == 1


def test_no_graphs_without_a_gpu() -> None:
    assert captured.stream_for(CPU) is None and captured.recorder("auto", None) is None


# ---- the calls of a GPU, on stand-ins ----


def test_streams_and_graphs(monkeypatch) -> None:
    """What is asked of torch.cuda: generators registered, one pool, one stream, other threads left alone."""
    asked = []
    graph = SimpleNamespace(register_generator_state=lambda g: asked.append(g), replay=lambda: asked.append("replay"))

    class Recording:
        def __init__(self, given, **how):
            asked.append((given, how))

        __enter__ = lambda self: asked.append("begin")  # noqa: E731
        __exit__ = lambda self, *_: asked.append("end")  # noqa: E731

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    generator, record = torch.Generator(), captured.CudaGraphs("stream")
    replay, outputs = record(lambda: asked.append("function") or "out", [generator])
    replay()
    how = {"pool": "pool", "stream": "stream", "capture_error_mode": "thread_local"}
    assert asked == [generator, (graph, how), "begin", "function", "end", "replay"] and outputs == "out"


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", [name for name in NAMES if find_method(name).wrap is Distiller.wrap])
def test_losses_on_stand_ins_of_gpu_tensors(name, monkeypatch) -> None:
    """No loss mixes a GPU's tensors with a CPU's that it makes itself, or reads their values: they have none."""
    views = views_of(name)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: generator())  # there is none of a GPU's here
    queue = {"memory_type": "queue"} if "memory_type" in method_options(find_method(name)) else {}
    with FakeTensorMode():
        s, t = example(6 * views)
        method, seen = build(name, s, t, **queue), batch(s, views=views)
        # Module.to has no way for such tensors; a method may look at a part of the student, in a tuple
        networks = [x for value in vars(method).values() if isinstance(value, tuple) for x in value]
        for module in (m for x in [method, *networks] if isinstance(x, torch.nn.Module) for m in x.modules()):
            for kept in (module._parameters, module._buffers):
                kept.update({key: x.to("cuda") for key, x in kept.items() if x is not None})
        s, t, seen = tree_map(lambda x: x if x is None else x.to("cuda"), (s, t, seen))
        assert all(loss.device.type == "cuda" for loss in losses(method, s, t, seen))
