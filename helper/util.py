"""What every script needs: exit statuses, messages, seeds, devices, memory."""

import argparse
import contextlib
import ctypes
import errno
import functools
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision
from torch import distributed

from dataset import Unreadable
from models.near import near

from . import run_log
from .pipe import quiet_end


class UserError(Exception):
    """An error that the user can fix: one line that names the flag or file, what was expected and what was found."""


class Diverged(Exception):
    """A loss or a weight became NaN or infinite."""


class Failed(Exception):
    """Some of several runs were refused or diverged; the others are finished."""


class Stopped(Exception):
    """A signal ended the run after it was saved."""

    def __init__(self, number: int, place: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped after {place}")
        self.number = number


def command(main: Callable[..., object]) -> Callable[..., None]:
    """Runs a script's main, and turns expected exceptions into one line and an exit status.

    1: some of several runs failed; 2: the user can fix it; 3: diverged; 128 + signal: stopped by it; 141: its output's
    reader has left.
    """

    @functools.wraps(main)
    @run_log.ends_here()
    @quiet_end
    def run(argv: list[str] | None = None) -> None:
        try:
            with memory_in_words():
                main(argv)
        except (UserError, Diverged, Stopped) as error:
            kind = "" if isinstance(error, Stopped) else "error: "
            end(f"{kind}{error}", 128 + error.number if kind == "" else 3 if isinstance(error, Diverged) else 2)
        except Failed as error:
            end(f"error: {error}", 1)
        except Unreadable as error:  # each process has its own images
            end(f"error: {error}", 2, of_all=True)
        except RuntimeError as error:
            if "does not have a deterministic implementation" in str(error):
                end(f"error: --deterministic: {str(error).split(', but')[0]}", 2, of_all=True)
            if isinstance(error, getattr(distributed, "DistError", ())) or "/gloo/" in str(error):
                reason = f"another process of this run has ended, or cannot be reached: {error}".split(". ")[0]
                end(f"error: {reason:.300}; the same command goes on from the last checkpoint", 1, of_all=True)
            if not str(error).startswith("DataLoader worker"):  # torch raises it anywhere in the main thread
                raise
            end(f"error: {error}; fewer --num_workers need less memory", 2, of_all=True)
        except KeyboardInterrupt:
            end("interrupted; the same command goes on from the last checkpoint", 130)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sys.stdout = open(os.devnull, "w")  # its buffer may not fit on the disk either
            end(f"error: {error}", 2)

    return run


def end(message: str, status: int, of_all: bool = False) -> NoReturn:
    with contextlib.suppress(OSError):
        if of_all or os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun's other processes would repeat it
            print(f"{Path(sys.argv[0]).name}: {one_line(message)}", file=sys.stderr)
    sys.exit(status)


def one_line(text: str, longest: int = 1000) -> str:
    """Replaces line ends and control characters, because names in it may come from anywhere."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)
    return text if len(text) <= longest else f"{text[:longest]} ..."


@contextlib.contextmanager
def memory_in_words() -> Iterator[None]:
    """Turns out-of-memory errors of the block into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU, torch raises RuntimeError
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            reason = f"out of memory: {error}".splitlines()[0].split("DefaultCPUAllocator: ")[-1]
            less = "--batch_size, --image_size, network, --feat_dim or --nce_k"
            raise UserError(f"{reason}; a smaller {less} takes less") from None
        raise


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line without usage, with similar names for an unknown option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        # argparse takes -inf for an option, and before Python 3.14 also -1e3
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def lists(self) -> str:
        """The flag that lists every option."""
        return "--help_all" if "--help_all" in self._option_string_actions else "--help"

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def parse_args(self, args: list[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore
        args = sys.argv[1:] if args is None else args
        if not self._subparsers:  # otherwise a subcommand has the options
            self.refuse_unknown(args)  # before argparse complains of wrong values
        opt, rest = self.parse_known_args(args)
        self.refuse_unknown(rest)
        if rest:
            raise UserError(f"{rest[0]!r} belongs to no option; {self.lists()} lists them")
        return opt

    def refuse_unknown(self, words: Iterable[str]) -> None:
        """Raises UserError for the first word that looks like an option but is none."""
        flags = self._option_string_actions
        for word in words:
            flag = word.partition("=")[0]
            if word == "--":
                return
            if word[:1] != "-" or word == "-" or " " in word or self._negative_number_matcher.match(word):
                continue
            if f"-{flag}" in flags:
                raise UserError(f"{flag}: long options have two dashes, -{flag}")
            if flag not in flags and (word[1] == "-" or word[:2] not in flags):  # -r0.5 is -r 0.5
                known = [option[2:] for option in flags if option.startswith("--")]
                raise UserError(f"unknown option {flag}{near(flag.lstrip('-'), known, '--')}; {self.lists()} lists all")


@contextlib.contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Turns the block's ValueError, OSError, MemoryError and RecursionError into a UserError that begins with
    `what`.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, RecursionError) as error:
        raise UserError(f"{what}: {error}") from None


def seed_everything(seed: int) -> None:
    """Seeds the global generators. Order and augmentation of the images have their own, seeded by (seed, epoch)."""
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(all_gpus: bool = True) -> dict:
    """States of the global generators, as tensors that a weights-only load accepts. all_gpus False: only the current
    GPU's.
    """
    own = all_gpus or not torch.cuda.is_available()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if own else [torch.cuda.get_rng_state()],
    }


def set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == 1:
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    elif torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def choose_device(name: str | None, amp: str = "off", deterministic: bool = False) -> torch.device:
    """The device of `--device`, else the GPU if there is one. Raises UserError for a device that does not exist.

    Warns if the CPU has no arithmetic for `--amp`: it emulates it, which is several times slower.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name}: expected cpu, or cuda, cuda:1, ... where there are GPUs: {reason}") from None
    torch.backends.cudnn.benchmark = (
        not deterministic
    )  # equal batches all along: the fastest kernels are worth a search
    be_deterministic(deterministic)
    if device.type == "cpu":
        keep_freed_memory()
        if amp != "off" and os.environ.get("RANK", "0") == "0" and not has_arithmetic(amp):
            print(f"--amp {amp}: this CPU has no {amp} arithmetic; --amp off is faster", file=sys.stderr)
    return device


def be_deterministic(wanted: bool) -> None:
    """`--deterministic`: kernels that give equal bits for equal inputs, instead of the fastest ones.

    An operation without such a kernel raises RuntimeError, which names it.
    """
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a step never reads uninitialised memory
    torch.backends.cudnn.deterministic = wanted
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts


def has_arithmetic(amp: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies in half precision (x86 and Arm on Linux). True if it does not say."""
    words = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp"}}[amp]
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = [line.split() for line in lines if line.startswith(("flags", "Features"))]
    return not flags or not words.isdisjoint(flags[0])


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step, which needs the same amount. No effect with other C libraries.

    By default glibc returns large tensors to the system, and new pages must be cleared: 4 to 14 % of a step's time on 2
    cores. Peak memory stays the same.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # a C library without mallopt, or none
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((-4, 0), (-1, -1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD
            mallopt(option, value)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if peak := _kilobytes("/proc/self/status", "VmHWM"):  # getrusage would give the parent's peak if that is larger
        return peak / 2**10
    import resource  # Unix only, and only needed here

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def used_memory_mb(device: torch.device) -> float:
    """Memory in use by this process: reserved on the GPU, or resident on a CPU (0 if the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device) / 2**20
    return _kilobytes("/proc/self/status", "VmRSS") / 2**10


def free_memory_mb(device: torch.device) -> float:
    """Memory that is still available; 0 if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return _kilobytes("/proc/meminfo", "MemAvailable") / 2**10


def _kilobytes(file: str, key: str) -> int:
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def machine(device: torch.device) -> dict[str, object]:
    """Versions, commit and hardware of this run, without hostnames."""
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        try:
            return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        "commit": commit or "unknown",
        "host": {
            "cpu": names[0].split(":", 1)[1].strip() if names else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
