"""A cache of the teacher's outputs for every view of every training image, in a folder that runs share.

A padded crop and flip has few outcomes, so logits and pooled features of each (image, view) fit on a disk, and no
training step changes. A row is written when its view first occurs. The losses read it in the cached precision, the
first time too.

A row is valid if its seal fits: a checksum of its bytes, its position and everything that its values depend on. A row
that is half written, lost in a power cut, damaged or another teacher's has a wrong seal, and is computed again.

A step's rows go to a journal first, then to their positions. The next process that opens the folder completes what a
killed process began. So a resumed run finds all rows of a step or none, and computes a row in the same batch as before,
because its last bit may depend on that. Several processes may write at once. The folder must be on a local disk.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from dataset import Batch, ImageSet
from models.base import Output

from . import checkpoint
from .step import Precision
from .util import UserError, as_user_error

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_GB = 16.0
DIGEST = 16  # bytes


class TeacherCache:
    """A row of int64 words for each view of each sample. The last word is the seal.

    Args:
        root: folder of the caches.
        about: what the values depend on, and the file's shape.
        like: an Output of the teacher, for any images.
    """

    def __init__(self, root: str, about: dict[str, Any], like: Output) -> None:
        self.about, self.like, self.dtype = about, like, DTYPES[about["dtype"]]
        self.views, self.images = about["views"], about["images_a_view"]
        self.widths = [like.logits.shape[1], like.pooled.shape[1]]
        self.values = self.images * sum(self.widths)
        self.words = math.ceil(self.values * self.dtype.itemsize / 8) + 1
        # bytes; the file is sparse: rows that were never written take none
        self.size = about["samples"] * self.views * 8 * self.words
        text = json.dumps(about, sort_keys=True).encode()
        self.key = hashlib.blake2b(text, digest_size=DIGEST).digest()
        # odd, so that a change of one word always changes the seal, and a row of zeros never fits
        self.factors = np.frombuffer(hashlib.shake_128(text).digest(8 * self.words), np.int64) | 1
        self.warned = False
        self.folder = Path(root) / (re.sub(r"[^\w.-]", "_", about["network"]) + "-" + self.key.hex())

    def open(self) -> None:
        """Creates what is missing, and replays journals. Raises OSError if the folder cannot be made or written."""
        import fcntl  # Unix only, and only needed here

        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            checkpoint.save_json(self.folder / "about.json", self.about)  # for people
        self.file = unbuffered(self.folder / "rows")
        self.journal = None
        for n in itertools.count():
            path = self.folder / f"journal{n}"
            if self.journal and not path.exists():
                break
            journal = unbuffered(path)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when its owner ends, even if killed
            except BlockingIOError:
                continue
            content = journal.read()
            if content[:DIGEST] == self.digest(content[DIGEST:]):
                self.put(np.frombuffer(content[DIGEST:], np.int64).reshape(-1, 1 + self.words))
            self.journal = self.journal or journal

    def __call__(self, teacher: nn.Module, images: Tensor, batch: Batch) -> Output:
        """The teacher's Output, without feature maps, for all images [B * images_a_view, C, H, W] of a batch."""
        index, view = batch.drawn
        rows = (index * self.views + view).numpy()
        kept = self.get(rows)
        missing = np.flatnonzero(kept[:, -1] != self.seals(rows, kept[:, :-1]))
        if len(missing):
            if kept[missing].any() and not self.warned:
                warnings.warn(f"{self.file.name}: rows that are not whole are made anew", stacklevel=2)
                self.warned = True
            kept[missing] = self.ask(teacher, images, rows, missing)
        values = torch.from_numpy(kept)[:, :-1].view(self.dtype)[:, : self.values].reshape(-1, sum(self.widths))
        values = values.pin_memory() if images.is_cuda else values
        logits, pooled = values.to(images.device, non_blocking=True).split(self.widths, 1)
        logits, pooled = logits.to(self.like.logits.dtype), pooled.to(self.like.pooled.dtype)
        return Output(logits.contiguous(), (), (), pooled.contiguous())

    def ask(self, teacher: nn.Module, images: Tensor, rows: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Runs the teacher for the samples `missing` of the batch, writes their rows, and returns them."""
        places = (torch.from_numpy(missing).unsqueeze(1) * self.images + torch.arange(self.images)).flatten()
        places, whole = places.to(images.device), self.about["compile"]  # compiled: every new size would recompile
        if not whole and len(missing) < len(rows):
            images = images.index_select(0, places).contiguous(memory_format=torch.channels_last)
        answer = teacher(images, is_feat=True)
        exact = torch.cat([answer.logits.float(), answer.pooled.float()], 1)
        exact = (exact.index_select(0, places) if whole else exact).cpu()
        values = exact.to(self.dtype).view(len(missing), -1)
        data = F.pad(values.view(torch.uint8), (0, 8 * self.words - 8 - self.values * self.dtype.itemsize))
        data = data.view(torch.int64).numpy()
        records = np.column_stack([data, self.seals(rows[missing], data)])
        if values.isfinite().all():
            self.write(rows[missing], records)
        elif exact.isfinite().all():
            dtype, largest = self.about["dtype"], exact.abs().max()
            raise UserError(f"--cache_dtype {dtype}: too small for the teacher's outputs, which reach {largest:.3g}")
        return records

    def seals(self, rows: np.ndarray, data: np.ndarray) -> np.ndarray:
        return (data * self.factors[:-1]).sum(1) + (rows + 1) * self.factors[-1]

    def digest(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=DIGEST, key=self.key).digest()

    def write(self, rows: np.ndarray, records: np.ndarray) -> None:
        entries = np.column_stack([rows, records])
        body = entries.tobytes()
        try:
            if not self.journal.closed:
                os.pwrite(self.journal.fileno(), self.digest(body) + body, 0)
                self.journal.truncate(DIGEST + len(body))
                self.put(entries)
        except OSError as error:
            warnings.warn(f"--cache_teacher: from here on no rows are kept: {error}", stacklevel=2)
            self.journal.close()

    def put(self, entries: np.ndarray) -> None:
        """Writes rows [n, 1 + words] to their positions, which come first."""
        for entry in entries:
            os.pwrite(self.file.fileno(), entry[1:], int(entry[0]) * 8 * self.words)

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows, [n, words]; zeros if nothing was written.

        Does not map the file into memory. That is not faster, and would kill the process if the file is truncated, or
        is in a full tmpfs.
        """
        size, file = 8 * self.words, self.file.fileno()
        found = b"".join(os.pread(file, size, row * size).ljust(size, b"\0") for row in rows.tolist())
        return np.frombuffer(bytearray(found), np.int64).reshape(-1, self.words)


def unbuffered(path: Path) -> IO[bytes]:
    path.touch()
    return open(path, "r+b", buffering=0)


def open_caches(
    opt: argparse.Namespace, teachers: Sequence[nn.Module], augment: Any, data: ImageSet, device: torch.device
) -> list[TeacherCache]:
    """Opens a cache for each teacher. Raises UserError if views cannot be numbered, or --cache_gb is too small."""
    views, samples = getattr(augment, "outcomes", None), len(data.train_labels)
    if views is None:
        raise UserError(f"--cache_teacher: {type(augment).__name__} gives a sample more views than can be kept")
    images = data.train_images if isinstance(data.train_images, Tensor) else data.train_images.identity()
    view = torch.arange(views)
    shown = list(augment.stream(view % samples, view, [slice(i, i + 64) for i in range(0, views, 64)]))
    common = {
        "dtype": opt.cache_dtype or "float32",
        "samples": samples,
        "views": views,
        "images_a_view": shown[0].shape[1] if shown[0].dim() == 5 else 1,
        "images": checkpoint.hashed(("", x) for x in [images, *shown]),
        "amp": opt.amp,
        "compile": opt.compile,
        "matmul": torch.get_float32_matmul_precision(),
        "device": device.type,
        "torch": torch.__version__,
    }
    caches = []
    for network, teacher in zip(opt.model_t, teachers, strict=True):
        with Precision(opt.amp, device).autocast():
            like = models.probe(teacher, data.train_images)
        own = {"network": network, "weights": checkpoint.hashed(sorted(teacher.state_dict().items()))}
        caches.append(TeacherCache(opt.cache_teacher, common | own, like))
    limit, needed = opt.cache_gb or DEFAULT_GB, math.ceil(sum(cache.size for cache in caches) / 1e7) / 100
    if needed > limit:
        raise UserError(f"--cache_gb: expected at least {needed} for {samples} samples in {views} views, found {limit}")
    with as_user_error(f"--cache_teacher {opt.cache_teacher}"):
        for cache in caches:
            cache.open()
    return caches
