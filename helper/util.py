"""What every script needs: exit statuses, messages, seeds, devices, memory."""

import argparse
import contextlib
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
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
