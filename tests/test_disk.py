"""What becomes of a run whose disk fills, whose files are damaged, or whose folder another process wants."""

import errno
import fcntl
import io
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import QUICK
from kill_harness import equal, results

import train_student
from helper import checkpoint
from helper.run import Run
from helper.tb import Scalars
from helper.util import UserError


def command(teacher, save):
    return [*QUICK, "--path_t", str(teacher), "--model_s", "resnet8", "--distill", "crd", "--nce_k", "64",
            "--epochs", "3", "--save_freq", "2", "--save_steps", "2",
            "--save_folder", str(save), "--run_name", "r"]  # fmt: skip


def refused(arguments, capsys, *messages):
    with pytest.raises(SystemExit) as stop:
        train_student.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == len(messages) and all(message in error for message in messages), error


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The folder of the undisturbed run."""
    save = tmp_path_factory.mktemp("whole")
    train_student.main(command(teacher, save))
    return save / "student_model" / "r"


@pytest.fixture(scope="module")
def lost(teacher, tmp_path_factory):
    """The folder of a run that was lost in its last epoch."""

    def log(self, name, row, real=Run.log):
        if row["epoch"] == 3:
            raise RuntimeError("power cut")
        real(self, name, row)

    save = tmp_path_factory.mktemp("lost")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Run, "log", log)
        train_student.main(command(teacher, save))
    return save / "student_model" / "r"


@pytest.fixture
def cut(lost, tmp_path):
    return shutil.copytree(lost, tmp_path / "student_model" / "r")


def same(found, expected):
    for a, b in zip(results(found), results(expected), strict=True):
        assert equal(a, b)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_damaged_last_checkpoint(cut, whole, teacher, capsys):
    """The one before is gone on from, with a warning; that one damaged too, nothing is begun."""
    last, previous = cut / "last.pth", cut / "last.prev.pth"
    assert [torch.load(path, weights_only=True)["epoch"] for path in (last, previous)] == [2, 2]
    flip(last, 8 * (last.stat().st_size // 2))
    good, before = previous.read_bytes(), sorted(os.listdir(cut))
    previous.write_bytes(good[:-100])
    refused(command(teacher, cut.parent.parent), capsys, "last.pth: truncated, or not a checkpoint: Bad CRC-32")
    assert sorted(os.listdir(cut)) == before
    previous.write_bytes(good)
    train_student.main(command(teacher, cut.parent.parent))
    said = capsys.readouterr()
    assert said.err.startswith("warning: the interrupted run's") and "going on from last.prev.pth" in said.err
    assert "/r at epoch 3/3" in said.out
    same(cut, whole)


def test_every_damage_is_found(tmp_path):
    """Whichever bit of a checkpoint is wrong, and wherever it ends: it is refused, or what it holds is right."""
    path = tmp_path / "x.pth"
    state = {"model": {"a": torch.randn(50), "b": torch.arange(40)}, "n": 3}
    checkpoint.save(path, state)
    whole = path.read_bytes()
    values = [whole.index(state["model"][key].numpy().tobytes()) for key in "ab"]
    place, found = random.Random(0), 0
    bits = [8 * (start + place.randrange(200)) + place.randrange(8) for start in values for _ in range(50)]
    for bit in bits:
        flip(path, bit)
        with pytest.raises(UserError, match="x.pth: truncated, or not a checkpoint"):
            checkpoint.load(path)
        path.write_bytes(whole)
    for bit in place.sample(range(8 * len(whole)), 400):
        flip(path, bit)
        try:
            assert equal(checkpoint.load(path), state), bit
        except UserError:
            found += 1
        path.write_bytes(whole)
    for length in place.sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            checkpoint.load(path)
    assert found > 100


def test_checkpoint_without_checksums(tmp_path):
    """PyTorch can be told to leave them out, and others do."""
    torch.serialization.set_crc32_options(False)
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    torch.serialization.set_crc32_options(True)
    assert equal(checkpoint.load(tmp_path / "x.pth"), {"a": torch.ones(3)})


@pytest.mark.parametrize("room", [0, 10**6, 3 * 10**6])
def test_full_disk(room, whole, teacher, tmp_path, capsys, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            nonlocal room
            written, room = super().write(data[:room]), max(0, room - len(data))
            if written < len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "open", lambda *path_mode: io.BufferedWriter(Full(*path_mode)), raising=False)
        refused(command(teacher, tmp_path), capsys, "cannot be written: No space left on device")
    folder = tmp_path / "student_model" / "r"
    assert not list(folder.glob(".*.tmp"))
    for path in folder.glob("*.pth"):
        checkpoint.load(path)
    train_student.main(command(teacher, tmp_path))
    same(folder, whole)


@pytest.fixture
def mount(tmp_path):
    """mount(arguments) for a folder in tmp_path, where it is allowed."""

    def mount(*arguments):
        done = subprocess.run(["mount", *arguments, tmp_path / "disk"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(done.stderr)

    (tmp_path / "disk").mkdir()
    yield mount
    while not subprocess.run(["umount", "-l", tmp_path / "disk"], capture_output=True).returncode:
        pass


def test_full_tmpfs(mount, whole, teacher, tmp_path, capsys):
    """TensorBoard's events find no room either."""
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs")
    for _ in range(2):
        refused(command(teacher, tmp_path / "disk"), capsys, "cannot be written: No space left on device")
        assert not list((tmp_path / "disk").rglob(".*.tmp"))
    mount("-o", "remount,size=30m")
    train_student.main(command(teacher, tmp_path / "disk"))
    same(tmp_path / "disk" / "student_model" / "r", whole)


