"""Files that strangers may send: what `test_hostile.py` gives to the scripts, and `fuzz.py` starts from.

python tests/hostile.py DIR loads the checkpoints in DIR one after the other, and says for each the seconds and the
megabytes that it took, and what it was told.
"""

import io
import pickle
import resource
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

# ---- pickles, put together by hand ----


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: tuple
    state: Any = None  # for __setstate__


class Stored(NamedTuple):
    id: tuple  # of torch's persistent_load


class Raw(bytes):
    """Opcodes as they are."""


def opcodes(x: Any) -> bytes:
    if isinstance(x, Raw):
        return x
    if isinstance(x, Global):
        return f"c{x.module}\n{x.name}\n".encode()
    if isinstance(x, Call):
        built = b"" if x.state is None else opcodes(x.state) + b"b"
        return opcodes(x.function) + opcodes(x.arguments) + b"R" + built
    if isinstance(x, Stored):
        return opcodes(x.id) + b"Q"
    if x is None or isinstance(x, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[x]
    if isinstance(x, int):
        number = pickle.encode_long(x)
        return b"J" + struct.pack("<i", x) if abs(x) < 2**31 else b"\x8a" + bytes([len(number)]) + number
    if isinstance(x, str):
        return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
    if isinstance(x, tuple):
        return b"(" + b"".join(map(opcodes, x)) + b"t"
    if isinstance(x, list):
        return b"](" + b"".join(map(opcodes, x)) + b"e"
    return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in x.items()) + b"u"


def pickled(x: Any) -> bytes:
    return b"\x80\x02" + opcodes(x) + b"."


def torch_zip(x: Any, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file of a pickle of `x` and of storages."""
    files = {"data.pkl": pickled(x), "byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": value for key, value in (records or {}).items()}
    return zipped({f"archive/{name}": content for name, content in files.items()}, method)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_legacy(*pickles: Any, storages: bytes = b"") -> bytes:
    """A torch file as before PyTorch 1.6: magic number, version, facts, values, keys, each a pickle; then storages."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    default = (0x1950A86A20F9469CFC6C, 1001, facts, {}, [])
    return b"".join(map(pickled, (*pickles, *default[len(pickles) :]))) + storages


def tensor(
    n: Any = 4, offset: int = 0, size: tuple = (4,), stride: tuple = (1,), key: str = "0", kind: str = "FloatStorage"
) -> Call:
    hooks = Call(Global("collections", "OrderedDict"), ())
    storage = Stored(("storage", Global("torch", kind), key, "cpu", n))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, False, hooks))


def again(x: Any, times: int) -> Raw:
    """A list of `x`, made `times` times from the same arguments."""
    call = opcodes(x.function) + b"q\x00" + opcodes(x.arguments) + b"q\x01" + b"R"
    return Raw(b"](" + call + b"h\x00h\x01R" * (times - 1) + b"e")


