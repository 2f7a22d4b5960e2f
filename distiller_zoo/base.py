"""The contract of a method, and the table of methods."""

import inspect
import operator
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

from torch import Tensor, nn

from dataset.augment import Augment, Views
from dataset.base import Batch, Shared
from helper.labels import LabelLoss
from models.base import Output
from models.near import unknown

__all__ = [
    "Batch",
    "Count",
    "Distiller",
    "Output",
    "Pair",
    "Power",
    "Range",
    "Shared",
    "Share",
    "Temperature",
    "Weight",
    "Width",
    "find_method",
    "method_meanings",
    "method_names",
    "method_options",
]


class Range(NamedTuple):
    """The numbers that a keyword takes: `ft_k: Annotated[float, Range(float, 0, 16, "(]")] = 0.5`."""

    kind: type  # int or float
    low: float
    high: float
    ends: str = "[]"  # a round one: that end is no part of it
    besides: int | None = None  # one more, outside

    def __str__(self) -> str:
        low = f"{'' if self.ends[0] == '[' else 'above '}{self.low}"
        high = f"{'to' if self.ends[1] == ']' else 'to below'} {self.high}"
        besides = "" if self.besides is None else f"{self.besides} or "
        return f"{besides}{'a whole number' if self.kind is int else 'a number'} of {low} {high}"

    def check(self, value: Any) -> None:
        """Raises ValueError for what is no such number."""
        kinds = (int,) if self.kind is int else (int, float)
        if type(value) in kinds and value == self.besides:
            return
        above = operator.le if self.ends[0] == "[" else operator.lt
        below = operator.le if self.ends[1] == "]" else operator.lt
        if type(value) not in kinds or not (above(self.low, value) and below(value, self.high)):
            raise ValueError(f"expected {self}, found {value!r}")


# beyond these ends a float32 loss vanishes or overflows, or a layer outgrows every memory
Temperature = Annotated[float, Range(float, 0.001, 1000)]
Weight = Annotated[float, Range(float, 0, 10**9)]
Share = Annotated[float, Range(float, 0, 1)]
Count = Annotated[int, Range(int, 1, 2**24)]
Width = Annotated[int, Range(int, 1, 2**16)]
Power = Annotated[int, Range(int, 1, 8)]


class Pair(NamedTuple):
    """What a method may look at when it is built."""

    s: Output  # student on a dummy batch: read shapes from it
    t: Output  # teacher likewise; the first one of several; without a teacher the student's, as is `teacher`
    student: nn.Module
    teacher: nn.Module
    labels: Tensor  # [n_data] of the whole training set
    batch_size: int = 64  # samples of a step, on all devices together
    epochs: int = 240  # of the training
    anew: Callable[[], nn.Module] | None = None  # gives another student, as it is before any training
    label_loss: nn.Module = LabelLoss()  # of the run: (logits, labels) -> scalar


