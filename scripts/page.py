"""One self-contained page of all runs: `summarize.py --html FILE`. No network: it can be sent as a mail attachment."""

import json
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")


def render(rows: list[dict[str, Any]], lists: dict[str, list[str]]) -> str:
    """The page. rows: what its script shows, as `summarize.page_row` makes them; lists: lines by their title."""
    data = json.dumps(
        {"rows": [{"id": i, **row} for i, row in enumerate(rows)], "lists": lists}, ensure_ascii=False, allow_nan=False
    )
    # a name cannot end the script that it stands in, nor begin another
    return TEMPLATE.read_text().replace("__DATA__", data.replace("<", "\\u003c"))