def torch_saved(x: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(x, buffer, **options)
    return buffer.getvalue()


# ---- checkpoints: name -> what makes it of a teacher's state, and what it is told ----

EXECUTED = "executed"  # is not to be there afterwards
FOUR = {"0": bytes(16)}
Checkpoint = tuple[Callable[[dict[str, Any]], bytes], str]


def system(folder: Path) -> Call:
    return Call(Global("posix", "system"), (f"touch {folder}/{EXECUTED}",))


def executing(folder: Path) -> dict[str, Checkpoint]:
    """Pickles that would run something; all of them touch a file in `folder`."""
    evil, code = system(folder), f"open('{folder}/{EXECUTED}', 'w')"
    weights = {"w": Call(Global("collections", "OrderedDict"), (), {"_metadata": evil})}
    getattr_ = Call(Global("builtins", "getattr"), (Global("os", "path"), "os"))

    class Evil:
        def __reduce__(self) -> tuple:
            return eval, (code,)

    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    return {
        "os.system": (lambda s: torch_zip({"model": evil}), "refused, its pickle asks for posix.system"),
        "os.system in a key": (lambda s: torch_zip(Raw(b"}" + opcodes(evil) + b"Ns")), "asks for posix.system"),
        "eval": (lambda s: torch_zip(Call(Global("builtins", "eval"), (code,))), "asks for builtins.eval"),
        "__builtin__": (lambda s: torch_zip(Call(Global("__builtin__", "exec"), (code,))), "asks for __builtin__.exec"),
        "getattr": (lambda s: torch_zip(getattr_), "asks for builtins.getattr"),
        "in an attribute": (lambda s: torch_zip({"model": weights}), "asks for posix.system"),
        "in a storage": (lambda s: torch_zip(Stored(("storage", evil, "0", "cpu", 4)), FOUR), "asks for posix.system"),
        "a module's source": (lambda s: torch_zip(Stored(("module", "m", "m.py", code))), "asks for a module"),
        "torch.load": (lambda s: torch_zip(Call(Global("torch", "load"), ("x.pth", None))), "asks for torch.load"),
        "torch.hub": (lambda s: torch_zip(Call(Global("torch.hub", "load"), ("x/y", "z"))), "asks for torch.hub.load"),
        "dotted name": (lambda s: torch_zip(Global("torch", "_utils.os.system")), "asks for torch._utils.os.system"),
        "pickle": (lambda s: pickle.dumps(Evil()), "asks for (builtins|__builtin__).eval"),
        "protocol 0": (lambda s: pickle.dumps(Evil(), 0), "truncated, or not a checkpoint|asks for __builtin__.eval"),
        "legacy": (lambda s: torch_saved({"model": Evil()}, _use_new_zipfile_serialization=False), "asks for .*eval"),
        "legacy, instead of its magic number": (lambda s: torch_legacy(evil), "asks for posix.system"),
        "legacy, in its facts": (lambda s: torch_legacy(0x1950A86A20F9469CFC6C, 1001, evil), "asks for posix.system"),
        "torch": (lambda s: torch_saved({"model": Evil()}), "asks for (builtins|__builtin__).eval"),
        "numpy objects": (lambda s: objects.getvalue(), "truncated, or not a checkpoint"),
        "TorchScript": (lambda s: scripted(), "refused, it is a TorchScript archive"),
        "tar": (lambda s: tarred({"pickle": pickled(evil), "storages": b"", "tensors": b""}), "truncated, or not a"),
    }


def scripted() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def bombs() -> dict[str, Checkpoint]:
    """Small files that ask for much memory, much time, or for more stack than there is."""
    ordered, pairs = Global("collections", "OrderedDict"), [(str(n), None) for n in range(20000)]
    filled = Raw(opcodes(Call(ordered, ())) + opcodes(dict(pairs)) + b"q\x00b" + b"h\x00b" * 10000)
    void = Call(Global("numpy", "dtype"), ("V1000000000", False, True))
    many = Call(Global("numpy._core.multiarray", "scalar"), (void,))
    zeros = bytes(50 * 2**20)
    return {
        "bytearray": (lambda s: torch_zip(Call(Global("builtins", "bytearray"), (4 * 10**9,))), "asks for .*bytearray"),
        "numpy's void": (lambda s: torch_zip(again(many, 4)), "asks for numpy's V1000000000"),
        "numpy's objects": (
            lambda s: torch_zip(Call(many.function, (Call(void.function, ("O8", False, True)), {}))),
            "asks for numpy's O8",
        ),
        "tensor of any size": (
            lambda s: torch_zip(Call(Global("torch", "FloatTensor"), (10**9,))),
            "asks for torch.FloatTensor",
        ),
        "another codec": (
            lambda s: torch_zip(Call(Global("_codecs", "encode"), ("a" * 10**6, "punycode"))),
            "asks for the codec punycode",
        ),
        "codec over and over": (
            lambda s: torch_zip(again(Call(Global("_codecs", "encode"), ("a" * 10**5, "latin1")), 10**5)),
            "copies values over and over",
        ),
        "copies of a list": (lambda s: torch_zip(again(Call(ordered, (pairs,)), 10**5)), "copies values over and over"),
        "attributes over and over": (lambda s: torch_zip(filled), "copies values over and over"),
        "packed pickle": (
            lambda s: zipped({"archive/data.pkl": zeros}, zipfile.ZIP_DEFLATED),
            "its content is larger than the file",
        ),
        "packed storage": (
            lambda s: torch_zip({"w": tensor()}, {"0": zeros}, zipfile.ZIP_DEFLATED),
            "its content is larger than the file",
        ),
        "entries on top of each other": (lambda s: overlapping(), "its content is larger than the file"),
        "long pickle": (
            lambda s: torch_zip(Raw(b"](" + b"N" * 9_000_000 + b"e")),
            "its pickle has 90000.. bytes, expected at most",
        ),
        "storage without bytes": (lambda s: torch_zip({"w": tensor(n=10**10)}, FOUR), "claims 40000000000 bytes"),
        "storage without bytes, legacy": (
            lambda s: torch_legacy(0x1950A86A20F9469CFC6C, 1001, {}, {"w": tensor(n=10**10)}, ["0"]),
            "claims 40000000000 bytes",
        ),
        "one number as many": (
            lambda s: torch_zip({"model": {"fc.weight": tensor(size=(10**9, 64), stride=(0, 0))}}, FOUR),
            "claims a tensor of .1000000000, 64. in a storage of 4",
        ),
        "nested tuples as a key": (
            lambda s: torch_zip(Raw(b"})" + b"\x85" * 200_000 + b"Ns")),
            "has a dict with a key of type tuple",
        ),
        "keys of one hash": (
            lambda s: torch_zip(Raw(b"}(" + b"".join(opcodes(n * (2**61 - 1)) + b"N" for n in range(1, 50000)) + b"u")),
            "has a dict with a key of type int",
        ),
        "nested lists": (lambda s: torch_zip(Raw(b"]" * 10**5 + b"a" * (10**5 - 1))), "expected a dict of tensors"),
    }


def overlapping() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/data/0", bytes(10**6))
        first = archive.infolist()[-1]
        for n in range(1, 1000):
            entry = zipfile.ZipInfo(f"archive/data/{n}")
            entry.header_offset, entry.file_size = first.header_offset, first.file_size
            entry.compress_size, entry.CRC = first.compress_size, first.CRC
            archive.filelist.append(entry)
    return buffer.getvalue()


def two_contents(s: dict[str, Any]) -> bytes:
    """Read from its front and from its end it is another file."""
    return torch_saved(s) + torch_zip({"model": {}})


def with_weight(key: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    """The teacher with another value of one tensor."""
    return lambda s: torch_saved(s | {"model": s["model"] | {key: value(s["model"].get(key))}})


def without(key: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda s: torch_saved(s | {"model": {k: v for k, v in s["model"].items() if k != key}})


def with_first(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[0] = value
    return x


def cyclic(s: dict[str, Any]) -> bytes:
    s = s | {}
    s["model"] = s
    return torch_saved(s)


def broken_tensors() -> dict[str, Checkpoint]:
    """Tensors that are not what a state dict holds, and state dicts that are none."""

    def of(x: Any, records: dict[str, bytes] = FOUR) -> Callable[[dict[str, Any]], bytes]:
        return lambda s: torch_zip({"model": {"conv1.weight": x}}, records)

    meta = Call(
        Global("torch._utils", "_rebuild_meta_tensor_no_storage"), (Global("torch", "float32"), (2,), (1,), False)
    )
    plain = torch.zeros(2, 2)
    return {
        "read behind its storage": (of(tensor(n=40000, size=(40000,))), "claims 160000 bytes for storage 0"),
        "no such storage": (of(tensor(key="1")), "claims 16 bytes for storage 1"),
        "of negative length": (of(tensor(n=-4)), "claims -16 bytes"),
        "of no number": (of(tensor(n="x")), "truncated, or not a checkpoint|claims"),
        "beyond its storage": (of(tensor(offset=1)), "claims a tensor of .4. in a storage of 4"),
        "before its storage": (of(tensor(offset=-1)), "claims a tensor"),
        "negative strides": (of(tensor(offset=3, stride=(-1,))), "claims a tensor"),
        "overlapping rows": (of(tensor(size=(4, 4), stride=(1, 1))), "claims a tensor of .4, 4."),
        "of 2**62 numbers": (of(tensor(n=2**62, size=(2**62,))), "claims 18446744073709551616 bytes"),
        "sizes without strides": (of(tensor(size=(2, 2))), "truncated, or not a checkpoint"),
        "meta": (of(meta), "asks for torch._utils._rebuild_meta_tensor_no_storage"),
        "sparse": (lambda s: torch_saved({"w": plain.to_sparse()}), "asks for torch._utils._rebuild_sparse_tensor"),
        "quantised": (
            lambda s: torch_saved({"w": torch.quantize_per_tensor(plain, 1.0, 0, torch.qint8)}),
            "asks for torch._utils._rebuild_qtensor",
        ),
        "complex": (with_weight("conv1.weight", lambda x: x + 1j), "asks for torch.ComplexFloatStorage"),
        "whole numbers": (
            with_weight("conv1.weight", lambda x: x.long()),
            "conv1.weight is torch.int64, not torch.flo",
        ),
        "NaN": (with_weight("fc.weight", lambda x: with_first(x, float("nan"))), "fc.weight holds NaN or infinite"),
        "infinite": (
            with_weight("bn1.running_var", lambda x: with_first(x, float("inf"))),
            "bn1.running_var holds NaN or infinite",
        ),
        "another shape": (
            with_weight("conv1.weight", lambda x: x[:, :1]),
            "conv1.weight is .16, 1, 3, 3., not .16, 3,",
        ),
        "no dimension": (with_weight("fc.bias", lambda x: x[0]), "fc.bias is .., not .10."),
        "a key more": (with_weight("extra", lambda x: plain), "extra is not part of it"),
        "a key less": (without("layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
        "a key that steers the terminal": (
            with_weight("\n\x1b[2J\u202e", lambda x: plain),
            r" \\x1b\[2J\\u202e is not ",
        ),
        "keys that are numbers": (lambda s: torch_saved(s | {"model": {0: plain}}), "holds no tensors"),
        "other classes": (with_weight("fc.weight", lambda x: torch.zeros(10**4, 64)), "has 10000 classes, the data"),
        "model is a list": (lambda s: torch_saved(s | {"model": [plain]}), "holds no tensors"),
        "model is a number": (lambda s: torch_saved(s | {"model": 3}), "holds no tensors"),
        "no dict": (lambda s: torch_saved(plain), "expected a dict of tensors, found Tensor"),
        "cyclic": (cyclic, "holds no tensors"),
        "name of wrong type": (
            lambda s: torch_saved(s | {"model_name": [1]}),
            "neither the file nor its folder's name",
        ),
        "name of no network": (lambda s: torch_saved(s | {"model_name": "../x\n"}), r"unknown network '../x\\n'"),
        "name of a megabyte": (
            lambda s: torch_saved(s | {"model_name": "x" * 10**6}),
            "unknown network 'xxx.* \\.\\.\\.$",
        ),
        "empty zip": (lambda s: zipped({}), "truncated, or not a checkpoint"),
        "zip without pickle": (lambda s: zipped({"archive/x": b""}), "truncated, or not a checkpoint"),
        "two contents": (two_contents, "refused, it has several contents|truncated, or not a checkpoint"),
        "two pickles": (
            lambda s: zipped({"a/data.pkl": pickled({}), "b/data.pkl": pickled({})}),
            "refused, it has several contents",
        ),
        "a comment": (lambda s: torch_saved(s)[:-2] + b"\x01\x00x", "refused, it has several contents"),
    }


def broken_safetensors() -> dict[str, Checkpoint]:
    def of(header: bytes, data: bytes = bytes(16), length: int | None = None) -> Callable[[dict[str, Any]], bytes]:
        return lambda s: struct.pack("<Q", len(header) if length is None else length) + header + data

    entry = b'{"w": {"dtype": "F32", "shape": [4], "data_offsets": [%d, %d]}}'
    return {
        "header of 2**60 bytes": (of(b"{}", length=2**60), "broken safetensors file"),
        "header that is no JSON": (of(b"{x"), "broken safetensors file"),
        "header of nested lists": (of(b"[" * 10**5), "broken safetensors file"),
        "offsets behind the end": (of(entry % (0, 10**12)), "broken safetensors file"),
        "offsets turned round": (of(entry % (16, 0)), "broken safetensors file"),
        "tensors that overlap": (
            of(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, ' + (entry % (0, 16))[1:]),
            "broken safetensors file",
        ),
        "shape of 2**60": (of((entry % (0, 16)).replace(b"[4]", b"[1152921504606846976]")), "broken safetensors file"),
        "another dtype": (of((entry % (0, 16)).replace(b"F32", b"X99")), "broken safetensors file"),
        "no network's": (of(entry % (0, 16)), "neither the file nor its folder's name"),
    }


def write(folder: Path, state: dict[str, Any]) -> dict[str, tuple[Path, str]]:
    """Every checkpoint as a file: name -> path, and what it is told."""
    tables = {".pth": executing(folder) | bombs() | broken_tensors(), ".safetensors": broken_safetensors()}
    found = {}
    for suffix, table in tables.items():
        for n, (name, (make, message)) in enumerate(table.items()):
            found[name] = folder / f"{n}{suffix}", message
            found[name][0].write_bytes(make(state))
    return found


def limit_memory(gigabytes: float) -> None:
    """This process gets so much more than it has, and an error where it asks for more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 2**30), resource.RLIM_INFINITY))


def load_bombs(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from helper import checkpoint
    from helper.util import UserError, one_line

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10

    limit_memory(1)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        start, before = time.perf_counter(), peak()
        try:
            checkpoint.load(path)
            told = "loaded"
        except UserError as error:
            told = one_line(str(error))
        print(f"{time.perf_counter() - start:.2f} s  {peak() - before} MB  {told}", flush=True)


if __name__ == "__main__":
    load_bombs(Path(sys.argv[1]))
