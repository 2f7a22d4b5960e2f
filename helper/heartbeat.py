"""Heartbeats between the processes of a run, so that they do not wait for hours for one that ended or hangs.

A thread sends them, so a process may compute, decode images or compile as long as it needs.
"""

import atexit
import contextlib
import os
import sys
import threading
from pathlib import Path

from torch.distributed import TCPStore

SILENT = 20  # seconds until a process counts as gone; torchrun then takes 30 more to kill one that hangs


def start(rank: int, world: int) -> None:
    """Starts the heartbeat.

    This process exits with status 1 and a line once another one has been silent for `SILENT` seconds.

    Each process counts its heartbeats in the store that joined the processes, and reads the others' counts.
    """
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))  # a client makes one call at a time
    others = [other for other in range(world) if other != rank]
    counts, silent, over = dict.fromkeys(others), dict.fromkeys(others, 0), threading.Event()

    def beat() -> None:
        while not over.wait(1):
            with contextlib.suppress(RuntimeError):  # the store has gone; then all others count as silent
                store.add(f"signs of {rank}", 1)
                for other in others:
                    count = store.add(f"signs of {other}", 0)
                    if count != counts[other]:
                        counts[other], silent[other] = count, 0

    def watch() -> None:
        """Counts seconds in which this process ran, so that a stopped process reads the counts before it judges."""
        while not over.wait(1):
            for other in others:
                silent[other] += 1
            if gone := [str(other) for other in others if silent[other] > SILENT]:
                with contextlib.suppress(OSError):
                    said = f"no sign of life of process {', '.join(gone)} for {SILENT} s: stopped, ended or cut off"
                    end = "the same command goes on from the last checkpoint"
                    print(f"{Path(sys.argv[0]).name}: error: {said}; {end}", file=sys.stderr, flush=True)
                os._exit(1)

    threads = [threading.Thread(target=target, daemon=True) for target in (beat, watch)]

    def stop() -> None:
        over.set()
        for thread in threads:
            thread.join(2)

    for thread in threads:
        thread.start()
    atexit.register(stop)
