"""`--run_log FILE`: appends what a run prints to a file, line by line, with the time."""

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Copied:
    """A stream whose lines also go to `file`. Of a line that was overwritten (a progress bar), only the last state."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream, self.file, self.line = stream, file, ""

    def write(self, text: str) -> int:
        written = self.stream.write(text)  # first, because the text may say that the file's disk is full
        *lines, rest = (self.line + text).split("\n")
        self.line = rest.rpartition("\r")[2]
        self.note(lines)
        return written

    def note(self, lines: list[str]) -> None:
        for line in lines:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line.rpartition("\r")[2], file=self.file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def start(path: str) -> None:
    """From here on, appends everything printed to the file. Raises OSError if it cannot be written."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", buffering=1)
    sys.stdout, sys.stderr = Copied(sys.stdout, file), Copied(sys.stderr, file)


@contextlib.contextmanager
def ends_here() -> Iterator[None]:
    """Ends a log that the block started, after writing any traceback."""
    streams = sys.stdout, sys.stderr
    try:
        yield
    except Exception:
        if isinstance(sys.stderr, Copied):
            sys.stderr.note(traceback.format_exc().splitlines())
        raise
    finally:
        sys.stdout, sys.stderr = streams
