"""The fuzzer and the kill harness find what was wrong once: with each function made naive, they report it."""

import hashlib
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz
import hostile
import kill_harness
import numpy as np
import pytest
from PIL import Image, ImageOps
from torch import nn

import dataset
import models
from dataset import cache, files
from helper import checkpoint, export, identity, loading, networks, run
from helper.util import as_user_error
from models import wrn

MOST = 300  # inputs


class Endless(int):
    """No limit is below it."""

    def __gt__(self, limit: int) -> bool:
        return False


def stretched(image: Image.Image) -> Image.Image:
    """From an image's own darkest value to its lightest."""
    x = np.asarray(image).astype(float)
    return Image.fromarray(np.uint8((x - x.min()) / max(x.max() - x.min(), 1e-9) * 255))


def turned(path: str) -> Image.Image:
    with files.opened(path) as image:
        return ImageOps.exif_transpose(files._grey(image) if image.mode[0] in "IF" else image).convert("RGB")


def over_black(path: str) -> Image.Image:
    with files.opened(path) as image:
        image = files._grey(image) if image.mode[0] in "IF" else image
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA")).convert(
            "RGB"
        )


def from_the_file(self: run.Run, state: dict[str, Any]) -> None:
    self.logs = {name: (self.folder / name).read_text(errors="replace") for name in state["done"]}


def names_and_sizes(data: dataset.ImageSet) -> dict[str, Any]:
    return {"classes": list(data.classes), "train samples": len(data.train_labels)}


def key_of_names(found: list[files.Found], start: int) -> str:
    return hashlib.md5("".join(file.path[start:] for file in found).encode()).hexdigest()


def all_there(stem: Path, names: list[str], weights: str | None) -> bool:
    return all(export.file_of(stem, name).is_file() for name in names)


def of_the_file(state: dict[str, Any], *_: Any) -> str:
    return hashlib.md5(repr(state).encode()).hexdigest()


def built(name: str, state: dict[str, Any], flag: str, path: str) -> nn.Module:
    with as_user_error(f"{flag} {path}"):
        return models.create_model(name, 10)


LEFT = r"(options|summary)\.json|(last|last\.prev|best|ckpt_epoch_\d+)\.pth|(init_)?log\.csv"
BROKEN = {
    "16 bits cut off at 255": ("image's values", files, "_grey", lambda image: image),
    "16 bits stretched": ("image's values", files, "_grey", stretched),
    "EXIF turns": ("image's values", files, "rgb", turned),
    "alpha over black": ("image's values", files, "rgb", over_black),
    "exports and predictions stay": ("run", run, "WRITTEN", LEFT),
    "nothing is removed": ("run", run, "WRITTEN", "(?!)"),
    "everything is removed": ("run", run, "WRITTEN", ".*"),
    "half written files stay": ("run", run, "HALF_WRITTEN", "(?!)"),
    "weights are not compared": ("run", run.Run, "begins_with", lambda self, option, found: None),
    "weights are paths": ("run", run, "PATHS", set()),
    "weights are files": ("run", checkpoint, "digest", of_the_file),
    "folders are options": ("run", run, "FREE", run.FREE - {"data_folder"}),
    "images are not compared": ("run", identity, "differences", lambda before, now: []),
    "images are a number": ("run", identity, "of", names_and_sizes),
    "caches by names": ("run", cache, "_key", key_of_names),
    "a finished run sees no data": ("run", loading, "check_data_of", lambda opt, finished: None),
    "logs from their files": ("run", run.Run, "_take_logs", from_the_file),
    "an export is whatever is there": ("run", export, "done", all_there),
    "networks are built before they are looked at": ("name", networks, "sketch", built),
    "networks have no end": ("name", wrn, "int", Endless),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_mended_would_be_found(name, tmp_path, monkeypatch):
    target, place, function, naive = BROKEN[name]
    monkeypatch.setattr(place, function, naive, raising=hasattr(place, function))
    monkeypatch.setattr(fuzz, "SECONDS", 4)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    hostile.limit_memory(2)
    try:
        for seed in range(MOST):
            _, failures, _ = fuzz.fuzz(1, seed, tmp_path / "input", [], [target])

            if failures:
                return
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    pytest.fail(f"not found by {MOST} inputs")


# what is made naive, and what happens to a run of which case
KILLS = {
    "logs": ("cache", run.Run, "_take_logs", from_the_file),
    "teacher": ("cache", run.Run, "begins_with", lambda self, option, found: None),
    "images": ("tree", identity, "differences", lambda before, now: []),
    "moved": ("cache", run, "PATHS", set()),
    "data": ("tree", run, "FREE", run.FREE - {"data_folder"}),
    "again": ("again", run, "WRITTEN", LEFT),
}


def kill() -> None:
    """Says of each disturbance whether a naive program has come through."""
    with tempfile.TemporaryDirectory() as folder:
        harness = kill_harness.Harness(Path(folder), 0, sys.stdout)
        for n, (disturbance, (case, place, function, naive)) in enumerate(KILLS.items()):
            harness.undisturbed(case)
            with mock.patch.object(place, function, naive):
                print(disturbance, harness.kill(n, case, signal.SIGKILL, True, disturbance))


def test_what_was_mended_would_be_found_by_kills():
    command = [sys.executable, "-c", "import test_fuzzing; test_fuzzing.kill()"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if line.endswith((" True", " False"))] == [
        f"{disturbance} False" for disturbance in KILLS
    ], done.stdout + done.stderr
