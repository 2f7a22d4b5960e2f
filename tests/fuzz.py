"""Feeds the parsers what nobody would write: checkpoints, configs, command lines, data files, archives; and more that
strangers, disks and hands may do: names of any network, images in any encoding, runs whose surroundings change.

python tests/fuzz.py --inputs 100000 --seed 0 --out DIR

Inputs are mutations of the seeds below and of what is in `fuzz_corpus.jsonl.xz`; one that is told something new joins
them. A failure is any exception but those that a user is told in one line, a line that does not name the file, more
than 5 minutes, more than 10 seconds of CPU time (of a network's name 3), more than 2 GB, an archive's file outside of
its folder, an image of other values than it has (`fuzz_images.py`), and a run that goes on, is refused or is left
otherwise than the rules say (`fuzz_runs.py`). Written to DIR: corpus.jsonl.xz, failures.jsonl.xz, and `input`, the last
one, should the process die of it. Exit status 1 where something failed.
"""

import argparse
import base64
import contextlib
import functools
import gzip
import io
import json
import lzma
import pickle
import pickletools
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzz_images  # noqa: E402
import fuzz_runs  # noqa: E402
import hostile  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

import models  # noqa: E402
import train_student  # noqa: E402
from dataset import cifar10_1, files, tinyimagenet  # noqa: E402
from helper import checkpoint, networks, parsing, run_log  # noqa: E402
from helper.util import UserError, as_user_error  # noqa: E402
from models import wrapped  # noqa: E402
from scripts import compare_predictions, unpack  # noqa: E402

CORPUS = Path(__file__).with_name("fuzz_corpus.jsonl.xz")
SECONDS, GIGABYTES = 10, 2
Input = tuple[str, bytes]  # target, content


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3)

    @property
    def head(self) -> nn.Linear:
        return self.fc


# ---- what is fed: the file of the input, in a folder of its own ----


def read_checkpoint(path: Path) -> None:
    state = checkpoint.load(path, "--path_t")
    checkpoint.find_name(state, path, models.is_model)
    checkpoint.class_count(Tiny(), state, "--path_t", path)
    checkpoint.load_weights(Tiny(), "tiny", state, "--path_t", path)


@functools.cache
def parser() -> parsing.Parser:
    """The student's, which is made once."""
    found = []
    parse_args = parsing.Parser.parse_args
    parsing.Parser.parse_args = lambda self, *_: found.append(self)
    try:
        train_student.parse([])
    finally:
        parsing.Parser.parse_args = parse_args
    return found[0]


def read_config(path: Path) -> None:
    settle(["--config", str(path)])


def read_options(path: Path) -> None:
    settle(path.read_text(errors="surrogateescape").split("\0"))


@run_log.ends_here()
def settle(arguments: list[str]) -> None:
    opt = parser().parse_args(arguments)
    opt.run_log = None  # would be written to
    train_student.settle(opt)
    json.dumps({key: value for key, value in vars(opt).items() if key != "given"})  # as options.json has them


def read_annotations(path: Path) -> None:
    (path.parent / "images").mkdir()
    for n in range(3):
        (path.parent / "images" / f"{n}.png").touch()
    shutil.copy(path, path.parent / "val_annotations.txt")
    with as_user_error("--dataset"):
        tinyimagenet._annotated(path.parent, ("n01", "n02"))


def read_arrays(path: Path) -> None:
    for name in ("data", "labels"):
        shutil.copy(path, path.parent / f"cifar10.1_v6_{name}.npy")
    with as_user_error("--dataset"):
        cifar10_1.cifar10_1(path.parent, version="v6")


def read_predictions(path: Path) -> None:
    compare_predictions.read(path)


def read_image(path: Path) -> None:
    with as_user_error("--dataset"):
        files.read(str(path), 8)


def unpack_archive(path: Path) -> None:
    folder = path.parent / "unpacked"
    folder.mkdir()
    try:
        unpack.unpack(path, folder, limit=1e6)
    except unpack.TOLD as error:
        raise UserError(f"{path}: {error}") from error
    finally:
        assert {path, folder} >= set(path.parent.iterdir()), "wrote outside of its folder"
        assert sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) <= 1e6
        assert not any(file.is_symlink() for file in folder.rglob("*"))


@functools.cache
def small() -> dict[str, Any]:
    """The weights of a small network; the packages of others are loaded."""
    for name in ("torchvision:resnet18", "timm:resnet18"):
        models.sketch(name)
    return models.create_model("resnet8", 10).state_dict()