def test_disk_becomes_read_only(mount, teacher, tmp_path, capsys, monkeypatch):
    def log(self, *args, real=Run.log):
        mount("--bind", tmp_path / "disk")
        mount("-o", "remount,bind,ro")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        refused(command(teacher, tmp_path / "disk"), capsys, "r cannot be written: Read-only file system")
    refused(command(teacher, tmp_path / "disk"), capsys, "disk/student_model/r is not a folder that can be written")


@pytest.mark.parametrize("anew", [False, True])
def test_folder_removed(anew, teacher, tmp_path, capsys, monkeypatch):
    """What is written no more must not go into another process's folder of that name."""
    folder = tmp_path / "student_model" / "r"

    def log(self, *args, real=Run.log):
        shutil.rmtree(folder)
        if anew:
            folder.mkdir()
            (folder / ".lock").touch()
        real(self, *args)

    monkeypatch.setattr(Run, "log", log)
    said = "was removed, and made anew by another process" if anew else "cannot be written: No such file or directory"
    refused(command(teacher, tmp_path), capsys, said)
    assert not folder.exists() or os.listdir(folder) == [".lock"]


def test_two_processes(cut, whole, teacher, capsys):
    """The second is refused, until the first has ended, however it has."""
    before = {path.name: path.stat().st_mtime_ns for path in cut.iterdir()}
    script = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script, cut / ".lock"], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        for flags in ([], ["--resume", "never"]):
            refused([*command(teacher, cut.parent.parent), *flags], capsys, "another process is training this run")
        assert {path.name: path.stat().st_mtime_ns for path in cut.iterdir()} == before
        other.kill()
    (cut / ".last.pth.1.tmp").write_bytes(b"half")
    train_student.main(command(teacher, cut.parent.parent))
    same(cut, whole)


def test_another_process_was_faster(cut, teacher, capsys, monkeypatch):
    """Between the reading of the last checkpoint and the lock."""

    def open(self, device, real=Run.open):
        os.utime(cut / "last.pth")
        return real(self, device)

    monkeypatch.setattr(Run, "open", open)
    refused(command(teacher, cut.parent.parent), capsys, "another process has changed it meanwhile; start again")


def test_disks_without_locks(teacher, tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    train_student.main([*command(teacher, tmp_path), "--epochs", "1"])
    assert (tmp_path / "student_model" / "r" / "summary.json").exists()


def test_events_cannot_be_written(tmp_path, monkeypatch):
    scalars = Scalars(tmp_path)
    if scalars._logger is None:
        pytest.skip("tensorboard_logger does not work here")
    full = open("/dev/full", "wb")
    monkeypatch.setattr(scalars._logger, "_writer", full)
    with pytest.warns(UserWarning, match="no more TensorBoard events, log.csv alone: .*No space left"):
        scalars.log({"a": 1.0}, 1)
    scalars.log({"a": 1.0}, 2)
