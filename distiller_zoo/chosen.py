"""What a run's options say about its methods."""

import argparse
import csv
import functools
import inspect
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from helper import parsing
from helper.teachers import named_teachers
from helper.util import OneLineParser, UserError, as_user_error

from .base import Distiller, find_method, method_meanings
from .dot import DOT
from .kd import KD

Flags = dict[str, dict[str, inspect.Parameter]]  # keyword arguments of each method, by its name
PAIRS = Path(__file__).resolve().parents[1] / "configs" / "cifar100_pairs.csv"


@functools.cache
def published_pairs() -> dict[tuple[str, str, str], dict[str, str]]:
    """Rows of PAIRS by method, teacher and student. The networks are `*` if the source has one value for all pairs."""
    with open(PAIRS, newline="") as file:
        return {(row["method"], row["teacher"], row["student"]): row for row in csv.DictReader(file)}


def take_pair(opt: argparse.Namespace, flags: Flags) -> None:
    """Fills options that the user left out from the row of PAIRS for the run's networks, and prints what it filled in.

    Rows hold for a single method with one teacher on CIFAR-100, without --standardise or --ea_weights. The user's own
    values override the row's. options.json records all of them, so a resumed or repeated run uses the same values.
    """
    names = opt.distill + (opt.model_t or [])
    changed = opt.standardise or opt.ea_weights is not None
    if opt.weights != "paper" or opt.dataset != "cifar100" or len(opt.distill) != 1 or len(names) != 2 or changed:
        return
    rows, name = published_pairs(), opt.distill[0]
    row = rows.get((*names, opt.model_s)) or rows.get((name, "*", "*"))
    if row is None:
        return
    said = []
    for flag, key in (("r", "gamma"), ("a", "alpha"), ("b", "beta")):
        if getattr(opt, key) is None:
            setattr(opt, key, [float(row[flag])] if flag == "b" else float(row[flag]))
            said.append(f"-{flag} {float(row[flag]):g}")
    parser = parsing.Parser(PAIRS.name)
    parsing.add_method_options(parser, {name: flags[name]})
    for key, value in vars(parser.parse_args(row["options"].split())).items():
        if key in flags[name] and key not in opt:
            setattr(opt, key, value)
            shown = f"{value:g}" if type(value) is float else f"{value}"
            said.append(f"--{key}" if value is True else f"--{key} {shown}")
    if said and not opt.quiet:
        pair = f"{names[1]} > {opt.model_s}"
        print(f"weights of {name} for {pair}: {' '.join(said)} ({PAIRS.parent.name}/{PAIRS.name})")


def described(names: list[str] | None, flags: Flags) -> str:
    """The text of --help_method: source, loss, weights and options of these methods. None: the names of all `flags`."""
    if names is None:
        return "\n".join(textwrap.wrap(", ".join(flags), shutil.get_terminal_size().columns - 2)) + "\n"
    texts = []
    for cls in map(find_method, names):
        source, loss = ((doc or "").split("\n\n")[0] for doc in (sys.modules[cls.__module__].__doc__, cls.__doc__))
        weights = "Default weights: -r {:g} -a {:g} -b {:g}".format(*cls.weights)
        if any(row[0] == cls.name for row in published_pairs()):
            weights += f", or those of the pair of networks in {PAIRS.parent.name}/{PAIRS.name}"
        keywords = {key: parameter.default for key, parameter in flags[cls.name].items()}
        needed = cls.weights[1] or cls.init_loss or (cls.weights[2] and cls.needs_teacher(keywords))
        teacher = "With these it needs a teacher (--path_t)." if needed else "With these it needs no teacher."
        parser = OneLineParser(add_help=False)
        parsing.add_method_options(parser, {cls.name: flags[cls.name]}, meanings={cls.name: method_meanings(cls)})
        formatter = parsing.Shown("")
        for text in (f"{', '.join([cls.name, *cls.aliases])}: {source}", loss, f"{weights}. {teacher}"):
            formatter.add_text(text)
        formatter.start_section(f"options of {cls.name}")
        formatter.add_arguments(parser._actions)
        formatter.end_section()
        texts.append(formatter.format_help())
    return "\n".join(texts)


def settle(opt: argparse.Namespace, flags: Flags) -> dict[str, dict[str, Any]]:
    """Fills in the published values of the methods, for the run's pair of networks if known.

    Args:
        opt: the run's options, changed in place.
        flags: options of all methods.

    Returns:
        The keyword values of each method in use.

    Raises:
        UserError: all weights are 0, or a flag has no effect.
    """
    methods = [find_method(name) for name in opt.distill]
    opt.distill = [method.name for method in methods]
    take_pair(opt, flags)
    weights = [method.weights for method in methods]
    # of several methods: -r and -a of the first, -b of each
    opt.gamma = weights[0][0] if opt.gamma is None else opt.gamma
    opt.alpha = weights[0][1] if opt.alpha is None else opt.alpha
    opt.beta = [b for _, _, b in weights] if opt.beta is None else opt.beta
    if len(opt.beta) != len(methods):
        raise UserError(f"-b: expected a weight for each of {', '.join(opt.distill)}, found {len(opt.beta)}")
    if not (opt.gamma or opt.alpha or any(opt.beta)):
        raise UserError("-r, -a and -b are all 0: the loss would be 0")
    if opt.init_epochs is None:
        opt.init_epochs = max((m.init_epochs for m in methods if m.init_loss), default=Distiller.init_epochs)
    published = [method.init_learning_rate for method in methods if method.init_learning_rate]
    if opt.init_lr_decay_epochs is None:
        opt.init_lr_decay_epochs = [epoch for method in methods for epoch in method.init_decay_epochs]
    opt.init_learning_rate = opt.init_learning_rate or min(published, default=opt.learning_rate)
    used = opt.distill + ([KD.name] if opt.alpha else [])
    if opt.alpha and "kd_T" not in opt:
        opt.kd_T = methods[0].temperature
    return parsing.take_method_options(opt, {name: flags[name] for name in used}, flags)