def name_drawn(rng: random.Random, ours_alone: bool) -> str:
    if not ours_alone and rng.random() < 0.05:
        package = rng.choice(list(models.base._families))
        return f"{package}:{rng.choice(models.base._families[package].names())}"
    if rng.random() < 0.2:
        return rng.choice(models.model_names())
    depths, widths = [40, 994, 1000, 400000, 10**9, "9" * 4000], [1, 100, 10**9]
    return f"wrn_{rng.choice(depths)}_{rng.choice(widths)}"


def read_named(path: Path) -> None:
    """A checkpoint of a small network, or a config, that says to be of any. In a second, and room for other work."""
    rng = random.Random(path.read_bytes())
    state, by_config = {"model": small()}, rng.random() < 0.3
    name = name_drawn(rng, by_config)  # a package's network is not refused to somebody who asks for it
    began, held = time.process_time(), peak_memory()
    try:
        if by_config:
            (path.parent / "config.json").write_text(json.dumps({"options": {"model_s": name, "distill": "none"}}))
            return settle(["--config", str(path.parent / "config.json")])
        arguments = {rng.choice(["layers", "width", "channels"]): rng.choice([1, 10**5, 10**10, "x"])}
        layers = [[rng.choice([*wrapped._wrappers, "x"]), arguments]] * rng.choice([1, 1, 9, 10**5])
        named = path.with_name("named.pth")
        torch.save(state | {"model_name": name} | rng.choice([{}, {"wrapped": layers}]), named)
        found = networks.named({"--path_t": str(named)})
        networks.restore(found, checkpoint.load(named), "--path_t", str(named), 10, None)
    finally:
        seconds, megabytes = time.process_time() - began, peak_memory() - held
        assert seconds < 3 and megabytes < 200, f"{name:.100} takes {seconds:.1f} s and {megabytes:.0f} MB"


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def read_values(path: Path) -> str:
    with as_user_error("--dataset"):
        return fuzz_images.read_values(path)


TARGETS: dict[str, Callable[[Path], str | None]] = {
    "x.pth": read_checkpoint,
    "x.safetensors": read_checkpoint,
    "config.json": read_config,
    "argv": read_options,
    "annotations": read_annotations,
    "predictions.csv": read_predictions,
    "npy": read_arrays,
    "x.png": read_image,
    "archive": unpack_archive,
    "name": read_named,
    "image's values": read_values,
    "run": fuzz_runs.read_run,
}
DRAWN = {"name", "image's values", "run"}  # by a generator, whose seed the input is
WEIGHTS = dict(zip(TARGETS, [45, 3, 15, 15, 3, 3, 4, 6, 6, 1, 8, 3], strict=True))


# ---- seeds ----


def seeds() -> Iterator[Input]:
    tiny = Tiny().state_dict()
    ours = {"model": tiny, "epoch": 3, "model_name": "resnet8", "options": {"a": [1, None, 2.5]}, "accuracy": 1.5}
    theirs = {"opt": argparse.Namespace(a=1), "state_dict": {f"module.{k}": v for k, v in tiny.items()}}
    theirs["optimizer"] = {"param_groups": [{"lr": np.float64(0.1)}]}
    for state in (ours, theirs, tiny):
        yield "x.pth", hostile.torch_saved(state)
        yield "x.pth", hostile.torch_saved(state, _use_new_zipfile_serialization=False)
    teacher = {"model": models.create_model("resnet8", 10).state_dict(), "model_name": "resnet8"}
    small = "bytearray", "numpy's void", "numpy's objects", "one number as many", "storage without bytes, legacy"
    bombs = {name: bomb for name, bomb in hostile.bombs().items() if name in small}
    for make, _ in (hostile.executing(Path("/nowhere")) | bombs | hostile.broken_tensors()).values():
        if len(content := make(teacher)) < 20000:
            yield "x.pth", content
    for make, _ in hostile.broken_safetensors().values():
        yield "x.safetensors", make(teacher)
    for path in ROOT.glob("configs/**/*.json"):
        yield "config.json", path.read_bytes()
    every = {action.dest: action.default for action in parser()._actions if action.dest != "help"}
    yield "config.json", json.dumps({"options": every}).encode()
    yield "config.json", b'{"epochs": NaN, "beta": [1, [2]], "path_t": ["a", "-b"], "epochs": -1e999, "nesterov": 1}'
    yield "argv", b"--path_t\0x\0--distill\0crd,at\0-b\0.8,1000\0--nce_k\0100\0--lr_decay_epochs\x001,2\0-t\0one"
    yield "argv", b"--model_s\0wrn_16_2\0--dataset=digits\0-r\0-1\0--kd_T\0nan\0--no-icd_trainable\0--\0--epochs\x001e3"
    for action in parser()._actions:
        if "config" not in (action.dest, *action.option_strings) and action.dest != "help":
            yield "argv", f"{action.option_strings[-1]}\0{next(iter(action.choices or ['1']))}".encode()
    yield "annotations", b"0.png n01 0 0 1 1\n1.png n02\n2.png n01\n"
    yield "predictions.csv", b"index,label,prediction,confidence\n0,1,1,0.5\n1,2,0,0.25\n"
    yield "npy", numpy_bytes(np.zeros((2, 32, 32, 3), np.uint8)[:, :2, :2])
    yield "npy", numpy_bytes(np.zeros(3, int))
    yield "npy", numpy_bytes(np.array([{}], object))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF"):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 8), 77).save(buffer, kind)
        yield "x.png", buffer.getvalue()
    yield "archive", hostile.tarred({"a/b": b"1", "c": b"22"})
    yield "archive", gzip.compress(hostile.tarred({"a/b": b"1"}))
    yield "archive", hostile.zipped({"a/b": b"1", "../c": b"2"})
    yield "archive", hostile.zipped({"a": bytes(1000)}, zipfile.ZIP_DEFLATED)