class Distiller(nn.Module):
    """Base of the methods: `class SP(Distiller, name="sp", aliases=("similarity",))` becomes `--distill sp`.

    Keyword-only arguments of a subclass's __init__ become flags of that method; their annotations (int, float, str,
    bool, Literal[...], Annotated[float, Range(...)]) and defaults are the flags', and `key: meaning.` in the docstring
    is their help. Building the method raises ValueError for a value that its annotation excludes. Parameters train with
    the student's, buffers are saved with it.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[float, float, float]] = (1.0, 0.0, 1.0)  # published r, a, b: used where flags are left out
    # True: the loss is no mean over samples, or remembers them. Of several processes each then computes it for the
    # samples of all (see `compared`), and draws any random numbers from a generator of the method's own, as the others.
    relational: ClassVar[bool] = False
    init_loss: Callable[[Output, Output, Batch], Tensor] | None = None  # minimised alone for --init_epochs
    init_runs_student: ClassVar[bool] = True  # False: init_loss reads the teacher alone, and gets it as `s` too
    init_epochs: ClassVar[int] = 30  # published
    init_decay_epochs: ClassVar[tuple[int, ...]] = ()  # published: the initialisation's rate falls after these
    init_learning_rate: ClassVar[float | None] = None  # published, where it is not the training's
    temperature: ClassVar[float] = 4.0  # of the KD term that -a weighs, where --kd_T is left out
    label_all_views: ClassVar[bool] = True  # False: cross entropy and the KD term see the first view of a sample only
    all_teachers: ClassVar[bool] = False  # True: `t` is a tuple with an Output for each teacher
    reads: ClassVar[tuple[str, ...]] = ("feats", "preacts")  # the maps of both Outputs that the losses read
    warm_up: ClassVar[int] = 0  # published: the weight (-b) rises to its full value over so many epochs
    kd_warm_up: ClassVar[int] = 0  # the same of the KD term beside it (-a); of several methods the first one's holds
    # False: a step on a GPU cannot be recorded, because it reads a value on the host, has shapes that depend on values,
    # changes what is no tensor, or draws from a generator that is not its own (an attribute `generator` of a module)
    capturable: ClassVar[bool] = True
    one_label: ClassVar[bool] = False  # True: the losses read labels, or what is kept of a sample: not of mixed images
    standardisable: ClassVar[bool] = False  # True: the loss compares the Outputs' logits, as --standardise gives them
    separate_heads: ClassVar[bool] = False  # True: reads `dist`, and the student in training has this of models.Network
    follows_epoch: ClassVar[bool] = False  # True: the losses read `epoch`, so that a step is recorded anew for each
    epoch: int = 1  # set by the loop

    def __init_subclass__(cls, name: str | None = None, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name, cls.aliases = name, aliases
            for key in (name, *aliases):
                if key in _methods:
                    raise ValueError(f"two methods are called {key!r}: {_methods[key].__name__} and {cls.__name__}")
                _methods[key] = cls

    def __new__(cls, *args: Any, **keywords: Any) -> "Distiller":
        for key, parameter in method_options(cls).items():
            if key in keywords:
                check(key, keywords[key], parameter.annotation)
        return super().__new__(cls)

    def __init__(self, pair: Pair) -> None:
        super().__init__()

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        """Whether forward reads `t` with these values of its keywords. False: `t` may be None."""
        return True

    def views(self, augment: Augment | Views) -> Augment | Views:
        """The batched augmentation that this method trains on; several views come as [B, V, C, H, W]."""
        return augment

    def wrap(self, student: nn.Module) -> nn.Module:
        """The network that is trained, validated and saved."""
        return student

    def beside(self) -> dict[str, nn.Module]:
        """Networks of its own whose predictions are saved with the student's, by name."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """Groups of its parameters for the optimiser: {"params": [...]}, where they train differently with "lr_scale"
        (times the run's rate), "weight_decay", ..."""
        return [{"params": list(self.parameters())}]

    def compared(self, o: Output) -> Output:
        """What of an Output a relational loss reads; the rest, () or None, need not travel between processes."""
        return o._replace(feats=(), preacts=(), dist=())

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The loss of each row of the outputs, [B]. With this in the place of `forward`, samples can have weights."""
        raise NotImplementedError

    def batch_term(self, s: Output, t: Output, batch: Batch) -> Tensor | float:
        """What a method adds to the mean of `per_sample`, from logits as they are: what is no single sample's."""
        return 0.0

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The loss: one scalar, float32 (float64 for float64 inputs)."""
        return self.per_sample(s, t, batch).mean() + self.batch_term(s, t, batch)

    @classmethod
    def has_per_sample(cls) -> bool:
        """Whether its loss is a mean of `per_sample`, whose samples may have weights."""
        return cls.per_sample is not Distiller.per_sample and cls.forward is Distiller.forward


_methods: dict[str, type[Distiller]] = {}


def method_names() -> list[str]:
    """Names without aliases, in order of registration."""
    return [name for name, cls in _methods.items() if name == cls.name]


def find_method(name: str) -> type[Distiller]:
    """The class behind a name or alias. Raises ValueError, with the near names, where there is none."""
    if name not in _methods:
        raise unknown("method", name, _methods)
    return _methods[name]


def method_options(cls: type[Distiller]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a method, which are its flags."""
    parameters = inspect.signature(cls.__init__, eval_str=True).parameters
    return {p.name: p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def method_meanings(cls: type[Distiller]) -> dict[str, str]:
    """What the docstrings of a method and its bases say of its options, which --help_method shows.

    They say it as `key: meaning.`, or `key, other: meaning.` of several. A meaning ends with its sentence, at the next
    such key, or at a blank line.
    """
    names = "|".join(map(re.escape, method_options(cls))) or "(?!)"
    key = rf"(?<![\w-])(?:(?:{names})(?:, |(?=: )))+: "
    found = {}
    for base in reversed(cls.__mro__):
        for paragraph in re.split(r"\n\s*\n", base.__dict__.get("__doc__") or ""):
            text = " ".join(paragraph.split())
            for keys, meaning in re.findall(rf"({key})(.+?)(?=\.(?: |$)|[,;]? {key}|$)", text):
                found |= dict.fromkeys(keys[:-2].split(", "), meaning)
    return found


def check(key: str, value: Any, annotation: Any) -> None:
    """Raises ValueError where the annotation has a range or a list of values, and the value is none of them."""
    kinds = [annotation] if get_origin(annotation) in (Annotated, Literal) else get_args(annotation)
    if value is None and type(None) in kinds:
        return
    for kind in kinds:
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{key}: expected one of {', '.join(map(str, get_args(kind)))}, found {value!r}")
        if get_origin(kind) is Annotated:
            try:
                get_args(kind)[1].check(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
