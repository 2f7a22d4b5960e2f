"""Options that several scripts share, how they are checked, and where their values may come from."""

import argparse
import dataclasses
import inspect
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from torch import nn

import dataset
import models

from . import checkpoint, export, identity, labels, optimizers, run_log, track
from .parallel import one_before_the_others, part
from .slow import SlowWeights
from .util import OneLineParser, UserError, mendable, near

# what may change between the start of a run and its continuation: it does not touch the numbers
FREE = {"resume", "config", "print_freq", "tb_freq", "save_freq", "save_steps", "num_workers"}
FREE |= {"data_folder", "save_folder", "cache_teacher", "cache_gb", "memory_gb", "run_log", "export", "graph"}
FREE |= {"weights", "track", "push_to_hub"}


def first(action: argparse.Action) -> argparse.Action:
    """Marks an option as one of those that matter first: --help shows these, --help_all the others too."""
    action.first = True  # type: ignore[attr-defined]
    return action


class Shown(argparse.HelpFormatter):
    """Every meaning with its default, where it does not say that itself; a value is called by the flag's last word.

    Links are not broken.
    """

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=30, **settings)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width - len(indent))), indent)

    def _get_help_string(self, action: argparse.Action) -> str:
        value, meaning = action.default, action.help or ""
        if value is None or value is False or value is argparse.SUPPRESS or value == []:
            return meaning
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{meaning}; default: {text.replace('%', '%%')}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "NETWORK" if action.type is network else action.dest.split("_")[-1].upper()


class Help(argparse.Action):
    """Prints text(parser, value) and ends the script."""

    def __init__(self, option_strings: Sequence[str], dest: str, text: Callable[..., str], **settings: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **settings)
        self.text = text

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        print(self.text(parser, values), end="")
        parser.exit()


class BriefParser(OneLineParser):
    """--help shows what matters first, --help_all everything. doc: the script's, whose third line is an example."""

    def __init__(self, doc: str, rest: str = "") -> None:
        """rest: where help on something else is."""
        description, _, example = (*doc.splitlines(), "", "")[:3]
        super().__init__(description=description, formatter_class=Shown, add_help=False)
        self.example, self.rest = example, rest
        shown = {"dest": "help", "action": Help, "nargs": 0}
        brief, every = (lambda self, _: self.format_help()), (lambda self, _: self.format_help(everything=True))
        first(self.add_argument("-h", "--help", text=brief, help="what matters first", **shown))
        first(self.add_argument("--help_all", text=every, help="all options", **shown))

    def format_help(self, everything: bool = False) -> str:
        formatter, left = self._get_formatter(), 0
        formatter.add_text(self.description)
        formatter.add_text(f"usage: {self.example} ...")
        for group in self._action_groups:
            actions = [a for a in group._group_actions if everything or getattr(a, "first", False)]
            left += len(group._group_actions) - len(actions)
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(" ".join(filter(None, [left and f"{left} more options: --help_all.", self.rest])))
        return formatter.format_help()


