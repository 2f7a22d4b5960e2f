"""SIGTERM, SIGHUP and Ctrl-C in training: remembered until the end of a step, when the run can be saved."""

import signal
import threading
from types import FrameType

from . import parallel
from .util import Stopped


class Signals:
    """Within `with`, catches SIGTERM, SIGHUP and the first Ctrl-C; `received` returns them.

    A second Ctrl-C raises KeyboardInterrupt.

    At the end of the block, raises Stopped for a signal that was not handled.
    """

    def __enter__(self) -> "Signals":
        self.number, self.soon, self.before = 0, parallel.AsyncMax(), {}
        if threading.current_thread() is threading.main_thread():  # only the main thread may handle signals
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # background jobs ignore it
                    self.before[number] = signal.signal(number, self.remember)
        return self

    def remember(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def received(self) -> int:
        """The signal received, or 0.

        With several processes, all return it, one call after the process that received it.
        """
        return self.soon.largest(self.number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.number and kind is None:
            raise Stopped(self.number, "the run's end")
