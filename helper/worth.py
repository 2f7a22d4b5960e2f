"""What a trained network costs and how far its answers are to be trusted: work, bytes, time, calibration, int8."""

import copy
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .export import to_onnx

BINS = 15  # of Guo et al.
COLDEST = 5.0  # |log T| stays below: on predictions that are all right, the likelihood has no maximum
TURN = 0.1  # seconds that a turn of the clock lasts at least
Function = Callable[[Tensor], Tensor]


# ---- work and bytes ----


@torch.no_grad()
def multiply_adds(network: nn.Module, image: Tensor) -> int:
    """Of one image [1, C, H, W]: half the FLOPs that PyTorch counts in convolutions and matrix products.

    What has no such product (normalisation, activations, pooling) counts nothing, as is usual.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # a CPU's fused attention is unknown
        network(image)
    return counter.get_total_flops() // 2


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes a checkpoint of nothing but the weights, in that precision; counters stay whole numbers."""
    state = {key: x.to(dtype) if x.is_floating_point() else x for key, x in network.state_dict().items()}
    torch.save({"model": state}, path)


# ---- answers ----


@torch.no_grad()
def logits_of(function: Function, batches: Iterable) -> Tensor:
    """[N, K] in float64, of all batches in their order."""
    return torch.cat([function(batch.images).double().cpu() for batch in batches])


def share_of_equal(a: Tensor, b: Tensor) -> float:
    """Of the classes [N] in one and the other: an accuracy, or how far two networks agree."""
    return (a == b).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error of logits [N, K]: |accuracy - mean confidence| in `bins` equally wide bins of the
    confidence, weighted by their samples. Naeini et al., AAAI 2015, as in Guo et al., ICML 2017,
    https://arxiv.org/abs/1706.04599, equation 3.
    """
    confidence, prediction = logits.softmax(1).max(1)
    gap = (prediction == labels).to(confidence.dtype) - confidence
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin holds its upper end
    return (gap.new_zeros(bins).index_add(0, places, gap).abs().sum() / len(labels)).item()


def temperature(logits: Tensor, labels: Tensor) -> float:
    """T > 0 for which logits / T [N, K] have the least cross entropy, by LBFGS. Guo et al. 2017, section 4.2."""
    logits, log_t = logits.double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.clamp(-COLDEST, COLDEST).exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_t.detach().clamp(-COLDEST, COLDEST).exp().item()


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Places of every other sample of each class, and of the others."""
    order = labels.argsort(stable=True)
    return order[::2], order[1::2]


# ---- ONNX Runtime ----


def onnx_function(path: Path, threads: int) -> Function:
    """What the file computes on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads disturb who is timed next
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])


def quantize(source: Path, target: Path, batches: Iterable) -> None:
    """Writes the int8 network: weights a channel, activations a tensor, whose ranges `batches` of images show.

    ONNX Runtime's static quantisation in its QDQ form,
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    Activations are unsigned: ONNX Runtime 1.31 joins signed ones behind a ReLU with no convolution, which makes the
    network slower than in float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = ({"images": batch.images.contiguous().numpy()} for batch in batches)

        def get_next(self) -> dict | None:
            return next(self.images, None)

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    prepared = target.with_suffix(".tmp")
    try:
        quant_pre_process(source, prepared)
        quantize_static(prepared, target, Reader(), quant_format=QuantFormat.QDQ, reduce_range=saturates(), **kinds)
    finally:
        prepared.unlink(missing_ok=True)


def saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU adds products of bytes in 16 bits, which takes weights of 7: an x86 without VNNI (Linux)."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return any(line.startswith("flags") and "vnni" not in line for line in lines)


# ---- ways of running a network ----


def on_device(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Function:
    """A copy of it there, in that precision, for images from anywhere."""
    network = copy.deepcopy(network).to(device, dtype, memory_format=torch.channels_last)
    return lambda images: network(images.to(device, dtype))


def ways(network: nn.Module, device: torch.device) -> dict[str, Function]:
    """Without a package more: on the CPU, and on the GPU where that is the device."""
    found = {"torch": on_device(network, torch.device("cpu"))}
    if device.type == "cuda":
        found["gpu"] = on_device(network, device)
        found["gpu_bf16"] = on_device(network, device, torch.bfloat16)
    return found


def answers_of(network: nn.Module, found: Mapping[str, Function], batches: Any) -> tuple[dict[str, Any], Tensor]:
    """What a network costs and answers: facts for JSON, accuracies and errors in percent; the classes [N] it predicts.

    Half of the test images fit the temperature, and both calibration errors are of the other half. batches: of all of
    them, with `labels`.
    """
    labels = batches.labels
    logits = {name: logits_of(function, batches) for name, function in found.items()}
    fitted, held_out = halves(labels)
    t = temperature(logits["torch"][fitted], labels[fitted])
    rest, right = logits["torch"][held_out], labels[held_out]
    facts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": multiply_adds(network, next(iter(batches)).images[:1]),
        "top1": {name: 100 * share_of_equal(x.argmax(1), labels) for name, x in logits.items()},
        "calibration_error": 100 * calibration_error(rest, right),
        "calibration_error_scaled": 100 * calibration_error(rest / t, right),
        "temperature": t,
    }
    return facts, logits["torch"].argmax(1)


def onnx_ways(network: nn.Module, plain: Path, int8: Path, ranges: Iterable, threads: int) -> dict[str, Function]:
    """By ONNX Runtime (optional) on the CPU, from the two files that are written. ranges: batches for `quantize`."""
    plain.write_bytes(to_onnx(network, next(iter(ranges)).images[:2])[0])
    quantize(plain, int8, ranges)
    return {"onnx": onnx_function(plain, threads), "int8": onnx_function(int8, threads)}


def call_of(way: str, function: Function, images: Tensor, device: torch.device) -> Callable[[], object]:
    """What is timed: the answer is there when it returns, and its images are there before."""
    if not way.startswith("gpu"):
        return lambda: function(images)
    images = images.to(device)
    return lambda: (function(images), torch.cuda.synchronize(device))


# ---- time ----


class Timing(NamedTuple):
    """Seconds of a call: the median round, the fastest and the slowest, each itself a median of calls."""

    median: float
    low: float
    high: float


def time_in_turn(calls: Mapping[Hashable, Callable[[], object]], rounds: int) -> dict[Hashable, Timing]:
    """Times all of them round after round, so that what slows the machine for a while slows each of them.

    A turn lasts at least TURN seconds and one call; a first round warms up and is not counted. A call has to wait for
    its device.
    """
    found: dict[Hashable, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            found[key].append(turn(call))
    return {key: Timing(statistics.median(x[1:]), min(x[1:]), max(x[1:])) for key, x in found.items()}


@torch.no_grad()
def turn(call: Callable[[], object]) -> float:
    """The median call. The first is left out where there are others: the caches hold what others left there."""
    marks = [time.perf_counter()]
    while marks[-1] < marks[0] + TURN:
        call()
        marks.append(time.perf_counter())
    seconds = [end - start for start, end in pairwise(marks)]
    return statistics.median(seconds[1:] or seconds)