class Parser(BriefParser):
    """Options that may also come from a file."""

    def __init__(self, doc: str, rest: str = "") -> None:
        super().__init__(doc, rest)
        first(
            self.add_argument(
                "--config", metavar="FILE", help="JSON file of option values; the command line overrides it"
            )
        )

    def parse_args(self, args: list[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore
        args = sys.argv[1:] if args is None else list(args)
        first = OneLineParser(add_help=False)
        first.add_argument("--config")
        config = first.parse_known_args(args)[0].config
        return super().parse_args((self.config_arguments(config) if config else []) + args)

    def config_arguments(self, path: str) -> list[str]:
        """The file's values as arguments, so that they meet the same checks as typed ones."""
        values = checkpoint.load_json(path, "--config")
        values = values.get("options", values)
        if not isinstance(values, dict):
            raise UserError(f"--config {path}: expected a JSON object of options, found {type(values).__name__}")
        actions = {a.dest: a for a in self._actions if a.option_strings and a.dest not in ("help", "config")}
        arguments = []
        for key, value in values.items():
            if key not in actions:
                raise UserError(f"--config {path}: unknown option {key!r}{near(key, actions)}")
            flags = actions[key].option_strings
            if actions[key].nargs == 0:
                if not isinstance(value, bool):
                    raise UserError(f"--config {path}: {key} is true or false, not {value!r}")
                if isinstance(actions[key], argparse.BooleanOptionalAction):
                    arguments.append(flags[0] if value else flags[-1])
                else:
                    arguments += [flags[-1]] if value else []
            elif value is not None:
                listed = value if isinstance(value, list) else [value]
                for one in listed:
                    if type(one) not in (str, int, float) or not harmless(str(one)):
                        raise UserError(f"--config {path}: {key} takes numbers or text, not {one!r}")
                words = [str(one) for one in listed]
                if actions[key].nargs == "+":
                    if any(word.startswith("-") for word in words):  # it would be read as another option
                        raise UserError(f"--config {path}: {key} takes no value that begins with a dash, as {words}")
                    arguments += [flags[-1], *words]
                else:
                    arguments.append(f"{flags[-1]}={','.join(words)}")
        return arguments


def harmless(text: str) -> bool:
    """Whether a path may be so, line ends and bytes that are no UTF-8 included, but nothing steers a terminal."""
    return all(c.isprintable() or c in "\n\t" or "\udc80" <= c <= "\udcff" for c in text)


def number(kind: type, low: float, low_included: bool = True, what: str = "") -> Callable[[str], Any]:
    """An argparse type: a finite number of at least (or above) `low`, below 2**63 as PyTorch has them."""
    what = (
        what or f"{'a whole number' if kind is int else 'a number'} {'of at least' if low_included else 'above'} {low}"
    )

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {what}, found {text!r}") from None
        if not low <= value < 2**63 or (value == low and not low_included):
            raise argparse.ArgumentTypeError(f"expected {what}{', below 2**63' * (value >= 2**63)}, found {text}")
        return value

    return convert


def within(kind: type, limits: Any) -> Callable[[str], Any]:
    """An argparse type: a value that `limits.check` takes; str(limits) says what these are."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {limits}, found {text!r}") from None
        try:
            limits.check(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {limits}, found {text}") from None
        return value

    return convert


count = number(int, 1)
whole = number(int, 0)
pixels = number(int, 2)  # torchvision cannot resize to a single one
weight = number(float, 0)
above_zero = number(float, 0, low_included=False)
finite = number(float, -sys.float_info.max, what="a number")


def share(text: str) -> float:
    """An argparse type: a number of 0 to 1."""
    value = finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number of 0 to 1, found {text}")
    return value


def epoch_list(text: str) -> list[int]:
    """`150,180,210` -> [150, 180, 210]; empty: none."""
    try:
        epochs = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        epochs = [0]
    if any(low >= high for low, high in pairwise([0, *epochs])):
        raise argparse.ArgumentTypeError(f"expected epochs that rise, like 150,180,210, found {text!r}")
    return epochs


def weight_list(text: str) -> list[float]:
    """`0.8,1000` -> [0.8, 1000.0]"""
    return [weight(part) for part in text.split(",")]


def seeds(text: str) -> int | list[int]:
    """`7` -> 7; `1,2,3` -> [1, 2, 3]"""
    found = [whole(part) for part in text.split(",")]
    return found if len(found) > 1 else found[0]


def known(find: Callable[[str], object]) -> Callable[[str], str]:
    """An argparse type: a name that `find` knows; its ValueError is the message."""

    def convert(text: str) -> str:
        try:
            find(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return convert


def names_of(find: Callable[[str], object]) -> Callable[[str], list[str]]:
    """An argparse type: `a,b` -> ["a", "b"], each known to `find`, none twice."""

    def convert(text: str) -> list[str]:
        names = [known(find)(name) for name in text.split(",")]
        if len({find(name) for name in names}) < len(names):
            raise argparse.ArgumentTypeError(f"expected different names, found {text!r}")
        return names

    return convert


network = known(models.sketch)


def add_run_options(parser: Parser, trial: str) -> None:
    group = parser.add_argument_group("run")
    first(group.add_argument("-t", "--trial", default=trial, help="number of this repetition, part of the run's name"))
    group.add_argument(
        "--seed", type=seeds, help="of all random numbers; 1,2,3: with --sweep, as trials; default: the trial's number"
    )
    first(group.add_argument("--run_name", help="name of the run's folder; default: made of the options"))
    first(group.add_argument("--save_folder", default="./save", help="folder of all runs"))
    group.add_argument(
        "--resume", choices=["auto", "never"], default="auto", help="auto: a broken run goes on; never: afresh"
    )
    first(
        group.add_argument(
            "--test_only", metavar="FILE", nargs="?", const="", help="only validate FILE, or the run's last.pth"
        )
    )
    group.add_argument("--run_log", metavar="FILE", help="what is printed goes to this file too, with the time")
    group.add_argument(
        "--export", type=export.formats, default=[], metavar="FORMATS",
        help=f"formats that the trained network is saved in too, of {','.join(export.FORMATS)}",
    )  # fmt: skip
    group.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the finished run to Hugging Face's hub")
    first(group.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: all GPUs where there are some"))
    first(group.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off", help="precision of the networks"))
    first(group.add_argument("--compile", action="store_true", help="torch.compile the networks"))
    group.add_argument(
        "--graph", choices=["auto", "off"], default="auto", help="auto: on one GPU steps are recorded as CUDA graphs"
    )
    group.add_argument(
        "--deterministic", action="store_true", help="the same seed gives the same bits on a GPU too; takes longer"
    )
    group.add_argument("--print_freq", type=count, default=100, help="steps between two looks at the loss")
    group.add_argument("--tb_freq", type=count, default=500, help="steps between two TensorBoard points in an epoch")
    group.add_argument(
        "--track", choices=["off", *track.TRACKERS], default="off", help="where each epoch's numbers go too"
    )
    group.add_argument("--save_predictions", action="store_true", help="save the last weights' for each test sample")
    group.add_argument("--save_freq", type=count, default=40, help="epochs between two kept checkpoints")
    group.add_argument("--save_steps", type=whole, default=0, help="steps between two last.pth in an epoch; 0: none")


def add_data_options(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    names = ", ".join(dataset.dataset_names())
    default = "default: as in the --test_only file, else cifar100"
    first(group.add_argument("--dataset", type=known(dataset.find_dataset), help=f"{names}; {default}"))
    first(group.add_argument("--data_folder", default="./data", help="where the data set is, or is downloaded to"))
    group.add_argument("--image_size", type=pixels, help="pixels of a side; default: the data set's own")
    first(group.add_argument("--batch_size", type=number(int, 2), default=64, help="images, of all devices together"))
    group.add_argument(
        "--loader",
        choices=["auto", "memory", "stream", "dali"],
        default="auto",
        help="image files are kept decoded, or read by workers all along; auto: kept where --memory_gb allows it",
    )
    group.add_argument("--memory_gb", type=above_zero, default=4.0, help="gigabytes that kept images may take")
    group.add_argument("--num_workers", type=count, default=8, help="workers that read image files, for each process")
    group.add_argument("--limit_train", type=count, metavar="N", help="class-balanced subset, for trials; default: all")
    group.add_argument("--limit_val", type=count, metavar="N", help="class-balanced subset, for trials; default: all")
    group.add_argument(
        "--val_split",
        type=count,
        metavar="N",
        help="so many training samples, as many of each class and the same for every seed, are validated in the place "
        "of the test set, which is seen once at the end",
    )


def add_augment_options(parser: Parser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--aug", choices=["crop_flip", *dataset.POLICIES], default="crop_flip", help="the others follow crop and flip"
    )
    group.add_argument("--reprob", type=share, default=0.0, metavar="P", help="probability of random erasing")
    group.add_argument("--mixup", type=weight, default=0.0, metavar="ALPHA", help="of mixup's Beta distribution")
    group.add_argument(
        "--cutmix",
        type=weight,
        default=0.0,
        metavar="ALPHA",
        help="of cutmix's; with --mixup half of the batches each",
    )


def check_augment_options(opt: argparse.Namespace) -> None:
    """Raises UserError for what gives a sample more views than a cache can keep."""
    if opt.cache_teacher:
        for key in ("aug", "reprob", "mixup", "cutmix"):
            if getattr(opt, key) not in ("crop_flip", 0):
                raise UserError(f"--cache_teacher: --{key} {getattr(opt, key)} makes more images than can be kept")


def add_teacher_options(parser: Parser) -> None:
    group = parser.add_argument_group("how the teachers are asked")
    group.add_argument(
        "--teacher_ahead", type=count, metavar="N", help="ask for about N batches at once; default: 1, on a GPU 8"
    )
    group.add_argument("--cache_teacher", metavar="DIR", help="keep logits and pooled features of each view there")
    group.add_argument("--cache_gb", type=above_zero, help="gigabytes of --cache_teacher for this run; default: 16")
    kept_as = "type that --cache_teacher keeps; default: float32"
    group.add_argument("--cache_dtype", choices=["float32", "bf16", "fp16"], help=kept_as)


def settle_teacher_options(opt: argparse.Namespace, asked: bool, device: torch.device) -> None:
    """Raises UserError for what has no effect; asked: whether anything asks a teacher."""
    check_augment_options(opt)
    if opt.cache_teacher and (opt.teacher_ahead or 1) > 1:
        raise UserError(f"--teacher_ahead {opt.teacher_ahead}: with --cache_teacher it is 1")
    if opt.teacher_ahead is None:
        opt.teacher_ahead = 8 if device.type == "cuda" and not opt.cache_teacher else 1
    for key in ("cache_gb", "cache_dtype"):
        if getattr(opt, key) and not opt.cache_teacher:
            raise UserError(f"--{key} has no effect without --cache_teacher")
    if opt.cache_teacher and not asked:
        raise UserError(f"--cache_teacher: nothing asks a teacher in --distill {','.join(opt.distill)}")


def add_training_options(parser: Parser, epochs: int, decay: str) -> None:
    group = parser.add_argument_group("training")
    first(group.add_argument("--epochs", type=count, default=epochs, help="passes over the training set"))
    group.add_argument(
        "--opt", choices=optimizers.OPTIMIZERS, default="sgd", help="optimiser; lamb: timm's, needs the package timm"
    )
    rates = f"default: 0.05 or the network's own, without sgd {optimizers.RATE}"
    first(group.add_argument("--learning_rate", type=above_zero, help=f"learning rate; {rates}"))
    group.add_argument("--sched", choices=["step", "cosine"], default="step", help="how the rate falls, by the epoch")
    first(
        group.add_argument(
            "--lr_decay_epochs", type=epoch_list, default=decay, help="step: the rate falls after these epochs"
        )
    )
    group.add_argument("--lr_decay_rate", type=share, default=0.1, help="step: the rate falls to this much of it")
    group.add_argument("--min_lr", type=weight, metavar="LR", help="cosine: the rate after the last epoch; default: 0")
    group.add_argument(
        "--warmup_epochs", type=whole, default=0, metavar="N",
        help="epochs in which the rate rises evenly; they are part of the schedule (timm's default, no warmup_prefix)",
    )  # fmt: skip
    group.add_argument(
        "--warmup_lr", type=weight, metavar="LR", help="rate of the first of --warmup_epochs; default: 1e-05"
    )
    first(group.add_argument("--weight_decay", type=weight, default=5e-4, help="the optimiser's, of all weights"))
    group.add_argument("--momentum", type=share, default=0.9, help="momentum of sgd")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum")
    group.add_argument("--clip_grad", type=above_zero, metavar="NORM", help="longest norm of all gradients together")
    group.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches of each step of the optimiser")
    group.add_argument(
        "--smoothing", type=share, default=0.0, metavar="EPS", help="label smoothing of the cross entropy"
    )
    group.add_argument(
        "--class_weights", choices=["balanced"],
        help="balanced: in the cross entropy a class weighs n / (K n_c), with n_c of the n training samples",
    )  # fmt: skip
    group.add_argument("--drop_path", type=share, metavar="RATE", help="stochastic depth of timm's networks")
    group.add_argument(
        "--ema", type=share, metavar="DECAY",
        help="a moving average of the weights and BatchNorm statistics is validated and saved in their place",
    )  # fmt: skip
    group.add_argument(
        "--early_stop", type=count, metavar="N", help="the training ends after N epochs without a better val_acc"
    )
    group.add_argument(
        "--sync_bn", action="store_true", help="under torchrun: BatchNorm over the whole batch of all processes"
    )
    group.add_argument(
        "--adjust_lr", action="store_true", help="under torchrun: learning rates times the number of processes"
    )


def add_method_options(
    parser: OneLineParser,
    methods: dict[str, dict[str, inspect.Parameter]],
    also: dict[str, str] | None = None,
    meanings: dict[str, dict[str, str]] | None = None,
) -> None:
    """A flag for each keyword of the methods (name -> keyword -> parameter). Left out, the method's default holds.

    also: second flags of some keywords. meanings: name -> keyword -> what the help says of it.
    """
    group = parser.add_argument_group("options of the methods")
    users: dict[str, list[str]] = {}
    for name, parameters in methods.items():
        for key in parameters:
            users.setdefault(key, []).append(name)
    for key, names in users.items():
        parameter = methods[names[0]][key]
        kinds = {methods[name][key].annotation for name in names}
        if len(kinds) > 1:
            raise TypeError(f"--{key} has different types in {', '.join(names)}")
        defaults = {name: methods[name][key].default for name in names}
        shown = [str(d) if len(methods) == 1 else f"{name} {d}" for name, d in defaults.items() if d is not None]
        said: dict[str, list[str]] = {}
        for name in names:
            said.setdefault((meanings or {}).get(name, {}).get(key, ""), []).append(name)
        words = [f"{', '.join(users)}: {text}" if len(said) > 1 else text for text, users in said.items() if text]
        kwargs: dict[str, Any] = {"default": argparse.SUPPRESS}
        kind = parameter.annotation
        if get_origin(kind) in (Union, types.UnionType):  # `float | None`: left out, it is None
            kind = next(k for k in get_args(kind) if k is not type(None))
        if get_origin(kind) is Annotated:
            kind, limits = get_args(kind)
            kwargs["type"] = within(kind, limits)
            words.append(str(limits))
        elif kind is bool:
            kwargs["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            kwargs.update(choices=get_args(kind))
        elif kind is int:
            kwargs["type"] = whole
        elif kind is float:
            kwargs["type"] = finite
        else:
            kwargs["type"] = kind
        kwargs["help"] = "; ".join([*words, *(["default: " + ", ".join(shown)] if shown else [])]).replace("%", "%%")
        group.add_argument(f"--{key}", *([also[key]] if also and key in also else []), **kwargs)


def take_method_options(
    opt: argparse.Namespace, used: dict[str, dict[str, inspect.Parameter]], known: dict[str, dict]
) -> dict[str, dict[str, Any]]:
    """The keyword values of the methods in use, defaults filled in, and noted in `opt` so that options.json has them.

    Raises UserError for a flag that no method in use reads.
    """
    given = {key: value for key, value in vars(opt).items() if any(key in parameters for parameters in known.values())}
    for key in given:
        if not any(key in parameters for parameters in used.values()):
            owners = ", ".join(name for name, parameters in known.items() if key in parameters)
            raise UserError(f"--{key} has no effect here: it belongs to {owners}")
    chosen = {n: {k: given.get(k, p.default) for k, p in parameters.items()} for n, parameters in used.items()}
    for values in chosen.values():
        for key, value in values.items():
            setattr(opt, key, value)
    return chosen


def begin(opt: argparse.Namespace) -> None:
    """What every script does first: starts its log in the first process, and settles the seed."""
    start_log(opt)
    settle_seed(opt)


def start_log(opt: argparse.Namespace) -> None:
    if opt.run_log and os.environ.get("RANK", "0") == "0":
        with mendable(f"--run_log {opt.run_log}"):
            run_log.start(opt.run_log)


def settle_seed(opt: argparse.Namespace) -> None:
    """Also refuses what is wrong with it, and what has no effect."""
    if "/" in opt.trial and not opt.run_name:
        raise UserError(f"--trial {opt.trial}: is part of the run's name, expected one without /")
    if isinstance(opt.seed, list):
        raise UserError(f"--seed {','.join(map(str, opt.seed))}: several seeds need --sweep")
    settle_training(opt)
    if opt.seed is None:
        try:
            opt.seed = whole(opt.trial)
        except argparse.ArgumentTypeError:
            raise UserError(f"--trial {opt.trial}: not a number, so --seed must be given") from None


def settle_training(opt: argparse.Namespace) -> None:
    """Fills in what depends on other training options. Raises UserError for what has no effect, or cannot be."""
    if opt.nesterov and opt.opt != "sgd":
        raise UserError("--nesterov has no effect without --opt sgd")
    if opt.nesterov and not opt.momentum:
        raise UserError("--nesterov: expected a --momentum above 0 beside it")
    if opt.opt in optimizers.NEEDS_PACKAGE:
        optimizers.package()
    if opt.opt != "sgd":
        opt.learning_rate = opt.learning_rate or optimizers.RATE
    if opt.min_lr is not None and opt.sched != "cosine":
        raise UserError("--min_lr has no effect without --sched cosine")
    if opt.warmup_lr is not None and not opt.warmup_epochs:
        raise UserError("--warmup_lr has no effect without --warmup_epochs")
    if opt.warmup_epochs > opt.epochs:
        raise UserError(f"--warmup_epochs {opt.warmup_epochs}: expected at most the --epochs, {opt.epochs}")
    if opt.sched == "cosine" and opt.min_lr is None:
        opt.min_lr = 0.0
    if opt.warmup_epochs and opt.warmup_lr is None:
        opt.warmup_lr = 1e-5


def label_loss(opt: argparse.Namespace, data: dataset.ImageSet) -> labels.LabelLoss:
    """The cross entropy that the options ask for. Raises UserError for a class without samples to be weighed by."""
    weights = None
    if opt.class_weights:
        with mendable(f"--class_weights {opt.class_weights}"):
            weights = labels.balanced(data.train_labels, len(data.classes))
    return labels.LabelLoss(opt.smoothing, weights)


def slow_weights(opt: argparse.Namespace, network: nn.Module) -> SlowWeights | None:
    """`--ema`: the average moves with every step of the optimiser."""
    return None if opt.ema is None else SlowWeights(network, opt.ema)


def load_data(opt: argparse.Namespace, runs: Iterable[Any]) -> dataset.ImageSet:
    """The data set of the options, whole or limited, which the runs note.

    Raises UserError where its files are not as they should be, and where one of the runs has seen other images.
    """
    with mendable(f"--dataset {opt.dataset}"), one_before_the_others():
        storage = dataset.Storage(opt.loader, opt.memory_gb, opt.num_workers)
        data = dataset.load(opt.dataset, opt.data_folder, opt.image_size, opt.limit_train, opt.limit_val, storage)
        found = identity.of(data), dataset.listed(opt.dataset, opt.data_folder)
    for run in runs:
        run.sees(*found)
    if opt.val_split and opt.test_only is None:
        with mendable(f"--val_split {opt.val_split}"):
            data = dataset.split(data, opt.val_split)
    return data


def check_data_of(opt: argparse.Namespace, finished: Sequence[Any]) -> None:
    """Raises UserError where the data folder holds another set than these runs have seen; it may be gone.

    Only where image files have other names or sizes are they loaded, to see whether that changes anything.
    """
    try:
        with mendable(f"--dataset {opt.dataset}"):
            listed = dataset.listed(opt.dataset, opt.data_folder) if finished else ""
    except UserError as error:
        if not isinstance(error.__context__, OSError):
            raise
        return print(f"its images are not there to be compared: {error}")
    if any(run.before.get("listed", listed) != listed for run in finished):
        load_data(opt, finished)


def train_batches(
    opt: argparse.Namespace, data: dataset.ImageSet, augment: dataset.Augment | dataset.Views, device: torch.device
) -> dataset.Batches:
    """This process's part of the training batches, whose images `augment` gives."""
    batches = dataset.Batches(augment, data.train_labels.to(device), opt.batch_size, seed=opt.seed, part=part())
    if opt.mixup or opt.cutmix:
        batches.mixing = dataset.Mixing(opt.mixup, opt.cutmix, data.train_images.shape[-2:])
    return batches


def val_batches(opt: argparse.Namespace, data: dataset.ImageSet, device: torch.device) -> dataset.ValBatches:
    """This process's part of the validation batches: 1,000 images of 32 pixels, of larger ones as many fewer."""
    height, width = data.val_images.shape[-2:]
    size = max(opt.batch_size, 1000 * 32**2 // max(height * width, 32**2))
    return dataset.ValBatches.of(data, size, device, part=part())


def test_batches(opt: argparse.Namespace, data: dataset.ImageSet, device: torch.device) -> dataset.ValBatches | None:
    """The same of the test set, where others are validated while training."""
    if data.test_labels is None:
        return None
    tested = dataclasses.replace(data, val_images=data.test_images, val_labels=data.test_labels)
    return val_batches(opt, tested, device)


def images_of(data: dataset.ImageSet) -> models.Images:
    """What the networks are given: batches are normalised by the data set's mean and deviation."""
    return models.Images(tuple(data.train_images.shape[-2:]), data.mean, data.std)


def facts(name: str, network: nn.Module, data: dataset.ImageSet) -> dict[str, Any]:
    """What a checkpoint says of its network beside the weights."""
    layers = models.layers_of(network)
    return {
        "model_name": name,
        "num_classes": len(data.classes),
        "parameters": sum(p.numel() for p in network.parameters()),
        **({"wrapped": layers} if layers else {}),
    }
