"""What nobody tries: signals between steps, clocks that go back, read-only disks, a student that is its teacher."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT
from fakes import batch, student_for
from kill_harness import equal, results
from PIL import Image
from test_disk import mount  # noqa: F401  a fixture
from test_methods import build, change, example, losses, tensors, views_of
from test_parallel import CASES, KEYS
from test_stream import alive, children, make_imagenet, wait_for
from test_stream import command as streamed

import crd  # noqa: F401  registers its methods
import dataset
import train_student
import train_teacher
from distiller_zoo import find_method, method_names, method_options
from helper.trainee import Trainee


def command(teacher: Path, save: Path, *more: str) -> list[str]:
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2", "--save_freq", "2",
            "--save_folder", str(save), "--run_name", "r", *more]  # fmt: skip


def same(save: Path, expected: Path) -> None:
    runs = sorted((save / "student_model").iterdir())
    assert [run.name for run in runs] == sorted(path.name for path in (expected / "student_model").iterdir())
    for run in runs:
        for a, b in zip(results(run), results(expected / "student_model" / run.name), strict=True):
            assert equal(a, b), run.name


def refused(arguments: list[str], capsys, *messages: str) -> None:
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and all(message in error for message in messages), error


def make_tree(root: Path) -> Path:
    """Two classes of four images in train/ and in val/."""
    for part in ("train", "val"):
        for n, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (9, 9), (40 * n, 20 * i, 100)).save(root / part / name / f"{i}.png")
    return root


def of_tree(root: Path, save: Path, *more: str) -> list[str]:
    return ["--dataset", "folder", "--data_folder", str(root), "--image_size", "8", "--batch_size", "4", "--device",
            "cpu", "--model_s", "resnet8", "--distill", "none", "--epochs", "1", "--save_folder", str(save),
            "--run_name", "r", *more]  # fmt: skip


# ---- signals where no step is ----

AB = "--distill ab --init_epochs 1".split()
SSKD = "--distill sskd --init_epochs 1".split()
EXPORT = "--distill kd --export pt2".split()
PLACES = [
    ("the teacher's validation", "helper.sweep.validate", 1, AB),
    ("a stage's beginning", "helper.trainee:Trainee._begin_stage", 1, AB),
    ("an initialisation", "helper.trainee:Trainee.step", 2, SSKD),
    ("the next stage's beginning", "helper.trainee:Trainee._begin_stage", 2, AB),
    ("validation", "helper.trainee.validate", 1, AB),
    ("the last validation", "helper.trainee.validate", 2, SSKD),
    ("the end", "helper.run:Run.finish", 1, EXPORT),
    ("export", "torch.export.export", 1, EXPORT),
]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """whole(flags): the folder of an undisturbed run."""
    found = {}

    def save(flags: list[str]) -> Path:
        if " ".join(flags) not in found:
            found[" ".join(flags)] = tmp_path_factory.mktemp("whole")
            train_student.main(command(teacher, found[" ".join(flags)], *flags))
        return found[" ".join(flags)]

    return save


CASES_OF_SIGNALS = [(number, *place) for number in (signal.SIGTERM, signal.SIGINT) for place in PLACES]
CASES_OF_SIGNALS += [(signal.SIGHUP, *PLACES[n]) for n in (2, 4)]


@pytest.mark.parametrize("number, during, place, when, flags", CASES_OF_SIGNALS)
def test_signals_between_steps(number, during, place, when, flags, python, teacher, whole, tmp_path):
    arguments = command(teacher, tmp_path, *flags)
    killer = [python, ROOT / "tests" / "killer.py", number.name, place, str(when), "train_student.py"]
    stopped = subprocess.run([*killer, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "Traceback" not in stopped.stderr
    train_student.main(arguments)
    same(tmp_path, whole(flags))
    assert (tmp_path / "student_model" / "r" / "student.pt2").exists() == (flags == EXPORT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signals_while_images_are_decoded(number, python, tmp_path):
    root = make_tree(tmp_path / "data")
    killer = [python, ROOT / "tests" / "killer.py", number.name, "dataset.files.read", "3", "train_student.py"]
    stopped = subprocess.run([*killer, *of_tree(root, tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert stopped.returncode == 128 + number and "Traceback" not in stopped.stderr, stopped.stderr
    assert not (tmp_path / "student_model").exists()
    assert all(path.suffix == ".npz" for path in root.glob(".cache*"))
    train_student.main(of_tree(root, tmp_path))
    train_student.main(of_tree(make_tree(tmp_path / "data2"), tmp_path / "whole"))
    found, expected = (results(save / "student_model" / "r") for save in (tmp_path, tmp_path / "whole"))
    for state in (found[0], expected[0]):
        state["options"].pop("data_folder", None)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- clocks ----


def test_clock_set_back(teacher, whole, tmp_path, monkeypatch):
    """By a day at each question, in a run and between a kill and the next start; what was written is of the future."""
    arguments = command(teacher, tmp_path, "--distill", "kd", "--cache_teacher", str(tmp_path / "cache"))
    now, future, steps = time.time(), time.time_ns() + 10**18, 0

    def back() -> float:
        nonlocal now
        now -= 86400
        return now

    def lost(self, *given, real=Trainee.step):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise OSError("power cut")
        real(self, *given)

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "time_ns", lambda: int(back() * 1e9))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Trainee, "step", lost)
        train_student.main(arguments)
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(future, future))
    train_student.main(arguments)
    folder, other = tmp_path / "student_model" / "r", whole(["--distill", "kd"]) / "student_model" / "r"
    found, expected = results(folder), results(other)
    expected[0]["options"].pop("cache_teacher", None)
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    assert all(0 < float(row[rows[0].index("train_seconds")]) < 600 for row in rows[1:])


def test_images_of_the_future(tmp_path, monkeypatch):
    """A cache counts where the images' times are those that it knows, whichever is the older."""
    root, decoded = make_tree(tmp_path), []
    real = dataset.storage.decode
    monkeypatch.setattr(dataset.storage, "decode", lambda *given: decoded.append(1) or real(*given))

    def load() -> int:
        decoded.clear()
        dataset.load("folder", root, 8)
        return len(decoded)

    image = root / "train" / "ant" / "0.png"
    assert [load(), load()] == [2, 0]
    for moment in (2**33, 10**9, 2**33):
        os.utime(image, (moment, moment))
        assert [load(), load()] == [1, 0]
    for cache in root.glob(".cache*"):
        os.utime(cache, (10**9, 10**9))
    assert load() == 0


