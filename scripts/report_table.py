"""What report_model.py finds, as a table for the terminal and as files."""

import argparse
import math
from typing import Any

from helper import checkpoint
from helper.tables import write_csv
from helper.util import as_user_error

WIDTH = 100  # columns of the terminal
FILES = {"float32": "weights in float32", "float16": "weights in float16", "onnx": "ONNX float32", "int8": "ONNX int8"}
WAYS = {"torch": "PyTorch float32", "onnx": "ONNX Runtime float32", "int8": "ONNX Runtime int8"}
WAYS |= {"gpu": "PyTorch float32, GPU", "gpu_bf16": "PyTorch bf16, GPU"}


def cells(facts: dict[str, Any]) -> dict[str, str]:
    """A column of the table, by row."""
    found = {"parameters": f"{facts['parameters']:,}", "multiply-adds, M": f"{facts['multiply_adds'] / 1e6:,.1f}"}
    found |= {f"{FILES[name]}, MB": f"{size / 1e6:.2f}" for name, size in facts["bytes"].items()}
    found |= {f"{WAYS[way]}: top-1, %": f"{top1:.2f}" for way, top1 in facts["top1"].items()}
    found["agreement with the teacher, %"] = f"{facts['agreement']:.2f}" if "agreement" in facts else ""
    found["calibration error, %"] = f"{facts['calibration_error']:.2f}"
    found["the same at temperature T, %"] = f"{facts['calibration_error_scaled']:.2f} (T = {facts['temperature']:.2f})"
    for way, times in facts["ms"].items():
        for batch, t in times.items():
            median, low, high, speed = map(digits, t.values())
            found[f"{WAYS[way]}: {batch.replace('_', ' ')}"] = f"{median} ({low}-{high}), {speed}/s"
    return found


def digits(x: float) -> str:
    """Three of them, but all before the point, and of those behind it three at most: a cell stays short."""
    return f"{x:.{min(3, max(0, 2 - math.floor(math.log10(x))))}f}"


def table(networks: list[dict[str, Any]]) -> str:
    """As many networks beside each other as WIDTH has room for, the others below."""
    columns = {facts["label"]: cells(facts) for facts in networks}
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    first = ["", "---", *rows]
    blocks: list[list[list[str]]] = []
    for label, column in columns.items():
        cell = [label, "---", *(column.get(row, "") for row in rows)]
        if not blocks or sum(max(map(len, part)) + 3 for part in [*blocks[-1], cell]) >= WIDTH:
            blocks.append([first])
        blocks[-1].append(cell)
    text = []
    for block in blocks:
        widths = [max(map(len, part)) for part in block]
        lines = [" | ".join(map(str.ljust, line, widths)) for line in zip(*block, strict=True)]
        text.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(text)


def lines_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the CSV file, one for each way of running a network."""
    own = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    own |= {f"bytes_{name}": size for name, size in facts["bytes"].items()}
    lines = []
    for way, times in facts["ms"].items():
        ms = {f"{batch}_{key}": value for batch, t in times.items() for key, value in t.items()}
        lines.append({**own, "way": way, "top1": facts["top1"][way], **ms})
    return lines


def write(facts: list[dict[str, Any]], about: dict[str, Any], title: str, opt: argparse.Namespace) -> None:
    """The files that are asked for."""
    if opt.json:
        with as_user_error(f"--json {opt.json}"):
            checkpoint.save_json(opt.json, about | {"networks": facts})
    if opt.csv:
        with as_user_error(f"--csv {opt.csv}"):
            write_csv(opt.csv, [line for one in facts for line in lines_of(one)])
    if opt.plot:
        from scripts import tradeoff  # its package is optional

        points = [
            tradeoff.Point(one["label"], WAYS[way], times["batch_1"]["median"], one["top1"][way])
            for one in facts
            for way, times in one["ms"].items()
        ]
        with as_user_error(f"--plot {opt.plot}"):
            tradeoff.draw(title, points).savefig(opt.plot, dpi=150)
