"""The range of each keyword of a method: on the command line before anything is read, in Python when it is built."""

from typing import Annotated, Any, get_args, get_origin

import pytest
from conftest import QUICK
from test_methods import build, example

import crd  # noqa: F401  registers its methods
import train_student
from distiller_zoo import find_method, method_names, method_options
from distiller_zoo.base import Range, check

KEYWORDS = [(name, key) for name in method_names() for key in method_options(find_method(name))]


def parts(name: str, key: str) -> tuple[Any, ...]:
    """The annotation, or those that a `|` joins."""
    kind = method_options(find_method(name))[key].annotation
    return (kind,) if get_origin(kind) is Annotated or isinstance(kind, type) else get_args(kind) or (kind,)


def range_of(name: str, key: str) -> Range | None:
    limits = [get_args(part)[1] for part in parts(name, key) if get_origin(part) is Annotated]
    return next((one for one in limits if isinstance(one, Range)), None)


RANGED = [(name, key) for name, key in KEYWORDS if range_of(name, key)]


@pytest.mark.parametrize(("name", "key"), KEYWORDS)
def test_every_number_has_a_range_that_holds_its_default(name: str, key: str) -> None:
    assert not {int, float} & set(parts(name, key))
    parameter = method_options(find_method(name))[key]
    check(key, parameter.default, parameter.annotation)


def outside(limits: Range) -> list[float]:
    step = 1 if limits.kind is int else 1e-5
    low = limits.low if limits.ends[0] == "(" else limits.low - step
    high = limits.high if limits.ends[1] == ")" else limits.high + step
    return [limits.kind(value) for value in (low, high, -(10**30), 10**30) if value != limits.besides]


@pytest.mark.parametrize(("name", "key"), RANGED)
def test_refused_in_python(name: str, key: str) -> None:
    limits = range_of(name, key)
    for value in [*outside(limits), "1", True, *([1.5] if limits.kind is int else [float("nan")])]:
        with pytest.raises(ValueError, match=rf"{key}: expected .*a .*number (from|above) .*\d, found"):
            build(name, *example(), **{key: value})


@pytest.mark.parametrize(("name", "key"), RANGED)
def test_refused_on_the_command_line(name: str, key: str, capsys: pytest.CaptureFixture) -> None:
    """One line that names the flag and the range, before a file is read."""
    for value in [*outside(range_of(name, key)), "much"]:
        with pytest.raises(SystemExit) as stop:
            train_student.main([*QUICK, "--path_t", "missing.pth", "--distill", name, f"--{key}", str(value)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and "missing.pth" not in error
        assert f"--{key}" in error and f": expected {range_of(name, key)}, found " in error


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("kdsvd", "kdsvd_k", 0), ("at", "at_p", 0), ("ft", "ft_p1", 0), ("ft", "ft_p2", 0), ("crd", "nce_m", 2.0)]
    + [("crd", "nce_m", -1.0), ("crd", "nce_m", 1.0), ("ab", "ab_margin", -1e30), ("kl", "kl_k", 1), ("sup", "kl_k", 1)]
    + [("cc", "cc_order", 0), ("cc", "cc_gamma", 0.0), ("kd", "kd_T", 1e30), ("at", "at_p", 200), ("at", "at_last", -1)]
    + [("cc", "cc_kernel", "other"), ("sup", "on_flip", "nothing,nothing,nothing"), ("vid", "vid_variance", 1e9)],
)
def test_what_would_switch_a_method_off(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key}: expected "):
        build(name, *example(), **{key: value})


@pytest.mark.parametrize(("name", "keys"), [("rkd", ("rkd_distance", "rkd_angle")), ("sskd", ("sskd_tf", "sskd_ss"))])
def test_both_parts_switched_off(name: str, keys: tuple[str, str]) -> None:
    build(name, *example(), **{keys[0]: 0.0})
    with pytest.raises(ValueError, match=" and ".join(keys)):
        build(name, *example(), **dict.fromkeys(keys, 0.0))


def test_the_help_says_them(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train_student.parse(["--help_all"])
    said = " ".join(capsys.readouterr().out.split())
    for text in (
        "a whole number from 1 to 8; default: at 2, at_paper 2",
        "a number from 0 to below 1; default: crd 0.5, rrd 0.5",
        "0 or a whole number from 2 to 16777216; default: kl 0, ",
        "a number above 0 to 16; default: ft 0.5, ",
    ):
        assert text in said
