"""`--export`: saves the trained network in formats that run without this project, and checks each file."""

import contextlib
import copy
import hashlib
import io
import warnings
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import Images

from . import checkpoint
from .parallel import rank_zero_only
from .util import UserError, as_user_error

TOLERANCE = 1e-4  # of the largest logit, at least of 1; another order of summation changes a hundredth of that
Function = Callable[[Tensor], Tensor]


def to_onnx(network: nn.Module, images: Tensor) -> tuple[bytes, Function]:
    import onnxruntime  # optional

    names = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(network, (images,), dynamo=True, verbose=False, dynamic_shapes=any_batch(), **names)
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def to_torchscript(network: nn.Module, images: Tensor) -> tuple[bytes, Function]:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but the user chose it; `save` checks the result
        torch.jit.save(torch.jit.trace(network, images, check_trace=False), file)
        return file.getvalue(), torch.jit.load(io.BytesIO(file.getvalue()))


def to_pt2(network: nn.Module, images: Tensor) -> tuple[bytes, Function]:
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=any_batch(), strict=False), file)
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def any_batch() -> tuple[dict]:
    """Only the batch dimension is dynamic."""
    return ({0: torch.export.Dim("batch")},)


class Format(NamedTuple):
    suffix: str
    make: Callable[[nn.Module, Tensor], tuple[bytes, Function]]  # the file, and what it computes when loaded again
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", to_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(".pt", to_torchscript),
    "pt2": Format(".pt2", to_pt2),
}


def formats(text: str) -> list[str]:
    """An argparse type: `onnx,pt2` -> ["onnx", "pt2"], if their packages are installed. Empty: none."""
    names = text.split(",") if text else []
    for name in names:
        if name not in FORMATS:
            raise ArgumentTypeError(f"expected some of {','.join(FORMATS)}, found {name!r}")
        if missing := [package for package in FORMATS[name].packages if not find_spec(package)]:
            raise ArgumentTypeError(f"{name} needs {', '.join(missing)} (pip install {' '.join(missing)})")
    return names


def file_of(stem: Path, name: str) -> Path:
    return stem.with_suffix(FORMATS[name].suffix)


def described(stem: Path, weights: str | None) -> dict[str, Any]:
    """The content of STEM.json if it describes these weights, with digests of the exported files; else {}."""
    with contextlib.suppress(UserError):
        said = checkpoint.load_json(stem.with_suffix(".json"), "--export")
        kinds = type(said.get("files")), type(said.get("largest_difference"))
        if weights and said.get("weights") == weights and kinds == (dict, dict):
            return said
    return {}


def done(stem: Path, names: list[str], weights: str | None) -> bool:
    """Whether `save` has written all these formats for the weights with this digest."""
    known = described(stem, weights).get("files", {})
    paths = [file_of(stem, name) for name in names]
    return all(path.is_file() and known.get(path.name) == digest(path.read_bytes()) for path in paths)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@rank_zero_only
@torch.no_grad()
def save(run: Any, network: nn.Module, batches: Iterable, images: Images, classes: Sequence[str]) -> None:
    """Writes STEM.onnx, STEM.pt, STEM.pt2, then STEM.json, which describes weights, inputs and outputs.

    Exports a finished run's network in float32, for images [B, 3, H, W] normalised as in training. Compares the first
    of `batches`; `images` says how they were normalised. Raises UserError if the network cannot be exported, or if the
    exported one's logits differ by more than TOLERANCE.
    """
    names = run.options["export"]
    if not names:
        return
    weights = checkpoint.digest({"model": network.state_dict()})
    before = described(run.stem, weights)  # keeps other formats of the same network
    network = copy.deepcopy(network).eval().requires_grad_(False)
    network.to("cpu", torch.float32, memory_format=torch.contiguous_format)
    batch = next(iter(batches)).images.cpu().contiguous()
    expected = network(batch)
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    found, written = before.get("largest_difference", {}), before.get("files", {})
    for name in names:
        path = file_of(run.stem, name)
        try:  # two images, because a batch of one would become a fixed size
            data, exported = FORMATS[name].make(network, torch.cat([batch[:1], batch[-1:]]))
            difference = max((exported(batch[:n]) - expected[:n]).abs().max().item() for n in (1, len(batch)))
        except Exception as error:  # exporters raise errors of every kind
            raise UserError(f"--export {name}: {error!r:.300}") from None
        if not difference <= allowed:
            raise UserError(f"--export {name}: its logits are {difference:.2g} from the network's, not {allowed:.2g}")
        with as_user_error(f"--export {name}"):
            checkpoint.atomically(path, lambda file, data=data: file.write(data))
        found[name], written[path.name] = difference, digest(data)
        print(f"exported: {path}")
    given = {"name": "images", "dtype": "float32", "shape": ["batch", *batch.shape[1:]]}
    given |= {"values": "(RGB in 0..1 - mean) / std", "mean": images.mean, "std": images.std}
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", len(classes)], "classes": classes}
    facts = {key: run.summary[key] for key in ("model_name", "parameters", "last_acc")}
    said = facts | {"weights": weights, "files": written, "input": given, "output": logits}
    checkpoint.save_json(run.stem.with_suffix(".json"), said | {"largest_difference": found})
