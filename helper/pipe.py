"""Programs whose output goes to a pipe that its reader has closed, as with `| head`."""

import functools
import os
import signal
import sys
from collections.abc import Callable


def quiet_end(main: Callable[..., None]) -> Callable[..., None]:
    """Ends a script's main silently if its reader has left, with the exit status that SIGPIPE gives."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> None:
        try:
            try:
                main(argv)
            finally:
                sys.stdout.flush()  # at exit, Python could not catch the error
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the final flush
            sys.exit(128 + signal.SIGPIPE)

    return run
