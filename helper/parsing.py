"""argparse as the scripts use it: two lengths of --help, values from a file, types, flags of the methods."""

import argparse
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import models
from models.near import near

from . import checkpoint
from .util import OneLineParser, UserError


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
    """Options that may also come from a file. `given` holds the names of those that the command line itself gives."""

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
        opt = super().parse_args((self.config_arguments(config) if config else []) + args)
        flags = {word.partition("=")[0] if word.startswith("--") else word[:2] for word in args}
        opt.given = {action.dest for action in self._actions if flags & set(action.option_strings)}
        return opt

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
            limit = ", below 2**63" if value >= 2**63 else ""
            raise argparse.ArgumentTypeError(f"expected {what}{limit}, found {text}")
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
    """An argparse type: a number from 0 to 1."""
    value = finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text}")
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
