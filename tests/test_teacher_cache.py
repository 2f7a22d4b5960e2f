"""What --cache_teacher keeps is what the teacher said, whoever writes beside it and whenever a process dies.

Run as a script (by the tests), this file is a process that is killed, or several that fill one cache.
"""

import argparse
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT
from test_parallel import finished, ranks
from test_resume import equal, results
from torch import Tensor, nn

import dataset
import models
import train_student
from dataset import Augment, ImageSet
from dataset.base import Batch
from distiller_zoo.sskd import Rotations
from helper.step import Precision
from helper.teacher_cache import TeacherCache, open_caches
from helper.teachers import Teachers
from helper.util import UserError
from models.base import Output

METHODS = "--distill crd,rkd -b 0.8,1 -a 1 --nce_k 64".split()
SAMPLES, VIEWS, CLASSES, FEATURES = 20, 5, 3, 4


class Teacher(nn.Module):
    """Its answers depend on `moods` times how many it is asked about at once; it notes whom."""

    def __init__(self, moods: float = 0.0) -> None:
        super().__init__()
        self.moods, self.asked = moods, []

    def forward(self, images: Tensor, is_feat: bool = True) -> Output:
        x = images.flatten(1)
        self.asked.append(x[:, -1].tolist())
        x = x * (1 + self.moods * len(x))
        return Output(x[:, :CLASSES], (x,), (x,), x[:, CLASSES : CLASSES + FEATURES])


def new(folder: Path, images_a_view: int = 1, **about: object) -> TeacherCache:
    default = {"network": "timm:net/a", "samples": SAMPLES, "views": VIEWS, "dtype": "float32", "compile": False}
    like = Output(torch.zeros(2, CLASSES), (), (), torch.zeros(2, FEATURES))
    cache = TeacherCache(str(folder), default | {"images_a_view": images_a_view} | about, like)
    cache.open()
    return cache


def directly(teacher: nn.Module, images: Tensor, batch: Batch) -> Output:
    return teacher(images, is_feat=True)


def batch_of(rows: list[int], images_a_view: int = 1) -> tuple[Tensor, Batch]:
    """Images that depend on sample and view alone, the last pixel says which; and their batch."""
    rows = torch.tensor(rows)
    images = torch.stack([torch.randn(images_a_view, 3, 4, 4, generator=seeded(row)) for row in rows.tolist()])
    images[..., -1, -1, -1] = rows.unsqueeze(1).float()
    index, view = rows // VIEWS, rows % VIEWS
    return images.flatten(0, 1), Batch(images, index % 2, index, None, (index, view))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(n: int, seed: int = 0) -> list[tuple[Tensor, Batch]]:
    """Batches of six samples, in views of which some come again."""
    chance = random.Random(seed)
    return [batch_of([chance.randrange(VIEWS) + VIEWS * i for i in chance.sample(range(8), 6)]) for _ in range(n)]


def same(a: Output, b: Output) -> bool:
    return torch.equal(a.logits, b.logits) and torch.equal(a.pooled, b.pooled)