def numpy_bytes(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=True)
    return buffer.getvalue()


# ---- mutations ----

WORDS = [
    *(b"\0", b"\xff", b"\n", b"\x1b[2J", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"%s%n"),
    *(b"-", b"--", b"/", b"../", b"=", b",", b":", b'"', b"{", b"}", b"[", b"]", b"[" * 3000, b"null", b"true"),
    *(b"NaN", b"inf", b"-1", b"0", b"1e999", b"9" * 50, b"1" * 5000),
    *(b"\x7f\xff\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"PK\x03\x04", b"\x80\x02"),
    *(b"options", b"epochs", b"model", b"state_dict", b"module.", b"fc.weight", b"--config", b"-h", b"--epochs"),
]
FUNCTIONS = """collections.OrderedDict collections.Counter argparse.Namespace _codecs.encode posix.system
builtins.bytearray torch.FloatStorage torch.LongStorage torch.Size torch.device torch.float32 torch.Tensor
torch.storage.UntypedStorage torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter numpy.dtype
numpy.core.multiarray.scalar"""
GLOBALS = ["c{}\n{}\n".format(*name.rsplit(".", 1)).encode() for name in FUNCTIONS.split()]
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(1 + int(rng.expovariate(0.7))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.1)))
        kind = rng.randrange(8)
        if kind == 0:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 1:
            data[at:at] = rng.choice(WORDS)
        elif kind == 2:
            del data[at:end]
        elif kind == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 4:
            start = rng.randrange(len(other) + 1)
            data[at:end] = other[start : start + 1 + int(rng.expovariate(0.05))]
        elif kind == 5:
            data[at:at] = data[at:end] * rng.randrange(1, 4)
        elif kind == 6:
            data[at:end] = rng.choice(WORDS)
        elif kind == 7 and rng.random() < 0.2:
            del data[at:]
    return bytes(data[:100_000])


def mutated_pickle(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Whole opcodes are put in, left out and moved, so that most of it still means something."""
    pieces, start = [], 0
    with contextlib.suppress(Exception):
        for _, _, position in pickletools.genops(content):
            pieces.append(content[start:position])
            start = position
    pieces.append(content[start:])
    for _ in range(1 + int(rng.expovariate(0.5))):
        at = rng.randrange(len(pieces))
        kind = rng.randrange(6)
        if kind == 0:
            pieces.insert(at, rng.choice(GLOBALS))
        elif kind == 1:
            pieces.insert(at, rng.choice(OPCODES) + rng.randbytes(rng.choice([0, 0, 1, 4])))
        elif kind == 2:
            pieces.insert(at, rng.choice(pieces))
        elif kind == 3:
            pieces[at] = b""
        elif kind == 4:
            value = rng.choice([-1, 0, 3, 2**31 - 1, 2**62, 1e308, "x", "latin1", None, True, (), [], {}])
            pieces[at] = hostile.opcodes(value) if not isinstance(value, float) else pickle.dumps(value, 2)[2:-1]
        else:
            pieces[at] = mutated(pieces[at], other, rng)
    return b"".join(pieces)[:100_000]


def mutated_zip(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Its files change, and their sums with them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(found))
    if rng.random() < 0.1:
        found[mutated(name.encode(), other, rng).decode("latin1")] = found.pop(name)
    elif name.endswith(".pkl") or rng.random() < 0.7:
        name = next((n for n in found if n.endswith(".pkl")), name)
        found[name] = mutated_pickle(found[name], other, rng)
    else:
        found[name] = mutated(found[name], other, rng)
    with warnings.catch_warnings(action="ignore"):
        return hostile.zipped(found, rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))


def mutated_words(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Of command lines."""
    words, others = content.split(b"\0"), other.split(b"\0")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(words))
        kind = rng.randrange(4)
        if kind == 0:
            words[at:at] = others[rng.randrange(len(others)) :][:2]
        elif kind == 1:
            words[at] = mutated(words[at], rng.choice(others), rng).replace(b"\0", b"")
        elif kind == 2:
            words[at] = rng.choice(WORDS).replace(b"\0", b"")
        else:
            words.pop(at)
            words = words or [b""]
    return b"\0".join(words)