def check(opt: argparse.Namespace, keywords: dict[str, dict[str, Any]]) -> tuple[bool, bool]:
    """Whether the training needs teachers, and whether the training or an initialisation does.

    Raises UserError for options that exclude each other or have no effect.
    """
    classes = [find_method(name) for name in opt.distill]
    active = [cls for cls, beta in zip(classes, opt.beta, strict=True) if beta]
    initialised = [cls for cls in classes if cls.init_loss]
    needing = [cls for cls in active if cls.needs_teacher(keywords[cls.name])]
    training_needs_teacher = bool(opt.alpha or needing)
    needs_teacher = bool(training_needs_teacher or initialised)
    if opt.pretrained_t and (opt.path_t or not opt.model_t):
        raise UserError("--pretrained_t: expected --model_t beside it, and no --path_t")
    if opt.pretrained_s and opt.path_s:
        raise UserError("--pretrained_s: expected no --path_s beside it")
    if opt.new_head and not opt.path_s:
        raise UserError("--new_head has no effect without --path_s")
    if opt.dot is not None:
        with as_user_error(f"--dot {opt.dot:g}"):
            DOT.check(opt)
    for flag in ("smoothing", "class_weights"):
        if getattr(opt, flag) and not opt.gamma:
            raise UserError(f"--{flag} has no effect: the weight of the cross entropy (-r) is 0")
    if "lr_decay_rate" in opt.given and opt.sched != "step" and not (initialised and opt.init_lr_decay_epochs):
        raise UserError("--lr_decay_rate has no effect without --sched step")
    if not (opt.gamma or opt.alpha) and all(cls.separate_heads for cls in active):
        raise UserError("-r and -a are both 0: nothing would train the class token's head, which is tested too")
    if opt.ema is not None and opt.mcl_tau is not None:
        raise UserError("--ema and --mcl_tau are the same option: expected one of them")
    for flag in ("mixup", "cutmix"):
        if getattr(opt, flag, 0) and (unmixed := [cls.name for cls in active if cls.one_label]):
            raise UserError(f"--{flag}: {', '.join(unmixed)} needs one label for each image")
    if opt.warm_up and opt.warm_up > opt.epochs:
        raise UserError(f"--warm_up {opt.warm_up}: expected at most the --epochs, {opt.epochs}")
    for cls, beta in zip(classes, opt.beta, strict=True):
        if cls.init_loss and not (beta or opt.init_epochs):
            raise UserError(f"--init_epochs 0: {cls.name} would have no effect, because its weight (-b) is 0")
    if opt.standardise and not (opt.alpha or any(cls.standardisable for cls in active)):
        raise UserError(f"--standardise has no effect: --distill {','.join(opt.distill)} does not compare logits")
    if opt.ea_weights is not None:
        whole = ", ".join(cls.name for cls in active if not cls.has_per_sample())
        if whole or not (opt.alpha or active):
            reason = f"the loss of {whole} is not a mean over samples" if whole else "no loss compares logits"
            raise UserError(f"--ea_weights: {reason} in --distill {','.join(opt.distill)}")
    changing = [cls.name for cls in classes if cls.wrap is not Distiller.wrap]
    reading = [cls.name for cls in classes if (cls.reads or cls.separate_heads) and cls.name not in changing]
    if changing and reading:
        what = f"{', '.join(changing)} changes the student's maps and heads, which {', '.join(reading)} reads"
        raise UserError(f"--distill {','.join(opt.distill)}: cannot be combined: {what}")
    flag, paths = named_teachers(opt)
    if not paths and needs_teacher and opt.test_only is None:
        by_alpha = not (needing or initialised) and opt.alpha != classes[0].weights[1]
        what = f"--alpha {opt.alpha:g}" if by_alpha else f"--distill {','.join(opt.distill)}"
        raise UserError(f"--path_t: {what} needs a teacher's checkpoint")
    for cls in [cls for cls in classes if cls in active or cls.init_loss]:
        if len(paths) > 1 and not cls.all_teachers:
            raise UserError(f"{flag}: {cls.name} takes one teacher, found {len(paths)}")
        if opt.cache_teacher and cls.reads:
            raise UserError(f"--cache_teacher: {cls.name} reads the teacher's feature maps, which are not cached")
    return training_needs_teacher, needs_teacher