@pytest.mark.parametrize("images_a_view", [1, 4])
@pytest.mark.parametrize("dtype, kept", [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_teacher_is_asked_for_missing_rows_alone(tmp_path, dtype, kept, images_a_view) -> None:
    cache, teacher = new(tmp_path, images_a_view, dtype=dtype), Teacher()
    for rows, missing in [([7, 99, 0], [7, 99, 0]), ([0, 7, 99], []), ([1, 99, 2, 0], [1, 2])]:
        images, batch = batch_of(rows, images_a_view)
        said, teacher.asked = directly(teacher, images, batch), []
        found = cache(teacher, images, batch)
        assert [torch.equal(a, b.to(kept).float()) for a, b in zip(found[::3], said[::3], strict=True)] == [True, True]
        assert teacher.asked == ([[row for row in missing for _ in range(images_a_view)]] if missing else [])
        assert found.feats == found.preacts == ()
        assert same(new(tmp_path, images_a_view, dtype=dtype)(None, images, batch), found), "for another run"


def test_outputs_have_the_teachers_dtypes(tmp_path) -> None:
    cache = new(tmp_path)
    cache.like = Output(torch.zeros(2, CLASSES).bfloat16(), (), (), torch.zeros(2, FEATURES).half())
    found = cache(Teacher(), *batch_of([1, 2]))
    assert (found.logits.dtype, found.pooled.dtype) == (torch.bfloat16, torch.float16)


def test_a_compiled_teacher_sees_one_size(tmp_path) -> None:
    cache, teacher, once = new(tmp_path, compile=True), Teacher(), Teacher()
    for rows in ([7, 99, 0], [0, 8, 99]):
        images, batch = batch_of(rows)
        assert same(cache(teacher, images, batch), directly(once, images, batch))
    assert teacher.asked == once.asked
    cache(None, *batch_of([7, 0, 8]))


def test_a_cache_for_each_teacher(tmp_path) -> None:
    networks = [Teacher(), Teacher(moods=1.0)]
    teachers = Teachers(networks, Precision("off", torch.device("cpu")))
    teachers.caches = [new(tmp_path, weights=n) for n in "ab"]
    images, batch = batch_of([3, 4])
    (cold,), (warm,) = (teachers.ask([batch], (), 2) for _ in range(2))
    for n, teacher in enumerate(networks):
        assert teacher.asked == [[3, 4]]
        assert same(cold[n], directly(teacher, images, batch)) and same(warm[n], cold[n])


class Killed(BaseException):
    pass


def dying(writes: int) -> object:
    """An os.pwrite that dies half-way through the write of that number."""
    left = [writes]

    def pwrite(file: int, data: object, place: int, write=os.pwrite) -> int:
        left[0] -= 1
        if left[0] == 0:
            write(file, memoryview(data).cast("B")[: memoryview(data).nbytes // 2], place)
            raise Killed
        return write(file, data, place)

    return pwrite


def test_killed_in_any_write_and_started_again(tmp_path, monkeypatch) -> None:
    """Each row is computed in the company that it had in the run that was not killed."""
    played = steps(5)
    cache = new(tmp_path / "whole")
    expected = [cache(Teacher(1e-3), *step) for step in played]
    for writes in range(1, 100):
        cache = new(tmp_path / str(writes))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", dying(writes))
                for step in played:
                    cache(Teacher(1e-3), *step)
        except Killed:
            cache.journal.close()  # as a dead process does
        else:
            break
        cache = new(tmp_path / str(writes))
        assert all(same(cache(Teacher(1e-3), *step), before) for step, before in zip(played, expected, strict=True))
    assert writes > 20


def test_a_journal_in_use_is_left_alone(tmp_path) -> None:
    caches = [new(tmp_path) for _ in range(3)]
    assert sorted(path.name for path in caches[0].folder.glob("journal*")) == ["journal0", "journal1", "journal2"]
    caches[1].journal.close()
    new(tmp_path)
    assert len(list(caches[0].folder.glob("journal*"))) == 3


SPOILT = {
    "a bit": lambda old, at: old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :],
    "truncated": lambda old, at: old[:at],
    "emptied": lambda old, at: b"",
    "zeros": lambda old, at: bytes(len(old)),
    "noise": lambda old, at: random.Random(at).randbytes(2 * len(old)),
    "moved": lambda old, at: old[40:] + old[:40],
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.filterwarnings("ignore:.*rows that are not whole are made anew")
def test_spoilt_files(how, tmp_path) -> None:
    every = list(range(SAMPLES * VIEWS))
    images, batch = batch_of(every)
    expected = new(tmp_path)(Teacher(), images, batch)
    folder = next(tmp_path.iterdir())
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path in whole:
        for at in random.Random(0).sample(range(len(whole[path])), 3):
            (folder / "journal0").unlink()  # it would mend the rows
            path.write_bytes(SPOILT[how](whole[path], at))
            teacher = Teacher()
            assert same(new(tmp_path)(teacher, images, batch), expected)
            asked = sum(map(len, teacher.asked))
            assert asked == 0 if path.name != "rows" else asked == 1 if how == "a bit" else asked > 0
            for other in whole:
                other.write_bytes(whole[other])


def test_spoilt_rows_are_told_once(tmp_path) -> None:
    cache = new(tmp_path)
    cache(Teacher(), *batch_of([1, 2, 3]))
    (cache.folder / "rows").write_bytes(b"x" * 1000)
    with pytest.warns(match="rows that are not whole are made anew") as told:
        cache(Teacher(), *batch_of([1, 2, 3]))
        cache(Teacher(), *batch_of([4, 5, 6]))
    assert len(told) == 1


def test_rows_of_another_teacher_do_not_count(tmp_path) -> None:
    images, batch = batch_of([1, 2, 3])
    new(tmp_path, weights="a")(Teacher(), images, batch)
    (cache, other) = new(tmp_path, weights="a"), new(tmp_path, weights="b")
    assert cache.folder != other.folder
    for path in cache.folder.iterdir():
        shutil.copy(path, other.folder)
    teacher = Teacher()
    with pytest.warns(match="not whole"):
        new(tmp_path, weights="b")(teacher, images, batch)
    assert teacher.asked == [[1, 2, 3]]


def test_full_disk(tmp_path, monkeypatch) -> None:
    cache, teacher, played = new(tmp_path), Teacher(), steps(3)
    full = OSError(errno.ENOSPC, "No space left on device")

    def pwrite(*_: object) -> int:
        raise full

    with monkeypatch.context() as patch, pytest.warns(match="no rows are kept: .*No space left") as told:
        patch.setattr(os, "pwrite", pwrite)
        assert all(same(cache(teacher, *step), directly(Teacher(), *step)) for step in played)
    assert len(told) == 1 and len(teacher.asked) == 3


def test_numbers_that_cannot_be_kept(tmp_path) -> None:
    images, batch = batch_of([70, 71, 72])
    with pytest.raises(UserError, match="--cache_dtype fp16: too small for the teacher's outputs, which reach 3.45e"):
        new(tmp_path, dtype="fp16")(Teacher(), images * 0 + 34.5e4, batch)
    images[0, 0] = float("nan")
    cache, teacher = new(tmp_path), Teacher()
    for _ in range(2):  # is given, so that the run says so and ends, but not kept
        assert cache(teacher, images, batch).logits[0, 0].isnan()
    assert len(teacher.asked) == 2


# ---- several processes ----


def fill(folder: Path, seed: int) -> None:
    """Fills the cache and ends with 0 where every answer is right."""
    cache = new(folder)
    for images, batch in steps(40, seed):
        if not same(cache(Teacher(), images, batch), directly(Teacher(), images, batch)):
            os._exit(1)
    os._exit(0)


def fill_together(folder: Path) -> None:
    """Three processes at a time, of which one is killed."""
    chance = random.Random(0)
    torch.set_num_threads(1)
    for turn in range(8):
        children = []
        for n in range(3):
            if (child := os.fork()) == 0:
                fill(folder / str(turn % 2), 3 * turn + n)
            children.append(child)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(children[0], signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert ends[0] in (-9, 0) and ends[1:] == [0, 0], ends


def test_several_processes_fill_one_cache(python, tmp_path) -> None:
    subprocess.run([python, __file__, "together", tmp_path], check=True, cwd=ROOT, timeout=300)
    for folder in tmp_path.iterdir():
        teacher = Teacher()
        images, batch = batch_of(list(range(8 * VIEWS)))
        assert same(new(folder)(teacher, images, batch), directly(Teacher(), images, batch))
        assert not teacher.asked, "all rows were met"


# ---- which cache ----


def ingredients() -> tuple[argparse.Namespace, list[nn.Module], Augment, ImageSet]:
    torch.manual_seed(0)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    half = (0.5,) * 3
    data = ImageSet(images, torch.arange(6) % 2, images, torch.arange(6) % 2, ("a", "b"), half, half, padding=1)
    opt = argparse.Namespace(cache_dtype=None, cache_gb=None, amp="off", compile=False, model_t=["resnet8"])
    return opt, [models.create_model("resnet8", 2).eval()], dataset.augmentation(data, "cpu"), data


def folder_of(change: object, root: Path) -> Path:
    opt, teachers, augment, data = ingredients()
    opt.cache_teacher = str(root)
    augment = change(opt, teachers[0], data) or dataset.augmentation(data, "cpu")
    return open_caches(opt, teachers, augment, data, torch.device("cpu"))[0].folder


CHANGES = {
    "a weight": lambda opt, teacher, data: teacher.fc.weight.data[0, 0].mul_(1.0001),
    "a statistic": lambda opt, teacher, data: teacher.bn1.running_mean[0].add_(1e-3),
    "a pixel": lambda opt, teacher, data: data.train_images[5, 0, 0, 0].add_(1),
    "number": lambda opt, teacher, data: setattr(data, "train_labels", data.train_labels[:5]),
    "mean": lambda opt, teacher, data: setattr(data, "mean", (0.5, 0.5, 0.501)),
    "deviation": lambda opt, teacher, data: setattr(data, "std", (0.5, 0.5, 0.501)),
    "padding": lambda opt, teacher, data: setattr(data, "padding", 2),
    "flip": lambda opt, teacher, data: setattr(data, "flip", False),
    "views": lambda opt, teacher, data: Rotations(dataset.augmentation(data, "cpu")),
    "network": lambda opt, teacher, data: setattr(opt, "model_t", ["resnet14"]),
    "precision": lambda opt, teacher, data: setattr(opt, "amp", "bf16"),
    "compilation": lambda opt, teacher, data: setattr(opt, "compile", True),
    "dtype": lambda opt, teacher, data: setattr(opt, "cache_dtype", "bf16"),
}


def not_views(change: object) -> object:
    return lambda *given: value if isinstance(value := change(*given), Rotations) else None


def test_all_that_changes_the_numbers_changes_the_cache(tmp_path) -> None:
    folders = [folder_of(not_views(change), tmp_path) for change in [lambda *_: None, *CHANGES.values()]]
    assert len(set(folders)) == 1 + len(CHANGES)
    assert folder_of(lambda *_: None, tmp_path) == folders[0]


# ---- whole runs ----


def arguments(teacher: Path, save: Path, *flags: str) -> list[str]:
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--epochs", "2", "--lr_decay_epochs", "1",
            "--save_folder", str(save), "--run_name", "r", *flags]  # fmt: skip


def log(save: Path) -> Iterator[list[float]]:
    """Of each epoch the losses and accuracies."""
    for line in (save / "student_model" / "r" / "log.csv").read_text().splitlines()[1:]:
        yield [float(number) for number in line.split(",")[2:7]]


@pytest.fixture(scope="module")
def runs(teacher, tmp_path_factory) -> dict[str, Path]:
    """The folders of a run without a cache, one that fills a cache, and one that finds it filled."""
    save, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    for name in ("plain", "cold", "warm"):
        flags = [] if name == "plain" else ["--cache_teacher", str(save / "cache")]
        if name == "warm":
            patch.setattr(TeacherCache, "ask", None)  # cannot be called
        train_student.main(arguments(teacher, save / name, *METHODS, *flags))
    patch.undo()
    return {name: save / name for name in ("plain", "cold", "warm")}


def test_same_losses(runs) -> None:
    """Bit for bit where whole batches were computed or found, else to rounding."""
    plain, cold, warm = (list(log(save)) for save in runs.values())
    assert len(plain) == 2 and plain[0] == cold[0] and cold == warm
    for row, expected in zip(cold, plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    found, expected = (results(runs[name] / "student_model" / "r") for name in ("warm", "cold"))
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_killed_run_goes_on_exactly(python, teacher, runs, tmp_path) -> None:
    """Killed half-way through a row in the second epoch, with a cache that was empty at first."""
    command = [*arguments(teacher, tmp_path, *METHODS), "--cache_teacher", str(tmp_path / "cache")]
    killed = subprocess.run([python, __file__, "killed", "180", *command], cwd=ROOT, capture_output=True)
    assert killed.returncode == 137, killed.stderr
    train_student.main(command)
    found, expected = (results(save / "student_model" / "r") for save in (tmp_path, runs["cold"]))
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))


def test_several_views_and_stages(teacher, tmp_path, monkeypatch) -> None:
    flags = "--distill sskd --init_epochs 1 --epochs 1 --limit_train 50 --cache_dtype bf16 --cache_teacher".split()
    flags += [str(tmp_path / "cache")]
    train_student.main(arguments(teacher, tmp_path / "cold", *flags))
    monkeypatch.setattr(TeacherCache, "ask", None)
    train_student.main(arguments(teacher, tmp_path / "warm", *flags))
    cold, warm = (results(tmp_path / name / "student_model" / "r") for name in ("cold", "warm"))
    assert cold[1].keys() == {"init_log.csv", "log.csv"} and all(equal(a, b) for a, b in zip(cold, warm, strict=True))


def test_two_processes(python, teacher, tmp_path, port) -> None:
    """Each fills rows of one cache; one is killed in the second epoch."""
    found = {}
    for name in ("whole", "broken"):
        command = arguments(teacher, tmp_path / name, *METHODS, "--cache_teacher", str(tmp_path / name / "cache"))
        if name == "broken":
            finished(ranks(python, 2, "train_student.py", *command, port=port, KILLED_IN="r:2"), status=137)
        finished(ranks(python, 2, "train_student.py", *command, port=port))
        found[name] = results(tmp_path / name / "student_model" / "r")
    assert all(equal(a, b) for a, b in zip(*found.values(), strict=True))
    assert len(list((tmp_path / "whole" / "cache").glob("*/journal*"))) == 2


@pytest.mark.parametrize("flags, message", [
    ("--distill kd,at", "--cache_teacher: at reads the teacher's feature maps, which are not cached"),
    ("--distill ab -b 0", "--cache_teacher: ab reads the teacher's feature maps, which are not cached"),
    ("--distill uda", "--cache_teacher: WeakAndStrong gives a sample more views than can be kept"),
    ("--distill none", "--cache_teacher: nothing asks a teacher in --distill none"),
    ("--cache_gb 0.003", "--cache_gb: expected at least 0.01 for 100 samples in 81 views, found 0.003"),
    ("--cache_gb 0", "--cache_gb: expected a number above 0, found 0"),
    ("--cache_dtype fp8", "--cache_dtype: invalid choice: 'fp8'"),
    ("--cache_teacher {file}", "--cache_teacher .*file: .*Not a directory"),
    ("--cache_teacher {file}/below", "--cache_teacher .*below: .*Not a directory"),
])  # fmt: skip
def test_refused(teacher, tmp_path, capsys, flags, message) -> None:
    (tmp_path / "file").write_text("")
    given = ["--cache_teacher", str(tmp_path / "cache"), *flags.format(file=tmp_path / "file").split()]
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments(teacher, tmp_path / "save", *given))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("flag", [["--cache_gb", "1"], ["--cache_dtype", "float32"]])
def test_no_flag_without_effect(teacher, tmp_path, capsys, flag) -> None:
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments(teacher, tmp_path, *flag))
    assert stop.value.code == 2 and f"{flag[0]} has no effect without --cache_teacher" in capsys.readouterr().err


def killed(writes: int, argv: list[str]) -> None:
    """A run that is killed half-way through a write to the cache."""
    write = dying(writes)

    def pwrite(*given: object) -> int:
        try:
            return write(*given)
        except Killed:
            os.kill(os.getpid(), signal.SIGKILL)

    os.pwrite = pwrite
    train_student.main(argv)


if __name__ == "__main__":
    if sys.argv[1] == "together":
        fill_together(Path(sys.argv[2]))
    else:
        killed(int(sys.argv[2]), sys.argv[3:])
