"""Says what trained networks cost and what they are worth, a student beside its teacher.

python scripts/report_model.py save/student_model/RUN
python scripts/report_model.py save/student_model/* --limit_val 1000 --json worth.json --plot worth.png

RUN is a run's folder, of which last.pth is measured, else its last ckpt_epoch_N.pth, else best.pth; or a checkpoint.
The teachers are those of the run's --path_t, where these files are still there. docs/report.md explains every row.
"""

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import crd  # noqa: E402, F401  registers the networks that methods put around a student
import dataset  # noqa: E402
import models  # noqa: E402
from helper import checkpoint, export, loading, networks, parsing, worth  # noqa: E402
from helper.devices import choose_device, machine  # noqa: E402
from helper.util import OneLineParser, UserError, as_user_error, command, one_line  # noqa: E402
from scripts import report_table  # noqa: E402

DATA: dict[str, Callable[[str], Any]] = {  # options of the run that hold here where they are not given
    "dataset": parsing.known(dataset.find_dataset),
    "data_folder": os.path.normpath,
    "image_size": parsing.pixels,
    "limit_train": parsing.count,
    "limit_val": parsing.count,
}
BATCHES = (1, 32)  # images that are timed at once
RANGES = 512  # training images that show the ranges of the activations
PICTURES = (".png", ".pdf", ".svg")
SUFFIXES = {"float32": "float32.pth", "float16": "float16.pth", "onnx": "onnx", "int8": "int8.onnx"}


@dataclass(eq=False)
class Measured:
    """A network's file, and what is found out about it."""

    path: Path
    state: dict[str, Any]
    name: str
    told: dict[str, Any]  # options of its run
    teachers: list["Measured"] = field(default_factory=list)
    teaches: bool = False
    label: str = ""
    ways: dict[str, worth.Function] = field(default_factory=dict)  # of running it
    predicted: torch.Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, place: Path, flag: str) -> "Measured":
        """Raises UserError where there is no checkpoint, or one of no known network."""
        if not place.exists():
            raise UserError(f"{flag} {place}: no such folder, and no such file")
        path = checkpoint_in(place) if place.is_dir() else place
        state = checkpoint.load(path, flag)
        if (name := checkpoint.find_name(state, path, models.is_model)) is None:
            raise UserError(f"{flag} {path}: neither the file nor its name or its folder's says which network it is of")
        told = state.get("options")
        if not isinstance(told, dict) and (beside := path.with_name("options.json")).is_file():
            told = checkpoint.load_json(beside, "options").get("options")
        return cls(path, state, name, told if isinstance(told, dict) else {})


def checkpoint_in(folder: Path) -> Path:
    numbered = sorted(folder.glob("ckpt_epoch_*.pth"), key=lambda path: (len(path.name), path.name))
    for path in (folder / "last.pth", *numbered[-1:], folder / "best.pth"):
        if path.is_file():
            return path
    raise UserError(f"{folder}: no checkpoint in there, expected last.pth, ckpt_epoch_N.pth or best.pth")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("places", metavar="RUN", nargs="+", type=Path, help="a run's folder, or a checkpoint")
    add("--teacher", metavar="RUN", type=Path, help="of all of them; default: of each run its own")
    for key, kind in DATA.items():
        add(f"--{key}", type=kind, help="default: as the run has it")
    add("--device", help="cpu: no rows of a GPU; default: the GPU too where there is one")
    add("--threads", type=parsing.count, help="of the CPU; default: as many as PyTorch takes")
    add("--rounds", type=parsing.count, default=5, help="that are timed; default: 5")
    add("--json", metavar="FILE", type=Path, help="write all figures there")
    add("--csv", metavar="FILE", type=Path, help="write a line there for each network and way of running it")
    add("--plot", metavar="FILE", type=Path, help="draw accuracy over latency there (needs matplotlib)")
    add("--keep", metavar="DIR", type=Path, help="leave the measured files there: weights, ONNX, int8")
    opt = parser.parse_args(argv)
    for key in ("json", "csv", "plot", "keep"):
        path = getattr(opt, key)
        if path and not path.absolute().parent.is_dir():
            raise UserError(f"--{key} {path}: there is no folder {path.parent}")
    if opt.plot and not find_spec("matplotlib"):
        raise UserError("--plot needs the package matplotlib (pip install matplotlib)")
    if opt.plot and opt.plot.suffix not in PICTURES:
        raise UserError(f"--plot {opt.plot}: expected a name that ends in {', '.join(PICTURES)}")
    return opt


