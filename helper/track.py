"""`--track`: logs each epoch's row and the run's summary to an experiment tracker too. Its package is optional.

The tracker's own variables say where it stores them and whether it uses the network (WANDB_MODE and WANDB_DIR,
MLFLOW_TRACKING_URI, TRACKIO_DIR), and name the project (WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME, TRACKIO_PROJECT).
"""

import contextlib
import importlib.util
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .checkpoint import first_line
from .util import UserError

PROJECT = "distill"


class Tracker(Protocol):
    """A tracked run. id: by which a later process resumes it."""

    id: str

    def __init__(self, name: str, options: dict[str, Any], before: str | None) -> None:
        """Resumes the run `before`, or starts one of that name."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def summarise(self, facts: dict[str, Any]) -> None: ...

    def close(self, failed: bool) -> None: ...


class Wandb:
    """https://docs.wandb.ai"""

    def __init__(self, name: str, options: dict[str, Any], before: str | None) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            config=options,
            id=before,
            resume="allow",
            reinit="create_new",  # students of a sweep are tracked side by side
            settings=wandb.Settings(console="off"),
        )
        self.id = self.run.id

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def summarise(self, facts: dict[str, Any]) -> None:
        self.run.summary.update(facts)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """https://mlflow.org/docs/latest/ml/tracking"""

    def __init__(self, name: str, options: dict[str, Any], before: str | None) -> None:
        from mlflow import MlflowClient, entities

        self.client, self.entities = MlflowClient(), entities
        if before:
            self.id = before
            return self.client.update_run(before, status="RUNNING")
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self.client.create_experiment(project)
        self.id = self.client.create_run(experiment, run_name=name).info.run_id
        for key, value in options.items():
            self.client.log_param(self.id, key, value)

    def log(self, numbers: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [self.entities.Metric(key, x, now, step) for key, x in numbers.items()])

    def summarise(self, facts: dict[str, Any]) -> None:
        for key, value in facts.items():
            if type(value) in (int, float):
                self.client.log_metric(self.id, key, value)
            else:
                self.client.set_tag(self.id, key, value)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Trackio:
    """https://github.com/gradio-app/trackio"""

    def __init__(self, name: str, options: dict[str, Any], before: str | None) -> None:
        import trackio

        self.id = before or f"{name}-{uuid.uuid4().hex[:8]}"  # trackio identifies runs by name
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.id,
            config=options,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def summarise(self, facts: dict[str, Any]) -> None:
        self.run.log({f"summary/{key}": value for key, value in facts.items()})

    def close(self, failed: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def check(kind: str) -> None:
    """Raises UserError if the tracker's package is not installed."""
    if kind in TRACKERS and importlib.util.find_spec(kind) is None:
        raise UserError(f"--track {kind}: needs the package {kind} (pip install {kind})")


class Tracked:
    """A run's tracker, or none. If it fails during training, prints one warning and goes on without it.

    ids: of the tracked runs, by tracker; saved in the run's checkpoint.
    """

    def __init__(self, kind: str, name: str, options: dict[str, Any], before: Any) -> None:
        """before: `ids` from the checkpoint. Raises ValueError if it is anything else."""
        if not isinstance(before, dict) or not all(re.fullmatch(r"[^/\\\s]{1,400}", str(x)) for x in before.values()):
            raise ValueError(f"tracked: expected the ids of runs, found {before!r:.100}")
        self.kind, self.ids, self.tracker = kind, dict(before), None
        if kind in TRACKERS:
            try:
                self.tracker = TRACKERS[kind](name, options, before.get(kind))
            except Exception as error:  # from the network, an account, a database
                raise UserError(f"--track {kind}: {first_line(error)}") from None
            self.ids[kind] = self.tracker.id

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._attempt(lambda tracker: tracker.log(numbers, step))

    def summarise(self, facts: dict[str, Any]) -> None:
        self._attempt(lambda tracker: tracker.summarise(facts))

    def close(self, failed: bool) -> None:
        self._attempt(lambda tracker: tracker.close(failed))

    def _attempt(self, act: Callable[[Tracker], None]) -> None:
        if self.tracker:
            try:
                act(self.tracker)
            except Exception as error:
                print(f"warning: --track {self.kind}: {first_line(error)}; going on without it", file=sys.stderr)
                self.tracker = None


@contextlib.contextmanager
def closing(tracked: Tracked) -> Iterator[Tracked]:
    """Closes the tracked run at the end of the block; as failed if the block raises."""
    failed = True
    try:
        yield tracked
        failed = False
    finally:
        tracked.close(failed)
