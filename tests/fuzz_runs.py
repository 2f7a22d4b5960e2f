"""Runs that are killed, and what happens to their surroundings before they are started again.

A run's folder is driven as the scripts do, with a teacher of four numbers and images of one colour. Beside it stands
what a plain reading of the rules says: which start is refused, which goes on, and what the folder then holds.
"""

import argparse
import contextlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from PIL import Image
from torch import nn

from dataset.batches import Batch
from helper import checkpoint, export, loading, run
from helper.util import UserError
from models import Images

EPOCHS = 3
LEFT = [
    *("best.pth", "ckpt_epoch_7.pth", "init_log.csv", "log.csv", "predictions.csv", "predictions_start.csv"),
    *("predictions_teacher2.csv", "student.onnx", "student.pt", "student.pt2", "student.json", "teacher.pt"),
    *("events.out.tfevents.1.left", ".last.pth.1.tmp", ".student.pt.22.tmp", ".log.csv.3.tmp"),
]
OWN = ["notes.txt", "my_log.csv", "best.pth.old", "predictions_of_mine.csv", "my.json", ".notes.tmp", "student.txt"]
CPU = torch.device("cpu")


class Killed(Exception):
    """The process ends here."""


class Seen(NamedTuple):
    """What a run began with."""

    weights: int  # number of the teacher's weights
    images: list  # class names, and for each part and image its class and colour
    files: list  # part, class, name and size of each image
    rate: int  # an option


class Started(NamedTuple):
    """A run as the folder should hold it."""

    number: int
    seen: Seen
    rows: list[str]  # log.csv's, as far as last.pth has them
    finished: bool


class Fixed(nn.Module):
    """A network of two numbers that say of which start and epoch it is."""

    def __init__(self, start: int, epoch: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(start), float(epoch)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] + self.w


def exported(network: nn.Module, images: torch.Tensor) -> tuple[bytes, Callable]:
    return json.dumps(network.w.tolist()).encode(), network


def row(start: int, epoch: int) -> dict[str, float]:
    measured = {"train_seconds": 1.5, "images_per_second": 2.0, "val_acc": start + epoch / 8, "val_acc_top5": 5.0}
    return {"epoch": epoch, "lr": 0.1, "train_loss": start * 0.5, **measured}


