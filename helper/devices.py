"""The device of a run, its memory, and the machine in words."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

from .util import UserError


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
