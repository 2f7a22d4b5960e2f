"""What a run shows while it works: bars on a terminal, a line an epoch, and the time that is left."""

from collections.abc import Callable, Collection, Iterable, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

from tqdm import tqdm

from . import parallel

WIDTH = 100  # columns of a line
DELAY = 1  # seconds; what takes less shows no bar
SHORTEST = 8  # columns that a shortened name has at least


class Bar(NamedTuple):
    """Shows how far an iteration is, on a terminal, in the first process."""

    label: str = ""
    quiet: bool = True

    def __call__(self, things: Iterable, total: int | None = None) -> Iterable:
        if self.quiet or parallel.rank():
            return things
        total = len(things) if total is None else total
        return tqdm(things, self.label, total, leave=False, disable=None, delay=DELAY)  # None: unless on a terminal


NO_BAR = Bar()


class TrainingBar(tqdm):
    """A bar that ends with what `told` returns, which is called when the bar is drawn."""

    def __init__(self, things: Iterable, told: Callable[[], str], quiet: bool, **settings: Any) -> None:
        self.told = told
        hidden = True if quiet or parallel.rank() else None  # None: unless the output is a terminal
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        super().__init__(things, leave=False, disable=hidden, bar_format=form, **settings)

    @property
    def format_dict(self) -> dict[str, Any]:
        return super().format_dict | {"postfix": self.told()}


def left(seconds: float | None) -> str:
    """What a line ends with, as [hours:]minutes:seconds; nothing where the time is not known, or is over."""
    return f"  {tqdm.format_interval(seconds)} left" if seconds and seconds < float("inf") else ""


def seconds_left(trainees: Sequence[Any], waiting: float = 0) -> float | None:
    """Until all these trainees have trained all their epochs, at the pace so far. None: nothing was measured yet.

    A stage that was not measured takes an epoch as long as the others do. waiting: epochs of trainees to come.
    """
    paces = [trainee.pace() for trainee in trainees]
    measured = [seconds for pace in paces for seconds in pace.values()]
    if not measured:
        return None
    total = waiting * mean(measured)
    for trainee, pace in zip(trainees, paces, strict=True):
        other = mean(pace.values() or measured)
        total += sum(epochs * pace.get(log, other) for log, epochs in trainee.epochs_left().items())
    return total


def fitted(parts: Sequence[tuple[int, str]], end: str) -> str:
    """The parts and the end in WIDTH columns: all of rank 0, the others by their ranks while there is room.

    The end has its room also where it is short, so that it does not decide what a line has.
    """
    room = WIDTH - max(len(end), len("  12:34:56 left"))
    shown = {i for i, (rank, _) in enumerate(parts) if not rank}
    for i in sorted(set(range(len(parts))) - shown, key=lambda i: parts[i][0]):
        if sum(len(parts[j][1]) for j in shown | {i}) <= room:
            shown.add(i)
    return "".join(parts[i][1] for i in sorted(shown))[:room] + end


def shortened(name: str, width: int) -> str:
    """The name in so many columns, with its end, where seeds stand."""
    return name if len(name) <= width else f"{name[: width - 5]}..{name[-3:]}"


def significant(x: float) -> str:
    return f"{x:#.3g}".rstrip(".")


def speed(images: float, seconds: float) -> str:
    return f"  {images / max(seconds, 1e-3):.0f} images/s"


def spread(accuracies: Collection[float]) -> str:
    """Lowest, median and highest; of one, the one."""
    few = (min(accuracies), median(accuracies), max(accuracies))
    return "/".join(f"{x:.2f}" for x in (few if len(accuracies) > 1 else few[:1]))


def epoch_of(stage: Any, epoch: int) -> str:
    return f"{stage.name} epoch {epoch}/{stage.epochs}".lstrip()


def within_epoch(meters: Sequence[Any]) -> str:
    """Means so far of one run or several, as they were last read, and their images a second."""
    read = [one.means for one in meters if one.means]
    text = f"acc {spread([means['acc'] for means in read])}" if read else ""
    if text and len(meters) == 1:
        text = f"loss {read[0]['loss']:.4f}  {text}"
    images, seconds = (sum(getattr(one, what) for one in meters) for what in ("images", "seconds"))
    return (text + (speed(images, seconds) if images else "")).strip()


def line_of(row: dict[str, Any], place: str, remaining: float | None) -> str:
    """An epoch of one run. row: of log.csv; place: the epoch in words; remaining: seconds, of the whole run."""
    terms = {key.removeprefix("loss_"): x for key, x in row.items() if key.startswith("loss_")}
    sums = f" ({' '.join(f'{name} {significant(x)}' for name, x in terms.items())})" if len(terms) > 1 else ""
    parts = [(0, place), (3, f"  lr {row['lr']:.4g}"), (0, f"  loss {row['train_loss']:.4f}"), (1, sums)]
    if "val_acc" in row:
        parts += [(0, f"  train {row['train_acc']:.2f}  val {row['val_acc']:.2f}")]
        parts += [(4, f" (top-5 {row['val_acc_top5']:.2f})")]
    seconds = row["train_seconds"]
    parts += [(0, f"  {seconds:.1f} s"), (2, speed(seconds * row["images_per_second"], seconds))]
    return fitted(parts, left(remaining))


def line_of_many(rows: Sequence[tuple[str, dict[str, Any]]], remaining: float | None) -> str:
    """An epoch of several students, by their names: lowest, median and highest accuracy, with the name of the best.

    In parentheses, behind their number, how many are in an initialisation, which has no accuracy.
    """
    found = [(row["val_acc"], name) for name, row in rows if "val_acc" in row]
    epochs = sorted({row["epoch"] for _, row in rows})
    first = f"epoch {epochs[0]}" + (f"-{epochs[-1]}" if len(epochs) > 1 else "")
    first += f": {len(rows)} students" if len(rows) > 1 else ": 1 student"
    if len(found) < len(rows):
        first += f" ({len(rows) - len(found)} init)"
    seconds = sum(row["train_seconds"] for _, row in rows)
    images = sum(row["train_seconds"] * row["images_per_second"] for _, row in rows)
    rest = [(0, f"  {seconds:.1f} s"), (1, speed(images, seconds))]
    if found:
        first += f"  val {spread([accuracy for accuracy, _ in found])}"
        room = WIDTH - len(first) - len(" ()  12:34:56 left") - sum(len(text) for _, text in rest)
        first += f" ({shortened(max(found)[1], max(room, SHORTEST))})"
    return fitted([(0, first), *rest], left(remaining))
