"""What programs do whose output goes to a pipe that nobody reads any more, as behind `| head`."""

import functools
import os
import signal
import sys
from collections.abc import Callable


def quiet_end(main: Callable[..., None]) -> Callable[..., None]:
    """Ends a script's main without a word where its reader has left, with the status of a program that SIGPIPE ends."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> None:
        try:
            try:
                main(argv)
            finally:
                sys.stdout.flush()  # else it happens when Python is past catching it
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
            sys.exit(128 + signal.SIGPIPE)

    return run