def next_input(corpus: dict[str, list[bytes]], rng: random.Random) -> Input:
    target = rng.choices(list(corpus), [WEIGHTS[target] for target in corpus])[0]
    if target in DRAWN:
        return target, rng.randbytes(8)
    content, other = rng.choice(corpus[target]), rng.choice(corpus[target])
    if target == "argv":
        return target, mutated_words(content, other, rng)
    if target == "x.pth" and rng.random() < 0.9:
        with contextlib.suppress(Exception):
            return target, (mutated_zip if content[:2] == b"PK" else mutated_pickle)(content, other, rng)
    return target, mutated(content, other, rng)


# ---- runs ----


def too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s of CPU time, or {30 * SECONDS} s")


def places(error: BaseException | None) -> str:
    """Where an error, and those that led to it, were raised."""
    found = []
    while error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        found.append(f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}")
        error = error.__cause__ or error.__context__
    return ", ".join(found)


def told(target: str, content: bytes, folder: Path) -> str:
    """What becomes of an input: which option is at fault, and where that was found; raises what is a failure."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / target
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # what else the machine does is no fault
    signal.alarm(30 * SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return f"taken {TARGETS[target](path) or ''}"
    except UserError as error:
        text = str(error).replace(str(folder), "")
        if text == str(error) and target not in ("argv", "config.json", "name"):
            raise AssertionError("the file is not named") from error
        first = text.split()[0].rstrip(":")
        return f"{first if first in parser()._option_string_actions else ''} {places(error)}"
    except SystemExit as error:
        if error.code:
            raise
        return "help"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def fuzz(
    inputs: int, seed: int, folder: Path, known: Iterable[Input], targets: Iterable[str] = TARGETS
) -> tuple[dict, list[dict], Counter]:
    """The corpus by what its inputs are told, the failures, how many inputs each target has had."""
    signal.signal(signal.SIGALRM, too_slow)
    signal.signal(signal.SIGPROF, too_slow)
    rng, corpus = random.Random(seed), {target: [] for target in targets}
    found: dict[str, Input] = {}
    failures: list[dict] = []
    counts: Counter = Counter()

    def feed(target: str, content: bytes) -> bool:
        counts[target] += 1
        try:
            answer = f"{target}: {told(target, content, folder)}"
        except BaseException as error:
            answer = f"{target}: {places(error)}"
            if answer not in found:
                text = "".join(traceback.format_exception(error))
                failures.append(as_json(target, content) | {"error": answer, "traceback": text[-3000:]})
        return found.setdefault(answer, (target, content)) == (target, content)

    for target, content in known:
        feed(target, content)
        corpus[target].append(content)
    while counts.total() < inputs:
        target, content = next_input(corpus, rng)
        if feed(target, content):
            corpus[target].append(content)
    return found, failures, counts


def as_json(target: str, content: bytes) -> dict[str, str]:
    return {"target": target, "input": base64.b64encode(content).decode()}


def read_corpus(path: Path) -> list[Input]:
    with lzma.open(path, "rt") as file:
        return [(line["target"], base64.b64decode(line["input"])) for line in map(json.loads, file)]


def write(folder: Path, name: str, lines: list[dict]) -> None:
    with lzma.open(folder / f"{name}.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    opt = parser.parse_args(argv)
    opt.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    hostile.limit_memory(GIGABYTES)
    start = time.perf_counter()
    known = [*seeds(), *read_corpus(CORPUS)]
    found, failures, counts = fuzz(opt.inputs, opt.seed, (opt.out / "input").absolute(), known)
    write(opt.out, "corpus", [as_json(*each) for each in found.values()])
    write(opt.out, "failures", failures)
    each = ", ".join(f"{target} {n}" for target, n in counts.items())
    print(f"{counts.total()} inputs ({each}), {len(found)} different answers, {len(failures)} failures", end="")
    print(f", {time.perf_counter() - start:.0f} s")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