def find_networks(opt: argparse.Namespace) -> list[Measured]:
    """The networks that are named, each after its teachers, and each once."""
    found: dict[Path, Measured] = {}

    def read(place: Path, flag: str) -> Measured:
        one = Measured.read(place, flag)
        return found.setdefault(one.path.resolve(), one)

    given = list(dict.fromkeys(read(place, "checkpoint") for place in opt.places))
    for one in given:
        paths = one.told.get("path_t")
        own = [Path(path) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
        for path in [opt.teacher] if opt.teacher else own:
            if not opt.teacher and not path.is_file():
                print(f"{one.path}: its teacher {path} is not there; --teacher RUN names one")
                continue
            teacher = read(path, "--teacher" if opt.teacher else "teacher")
            if teacher is not one:
                teacher.teaches = True
                one.teachers.append(teacher)
    nets = list(dict.fromkeys(net for one in given for net in [*one.teachers, one]))
    labels: Counter[str] = Counter()
    for net in nets:
        methods = net.told.get("distill")
        what = "teacher" if net.teaches else ",".join(map(str, methods)) if isinstance(methods, list) else ""
        net.label = one_line(", ".join(filter(None, [net.name, what])), 24)
        labels[net.label] += 1
        if (n := labels[net.label]) > 1:
            net.label += f" ({n})"
    return nets


def load_data(opt: argparse.Namespace, nets: list[Measured]) -> dataset.ImageSet:
    """The runs' data set, where the options do not say another. Raises UserError where runs differ in it."""
    students = [net for net in nets if net.told and not net.teaches] or nets
    for key, kind in DATA.items():
        told: dict[Any, Path] = {}
        for net in students if getattr(opt, key) is None else ():
            if net.told.get(key) is not None:
                try:
                    told.setdefault(kind(str(net.told[key])), net.path)
                except argparse.ArgumentTypeError as error:
                    raise UserError(f"{net.path}: its options: {error}") from None
        if len(told) > 1 and key != "limit_train":
            (one, a), (other, b), *_ = told.items()
            raise UserError(f"--{key}: {one} in {a}, {other} in {b}; give the one to measure on")
        if told:
            setattr(opt, key, next(iter(told)))
    opt.dataset, opt.data_folder = opt.dataset or "cifar100", opt.data_folder or "./data"
    with as_user_error(f"--dataset {opt.dataset}"):
        return dataset.load(*(getattr(opt, key) for key in DATA))


def measure(nets: list[Measured], data: dataset.ImageSet, opt: argparse.Namespace, folder: Path) -> None:
    """Fills in their facts. The files whose bytes count are written to the folder."""
    kind = len(data.classes), loading.images_of(data)
    restored = [networks.restore(net.name, net.state, "checkpoint", str(net.path), *kind) for net in nets]
    batches = dataset.ValBatches.of(data, 100, "cpu")
    n = max(len(data.train_labels.unique()), min(RANGES, len(data.train_labels)))
    part = dataset.limit(data.train_images, data.train_labels, n)
    ranges = dataset.ValBatches(*part, 32, data.mean, data.std, device="cpu")
    images = next(iter(batches)).images
    images = images.repeat(-(-max(BATCHES) // len(images)), 1, 1, 1)
    calls = {}
    for n, (net, network) in enumerate(zip(nets, restored, strict=True), 1):
        print(f"measuring {net.label}", file=sys.stderr)
        network.eval().requires_grad_(False)
        stem = str(folder / f"{n}_{re.sub('[^A-Za-z0-9]+', '_', net.name)}")
        files = {name: Path(f"{stem}.{suffix}") for name, suffix in SUFFIXES.items()}
        worth.save_weights(network, files["float32"], torch.float32)
        worth.save_weights(network, files["float16"], torch.float16)
        ways = worth.ways(network, opt.device)
        if opt.onnx:
            try:
                ways |= worth.onnx_ways(network, files["onnx"], files["int8"], ranges, opt.threads)
            except Exception as error:  # exporters raise whatever they meet
                print(f"{net.label}: no rows of ONNX Runtime: {checkpoint.first_line(error)}")
        net.facts |= {"network": net.name, "label": net.label, "file": str(net.path)}
        made = [name for name in files if name in ways or name in ("float32", "float16")]
        net.facts["bytes"] = {name: files[name].stat().st_size for name in made}
        facts, net.predicted = worth.answers_of(network, ways, batches)
        net.facts |= facts
        for way, function in ways.items():
            calls |= {(net, way, n): worth.call_of(way, function, images[:n].clone(), opt.device) for n in BATCHES}
    for net in nets:
        for teacher in net.teachers[:1]:
            agreement = 100 * worth.share_of_equal(net.predicted, teacher.predicted)
            net.facts |= {"teacher": teacher.label, "agreement": agreement}
    print(f"timing {opt.rounds} rounds", file=sys.stderr)
    for (net, way, n), seconds in worth.time_in_turn(calls, opt.rounds).items():
        ms = {key: 1000 * value for key, value in seconds._asdict().items()}
        times = net.facts.setdefault("ms", {}).setdefault(way, {})
        times[f"batch_{n}"] = ms | {"images_per_second": n / seconds.median}


@command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    nets = find_networks(opt)
    data = load_data(opt, nets)
    opt.device = choose_device(opt.device)
    torch.set_num_threads(opt.threads or torch.get_num_threads())
    opt.threads = torch.get_num_threads()
    missing = [package for package in export.FORMATS["onnx"].packages if not find_spec(package)]
    opt.onnx = not missing
    if missing:
        print(f"no rows of ONNX Runtime: {', '.join(missing)} not installed (pip install {' '.join(missing)})")
    with tempfile.TemporaryDirectory() as folder:
        if opt.keep:
            with as_user_error(f"--keep {opt.keep}"):
                opt.keep.mkdir(exist_ok=True)
        measure(nets, data, opt, opt.keep or Path(folder))
    load, about = os.getloadavg()[0], machine(opt.device)
    facts = [net.facts for net in nets]
    count, _, height, width = data.val_images.shape
    title = f"{opt.dataset}, {count} test images of {height}x{width}"
    title += f"; {about['host']['cpu']}, threads: {opt.threads}"
    if opt.onnx:
        about["versions"]["onnxruntime"] = version("onnxruntime")
    about |= {"data": {key: getattr(opt, key) for key in DATA} | {"test_images": count}}
    report_table.write(facts, about | {"rounds": opt.rounds, "load": load}, title, opt)
    print(title + f"; {about['device']}" * (opt.device.type == "cuda"))
    print(f"times: ms a batch, median of {opt.rounds} rounds (fastest-slowest), images a second")
    if load > opt.threads + 0.5:
        print(f"other programs were at work (load {load:.1f} on {os.cpu_count()} cores), which makes times longer")
    print(f"\n{report_table.table(facts)}\n")
    for net in nets:
        start = f"{net.label}: "
        path, room = one_line(str(net.path)), report_table.WIDTH - len(start)
        print(start + (path if len(path) <= room else f"...{path[3 - room :]}"))


if __name__ == "__main__":
    main()
