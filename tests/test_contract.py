"""What the contract of a method carries: a student that it wraps, groups of parameters, weights that rise."""

import ast
import json

import pytest
import torch
from conftest import QUICK, ROOT
from fakes import sgd_options
from kill_harness import equal, results
from torch import nn

import distiller_zoo.base
import models.wrapped
import train_student
import transfer_student
from distiller_zoo import Distiller, method_options
from distiller_zoo.criterion import Criterion
from distiller_zoo.dot import DOT
from helper.step import Precision, Update, parameter_groups
from helper.trainee import Trainee
from helper.validation import validate


@pytest.fixture
def headed(monkeypatch):
    """A method that puts a projector and the teacher's classifier in the place of the student's, where they stay."""
    monkeypatch.setattr(distiller_zoo.base, "_methods", dict(distiller_zoo.base._methods))
    monkeypatch.setattr(models.wrapped, "_wrappers", dict(models.wrapped._wrappers))

    class Projected(models.Wrapper, name="projected"):
        head_name = "classifier"

        def __init__(self, network: nn.Module, *, width: int) -> None:
            super().__init__(network, width=width)
            self.projector = nn.Linear(network.head.in_features, width)
            self.classifier = nn.Linear(width, network.head.out_features)

        def features(self, x):
            output = self.network(x, is_feat=True)
            return output.feats, output.preacts, self.projector(output.pooled).relu()

    class Headed(Distiller, name="headed"):
        weights = (0.0, 0.0, 1.0)
        reads = ()

        def __init__(self, pair, *, headed_scale: float = 1.0) -> None:
            super().__init__(pair)
            self.scale, self.width = headed_scale, pair.t.pooled.shape[1]
            self.head, self.projector = pair.teacher.head, None

        def wrap(self, student):
            wrapped = Projected(student, width=self.width)
            wrapped.classifier.load_state_dict(self.head.state_dict())
            wrapped.classifier.requires_grad_(False)
            self.projector = wrapped.projector  # the method looks at what the network trains
            return wrapped

        def forward(self, s, t, batch):
            return self.scale * (s.pooled - t.pooled).square().mean() + 1e-3 * self.projector.weight.square().sum()

    monkeypatch.setitem(train_student.METHOD_OPTIONS, "headed", method_options(Headed))


def command(teacher, save, *more):
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2", "--lr_decay_epochs", "1",
            "--save_folder", str(save), "--run_name", "r", "--distill", "headed", *more]  # fmt: skip


def test_a_wrapped_student_is_trained_saved_and_loaded_again(headed, teacher, tmp_path, capsys, monkeypatch) -> None:
    groups = []
    init = Update.__init__
    monkeypatch.setattr(Update, "__init__", lambda self, g, *how: groups.append(g) or init(self, g, *how))
    train_student.main(command(teacher, tmp_path, "--export", "torchscript"))
    folder = tmp_path / "student_model" / "r"
    state = torch.load(folder / "last.pth", weights_only=True)
    assert state["wrapped"] == [["projected", {"width": 64}]] and "projector.weight" in state["model"]
    (parameters,) = (group["params"] for group in groups[0])
    assert len({id(p) for p in parameters}) == len(parameters), "a parameter is in the optimiser twice"
    assert any(p.shape == (64, 64) for p in parameters), "the projector is trained"
    before = torch.load(teacher, weights_only=True)["model"]
    assert torch.equal(state["model"]["classifier.weight"], before["fc.weight"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parameters"] == sum(
        p.numel() for p in models.rebuild("resnet8", 10, None, state["wrapped"]).parameters()
    )
    accuracy = f"top-1 {summary['last_acc']:.2f} %"

    capsys.readouterr()
    path = str(folder / "last.pth")
    train_student.main(command(teacher, tmp_path, "--test_only"))  # the run
    train_student.main([*QUICK, "--model_s", "resnet8", "--distill", "none", "--test_only", path])  # the file alone
    assert capsys.readouterr().out.count(accuracy) == 2
    network = torch.jit.load(folder / "student.pt")
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)

    quick = ["--epochs", "1", "--save_folder", str(tmp_path / "next"), "--run_name", "n"]
    plain = [*QUICK, "--model_s", "resnet8", *quick]
    train_student.main([*plain, "--distill", "kd", "--path_t", path])
    said = json.loads((tmp_path / "next" / "student_model" / "n" / "summary.json").read_text())
    assert said["teacher_acc"] == summary["last_acc"]
    train_student.main([*plain, "--distill", "none", "--path_s", path, "--resume", "never"])
    begun = torch.load(tmp_path / "next" / "student_model" / "n" / "last.pth", weights_only=True)
    assert begun["wrapped"] == state["wrapped"]
    transfer_student.main([*QUICK, "--path_s", path, *quick])
    probe = torch.load(tmp_path / "next" / "transfer" / "n" / "last.pth", weights_only=True)["model"]
    assert torch.equal(probe["projector.weight"], state["model"]["projector.weight"])
    assert not torch.equal(probe["classifier.weight"], state["model"]["classifier.weight"])


