"""Atomic file writes, and checkpoints that cannot run code."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import hub, pickles
from .util import UserError

FACTS = "distill"  # key in a safetensors file's metadata for a checkpoint's entries that are not tensors:
TOLD = ("model_name", "num_classes", "wrapped", "options")


def atomically(path: Path, write: Callable[[Any], None], before: Path | None = None) -> None:
    """Lets `write(file)` fill a temporary file, then renames it, so that `path` is always the old or the new file,
    complete.

    before: the name that the old file gets.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the rename survives a power cut
    finally:
        os.close(folder)


def save(path: Path, state: dict[str, Any], before: Path | None = None) -> None:
    try:
        atomically(path, lambda file: torch.save(state, file), before)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer hides it behind another error
            raise error.__context__ from None
        raise


def save_json(path: Path, value: object) -> None:
    atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def existing(path: str | Path, flag: str, inside: str) -> Path:
    """The file; for `hf:owner/name`, its local copy.

    Raises UserError if there is none. If the path is a folder, the message suggests the file `inside` it.
    """
    if hub.is_remote(path):
        try:
            return hub.fetched(str(path))
        except hub.Unavailable as error:
            raise UserError(f"{flag} {path}: {first_line(error)}") from None
    if os.path.isdir(path):
        meant = f"; did you mean {Path(path) / inside}?" if (Path(path) / inside).is_file() else ""
        raise UserError(f"{flag} {path}: is a folder, not a file{meant}")
    if not os.path.isfile(path):
        raise UserError(f"{flag} {path}: " + ("not a file" if os.path.exists(path) else "no such file"))
    return Path(path)


def load_json(path: str | Path, flag: str) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError, naming flag and file, if it is missing, broken or ambiguous."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"{key!r} stands there twice")
        return value

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        text = existing(path, flag, "options.json").read_text()
        value = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{flag} {path}: not JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{flag} {path}: expected a JSON object, found {type(value).__name__}")
    return value


