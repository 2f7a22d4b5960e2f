"""Checks torch files from unknown sources before torch reads them.

torch.load(weights_only=True) runs no code. But a pickle of a hundred bytes can make it build a bytearray of 10 GB,
overflow the stack, or (older PyTorch) read beyond the end of a storage. So stand-ins follow each pickle first and check
its arguments. A pickle that contains more than tensors and plain values is refused.
"""

import argparse
import math
import os
import pickle
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

LENGTH = 2**23  # largest pickle in bytes; a tensor takes about 200
COPIES = 2**20  # values that a pickle may copy between containers


class Refused(ValueError):
    """The file contains something that is not allowed."""


class Kind:
    """Replaces numpy.dtype, which would make numbers of any size."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("f4", "f8"):
            raise Refused(f"refused, its pickle asks for numpy's {name}; only tensors are loaded")
        self.format = {"f4": "f", "f8": "d"}[name]

    def __setstate__(self, state: tuple) -> None:
        self.format = {"<": "<", ">": ">"}[state[1]] + self.format[-1]


def number(kind: Kind, data: bytes) -> float:
    """Replaces numpy's scalar constructor: RepDistiller's schedule leaves a numpy scalar as the learning rate."""
    return struct.unpack(kind.format, data)[0]


# numpy 2 renamed the constructor
NUMPY = {"numpy.dtype": Kind, "numpy.core.multiarray.scalar": number, "numpy._core.multiarray.scalar": number}
SAFE = [argparse.Namespace, *((value, name) for name, value in NUMPY.items())]

OPCODES = """PROTO FRAME MEMOIZE STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD APPEND APPENDS SETITEM SETITEMS TUPLE TUPLE1
TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
NEWOBJ SHORT_BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT""".split()
ITEMSIZES = dict(Double=8, Float=4, Half=2, BFloat16=2, Long=8, Int=4, Short=2, Char=1, Byte=1, Bool=1)


class Look(pickle._Unpickler):
    """Follows a pickle as torch will. Raises Refused, and any error of a broken pickle.

    sizes: bytes of each storage; None: the storages follow the pickle, and have `left` bytes.
    """

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in OPCODES)}

    def __init__(self, file: BytesIO, sizes: dict[str, int] | None, left: int = 0) -> None:
        super().__init__(file, encoding="utf-8")
        self.sizes, self.left, self.follow = sizes or {}, left, sizes is None
        self.copies = 0
        self.made: dict[str, Any] = NUMPY | {
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor,
            "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
            "torch.storage.UntypedStorage": 1,
            **{f"torch.{name}Storage": itemsize for name, itemsize in ITEMSIZES.items()},
            "torch.Size": self.copy,
            "torch.device": lambda kind, index=0: None,
            "collections.OrderedDict": self.copy,
            "collections.Counter": self.copy,
            "argparse.Namespace": self.copy,
            "_codecs.encode": self.encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return None
        if f"{module}.{name}" not in self.made:
            raise Refused(f"refused, its pickle asks for {module}.{name}; only tensors are loaded")
        return self.made[f"{module}.{name}"]

    def persistent_load(self, pid: tuple) -> int:
        """A storage's number of elements."""
        if pid[0] != "storage":
            raise Refused(f"refused, its pickle asks for a {pid[0]}; only tensors are loaded")
        itemsize, key, _, n = pid[1:5]
        if self.follow and key not in self.sizes:
            self.sizes[key] = n * itemsize
            self.left -= n * itemsize
        if n < 0 or self.left < 0 or self.sizes.get(key) != n * itemsize:
            raise Refused(f"refused, its pickle claims {n * itemsize} bytes for storage {key}, which it does not have")
        return n

    def tensor(self, n: int, offset: int, size: tuple, stride: tuple, *_: object) -> None:
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if min(offset, *size, *stride, 0) < 0 or math.prod(size) > n or (0 not in size and last >= n):
            raise Refused(f"refused, its pickle claims a tensor of {list(size)} in a storage of {n} elements")

    def copy(self, values: Any = ()) -> dict:
        self.copies += 1 + len(values)
        if self.copies > COPIES:
            raise Refused("refused, its pickle copies values over and over")
        return {}

    def encode(self, text: str, codec: str) -> bytes:
        if codec != "latin1":
            raise Refused(f"refused, its pickle asks for the codec {codec}; only tensors are loaded")
        self.copy(text)
        return text.encode(codec)

    def load_newobj(self) -> None:
        made, values = self.stack[-2:]
        self.stack[-2:] = [made(*values)]

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Kind):
            self.stack[-1].__setstate__(state)
        self.copy(state)

    def load_setitem(self) -> None:
        self.check(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self.check(self.stack[::2])
        super().load_setitems()

    def check(self, keys: list) -> None:
        """Allows only simple keys: hashing nested tuples can overflow the stack, and large numbers can be made to
        collide.
        """
        for key in keys:
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                raise Refused(f"refused, its pickle has a dict with a key of type {type(key).__name__}")

    dispatch |= {pickle.BUILD[0]: load_build, pickle.NEWOBJ[0]: load_newobj}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def look(path: Path) -> None:
    """Raises Refused, and any error of a broken file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"PK\x03\x04":  # before PyTorch 1.6: five pickles, four of them metadata
            file.seek(0)
            head = BytesIO(file.read(LENGTH))
            for _ in range(5):
                Look(head, None, size).load()
            return
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename.partition("/")[2]: entry for entry in file.infolist()}
        if "constants.pkl" in entries:
            raise Refused("refused, it is a TorchScript archive, whose code would run; only tensors are loaded")
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values())
        if packed or sum(entry.file_size for entry in file.infolist()) > size:
            raise Refused("refused, its content is larger than the file; torch does not compress")
        # the list of contents must be at one place, the same for every reader
        if len(entries) != len(file.infolist()) or file.comment or file.infolist()[0].header_offset:
            raise Refused("refused, it has several contents")
        if entries["data.pkl"].file_size > LENGTH:
            raise Refused(f"refused, its pickle has {entries['data.pkl'].file_size} bytes, expected at most {LENGTH}")
        for entry in file.infolist():
            if not entry.CRC:  # PyTorch can omit checksums
                del entry.CRC
            with file.open(entry) as content:
                while content.read(2**20):  # at its end zipfile compares the checksum
                    pass
        sizes = {name[5:]: entry.file_size for name, entry in entries.items() if name.startswith("data/")}
        Look(BytesIO(file.read(entries["data.pkl"])), sizes).load()


def read(path: Path) -> object:
    """The contents of a torch file, on the CPU. Raises Refused, and any error of a broken file."""
    look(path)
    with torch.serialization.safe_globals(SAFE), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True)