def test_a_wrapped_student_resumes(headed, teacher, tmp_path, monkeypatch) -> None:
    train_student.main(command(teacher, tmp_path / "whole"))
    step, steps = Trainee.step, iter(range(1, 100))

    def dying(*given: object) -> None:
        if next(steps) == 6:
            raise OSError("power cut")
        step(*given)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Trainee, "step", dying)
        train_student.main(command(teacher, tmp_path / "cut"))
    train_student.main(command(teacher, tmp_path / "cut"))
    for a, b in zip(*(results(tmp_path / name / "student_model" / "r") for name in ("whole", "cut")), strict=True):
        assert equal(a, b)


@pytest.mark.parametrize(
    "layers",
    ["x", [["nobody", {}]], [["projected", {"depth": 2}]], [["projected", {"width": -1}]], [["projected"]], [3]],
)
def test_wrappers_of_a_stranger(headed, layers, teacher, tmp_path, capsys) -> None:
    state = torch.load(teacher, weights_only=True)
    torch.save(state | {"wrapped": layers}, tmp_path / "t.pth")
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--distill", "kd", "--path_t", str(tmp_path / "t.pth"), "--model_t", "resnet14"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "wrapper" in error, error


def test_groups_of_parameters() -> None:
    """Each trains once, a method's own at its own rate."""
    student, method, shared = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    student.shared = method.shared = shared
    student.bias.requires_grad_(False)
    own = [{"params": list(method.parameters(recurse=False)), "lr_scale": 0.1, "weight_decay": 0.0}]
    opt = sgd_options(learning_rate=1.0)
    update = Update(parameter_groups([student, method], own), Precision("off", torch.device("cpu")), opt)
    update.set_rate(0.5)
    rest, special = update.optimizer.param_groups
    assert [id(p) for p in rest["params"]] == [id(p) for p in (student.weight, *shared.parameters())]
    assert (rest["lr"], rest["weight_decay"]) == (0.5, 5e-4) and update.rates() == (0.5, 0.05)
    assert (special["lr"], special["weight_decay"], len(special["params"])) == (0.05, 0.0, 2)
    update.step(
        {"a": student(torch.ones(1, 2)).sum() + shared(torch.ones(1, 2)).sum() + method(torch.ones(1, 2)).sum()}
    )
    assert all(p.grad is not None for p in rest["params"])


def test_weights_rise() -> None:
    class Warm(Distiller):
        warm_up = 4

    warm, cold = Warm(None), Distiller(None)
    criterion = Criterion(1.0, 0.5, None, {"warm": warm, "cold": cold}, [2.0, 3.0])
    rising = []
    for epoch in range(1, 7):
        criterion.set_epoch(epoch)
        rising.append(criterion.betas[0])
        assert criterion.betas[1] == 3.0 and criterion.numbers() == (1.0, 0.5, rising[-1], 3.0)
    assert rising == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    flagged = Criterion(1.0, 0.5, None, {"warm": warm, "cold": cold}, [2.0, 3.0], warm_up=2)
    flagged.set_epoch(1)
    assert flagged.betas == [1.0, 1.5]
    assert flagged.alpha == 0.5
    warm.kd_warm_up = 4
    for first in (True, False):
        methods = {"warm": warm, "cold": cold} if first else {"cold": cold, "warm": warm}
        criterion = Criterion(1.0, 0.5, None, methods, [2.0, 3.0])
        rising = []
        for epoch in range(1, 6):
            criterion.set_epoch(epoch)
            rising.append(criterion.numbers()[1])
        assert rising == ([0.125, 0.25, 0.375, 0.5, 0.5] if first else [0.5] * 5)
    flagged.set_epoch(1)
    assert flagged.alpha == 0.25
    warm.follows_epoch = True
    assert flagged.numbers()[-1] == 1


