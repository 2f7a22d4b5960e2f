"""Measures what a trained network costs and how reliable it is: multiply-adds, bytes, time, calibration, int8."""

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
COLDEST = 5.0  # bound of |log T|: if all predictions are right, the likelihood has no maximum
TURN = 0.1  # seconds; a turn of one call is timed at least that long
Function = Callable[[Tensor], Tensor]


# ---- work and bytes ----


@torch.no_grad()
def multiply_adds(network: nn.Module, image: Tensor) -> int:
    """Multiply-adds for one image [1, C, H, W]: half the FLOPs that PyTorch counts in convolutions and matrix products.

    As usual, operations without such products (normalisation, activations, pooling) count 0.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # a CPU's fused attention is unknown
        network(image)
    return counter.get_total_flops() // 2


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes a checkpoint with only the weights, in that precision. Integer counters stay integers."""
    state = {key: x.to(dtype) if x.is_floating_point() else x for key, x in network.state_dict().items()}
    torch.save({"model": state}, path)


# ---- answers ----


@torch.no_grad()
def logits_of(function: Function, batches: Iterable) -> Tensor:
    """Logits of all batches in order, [N, K], float64."""
    return torch.cat([function(batch.images).double().cpu() for batch in batches])


def share_of_equal(a: Tensor, b: Tensor) -> float:
    """Share of equal classes in a and b [N]: an accuracy, or the agreement of two networks."""
    return (a == b).double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error of logits [N, K]: |accuracy - mean confidence| in `bins` equally wide bins of the
    confidence, weighted by their samples.

    Naeini et al., AAAI 2015, as in Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    confidence, prediction = logits.softmax(1).max(1)
    gap = (prediction == labels).to(confidence.dtype) - confidence
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin holds its upper end
    return (gap.new_zeros(bins).index_add(0, places, gap).abs().sum() / len(labels)).item()


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the cross entropy of logits / T [N, K], by LBFGS. Guo et al. 2017, section 4.2."""
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
    """Indices of every other sample of each class, and of the rest."""
    order = labels.argsort(stable=True)
    return order[::2], order[1::2]


# ---- ONNX Runtime ----


def onnx_function(path: Path, threads: int) -> Function:
    """Runs the ONNX file on the CPU."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads must not disturb the next one
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])


def quantize(source: Path, target: Path, batches: Iterable) -> None:
    """Writes the int8 network: weights quantised per channel, activations per tensor, with the ranges seen in
    `batches`.

    ONNX Runtime's static quantisation in its QDQ form,
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html Activations are unsigned: ONNX Runtime
    1.31 does not fuse signed ones after a ReLU with any convolution, which makes the network slower than in float32.
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
    """Whether this CPU adds byte products in 16 bits, so that weights need 7 bits: an x86 without VNNI (Linux)."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return any(line.startswith("flags") and "vnni" not in line for line in lines)


# ---- ways of running a network ----


def on_device(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Function:
    """A copy of the network on this device, in this precision, that takes images from any device."""
    network = copy.deepcopy(network).to(device, dtype, memory_format=torch.channels_last)
    return lambda images: network(images.to(device, dtype))


def ways(network: nn.Module, device: torch.device) -> dict[str, Function]:
    """Ways to run the network without further packages: on the CPU, and on the GPU if that is the device."""
    found = {"torch": on_device(network, torch.device("cpu"))}
    if device.type == "cuda":
        found["gpu"] = on_device(network, device)
        found["gpu_bf16"] = on_device(network, device, torch.bfloat16)
    return found


def answers_of(network: nn.Module, found: Mapping[str, Function], batches: Any) -> tuple[dict[str, Any], Tensor]:
    """A network's costs and accuracies (percent) for JSON, and its predicted classes [N].

    One half of the test images fits the temperature; both calibration errors are from the other half. batches: all test
    images, with `labels`.
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
    """Ways to run it with ONNX Runtime (optional) on the CPU. Writes both files. ranges: batches for `quantize`."""
    plain.write_bytes(to_onnx(network, next(iter(ranges)).images[:2])[0])
    quantize(plain, int8, ranges)
    return {"onnx": onnx_function(plain, threads), "int8": onnx_function(int8, threads)}


def call_of(way: str, function: Function, images: Tensor, device: torch.device) -> Callable[[], object]:
    """The call to time: it waits for the result, and its images are on the device beforehand."""
    if not way.startswith("gpu"):
        return lambda: function(images)
    images = images.to(device)
    return lambda: (function(images), torch.cuda.synchronize(device))


# ---- time ----


class Timing(NamedTuple):
    """Seconds of a call: median, fastest and slowest round; each round is a median of calls."""

    median: float
    low: float
    high: float


def time_in_turn(calls: Mapping[Hashable, Callable[[], object]], rounds: int) -> dict[Hashable, Timing]:
    """Times all calls round by round, so that a temporary slowdown of the machine affects all of them.

    A turn lasts at least TURN seconds and one call. The first round warms up and does not count. A call must wait for
    its device.
    """
    found: dict[Hashable, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            found[key].append(turn(call))
    return {key: Timing(statistics.median(x[1:]), min(x[1:]), max(x[1:])) for key, x in found.items()}


@torch.no_grad()
def turn(call: Callable[[], object]) -> float:
    """The median call, without the first if there are others, because it finds another call's data in the caches."""
    marks = [time.perf_counter()]
    while marks[-1] < marks[0] + TURN:
        call()
        marks.append(time.perf_counter())
    seconds = [end - start for start, end in pairwise(marks)]
    return statistics.median(seconds[1:] or seconds)
