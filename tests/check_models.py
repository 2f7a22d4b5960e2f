"""Checks the networks against a file of reference numbers: `python tests/check_models.py FILE`.

FILE is either of numbers (`models_numeric.json`: outputs in float64, with weights filled by the recipe inside) or of
facts (`models.json`: names, shapes and counts; its groups whose name starts with RepDistiller are checked).
Prints a line a network, and `N passed, M failed` last. Exit status 1 if any failed or none passed.
"""

import argparse
import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from models import Output, create_model, is_model  # noqa: E402

TOLERANCE = 1e-9  # in float64 only the order of summation may differ
IMAGES = 2  # the facts' shapes are for a batch of two

Check = Callable[[], list[str]]  # runs one case; gives its remarks, raises Mismatch


class Mismatch(Exception):
    """what differs, got and expected."""

    def __init__(self, what: str, got: Any, expected: Any) -> None:
        super().__init__(f"{what}, got {got}, expected {expected}")


def equal(what: str, got: Any, expected: Any) -> None:
    if got != expected:
        raise Mismatch(what, got, expected)


def close(what: str, got: float, expected: float, scale: float) -> None:
    """Within TOLERANCE of scale, the magnitude of the tensor that the number comes from."""
    if not abs(got - expected) <= TOLERANCE * abs(scale):  # so that NaN fails
        raise Mismatch(what, got, expected)


def feature_list(out: Output, preact: bool) -> list[Tensor]:
    """RepDistiller's list: the maps, then the pooled vector."""
    return [*(out.preacts if preact else out.feats), out.pooled]


# numbers


class Recipe:
    """The seeds and the input's shape, read from the file's own recipe."""

    def __init__(self, text: str) -> None:
        weights = re.search(r"manual_seed\((\d+) \+ i\)", text)
        images = re.search(r"x = torch\.randn\(([\d, ]+), generator=torch\.Generator\(\)\.manual_seed\((\d+)\)", text)
        if not weights or not images:
            raise ValueError("its recipe does not say 'manual_seed(N + i)' and 'x = torch.randn(shape, generator=...)'")
        self.seed = int(weights[1])
        self.shape = [int(n) for n in images[1].split(",")]
        self.input_seed = int(images[2])

    def fill(self, model: nn.Module) -> None:
        """Gives every entry of the state dict values that depend on its place, its name and its shape alone."""
        filled = {}
        for i, (key, value) in enumerate(model.state_dict().items()):
            options = {"generator": torch.Generator().manual_seed(self.seed + i), "dtype": torch.float64}
            if key.endswith("num_batches_tracked"):
                filled[key] = torch.zeros_like(value)
            elif key.endswith("running_var") or (key.endswith("weight") and value.dim() == 1):
                filled[key] = torch.rand(value.shape, **options) + 0.5
            elif key.endswith(("running_mean", "bias")):
                filled[key] = 0.1 * torch.randn(value.shape, **options)
            else:
                filled[key] = torch.randn(value.shape, **options) * (2 / math.prod(value.shape[1:])) ** 0.5
        model.load_state_dict(filled)

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.input_seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def compare_statistics(what: str, got: Tensor, expected: dict) -> None:
    equal(f"{what}.shape", list(got.shape), expected["shape"])
    flat = got.reshape(-1)
    total, n = expected["abssum"], flat.numel()
    first = flat[: len(expected["first"])].tolist()
    largest = max(total / n, *(abs(v) for v in expected["first"]))
    order = torch.cos(torch.arange(n, dtype=torch.float64))
    close(f"{what}.abssum", flat.abs().sum().item(), total, total)
    close(f"{what}.wsum", (flat * order).sum().item(), expected["wsum"], total)
    close(f"{what}.mean", flat.mean().item(), expected["mean"], total / n)
    close(f"{what}.std", flat.std().item(), expected["std"], expected["std"])
    for i, (a, b) in enumerate(zip(first, expected["first"], strict=True)):
        close(f"{what}.first[{i}]", a, b, largest)


@torch.no_grad()
def check_numbers(name: str, reference: dict, recipe: Recipe) -> list[str]:
    """One network of a file of numbers. Raises Mismatch."""
    model = create_model(name, reference["num_classes"]).double().eval()
    equal("params", sum(p.numel() for p in model.parameters()), reference["params"])
    equal("n_keys", len(model.state_dict()), reference["n_keys"])
    recipe.fill(model)
    x = recipe.images()

    fill = reference["fill_check"]
    weights = sum(v.abs().sum().item() for v in model.state_dict().values() if v.is_floating_point())
    close("fill_check.sd_abssum", weights, fill["sd_abssum"], fill["sd_abssum"])
    close("fill_check.x_abssum", x.abs().sum().item(), fill["x_abssum"], fill["x_abssum"])
    for i, value in enumerate(fill["x_first"]):
        close(f"fill_check.x_first[{i}]", x.reshape(-1)[i].item(), value, value)

    out = model(x, is_feat=True)
    logits = torch.tensor(reference["logits"], dtype=torch.float64)
    for what, got in (("logits", model(x)), ("logits of is_feat=True", out.logits)):
        equal(f"{what}.shape", list(got.shape), list(logits.shape))
        largest = logits.abs().max().item()
        worst = (got - logits).abs().argmax().item()
        close(f"{what}[{worst}]", got.flatten()[worst].item(), logits.flatten()[worst].item(), largest)
        close(f"{what}.abssum", got.abs().sum().item(), reference["logits_abssum"], reference["logits_abssum"])
    for preact in (False, True):
        key = f"feats_preact_{preact}"
        features = feature_list(out, preact)
        equal(f"{key}.length", len(features), len(reference[key]))
        for i, (got, expected) in enumerate(zip(features, reference[key], strict=True)):
            compare_statistics(f"{key}[{i}]", got, expected)
    return []


