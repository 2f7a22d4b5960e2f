"""`--sweep`: several students in one process write what each would write alone, wherever they are stopped."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT
from kill_harness import equal, results

import models
import train_student
from distiller_zoo import KD
from helper import sweep
from helper.teachers import Teachers
from helper.trainee import Trainee
from models.base import Network

ITEMS = [
    "none",
    "kd",
    "crd --nce_k 64",
    "crd --nce_k 64 -a 1",
    "rrd --nce_k 64 --memory_type momentum",
    "fitnet --warm_up 2",
    "ab --init_epochs 2",
    "ft --init_epochs 1 --mcl_tau 0.9 --mcl_every 3",
    "at -a 0.9 --epochs 2",
    "vid --model_s resnet14 --learning_rate 0.01",
    "sskd --init_epochs 1",
    "uda",
]


def base(teacher: Path, save: Path) -> list[str]:
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "3", "--lr_decay_epochs", "2",
            "--save_freq", "2", "--save_folder", str(save)]  # fmt: skip


def alone(teacher: Path, save: Path, item: str, *more: str) -> None:
    train_student.main([*base(teacher, save), "--distill", *item.split(), *more])


def together(teacher: Path, save: Path, items: list[str], *more: str) -> list[str]:
    return [*base(teacher, save), "--sweep", "; ".join(items), *more]


def runs(save: Path) -> dict[str, Path]:
    return {path.name: path for path in (save / "student_model").iterdir()}


def assert_equal(save: Path, expected: Path) -> None:
    found, wanted = runs(save), runs(expected)
    assert found.keys() == wanted.keys()
    for name in found:
        for a, b in zip(results(found[name]), results(wanted[name]), strict=True):
            assert equal(a, b), name
        told = [json.loads((run[name] / "options.json").read_text()) for run in (found, wanted)]
        told[0]["options"]["save_folder"] = told[1]["options"]["save_folder"]
        assert all(told[0][key] == told[1][key] for key in ("options", "made_of"))


@pytest.fixture(scope="module")
def each_alone(teacher, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("alone")
    for item in ITEMS:
        alone(teacher, save, item)
    return save


def test_equals_the_runs_alone(teacher, each_alone, tmp_path, capsys, monkeypatch) -> None:
    asked, ask = [], Teachers.ask
    monkeypatch.setattr(
        Teachers, "ask", lambda self, chunk, *how: asked.append((chunk, *how)) or ask(self, chunk, *how)
    )
    command = together(teacher, tmp_path, ITEMS, "--at_once", "20")
    train_student.main(command)
    said = capsys.readouterr().out
    assert_equal(tmp_path, each_alone)
    # In epochs of 4 steps, ten students that see the same batches ask in 3 epochs, and ft alone in one more, when it
    # comes out of its initialisation; uda in 3, sskd in 4. Alone they would ask in 33.
    assert sum(bool(chunk) and reads is not None for chunk, reads, _ in asked) == 4 * (3 + 1 + 3 + 4)
    table = said[said.index("| student |") :].strip().splitlines()
    assert [line.split(" | ")[0].lstrip("| ") for line in table[2:]] == ITEMS
    lines = [line for line in said.splitlines() if re.match(r"epoch [\d-]+: \d+ students?( \(\d init\))?  val ", line)]
    assert len(lines) == 3 + 1 + 2 and max(map(len, lines)) <= 100
    train_student.main(command)  # all are finished
    assert capsys.readouterr().out.count("this run is finished") == len(ITEMS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_and_started_again(number, python, teacher, each_alone, tmp_path) -> None:
    """Wherever its students are: some in an initialisation, some finished, all within an epoch."""
    command = together(teacher, tmp_path, ITEMS)
    for when in (9, 70, 50):
        killer = [python, ROOT / "tests" / "killer.py", number.name, "helper.trainee:Trainee.step", str(when)]
        stopped = subprocess.run([*killer, "train_student.py", *command], cwd=ROOT, capture_output=True, text=True)
        assert stopped.returncode == 128 + number, stopped.stderr
        if number == signal.SIGTERM:
            assert re.search(
                r"SIGTERM: stopped after step \d of .*epoch \d; the same command goes on there", stopped.stderr
            )
    train_student.main(command)
    assert_equal(tmp_path, each_alone)


def test_seeds_are_trials(teacher, tmp_path, capsys) -> None:
    """Students of different seeds share no batch, those of one seed all of them."""
    for seed in ("1", "2"):
        for item in ("kd", "pkt"):
            alone(teacher, tmp_path / "alone", item, "--trial", seed, "--epochs", "1")
    steps = []
    step = Trainee.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "step", lambda self, *given: steps.append((self.label, given)) or step(self, *given))
        train_student.main(
            together(teacher, tmp_path / "sweep", ["kd", "pkt"], "--seed=1,2", "--epochs=1", "--at_once=4")
        )
    assert_equal(tmp_path / "sweep", tmp_path / "alone")
    assert [label for label, _ in steps] == ["kd #1", "pkt #1", "kd #2", "pkt #2"] * 4
    for (_, (a, t_a)), (_, (b, t_b)), (_, (c, _)), _ in zip(*[iter(steps)] * 4, strict=True):
        assert a is b and t_a is t_b and not torch.equal(a.index, c.index)
    assert "| kd | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize("at_once", ["1", "2"])
def test_few_at_once(at_once, teacher, tmp_path, monkeypatch) -> None:
    items, most = ["none", "kd", "pkt"], []
    fit = sweep.fit_groups
    monkeypatch.setattr(sweep, "fit_groups", lambda g, *s: most.append(sum(len(x.trainees) for x in g)) or fit(g, *s))
    train_student.main(together(teacher, tmp_path / "few", items, "--at_once", at_once, "--epochs", "1"))
    assert most == ([1, 1, 1] if at_once == "1" else [2, 1])
    for item in items:
        alone(teacher, tmp_path / "alone", item, "--epochs", "1")
    assert_equal(tmp_path / "few", tmp_path / "alone")


@pytest.mark.parametrize("free, expected", [(250.0, [3, 1]), (10.0, [1, 1, 1, 1]), (1e6, [4])])
def test_as_many_as_there_is_room_for(free, expected, teacher, tmp_path, monkeypatch) -> None:
    """A student takes 100 MB here, four fifths of what is free are given."""
    used, most, fit = iter([1000.0, 1100.0] * 4), [], sweep.fit_groups
    monkeypatch.setattr(sweep, "used_memory_mb", lambda device: next(used))
    monkeypatch.setattr(sweep, "free_memory_mb", lambda device: free)
    monkeypatch.setattr(sweep, "fit_groups", lambda g, *s: most.append(sum(len(x.trainees) for x in g)) or fit(g, *s))
    items = ["none", "kd", "pkt", "rkd"]
    train_student.main(together(teacher, tmp_path / "sweep", items, "--epochs", "2"))
    assert most == expected
    for item in items:
        alone(teacher, tmp_path / "alone", item, "--epochs", "2")
    assert_equal(tmp_path / "sweep", tmp_path / "alone")


def test_who_diverges_drops_out(teacher, tmp_path, capsys, monkeypatch) -> None:
    """The others are what they are alone; its last good checkpoint stays, and the same command goes on with it."""
    calls = []
    forward = KD.forward

    def broken(self: KD, *given: object) -> torch.Tensor:
        calls.append(1)
        return forward(self, *given) * (float("nan") if self.kd_T == 3 and len(calls) > 8 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(KD, "forward", broken)
        with pytest.raises(SystemExit) as stop:
            train_student.main(together(teacher, tmp_path / "sweep", ["none", "kd --kd_T 3", "pkt"]))
    out, error = capsys.readouterr()
    assert (
        stop.value.code == 1 and "1 of 3 students have no result: kd --kd_T 3: epoch 3, step 1: the term 'kd'" in error
    )
    assert "kd --kd_T 3: error: epoch 3, step 1" in out and "| pkt | 1 |" in out and "| kd --kd_T 3 |" not in out
    (broken_run,) = [path for name, path in runs(tmp_path / "sweep").items() if "digits_kd" in name]
    assert torch.load(broken_run / "last.pth", weights_only=True)["epoch"] == 2
    told = json.loads((broken_run / "options.json").read_text())
    assert told["failed"].startswith("epoch 3, step 1: the term 'kd'") and "commit" in told
    train_student.main(together(teacher, tmp_path / "sweep", ["none", "kd --kd_T 3", "pkt"]))
    for item in ("none", "kd --kd_T 3", "pkt"):
        alone(teacher, tmp_path / "alone", item)
    assert_equal(tmp_path / "sweep", tmp_path / "alone")


def test_what_a_student_cannot_have_stops_it_alone(teacher, tmp_path, capsys) -> None:
    """A method that refuses the pair is told, and the others are trained."""
    items = ["sfd --model_s wrn_16_2", "none"]
    with pytest.raises(SystemExit) as stop:
        train_student.main(together(teacher, tmp_path, items, "--epochs", "1"))
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and "1 of 2 students have no result: sfd --model_s wrn_16_2: " in error
    assert "sfd needs equal channels" in out and len(list((tmp_path / "student_model").rglob("summary.json"))) == 1
    (refused,) = [json.loads(path.read_text()) for path in tmp_path.rglob("options.json") if "sfd" in path.parent.name]
    assert "sfd needs equal channels" in refused["failed"] and refused["options"]["model_s"] == "wrn_16_2"


def test_a_file_of_items_export_and_predictions(teacher, tmp_path) -> None:
    (tmp_path / "items").write_text("# the student alone\nnone\n\n  kd -a 0.5\n")
    more = ["--epochs", "1", "--export", "torchscript", "--save_predictions"]
    train_student.main([*base(teacher, tmp_path / "sweep"), "--sweep", str(tmp_path / "items"), *more])
    for item in ("none", "kd -a 0.5"):
        alone(teacher, tmp_path / "alone", item, *more)
    assert_equal(tmp_path / "sweep", tmp_path / "alone")
    for run in runs(tmp_path / "sweep").values():
        assert (run / "student.pt").is_file() and (run / "predictions.csv").is_file()


class Dropping(Network):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, num_classes)

    def features(self, x: torch.Tensor) -> tuple:
        x = torch.nn.functional.dropout(x.mean((2, 3)), training=self.training)
        return (), (), x


@pytest.mark.parametrize("flags, message", [
    (["--sweep", "kd; at --batch_size 8"], "--sweep 'at --batch_size 8': --batch_size is the same for all students"),
    (["--sweep", "kd; ta"], "--sweep 'ta': --distill/--kd_method: unknown method 'ta'"),
    (["--sweep", "kd; at 'x"], "--sweep \"kd; at 'x\": No closing quotation"),
    (["--sweep", "kd; at --nonsense"], "--sweep 'at --nonsense': unknown option --nonsense"),
    (["--sweep", "kd; at --nce_k 3"], "--sweep 'at --nce_k 3': --nce_k has no effect here"),
    (["--sweep", " ; "], "names no student"),
    (["--sweep", "kd; kd"], "--sweep: two students have the folder"),
    (["--sweep", "kd", "--test_only"], "--sweep: --test_only takes one student"),
    (["--sweep", "none; kd", "--run_name", "r"], "--sweep: two students have the folder"),
    (["--at_once", "2"], "--at_once has no effect without --sweep"),
    (["--seed", "1,2"], "--seed 1,2: several seeds need --sweep"),
    (["--sweep", "none", "--model_s", "dropping"], "the student draws random numbers as it trains"),
])  # fmt: skip
def test_refused(flags, message, teacher, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(models.base._networks, "dropping", Dropping)
    with pytest.raises(SystemExit) as stop:
        train_student.main([*base(teacher, tmp_path), *flags])
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2) and re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "student_model").exists()


@pytest.mark.parametrize("ahead", ["3", "8"])
def test_asked_ahead(ahead, teacher, tmp_path) -> None:
    """As alone to float32's rounding, and bit for bit after a stop within a chunk."""
    items = ["kd", "fitnet"]
    train_student.main(together(teacher, tmp_path / "one", items))
    train_student.main(together(teacher, tmp_path / "ahead", items, "--teacher_ahead", ahead))
    for name, run in runs(tmp_path / "ahead").items():
        found, expected = (results(path)[1]["log.csv"][0] for path in (run, runs(tmp_path / "one")[name]))
        assert float(found["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=1e-5)
    step = Trainee.step
    for when in (7, 14):
        count = iter(range(1, 1000))

        def stopping(*given: object, count=count, when=when) -> None:
            step(*given)
            if next(count) == when:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Trainee, "step", stopping)
            train_student.main(together(teacher, tmp_path / "cut", items, "--teacher_ahead", ahead))
    train_student.main(together(teacher, tmp_path / "cut", items, "--teacher_ahead", ahead))
    assert_equal(tmp_path / "cut", tmp_path / "ahead")


def test_a_log_of_all(teacher, tmp_path) -> None:
    more = ["--epochs", "1", "--run_log", str(tmp_path / "log")]
    train_student.main(together(teacher, tmp_path, ["none", "kd"], *more))
    log = (tmp_path / "log").read_text()
    assert len(re.findall(r"^\d{4}-\d\d-\d\d [\d:]{8} \| none \| 1 \|", log, re.M)) == 1, "each line once"


def test_a_student_without_steps_left_measures_nothing(teacher, tmp_path, monkeypatch) -> None:
    """One that was killed between its last epoch and its end says nothing of the memory that the others take."""
    few = ["--epochs", "1"]
    alone(teacher, tmp_path, "none", *few)
    (done,) = runs(tmp_path).values()
    (done / "summary.json").unlink()
    measured, room = [], sweep.room
    monkeypatch.setattr(sweep, "room", lambda *given: measured.append(room(*given)) or measured[-1])
    train_student.main(together(teacher, tmp_path, ["none", "kd", "pkt"], *few))
    assert measured[0] is None and measured[1] >= 1 and len(measured) == 2