# ---- sweeps ----

ITEMS = "none; kd; crd --nce_k 64"


def sweep(teacher: Path, save: Path, items: str = ITEMS) -> list[str]:
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2", "--save_freq", "2",
            "--save_folder", str(save), "--sweep", items]  # fmt: skip


@pytest.fixture(scope="module")
def swept(teacher, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("swept")
    train_student.main(sweep(teacher, save))
    return save


def test_two_sweeps(python, teacher, swept, tmp_path, capsys):
    """While one is in its 8th step: one that shares a folder with it is refused, one that shares none ends as alone."""
    killer = [python, ROOT / "tests" / "killer.py", "SIGSTOP", "helper.trainee:Trainee.step", "8", "train_student.py"]
    with subprocess.Popen([*killer, *sweep(teacher, tmp_path / "a")], cwd=ROOT, stdout=-3, stderr=-1) as first:
        wait_for(lambda: any(state(job) == "T" for job in jobs()))
        (job,) = jobs()
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
        refused(sweep(teacher, tmp_path / "a", "at; crd --nce_k 64"), capsys, "another process is training this run")
        assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
        train_student.main(sweep(teacher, tmp_path / "b"))
        os.kill(job, signal.SIGCONT)
        assert (first.wait(120), first.stderr.read()) == (0, b"")
    same(tmp_path / "a", swept)
    same(tmp_path / "b", swept)


def jobs() -> list[int]:
    """The processes that `python` runs."""
    server = next(pid for pid in children(os.getpid()) if b"forks.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return [job for between in children(server) for job in children(between)]


def state(pid: int) -> str:
    path = Path(f"/proc/{pid}/stat")
    return path.read_text().rpartition(")")[2].split()[0] if path.exists() else ""


def test_sweep_on_a_full_tmpfs(mount, teacher, swept, tmp_path, capsys):  # noqa: F811
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs")
    for _ in range(2):
        refused(sweep(teacher, tmp_path / "disk"), capsys, "cannot be written: No space left on device")
        assert not list((tmp_path / "disk").rglob(".*.tmp"))
    mount("-o", "remount,size=30m")
    train_student.main(sweep(teacher, tmp_path / "disk"))
    same(tmp_path / "disk", swept)


# ---- disks that cannot be written ----


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_on_a_read_only_disk(mount, tmp_path, capsys):  # noqa: F811
    """Images are decoded at every start; a set that is not there is said in one line."""
    make_tree(tmp_path / "disk")
    mount("--bind", tmp_path / "disk")
    mount("-o", "remount,bind,ro")
    train_student.main(of_tree(tmp_path / "disk", tmp_path / "kept"))
    assert not list((tmp_path / "disk").glob(".cache*"))
    train_student.main(of_tree(tmp_path / "disk", tmp_path / "read", "--loader", "stream", "--num_workers", "1"))
    kept, read = (results(tmp_path / name / "student_model" / "r") for name in ("kept", "read"))
    assert equal(kept[0]["model"], read[0]["model"]) and kept[1] == read[1]
    refused(
        ["--dataset", "cifar10", "--data_folder", str(tmp_path / "disk"), "--save_folder", str(tmp_path), "--device",
         "cpu", "--model_s", "resnet8", "--distill", "none"],
        capsys, "error: --dataset cifar10: ",
    )  # fmt: skip


# ---- workers ----


def test_a_worker_is_killed(python, tmp_path):
    make_imagenet(tmp_path / "data")
    start = streamed(tmp_path, "--epochs", "30", "--run_name", "r")
    log = tmp_path / "save" / "models" / "r" / "log.csv"
    with subprocess.Popen([python, ROOT / "train_teacher.py", *start], stdout=-3, stderr=-1, text=True) as client:
        wait_for(log.exists)
        (job,) = jobs()
        workers = children(job)
        os.kill(workers[0], signal.SIGKILL)
        error = client.communicate(timeout=60)[1]
    assert client.returncode == 2 and error.count("\n") == 1, error
    assert re.search("error: DataLoader worker .*; fewer --num_workers need less memory", error)
    wait_for(lambda: not any(alive(pid) for pid in (job, *workers)), 10)
    train_teacher.main(start)
    train_teacher.main([*start, "--save_folder", str(tmp_path / "whole")])
    for a, b in zip(*(results(tmp_path / save / "models" / "r") for save in ("save", "whole")), strict=True):
        assert equal(a, b)


# ---- a student that is its teacher ----


@pytest.mark.parametrize("name", method_names())
def test_student_is_its_teacher(name, twin, tmp_path):
    """Same network, same weights: every loss is finite, and so is what it makes of the student."""
    cls = find_method(name)
    flags = ["--distill", name, *(["--nce_k", "64"] if "nce_k" in method_options(cls) else [])]
    flags += ["--init_epochs", "1"] if cls.init_loss else []
    flags += [] if cls.init_loss or cls.weights[2] else ["-b", "1"]
    path = str(twin(student_for(name, "resnet8")))
    with pytest.MonkeyPatch.context() as patch:
        looked = check_gradients(patch)
        command = [*QUICK, "--limit_train", "64", "--limit_val", "20", "--image_size", "8", "--path_t", path]
        command += ["--path_s", path, "--epochs", "2", "--save_folder", str(tmp_path), "--run_name", "r", *flags]
        train_student.main(command)
    assert looked and (tmp_path / "student_model" / "r" / "summary.json").exists()


@pytest.mark.parametrize("name, options", CASES, ids=KEYS)
def test_outputs_equal(name, options):
    """As above, to the last bit: a student in training differs by its BatchNorms. Also where all logits are equal."""
    for scale in (1.0, 0.0):
        views = views_of(name)
        s, _ = example(6 * views)
        s = change(s, lambda x, scale=scale: x * scale if x.dim() == 2 else x)
        method = build(name, s, change(s, torch.clone), **options)
        t = change(s, torch.clone)
        found = losses(method, s, t, batch(s, views=views))
        assert all(loss.isfinite() for loss in found)
        if any(loss.requires_grad for loss in found):
            sum(loss for loss in found if loss.requires_grad).backward()
        assert all(x.grad is None or x.grad.isfinite().all() for x in [*tensors(s), *method.parameters()])


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """Trains a network of this name once; its checkpoint."""
    save = tmp_path_factory.mktemp("twin")

    def trained(name: str) -> Path:
        train_teacher.main([*QUICK, "--limit_train", "64", "--limit_val", "20", "--image_size", "8", "--model", name,
                            "--epochs", "1", "--save_folder", str(save), "--run_name", name])  # fmt: skip
        return save / "models" / name / "last.pth"

    return trained


def check_gradients(patch) -> list[int]:
    """From here on each step's gradients must be finite. Returns a list that has an entry for each step."""
    steps: list[int] = []
    real = torch.optim.SGD.step

    def step(self, *given, **named):
        for group in self.param_groups:
            assert all(p.grad.isfinite().all() for p in group["params"] if p.grad is not None)
        steps.append(1)
        return real(self, *given, **named)

    patch.setattr(torch.optim.SGD, "step", step)
    return steps


# ---- who reads what is printed ----


@pytest.mark.parametrize("script", ["train_teacher.py --model", "train_student.py --distill none --model_s"])
def test_nobody_reads_the_output(script, python, tmp_path):
    """As behind `| head -1`: the run ends without a word after the epoch that it could not tell, and goes on there."""
    name, *flags = script.split()
    arguments = [*flags, "resnet8", *QUICK, "--epochs", "3", "--run_name", "r"]
    reader, writer = os.pipe()
    os.close(reader)
    started = [python, name, *arguments, "--save_folder", tmp_path / "cut"]
    done = subprocess.run(started, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    kind = "models" if name == "train_teacher.py" else "student_model"
    folder = tmp_path / "cut" / kind / "r"
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == 1
    main = sys.modules[name.removesuffix(".py")].main
    for save in ("cut", "whole"):
        main([*arguments, "--save_folder", str(tmp_path / save)])
    for a, b in zip(results(folder), results(tmp_path / "whole" / kind / "r"), strict=True):
        assert equal(a, b)
