"""The base class of the methods, and the registry of their names."""

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
    """The values that a keyword accepts: `ft_k: Annotated[float, Range(float, 0, 16, "(]")] = 0.5`."""

    kind: type  # int or float
    low: float
    high: float
    ends: str = "[]"  # a round bracket excludes its end
    besides: int | None = None  # one more value, outside the range

    def __str__(self) -> str:
        low = f"from {self.low}" if self.ends[0] == "[" else f"above {self.low}"
        high = f"to {self.high}" if self.ends[1] == "]" else f"to below {self.high}"
        besides = "" if self.besides is None else f"{self.besides} or "
        return f"{besides}{'a whole number' if self.kind is int else 'a number'} {low} {high}"

    def check(self, value: Any) -> None:
        """Raises ValueError for any other value."""
        kinds = (int,) if self.kind is int else (int, float)
        if type(value) in kinds and value == self.besides:
            return
        above = operator.le if self.ends[0] == "[" else operator.lt
        below = operator.le if self.ends[1] == "]" else operator.lt
        if type(value) not in kinds or not (above(self.low, value) and below(value, self.high)):
            raise ValueError(f"expected {self}, found {value!r}")


# outside these ranges a float32 loss vanishes or overflows, or a layer needs too much memory
Temperature = Annotated[float, Range(float, 0.001, 1000)]
Weight = Annotated[float, Range(float, 0, 10**9)]
Share = Annotated[float, Range(float, 0, 1)]
Count = Annotated[int, Range(int, 1, 2**24)]
Width = Annotated[int, Range(int, 1, 2**16)]
Power = Annotated[int, Range(int, 1, 8)]


class Pair(NamedTuple):
    """What a method is built from: shapes, networks, labels and the size of the run."""

    s: Output  # the student's for a dummy batch: read shapes from it
    t: Output  # the (first) teacher's; without a teacher this is the student's, and `teacher` the student
    student: nn.Module
    teacher: nn.Module
    labels: Tensor  # [n_data], of the whole training set
    batch_size: int = 64  # samples a step, on all devices together
    epochs: int = 240  # of the training
    anew: Callable[[], nn.Module] | None = None  # builds another, untrained student
    label_loss: nn.Module = LabelLoss()  # of the run: (logits, labels) -> scalar


