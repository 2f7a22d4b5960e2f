"""Pixels by value: files written here byte by byte, and what numpy says that they show."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset
from dataset.cuts import ResizedCrop
from dataset.files import Unreadable, read

N = 16  # pixels a side
RNG = np.random.default_rng(0)
BYTES = np.arange(N * N, dtype=np.uint8).reshape(N, N)
WORDS = np.linspace(0, 65535, N * N).round().astype(np.uint16).reshape(N, N)
UNIT = np.linspace(0, 1, N * N, dtype=np.float32).reshape(N, N)
COLOURS = RNG.integers(0, 256, (N, N, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (N, N, 4), dtype=np.uint16)
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)


# ---- writers ----


def png(colour: int, depth: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """rows [N, bytes]; chunks before the pixels."""
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", struct.pack(">2I5B", N, N, depth, colour, 0, 0, 0)), *chunks, (b"IDAT", packed), (b"IEND", b"")]
    framed = (struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def tiff(photometric: int, bits: Sequence[int], data: bytes, order: str = "<", kind: int = 1, **more: int) -> bytes:
    """kind: 1 whole numbers, 2 with a sign, 3 floats; more: tags, as `tag_274=6`."""
    values = {256: N, 257: N, 258: bits, 259: 1, 262: photometric, 273: 8, 277: len(bits), 278: N, 279: len(data)}
    values |= {339: kind} | {int(name[4:]): value for name, value in more.items()}
    start = 8 + len(data)
    outside = start + 2 + 12 * len(values) + 4  # where values lie that have no room in their entry
    entries, extra = b"", b""
    for tag, value in sorted(values.items()):
        shorts = struct.pack(f"{order}{np.size(value)}H", *np.atleast_1d(value).tolist())
        if len(shorts) > 4:
            where = struct.pack(order + "I", outside + len(extra))
            extra += shorts
        else:
            where = shorts.ljust(4, b"\0")
        entries += struct.pack(order + "2HI", tag, 3, np.size(value)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + data + struct.pack(order + "H", len(values)) + entries + bytes(4) + extra


def bits(x: np.ndarray, depth: int) -> np.ndarray:
    """Rows of values of `depth` bits, packed."""
    return np.packbits((x[..., None] >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8).reshape(N, -1), axis=1)


def pnm(kind: str, largest: float, data: bytes) -> bytes:
    return f"{kind}\n{N} {N}\n{largest}\n".encode() + data


def of_pil(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def big(x: np.ndarray) -> np.ndarray:
    """Rows of big-endian bytes."""
    return np.frombuffer(x.astype(">u2").tobytes(), np.uint8).reshape(N, -1)


# ---- what they show ----


def grey(x: np.ndarray) -> np.ndarray:
    return np.repeat(np.floor(np.asarray(x, np.float64) + 0.5).astype(np.uint8)[..., None], 3, 2)


def of_cmyk(x: np.ndarray) -> np.ndarray:
    light = 255 - x.astype(np.float64)
    return np.floor(light[..., :3] * light[..., 3:] / 255 + 0.5).astype(np.uint8)


NIBBLES, TWELVE = BYTES % 16, (WORDS >> 4)
TRANSPARENT = (b"tRNS", bytes(range(256)))
PLTE = (b"PLTE", PALETTE.tobytes())
TURNED = (b"eXIf", b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0))
WIDE, SIGNED, FLOAT = WORDS.astype(np.int32), (WORDS >> 1).astype(np.int16), UNIT.astype(np.float64)
PIL_PALETTE = Image.fromarray(BYTES)
PIL_PALETTE.putpalette(PALETTE.tobytes())

IMAGES = {
    "png grey 1": (png(0, 1, bits(BYTES % 2, 1)), grey(BYTES % 2 * 255)),
    "png grey 2": (png(0, 2, bits(BYTES % 4, 2)), grey(BYTES % 4 * 85)),
    "png grey 4": (png(0, 4, bits(NIBBLES, 4)), grey(NIBBLES * 17)),
    "png grey 8": (png(0, 8, BYTES), grey(BYTES)),
    "png grey 8, one value transparent": (png(0, 8, BYTES, (b"tRNS", b"\0\7")), grey(BYTES)),
    "png grey 16": (png(0, 16, big(WORDS)), grey(WORDS / 257)),
    "png grey 16, one value transparent": (png(0, 16, big(WORDS), (b"tRNS", b"\1\1")), grey(WORDS / 257)),
    "png grey 16, dark": (png(0, 16, big(WORDS >> 8)), grey((WORDS >> 8) / 257)),
    "png rgb 8": (png(2, 8, COLOURS[..., :3]), COLOURS[..., :3]),
    "png rgb 16": (png(2, 16, big(DEEP[..., :3])), DEEP[..., :3] >> 8),
    "png palette 4": (png(3, 4, bits(NIBBLES, 4), PLTE), PALETTE[NIBBLES]),
    "png palette 8": (png(3, 8, BYTES, PLTE), PALETTE[BYTES]),
    "png palette 8, transparent": (png(3, 8, BYTES, PLTE, TRANSPARENT), PALETTE[BYTES]),
    "png palette 8, one colour transparent": (png(3, 8, BYTES, PLTE, (b"tRNS", b"\xff\0")), PALETTE[BYTES]),
    "png grey and alpha 8": (png(4, 8, COLOURS[..., :2]), grey(COLOURS[..., 0])),
    "png grey and alpha 16": (png(4, 16, big(DEEP[..., :2])), grey(DEEP[..., 0] >> 8)),
    "png rgba 8": (png(6, 8, COLOURS), COLOURS[..., :3]),
    "png rgba 16": (png(6, 16, big(DEEP)), DEEP[..., :3] >> 8),
    "png that says it is turned": (png(0, 8, BYTES, TURNED), grey(BYTES)),
    "tiff 1": (tiff(1, [1], bits(BYTES % 2, 1).tobytes()), grey(BYTES % 2 * 255)),
    "tiff 1, white is 0": (tiff(0, [1], bits(BYTES % 2, 1).tobytes()), grey(255 - BYTES % 2 * 255)),
    "tiff grey 8": (tiff(1, [8], BYTES.tobytes()), grey(BYTES)),
    "tiff grey 8, white is 0": (tiff(0, [8], BYTES.tobytes()), grey(255 - BYTES)),
    "tiff grey 12": (tiff(1, [12], bits(TWELVE, 12).tobytes()), grey(TWELVE / 4095 * 255)),
    "tiff grey 16": (tiff(1, [16], WORDS.tobytes()), grey(WORDS / 257)),
    "tiff grey 16, big-endian": (tiff(1, [16], big(WORDS).tobytes(), ">"), grey(WORDS / 257)),
    "tiff grey 16, white is 0": (tiff(0, [16], WORDS.tobytes()), grey((65535 - WORDS) / 257)),
    "tiff grey 16, packed": (of_pil(Image.fromarray(WORDS), "TIFF", compression="tiff_lzw"), grey(WORDS / 257)),
    "tiff grey 16, turned": (tiff(1, [16], WORDS.tobytes(), tag_274=6), grey(np.rot90(WORDS, -1) / 257)),
    "tiff grey 16 with a sign": (tiff(1, [16], SIGNED.tobytes(), kind=2), grey(SIGNED / 257)),
    "tiff grey 16 with a sign, dark": (tiff(1, [16], (SIGNED >> 8).tobytes(), kind=2), grey((SIGNED >> 8) / 257)),
    "tiff grey 32": (tiff(1, [32], WIDE.tobytes()), grey(WIDE / 257)),
    "tiff grey 32 with a sign": (tiff(1, [32], WIDE.tobytes(), kind=2), grey(WIDE / 257)),
    "tiff grey 32, black": (tiff(1, [32], bytes(4 * N * N), kind=2), grey(BYTES * 0)),
    "tiff float": (tiff(1, [32], UNIT.tobytes(), kind=3), grey(FLOAT * 255)),
    "tiff float, big-endian": (tiff(1, [32], UNIT.astype(">f4").tobytes(), ">", 3), grey(FLOAT * 255)),
    "tiff float, white is 0": (tiff(0, [32], UNIT.tobytes(), kind=3), grey((1 - FLOAT) * 255)),
    "tiff rgb 8": (tiff(2, [8] * 3, COLOURS[..., :3].tobytes()), COLOURS[..., :3]),
    "tiff rgb 16": (tiff(2, [16] * 3, DEEP[..., :3].tobytes()), DEEP[..., :3] >> 8),
    "tiff rgba 8": (tiff(2, [8] * 4, COLOURS.tobytes(), tag_338=2), COLOURS[..., :3]),
    "tiff cmyk": (tiff(5, [8] * 4, COLOURS.tobytes()), of_cmyk(COLOURS)),
    "tiff turned": (tiff(1, [8], BYTES.tobytes(), tag_274=6), grey(np.rot90(BYTES, -1))),
    "pgm 8": (pnm("P5", 255, BYTES.tobytes()), grey(BYTES)),
    "pgm of 85": (pnm("P5", 85, (BYTES % 86).tobytes()), grey(BYTES % 86 * 3)),
    "pgm 16": (pnm("P5", 65535, big(WORDS).tobytes()), grey(WORDS / 257)),
    "pgm of 4369": (pnm("P5", 4369, big(WORDS % 4370).tobytes()), grey(WORDS % 4370 * 15.0 / 257)),
    "pgm 16, as text": (pnm("P2", 65535, " ".join(map(str, WORDS.flatten())).encode()), grey(WORDS / 257)),
    "ppm 16": (pnm("P6", 65535, big(DEEP[..., :3]).tobytes()), (DEEP[..., :3] / 257 + 0.5).astype(np.uint8)),
    "pfm": (pnm("Pf", -1.0, UNIT[::-1].tobytes()), grey(FLOAT * 255)),
    "gif": (of_pil(PIL_PALETTE, "GIF"), PALETTE[BYTES]),
    "gif, transparent": (of_pil(PIL_PALETTE, "GIF", transparency=7), PALETTE[BYTES]),
    "bmp": (of_pil(Image.fromarray(COLOURS[..., :3].copy()), "BMP"), COLOURS[..., :3]),
    "webp, transparent": (of_pil(Image.fromarray(COLOURS), "WEBP", lossless=True, exact=True), COLOURS[..., :3]),
}


def whole(path: Path, size: int) -> np.ndarray:
    """The image by way of the random crops."""
    cut = ResizedCrop(size, flip=False)
    cut.box = lambda width, height, seed: ((0, 0, height, width), False)
    return cut.one(str(path), 0)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("reader", [read, whole])
def test_pixels(name, reader, tmp_path):
    content, expected = IMAGES[name]
    (tmp_path / "x.png").write_bytes(content)
    found = reader(str(tmp_path / "x.png"), N)
    assert found.dtype == np.uint8 and found.shape == (N, N, 3)
    assert (found == expected).all(), (found[..., 0], expected[..., 0])


def test_a_jpeg_that_says_it_is_turned(tmp_path):
    """JPEG rounds, so that it is compared with the same file without what it says."""
    plain = of_pil(Image.fromarray(BYTES), "JPEG", quality=95)
    exif = b"Exif\0\0" + TURNED[1]
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert Image.open(io.BytesIO(turned)).getexif()[274] == 6
    found = []
    for content in (plain, turned):
        (tmp_path / "x.jpg").write_bytes(content)
        found += [reader(str(tmp_path / "x.jpg"), N) for reader in (read, whole)]
    assert all((x == found[0]).all() for x in found)
    assert abs(found[0].astype(int) - grey(BYTES)).max() < 40 and abs(found[0].mean() - 127.5) < 1


REFUSED = {
    "32 bits, beyond 16": (tiff(1, [32], (WORDS * 2.0).astype(np.int32).tobytes(), kind=2), "from 0 to 131070"),
    "32 bits, below 0": (tiff(1, [32], (WIDE - 9).tobytes(), kind=2), "from -9 to 65526"),
    "32 bits, of 8 or of 16": (tiff(1, [32], BYTES.astype(np.int32).tobytes(), kind=2), "from 0 to 255"),
    "16 bits, below 0": (tiff(1, [16], (WORDS - 32768).tobytes(), kind=2), "from -32768 to 32767"),
    "floats of 8 bits": (tiff(1, [32], (UNIT * 255).tobytes(), kind=3), "from 0.0 to 255.0"),
    "floats below 0": (tiff(1, [32], (UNIT - 1).tobytes(), kind=3), "from -1.0 to 0.0"),
    "floats that are none": (tiff(1, [32], np.full_like(UNIT, np.nan).tobytes(), kind=3), "from nan to nan"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("reader", [read, whole])
def test_a_range_that_cannot_be_known(name, reader, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(Unreadable, match=f"x.tif: cannot be decoded as an image: its values go {message}; expected"):
        reader(str(tmp_path / "x.tif"), N)


@pytest.mark.parametrize(
    "content",
    [png(0, 16, big(WORDS)), tiff(1, [16], WORDS.tobytes()), tiff(1, [32], UNIT.tobytes(), kind=3), png(0, 8, BYTES)],
)
@pytest.mark.parametrize("size", [N, 2 * N, 80])
def test_a_data_set_of_ramps(content, size, tmp_path):
    """Their mean is that of 8 bits, at every size."""
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.png").write_bytes(content)
    data = dataset.load("folder", tmp_path, size, storage=dataset.Storage(workers=1))
    images = next(iter(data.val_images.split(2))).float()
    assert abs(images.mean() - 127.5) < 0.1 and images.std() > 60
    if size != 80:
        assert all(abs(mean - 0.5) < 0.001 for mean in data.mean)
