"""What is said of a name that nobody knows. It lies here because every other folder may import this one."""

import difflib
from collections.abc import Iterable


def near(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; near: a, b, c`, at most three of the names that may be meant, whatever their case; empty where none is near.

    That is those with these initials (lr: learning_rate), then those that begin with it, resemble it, or hold it.
    """
    name, known = name.lower(), {one.lower(): one for one in names}
    found = [one for one in known if name == "".join(word[:1] for word in one.split("_"))]
    found += sorted((one for one in known if one.startswith(name)), key=len)
    found += difflib.get_close_matches(name, known, n=3)
    found += [one for one in known if len(name) > 2 and name in one]
    listed = ", ".join(prefix + known[one] for one in list(dict.fromkeys(found))[:3])
    return f"; near: {listed}" if listed else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """The error of a table's look-up, with the near names, or all where none is near."""
    names = list(names)
    return ValueError(f"unknown {kind} {name!r}" + (near(name, names) or f"; expected one of {', '.join(names)}"))