def test_deterministic(teacher, tmp_path, capsys, monkeypatch) -> None:
    """The flags are set for this run alone; an operation that has no such kernel is named."""
    flags, step = [], Trainee.step

    def seen(*given: object) -> None:
        flags.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        step(*given)

    def refusing(*given: object) -> None:
        raise RuntimeError("put_cuda does not have a deterministic implementation, but you set 'torch.use_det...'")

    quick = [*QUICK, "--path_t", str(teacher), "--distill", "crd", "--nce_k", "8", "--epochs", "1"]
    quick += ["--save_folder", str(tmp_path)]
    monkeypatch.setattr(Trainee, "step", seen)
    train_student.main([*quick, "--run_name", "a", "--deterministic"])
    train_student.main([*quick, "--run_name", "b"])
    assert set(flags[:4]) == {(True, False)} and set(flags[4:]) == {(False, True)}
    monkeypatch.setattr(Trainee, "step", refusing)
    with pytest.raises(SystemExit) as stop:
        train_student.main([*quick, "--run_name", "c", "--deterministic"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.endswith(
        "--deterministic: put_cuda does not have a deterministic implementation\n"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "helper").glob("*.py")), ids=lambda path: path.name)
def test_six_arguments_at_most(path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= 6, node.name


def test_validation_in_large_batches(teacher, tmp_path, monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(
        "helper.trainee.validate", lambda batches, *how: sizes.append(batches.batch_size) or validate(batches, *how)
    )
    few = "--dataset digits --limit_train 100 --limit_val 50 --device cpu --distill none --epochs 1".split()
    for size, expected in (("8", 1000), ("64", 250), ("200", 64)):
        run = ["--save_folder", str(tmp_path), "--run_name", size, "--batch_size", "64", "--limit_train", "70"]
        train_student.main([*few, *run, "--image_size", size])
        assert sizes.pop() == expected


def descended(rule: type[Update], dot: float, weight: float = 1.0) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    opt = sgd_options(learning_rate=0.1, dot=dot)
    update = rule(parameter_groups([network], []), Precision("off", torch.device("cpu")), opt)
    for _ in range(5):
        x = torch.randn(4, 3).double()
        y = network(x)
        update.step({"ce": y.square().mean(), "kd": weight * (y - 1).abs().mean()})
    return [p.detach() for p in network.parameters()]


def test_dot_without_delta_is_sgd() -> None:
    for a, b in zip(descended(DOT, 0.0), descended(Update, 0.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dot_is_its_formula() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    weight, bias = (p.detach().clone() for p in network.parameters())
    task, distill = ([torch.zeros_like(p) for p in (weight, bias)] for _ in range(2))
    for _ in range(5):
        x = torch.randn(4, 3).double()
        leaves = [p.clone().requires_grad_() for p in (weight, bias)]
        y = x @ leaves[0].T + leaves[1]
        g_task = torch.autograd.grad(y.square().mean(), leaves, retain_graph=True)
        g_distill = torch.autograd.grad((y - 1).abs().mean(), leaves)
        for i, p in enumerate((weight, bias)):
            task[i] = (0.9 - 0.075) * task[i] + g_task[i] + 5e-4 * p
            distill[i] = (0.9 + 0.075) * distill[i] + g_distill[i]
            p -= 0.1 * (task[i] + distill[i])
    for a, b in zip(descended(DOT, 0.075), (weight, bias), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flags", ["kd", "crd --nce_k 8 -a 1", "sp,pkt -b 100,1000"])
def test_dot_resumes(flags, teacher, tmp_path, monkeypatch) -> None:
    run = [*QUICK, "--path_t", str(teacher), "--epochs", "2", "--run_name", "r", "--distill", *flags.split(), "--dot"]
    whole, cut = ([*run, "0.075", "--save_folder", str(tmp_path / name)] for name in ("whole", "cut"))
    train_student.main(whole)
    step, steps = Trainee.step, iter(range(1, 100))

    def dying(*given: object) -> None:
        if next(steps) == 7:
            raise OSError("power cut")
        step(*given)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Trainee, "step", dying)
        train_student.main([*cut, "--save_steps", "2"])
    train_student.main([*cut, "--save_steps", "2"])
    for a, b in zip(*(results(tmp_path / name / "student_model" / "r") for name in ("whole", "cut")), strict=True):
        if isinstance(a, dict) and "options" in a:
            a["options"].pop("save_steps"), b["options"].pop("save_steps")
        assert equal(a, b)


@pytest.mark.parametrize("flags, message", [
    (["--distill", "none"], "--dot 0.1: needs the cross entropy (-r) and a term beside it (-a or -b)"),
    (["--distill", "kd", "-r", "0"], "--dot 0.1: needs the cross entropy"),
    (["--distill", "kd", "--amp", "fp16"], "--dot 0.1: does not support --amp fp16"),
    (["--distill", "kd", "--nesterov"], "--dot 0.1: does not support --nesterov"),
    (["--distill", "kd", "--momentum", "0.95"], "--dot 0.1: expected a --momentum of 0.1 to 0.9, found 0.95"),
])  # fmt: skip
def test_dot_refused(flags, message, teacher, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        train_student.main([*QUICK, "--path_t", str(teacher), "--save_folder", str(tmp_path), "--dot", "0.1", *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())