class Project:
    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self.data, self.teacher, self.clock, self.starts = "data", "t.pth", 10**9, 0
        self.started: Started | None = None  # what goes on
        self.unsure = False  # killed while the folder was cleaned: the run before may be there, or be gone
        self.weights, self.rate = 1, 1
        self.colours = {
            (part, name, f"{i}.bmp"): (rng.randrange(256), 8)
            for part in ("train", "val") for name in ("ant", "bee") for i in range(rng.randint(1, 2))
        }  # fmt: skip
        for image in self.colours:
            self.paint(image)
        self.write_teacher()

    # ---- what surrounds the run ----

    def paint(self, image: tuple[str, str, str]) -> None:
        colour, size = self.colours[image]
        path = self.root.joinpath(self.data, *image)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (colour,) * 3).save(path)
        self.clock += 1  # a disk's clock may stand still meanwhile
        os.utime(path, (self.clock, self.clock))

    def write_teacher(self) -> None:
        """The weights in one of the formats that are read."""
        model = {"fc.weight": torch.arange(4.0).reshape(2, 2) + self.weights, "fc.bias": torch.zeros(2)}
        legacy = self.rng.random() < 0.5
        parallel = {"state_dict": {f"module.{key}": value for key, value in model.items()}}
        kinds = [model, {"model": model, "epoch": self.rng.random()}, parallel]
        path = self.root / self.teacher
        path.unlink(missing_ok=True)
        torch.save(self.rng.choice(kinds), path, _use_new_zipfile_serialization=not legacy)

    def now(self) -> Seen:
        classes = sorted({name for _, name, _ in self.colours})
        images = [(part, name, colour) for (part, name, _), (colour, _) in sorted(self.colours.items())]
        files = [(*image, self.root.joinpath(self.data, *image).stat().st_size) for image in sorted(self.colours)]
        return Seen(self.weights, [classes, images], files, self.rate)

    def folder(self) -> Path:
        return self.root / "save" / "student_model" / "r"

    # ---- what happens between two starts ----

    def teacher_overwritten(self) -> None:
        self.weights = self.rng.randint(1, 3)
        self.write_teacher()

    def teacher_elsewhere(self) -> None:
        (self.root / self.teacher).unlink()
        self.teacher = f"{self.rng.random()}.pth"
        self.write_teacher()

    def image_added(self) -> None:
        image = self.rng.choice(["train", "val"]), self.rng.choice(self.now().images[0]), f"{self.rng.randrange(9)}.bmp"
        self.colours[image] = self.rng.randrange(256), 8
        self.paint(image)

    def image_replaced(self) -> None:
        image = self.rng.choice(sorted(self.colours))
        self.colours[image] = self.rng.randrange(256), self.rng.choice([8, 8, 9])
        self.paint(image)

    def image_removed(self) -> None:
        image = self.rng.choice(sorted(self.colours))
        if sum(other[:2] == image[:2] for other in self.colours) > 1:
            del self.colours[image]
            self.root.joinpath(self.data, *image).unlink()

    def image_renamed(self) -> None:
        part, name, file = self.rng.choice(sorted(self.colours))
        new = part, name, f"{self.rng.randrange(9)}.bmp"
        if new not in self.colours:
            self.colours[new] = self.colours.pop((part, name, file))
            self.root.joinpath(self.data, part, name, file).rename(self.root.joinpath(self.data, *new))

    def class_renamed(self) -> None:
        classes = self.now().images[0]
        old, new = self.rng.choice(classes), self.rng.choice(["ant", "bee", "cat", "dog"])
        if new not in classes:
            self.colours = {(p, new if n == old else n, f): x for (p, n, f), x in self.colours.items()}
            for part in ("train", "val"):
                (self.root / self.data / part / old).rename(self.root / self.data / part / new)

    def data_moved(self) -> None:
        new = f"data{self.rng.random()}"
        (self.root / self.data).rename(self.root / new)
        self.data = new

    def project_moved(self) -> None:
        new = self.root.with_name(f"moved{self.rng.random()}")
        self.root.rename(new)
        self.root = new

    def option_changed(self) -> None:
        self.rate = self.rng.randint(1, 2)

    def log_edited(self) -> None:
        log = self.folder() / "log.csv"
        if log.exists():
            text = log.read_bytes()
            at = self.rng.randrange(len(text) + 1)
            edits = [text[:at], text[at:], text[:at] + self.rng.randbytes(9) + text[at:], text * 2, text.rstrip(), b""]
            log.write_bytes(self.rng.choice([*edits, text.replace(b"\n", b""), text.replace(b"1", b"2")]))
            if self.rng.random() < 0.2:
                log.unlink()

    def left_overs(self) -> None:
        self.folder().mkdir(parents=True, exist_ok=True)
        for name in self.rng.sample([*LEFT, *OWN], self.rng.randint(1, 9)):
            (self.folder() / name).write_bytes(b"left")

    def older_export(self) -> None:
        """As a run with other weights leaves it."""
        self.folder().mkdir(parents=True, exist_ok=True)
        content = b"[-1.0, -1.0]"
        said = {"weights": "0" * 32, "files": {"student.pt": export.digest(content)}, "largest_difference": {}}
        (self.folder() / "student.pt").write_bytes(content)
        (self.folder() / "student.json").write_text(json.dumps(said))

    # ---- starts ----

    def options(self) -> argparse.Namespace:
        asked = ["torchscript"] if self.rng.random() < 0.5 else []
        place = {"save_folder": str(self.root / "save"), "data_folder": str(self.root / self.data), "dataset": "folder"}
        limits = {"image_size": 8, "limit_train": None, "limit_val": None, "loader": "memory", "num_workers": 1}
        teacher = {"path_t": [str(self.root / self.teacher)], "memory_gb": 1.0, "test_only": None}
        later = {"track": "off", "push_to_hub": None, "quiet": False, "val_split": None}
        how = {
            "run_name": "r",
            "export": asked,
            "rate": self.rate,
            "resume": self.rng.choice(["auto", "auto", "never"]),
        }
        return argparse.Namespace(**place, **limits, **teacher, **later, **how)

    def refused(self, opt: argparse.Namespace) -> str:
        """Part of the line that a start must end with, or ""."""
        now, was = self.now(), self.started and self.started.seen
        if opt.resume == "never" or was is None:
            return ""
        if now.rate != was.rate:
            return "with other options: --rate"
        if now.weights != was.weights:
            return "that began with other weights: --path_t"
        unseen = self.started.finished and now.files == was.files  # no image is opened but for an export
        return "on other data: " if now.images != was.images and (opt.export or not unseen) else ""

    def start(self) -> None:
        """One start of the program, perhaps killed."""
        opt = self.options()
        expected = self.refused(opt)
        before = self.texts()
        try:
            begun = self.prepared(opt)
        except UserError as error:
            assert self.texts() == before, "a refused start has changed the folder"
            if self.unsure and opt.resume == "auto":  # half of an earlier run
                return
            assert expected and expected in str(error), f"refused: {error}; expected: {expected or 'no refusal'}"
            if "weights" in expected:
                digests = re.findall(r"digest (\w{32}), not (\w{32})", str(error))
                assert digests and len(set(digests[0])) == 2, f"the digests are not both named: {error}"
            return
        unseen = begun.finished and "data" in expected and self.now().files == self.started.seen.files
        assert self.unsure or unseen or not expected, f"taken; expected: {expected}"
        if begun.finished:
            assert self.unsure or (self.started and self.started.finished and opt.resume == "auto"), "finished?"
            return self.check_export(opt)
        fresh = begun.state is None
        if not self.unsure:
            assert fresh == (self.started is None or opt.resume == "never"), "another state was gone on from"
        with contextlib.suppress(Killed):
            self.train(begun, opt, fresh)

    def prepared(self, opt: argparse.Namespace) -> run.Run:
        """As the scripts begin."""
        begun = run.Run("student_model", "", opt)
        states = [checkpoint.load(path, "--path_t") for path in opt.path_t]
        begun.begins_with("path_t", checkpoint.digests("--path_t", opt.path_t, states))
        if begun.finished:
            loading.check_data_of(opt, [begun])
        else:
            loading.load_data(opt, [begun])
        return begun

    def train(self, begun: run.Run, opt: argparse.Namespace, fresh: bool) -> None:
        if fresh:
            self.starts += 1
            self.unsure = any(begun.seen)
            self.started = self.started if self.unsure else None
        own = {path.name for path in self.folder().glob("*")} & {*OWN}
        with contextlib.ExitStack() as opened:
            with self.perhaps_killed_in_cleaning():
                opened.enter_context(begun.open(CPU))
            self.check_folder(fresh, own)
            if fresh:
                self.started, start, done = None, self.starts, 0
            else:
                done, (start, epoch) = begun.state["done"]["log.csv"], map(int, begun.state["model"]["w"].tolist())
                self.check_state(start, epoch)
                self.started = self.started._replace(number=start, rows=self.rows(start, epoch))
            self.unsure = False
            for epoch in range(done + 1, EPOCHS + 1):
                begun.log("log.csv", row(start, epoch))
                self.perhaps_killed()
                state = {"model": Fixed(start, epoch).state_dict(), "stage": "", "done": {"log.csv": epoch}}
                begun.save("last.pth", state)
                seen = self.now() if self.started is None else self.started.seen
                self.started = Started(start, seen, self.rows(start, epoch), False)
                self.perhaps_killed()
            network = Fixed(start, EPOCHS)
            facts = {"weights": checkpoint.digest({"model": network.state_dict()}), "model_name": "x", "parameters": 2}
            begun.finish(facts)
            self.started = self.started._replace(finished=True)
            self.perhaps_killed()
            images = [Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2))]
            export.save(begun, network, images, Images((8, 8), (0.0,) * 3, (1.0,) * 3), ["a", "b"])
            self.check_export(opt)

    @contextlib.contextmanager
    def perhaps_killed_in_cleaning(self) -> Iterator[None]:
        left = self.rng.choice([0, 1, 2, 5, 10**9, 10**9, 10**9, 10**9])

        def unlink(path: Path, *given: Any, real: Callable = Path.unlink, **more: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(path, *given, **more)

        with mock.patch.object(Path, "unlink", unlink):
            yield

    def perhaps_killed(self) -> None:
        if self.rng.random() < 0.2:
            if self.rng.random() < 0.5:
                (self.folder() / ".last.pth.4242.tmp").write_bytes(b"half")
            raise Killed

    # ---- what must hold ----

    def rows(self, start: int, epoch: int) -> list[str]:
        return run.as_csv([row(start, n) for n in range(1, epoch + 1)]).splitlines()

    def texts(self) -> dict[str, tuple[bytes, int]]:
        folder = self.folder()
        paths = folder.iterdir() if folder.is_dir() else ()
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.name != ".lock"}

    def check_state(self, start: int, epoch: int) -> None:
        """It and the log are those of the last checkpoint, whatever stands in the file."""
        rows = self.rows(start, epoch)
        assert self.unsure or (start, rows) == (self.started.number, self.started.rows), "another checkpoint"
        found = (self.folder() / "log.csv").read_text(errors="replace").splitlines()
        assert found == rows, f"log.csv: {found}"

    def check_folder(self, fresh: bool, own: set[str]) -> None:
        """own: names of files that are nobody's but the user's."""
        found = {path.name for path in self.folder().iterdir()}
        assert own <= found, f"removed, and not the run's: {own - found}"
        found -= {".lock", *OWN}
        assert not any(name.endswith(".tmp") for name in found), f"half written files are left: {found}"
        assert not fresh or found == {"options.json"}, f"left of the run before: {found}"

    def check_export(self, opt: argparse.Namespace) -> None:
        if opt.export:
            model = checkpoint.load(self.folder() / "last.pth")["model"]
            found = json.loads((self.folder() / "student.pt").read_text())
            assert found == model["w"].tolist(), f"an export of {found}, the weights are {model['w'].tolist()}"

    def check_end(self) -> None:
        if self.started and self.started.finished and not self.unsure:
            summary = json.loads((self.folder() / "summary.json").read_text())
            assert summary["last_acc"] == row(self.started.number, EPOCHS)["val_acc"], "summary.json of another run"


DISTURBANCES = [
    *(Project.teacher_overwritten, Project.teacher_elsewhere, Project.image_added, Project.image_replaced),
    *(Project.image_removed, Project.image_renamed, Project.class_renamed, Project.data_moved, Project.project_moved),
    *(Project.option_changed, Project.log_edited, Project.log_edited, Project.left_overs, Project.left_overs),
    *(Project.older_export, Project.older_export),
]


def read_run(path: Path) -> str:
    """Starts, kills and disturbs a run, by the bytes in the file."""
    rng = random.Random(path.read_bytes())
    found = []
    with (
        mock.patch.object(run, "Scalars", mock.MagicMock()),
        mock.patch.object(run, "machine", lambda device: {}),
        mock.patch.object(os, "fsync", lambda file: None),
        mock.patch.dict(export.FORMATS, torchscript=export.Format(".pt", exported)),
        contextlib.redirect_stdout(None),
    ):
        project = Project(path.with_name("project"), rng)
        for _ in range(rng.randint(2, 5)):
            project.start()
            project.check_end()
            for disturb in rng.choices(DISTURBANCES, k=rng.choice([0, 1, 1, 2])):
                disturb(project)
                found.append(disturb.__name__)
    return found[-1] if found else "nothing"