def load(path: str | Path, flag: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint to CPU without running any code from it.

    Accepts torch files (with RepDistiller's pickled `opt`) and .safetensors. Raises UserError, naming flag and file, if
    it is missing, broken or would run code.
    """
    path = existing(path, flag, "last.pth")
    if path.suffix == ".safetensors":
        try:
            from safetensors import safe_open
            from safetensors.torch import load_file
        except ImportError:
            raise UserError(f"{flag} {path}: needs the package safetensors (pip install safetensors)") from None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
            told = {key: facts[key] for key in TOLD if key in facts}
            return {**told, "model": load_file(path)} if told else load_file(path)
        except Exception as error:  # safetensors' own error type is not exported everywhere
            raise UserError(f"{flag} {path}: broken safetensors file: {first_line(error)}") from None
    try:
        state = pickles.read(path)
    except pickles.Refused as error:
        raise UserError(f"{flag} {path}: {error}") from None
    except Exception as error:  # a broken file raises errors of every kind
        raise UserError(f"{flag} {path}: truncated, or not a checkpoint: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{flag} {path}: expected a dict of tensors, found {type(state).__name__}")
    return state


def load_if_there(path: str | Path, flag: str) -> dict[str, Any]:
    """The checkpoint, or {} if the file is gone; a finished run does not need it."""
    if hub.is_remote(path):
        try:
            hub.fetched(str(path))
        except hub.Unavailable:
            return {}
        return load(path, flag)
    return load(path, flag) if os.path.exists(path) else {}


def first_line(error: BaseException) -> str:
    text = "" if isinstance(error, KeyError) else str(error).strip()  # a bare key would say nothing
    first, *rest = (text or repr(error)).splitlines()
    return " ".join([first, *(line.strip() for line in rest[: first.endswith(":")])])[:300]  # the reason may follow


def weights_of(state: dict[str, Any], flag: str, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint: this project's, RepDistiller's, under `state_dict`, or bare. Strips `module.`."""
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    found = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not found:
        raise UserError(f"{flag} {path}: holds no tensors under `model`, `state_dict` or at the top")
    plain, parallel = (next((k for k in found if k.startswith("module.") == p), None) for p in (False, True))
    if plain and parallel:
        raise UserError(f"{flag} {path}: holds {plain} and {parallel}: one of two networks has to go")
    return {k.removeprefix("module."): v for k, v in found.items()}


def hashed(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of names, dtypes, shapes and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, x in tensors:
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        found.update(x.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def digest(state: dict[str, Any], flag: str = "checkpoint", path: str | Path = "") -> str:
    """Digest of the weights in a checkpoint; with slow weights, of the trained ones too."""
    fast = weights_of({"model": state["fast"]}, flag, path) if isinstance(state.get("fast"), dict) else {}
    return hashed(sorted([*weights_of(state, flag, path).items(), *((f"fast {key}", x) for key, x in fast.items())]))


def digests(flag: str, paths: Sequence[str], states: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Each path and the digest of its weights; None if the file is gone."""
    pairs = zip(paths, states, strict=True)
    return [(path, digest(state, flag, path) if state else None) for path, state in pairs]


def head_key(model: nn.Module) -> str:
    state = model.state_dict(keep_vars=True)  # External's state dict keys are not its parameters' names
    return next(key for key, parameter in state.items() if parameter is model.head.weight)


def head_keys(model: nn.Module) -> list[str]:
    """State dict keys of all classifiers' parameters."""
    heads = [p for name in model.head_names for p in model.get_submodule(name).parameters()]
    return [key for key, x in model.state_dict(keep_vars=True).items() if any(x is p for p in heads)]


def class_count(model: nn.Module, state: dict[str, Any], flag: str, path: str | Path) -> int:
    """Number of classes of a checkpoint of this network. Raises UserError if it does not have its classifier."""
    weight = weights_of(state, flag, path).get(head_key(model))
    if weight is None or weight.dim() != 2:
        raise UserError(f"{flag} {path}: not a {type(model).__name__}: it holds no {head_key(model)}")
    return len(weight)


def name_of(state: dict[str, Any], name: str) -> str:
    """Names the expected network in a message, and what the file says instead."""
    said = state.get("model_name", name)
    return f"{name:.100}" if said == name else f"{name:.100} (the file says {said!s:.100})"


def compare(
    model: nn.Module, name: str, state: dict[str, Any], flag: str, path: str | Path, any_classes: bool = True
) -> dict[str, Tensor]:
    """The file's weights under the network's names. Raises UserError if names or shapes differ.

    any_classes: the numbers of classes may differ.
    """
    weights = weights_of(state, flag, path)
    if hasattr(model, "convert"):  # other packages can convert image sizes and older names
        weights = model.convert(weights)
    own = model.state_dict()
    free = head_keys(model) if any_classes and hasattr(model, "head") else []  # some have no head
    # files older than PyTorch 0.4.1 lack these counters, which plain BatchNorm never reads
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    surplus = [k for k in weights if k not in own]
    shaped = [k for k in own if k in weights and weights[k].shape[k in free :] != own[k].shape[k in free :]]
    if missing or surplus or shaped:
        first = (
            f"{shaped[0]} is {list(weights[shaped[0]].shape)}, not {list(own[shaped[0]].shape)}"
            if shaped
            else f"{missing[0]} is missing"
            if missing
            else f"{surplus[0]} is not part of it"
        )
        raise UserError(
            f"{flag} {path}: not a {name_of(state, name)}: {first} "
            f"({len(missing)} missing, {len(surplus)} surplus, {len(shaped)} of another shape)"
        )
    return weights


def load_weights(model: nn.Module, name: str, state: dict[str, Any], flag: str, path: str | Path) -> None:
    """Loads weights into a network. Raises UserError if classes, names or shapes differ."""
    own = model.state_dict()
    if hasattr(model, "head"):
        weight = weights_of(state, flag, path).get(head_key(model))
        if weight is not None and weight.dim() == 2 and len(weight) != len(model.head.weight):
            raise UserError(f"{flag} {path}: has {len(weight)} classes, the data set has {len(model.head.weight)}")
    weights = compare(model, name, state, flag, path, any_classes=False)
    for key, value in weights.items():
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise UserError(f"{flag} {path}: {key} is {value.dtype}, not {own[key].dtype}")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{flag} {path}: {key} holds NaN or infinite values")
        if key.endswith("running_var") and (value < 0).any():
            raise UserError(f"{flag} {path}: {key} holds variances below 0")
    own.update(weights)  # in place: the dict also carries module versions, which some modules read
    model.load_state_dict(own)


def find_name(state: dict[str, Any], path: str | Path, known: Callable[[str], bool]) -> str | None:
    """The name of a checkpoint's network.

    It comes from the checkpoint itself, else from the file's name (`cifar100_resnet56-f2eff4c8.pt`) unless that
    contains two names, else from the folder's (`wrn_40_2_vanilla/` is wrn_40_2).
    """
    if isinstance(state.get("model_name"), str):
        return state["model_name"]
    words = re.split(r"([_.-])", Path(path).stem)[:64]  # words and separators
    ends = [(i, j) for i in range(0, len(words), 2) for j in range(i + 1, len(words) + 1, 2)]
    spans = [(i, j) for i, j in ends if known("".join(words[i:j]))]
    names = {"".join(words[i:j]) for i, j in spans if not any(a <= i and j <= b and b - a > j - i for a, b in spans)}
    if len(names) == 1:
        return names.pop()
    parts = Path(path).absolute().parent.name.split("_")
    candidates = ("_".join(parts[:n]) for n in range(len(parts), 0, -1))
    # a folder has a dash for the colon of `timm:resnet18`
    return next((name for each in candidates for name in (each, each.replace("-", ":", 1)) if known(name)), None)