# facts


def compare_names(model: nn.Module, reference: dict) -> None:
    """Names and shapes of the state dict, in order."""
    state = model.state_dict()
    keys, shapes = list(state), [list(v.shape) for v in state.values()]
    equal("n_keys", len(keys), reference["n_keys"])
    if "keys" in reference:  # else the file gives them under another network's name, and here their hash alone
        for i, expected in enumerate(zip(reference["keys"], reference["shapes"], strict=True)):
            equal(f"state dict entry {i}", (keys[i], shapes[i]), expected)
    digest = hashlib.sha256(json.dumps([keys, shapes]).encode()).hexdigest()[:16]
    equal("keys_sha256_16", digest, reference["keys_sha256_16"])


def bn_names(model: nn.Module) -> list[str] | None:
    """Dotted names of what get_bn_before_relu gives; None where it refuses."""
    names = {module: name for name, module in model.named_modules()}
    try:
        return [names[bn] for bn in model.get_bn_before_relu()]
    except ValueError:
        return None


@torch.no_grad()
def compare_features(model: nn.Module, size: int, reference: dict) -> None:
    """Shapes at one input size, and how features and pre-activations relate."""
    x = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(size))
    out = model(x, is_feat=True)
    plain, preact = feature_list(out, False), feature_list(out, True)
    equal(f"logits at {size}", list(out.logits.shape), reference["logits"])
    equal(f"feats at {size}", [list(f.shape) for f in plain], reference["feats"])
    equal(f"feats_preact at {size}", [list(f.shape) for f in preact], reference["feats_preact"])
    pairs = list(zip(plain, preact, strict=True))
    equal(f"preact_differs at {size}", [not torch.equal(f, p) for f, p in pairs], reference["preact_differs"])
    relu = [torch.equal(f, F.relu(p)) for f, p in pairs]
    equal(f"relu_of_preact_equals_feat at {size}", relu, reference["relu_of_preact_equals_feat"])


def check_facts(name: str, reference: dict) -> list[str]:
    """One network of a file of facts. Raises Mismatch; gives the sizes at which the reference is wrong."""
    model = create_model(name, reference["num_classes"]).eval()
    equal("params", sum(p.numel() for p in model.parameters()), reference["params"])
    equal("trainable_tensors", sum(p.requires_grad for p in model.parameters()), reference["trainable_tensors"])
    compare_names(model, reference)
    bns = reference["get_bn_before_relu"]
    equal("get_bn_before_relu", bn_names(model), [bn["name"] for bn in bns] if isinstance(bns, list) else None)
    remarks = []
    for size, shapes in reference["io"].items():
        if "error" in shapes:  # the reference pools by a fixed size
            continue
        if shapes["logits"][0] != IMAGES:
            remarks.append(f"at {size} the reference gives {shapes['logits'][0]} rows for {IMAGES} images")
        else:
            compare_features(model, int(size), shapes)
    return remarks


# files


def cases(data: dict) -> Iterator[tuple[str, Check]]:
    """Name and check of every network in a file of either format. Raises ValueError where it is of neither."""
    if "recipe" in data and "models" in data:
        recipe = Recipe(data["recipe"])
        for name, reference in data["models"].items():
            yield name, functools.partial(check_numbers, name, reference, recipe)
    elif groups := [g for g in data if g.startswith("RepDistiller")]:
        for group in groups:
            for name, reference in data[group].items():
                yield name, functools.partial(check_facts, name, reference)
    else:
        raise ValueError("it has neither 'recipe' and 'models' nor a group named RepDistiller")


def load(path: Path) -> list[tuple[str, Check]]:
    return list(cases(json.loads(path.read_text())))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    path = parser.parse_args(argv).file
    try:
        found = load(path)
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")
    passed = failed = 0
    for name, check in found:
        if not is_model(name):
            print(f"skip {name}: no such network here", flush=True)
            continue
        try:
            remarks = check()
        except Exception as error:  # one broken case must not hide the others
            kind = "" if isinstance(error, Mismatch) else f"{type(error).__name__}: "
            print(f"FAIL {name}: {kind}{error}", flush=True)
            failed += 1
        else:
            print(f"ok  {name}" + (f" ({'; '.join(remarks)}: not compared)" if remarks else ""), flush=True)
            passed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