class Distiller(nn.Module):
    """Base class of the methods. A subclass with `name="mine"` becomes `--distill mine`.

    Keyword-only arguments of `__init__` become flags of that method. Annotation (int, float, str, bool, Literal[...],
    Annotated[float, Range(...)]) and default are the flag's; `key: meaning.` in the class docstring is its help text.
    The method's parameters train with the student's. Checkpoints hold its parameters and buffers.

    Args:
        pair: shapes, networks and labels to build the method from.

    Raises:
        ValueError: a keyword's value is outside its annotation; two methods share a name.

    Example:
        class LogitL2(Distiller, name="logit_l2"):
            weights, reads = (1.0, 0.0, 1.0), ()

            def per_sample(self, s, t, batch):
                return (s.logits - t.logits.detach()).square().mean(1)
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[float, float, float]] = (1.0, 0.0, 1.0)  # published -r, -a, -b: the flags' defaults
    # True: the loss is not a mean over samples, or it remembers them. Each process then computes it from all-gathered
    # outputs (see `compared`), and must draw the same random numbers: from a generator of the method's own.
    relational: ClassVar[bool] = False
    init_loss: Callable[[Output, Output, Batch], Tensor] | None = None  # minimised alone for --init_epochs
    init_runs_student: ClassVar[bool] = True  # False: init_loss reads the teacher alone, whose Output is also `s`
    init_epochs: ClassVar[int] = 30  # published
    init_decay_epochs: ClassVar[tuple[int, ...]] = ()  # published: the initialisation's rate decays after these
    init_learning_rate: ClassVar[float | None] = None  # published; None: the training's
    temperature: ClassVar[float] = 4.0  # default --kd_T of the KD term (-a)
    label_all_views: ClassVar[bool] = True  # False: cross entropy and KD see only the first view of a sample
    all_teachers: ClassVar[bool] = False  # True: `t` is a tuple with an Output for each teacher
    reads: ClassVar[tuple[str, ...]] = ("feats", "preacts")  # feature maps of both Outputs that the losses read
    warm_up: ClassVar[int] = 0  # published: epochs in which the weight (-b) rises to its full value
    kd_warm_up: ClassVar[int] = 0  # the same for the KD term (-a); of several methods, the first decides
    # False: no CUDA graph can record the step, because it reads a value on the host, has data-dependent shapes,
    # changes Python state, or draws from a generator that is not its own (an attribute `generator` of a module)
    capturable: ClassVar[bool] = True
    one_label: ClassVar[bool] = False  # True: the losses read labels or remember samples: no mixup, no cutmix
    standardisable: ClassVar[bool] = False  # True: --standardise may standardise the logits before this loss
    separate_heads: ClassVar[bool] = False  # True: reads `dist`, and sets `separate_heads` of the student
    follows_epoch: ClassVar[bool] = False  # True: the losses read `epoch`, so every epoch needs a new recording
    trained_student: ClassVar[bool] = False  # True: meant for a student that is already trained (--path_s)
    epoch: int = 1  # the current one, set by the loop

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
        """Whether `forward` reads `t` when its keywords have these values. If False, `t` may be None."""
        return True

    def views(self, augment: Augment | Views) -> Augment | Views:
        """The batched augmentation to train on. With V views of each sample, images become [B, V, C, H, W]."""
        return augment

    def wrap(self, student: nn.Module) -> nn.Module:
        """The network to train, validate and save in the student's place."""
        return student

    def beside(self) -> dict[str, nn.Module]:
        """The method's own networks whose predictions are saved beside the student's, by name."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the method's parameters.

        Returns:
            Dicts of "params" and, optionally, "lr_scale" (a factor of the run's rate), "weight_decay", ...
        """
        return [{"params": list(self.parameters())}]

    def compared(self, o: Output) -> Output:
        """The part of an Output that a relational loss reads. Only this is all-gathered; set the rest to () or None."""
        return o._replace(feats=(), preacts=(), dist=())

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The loss of each row of the outputs, [B]. Write this, not `forward`, if the loss is a mean over samples.

        Then --ea_weights can weight the samples.
        """
        raise NotImplementedError

    def batch_term(self, s: Output, t: Output, batch: Batch) -> Tensor | float:
        """A loss of the whole batch, added to the mean of `per_sample`. Its logits are not standardised."""
        return 0.0

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            s: the student's Output, a row for each view of each sample.
            t: the teacher's Output; a tuple of them if `all_teachers`; None without a teacher.
            batch: images, labels and sample indices.

        Returns:
            A scalar, float32 (float64 for float64 inputs).
        """
        return self.per_sample(s, t, batch).mean() + self.batch_term(s, t, batch)

    @classmethod
    def has_per_sample(cls) -> bool:
        """Whether the loss is the mean of `per_sample` (plus `batch_term`), so that samples can be weighted."""
        return cls.per_sample is not Distiller.per_sample and cls.forward is Distiller.forward


_methods: dict[str, type[Distiller]] = {}


def method_names() -> list[str]:
    """All names without aliases, in order of registration."""
    return [name for name, cls in _methods.items() if name == cls.name]


def find_method(name: str) -> type[Distiller]:
    """The class for a name or alias. Raises ValueError, listing similar names, if there is none."""
    if name not in _methods:
        raise unknown("method", name, _methods)
    return _methods[name]


def method_options(cls: type[Distiller]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a method, which become its flags."""
    parameters = inspect.signature(cls.__init__, eval_str=True).parameters
    return {p.name: p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def method_meanings(cls: type[Distiller]) -> dict[str, str]:
    """The help texts of a method's options, read from its docstring and those of its base classes.

    A docstring says `key: meaning.`, or `key, other: meaning.` for several. A meaning ends with its sentence, at the
    next key, or at a blank line.
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
    """Raises ValueError if the annotation has a range or a list of values and excludes this value."""
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
