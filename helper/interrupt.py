"""SIGTERM, SIGHUP and Ctrl-C while training: remembered until the end of a step, when the run can be saved."""

import signal
import threading
from types import FrameType

from . import parallel
from .util import Stopped


class Signals:
    """Within `with`, SIGTERM, SIGHUP and the first Ctrl-C end nothing: `asked` says that they came. A second one does.

    Raises Stopped at the end of the block for a signal that nobody has acted on.
    """

    def __enter__(self) -> "Signals":
        self.number, self.soon, self.before = 0, parallel.AsyncMax(), {}
        if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # of a job in the background
                    self.before[number] = signal.signal(number, self.remember)
        return self

    def remember(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def asked(self) -> int:
        """The signal that has come, or 0. Of several processes all are told, each in the call after the one's own."""
        return self.soon.largest(self.number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.number and kind is None:
            raise Stopped(self.number, "the run's end")
