"""Names that somebody may have meant."""

import pytest

from models.near import near, unknown


@pytest.mark.parametrize(
    "name, found",
    [
        ("lr", "; near: --learning_rate"),  # initials
        ("learn", "; near: --learning_rate"),
        ("learnin_rate", "; near: --learning_rate"),
        ("rate", "; near: --learning_rate"),
        ("ALPHA", "; near: --Alpha, --alphabet"),  # whatever the case of either
        ("al", "; near: --Alpha, --alphabet"),  # the shortest first
        ("xyz", ""),
    ],
)
def test_near(name, found):
    assert near(name, ["learning_rate", "alphabet", "Alpha"], "--") == found


def test_all_are_named_where_none_is_near():
    assert str(unknown("fruit", "plun", ["plum", "pear"])) == "unknown fruit 'plun'; near: plum"
    assert str(unknown("fruit", "xyz", ["plum", "pear"])) == "unknown fruit 'xyz'; expected one of plum, pear"
