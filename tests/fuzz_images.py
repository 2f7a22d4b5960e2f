"""Images by value: files of one array in every encoding that is read, and the array as numpy says that it is seen."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from test_images import N, big, bits, of_pil, png, pnm, tiff, whole

from dataset.files import Unreadable, read


class Drawn(NamedTuple):
    content: bytes
    seen: np.ndarray | None  # [N, N] or [N, N, 3] of 0 .. 255; None: the file does not say which value is white
    tolerance: float = 1  # 16 bits are cut or rounded
    kind: str = ""


def values(rng: random.Random, most: int, channels: int = 0, smooth: bool = False) -> np.ndarray:
    """[N, N] or [N, N, channels] whole numbers from 0 to `most`: noise, a ramp, dark, of two values, or one of them."""
    shape = (N, N, channels) if channels else (N, N)
    noise = np.random.default_rng(rng.getrandbits(64)).random(shape)
    ramp = np.linspace(0, 1, N)[:, None] * np.linspace(rng.random(), 1, N)
    ramp = np.stack([np.rot90(ramp, n) for n in range(channels)], -1) if channels else ramp
    dark = noise * rng.choice([0.5, 2**-4, 2**-8])
    drawn = [ramp, 1 - ramp, ramp * 0 + rng.random()]
    return np.rint((rng.choice(drawn if smooth else [noise, dark, noise.round(), *drawn])) * most).astype(np.int64)


def to_bytes(x: np.ndarray, depth: int) -> np.ndarray:
    """Rows of big-endian values of 1 .. 16 bits."""
    return big(x.astype(np.uint16)) if depth == 16 else x.astype(np.uint8) if depth == 8 else bits(x, depth)


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.3, tag 274."""
    across = x.swapaxes(0, 1)
    kinds = [x, x[:, ::-1], x[::-1, ::-1], x[::-1], across, across[:, ::-1], across[::-1, ::-1], across[::-1]]
    return kinds[orientation - 1]


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[274] = orientation
    return found.tobytes()


def of_ink(x: np.ndarray) -> np.ndarray:
    """[N, N, 4] cyan, magenta, yellow, black."""
    return (255 - x[..., :3]) * (255 - x[..., 3:]) / 255


# ---- what is drawn ----


def png_drawn(rng: random.Random) -> Drawn:
    colour, depth = rng.choice(
        [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)]
    )
    channels = {0: 0, 2: 3, 4: 2, 6: 4}[colour]
    x = values(rng, 2**depth - 1, channels)
    chunks = [(b"eXIf", exif(rng.randint(1, 8)).removeprefix(b"Exif\0\0"))] * rng.randrange(2)
    if colour in (0, 2):
        transparent = np.atleast_1d(x[0, 0]).astype(">u2").tobytes()
        chunks += [(b"tRNS", transparent)] * rng.randrange(2)
    shown = x[..., 0] if colour == 4 else x[..., :3] if channels else x
    return Drawn(
        png(colour, depth, to_bytes(x, depth), *chunks), shown * 255 / (2**depth - 1), kind=f"{colour} {depth}"
    )


def png_of_a_palette(rng: random.Random) -> Drawn:
    depth = rng.choice([1, 2, 4, 8])
    x, palette = values(rng, 2**depth - 1), np.frombuffer(rng.randbytes(3 * 2**depth), np.uint8).reshape(-1, 3)
    alpha = [(b"tRNS", rng.randbytes(rng.randint(1, 2**depth)))] * rng.randrange(2)
    return Drawn(png(3, depth, to_bytes(x, depth), (b"PLTE", palette.tobytes()), *alpha), palette[x], 0, f"{depth}")


def tiff_grey(rng: random.Random) -> Drawn:
    depth, white = rng.choice([1, 8, 12, 16]), rng.randrange(2)
    order, orientation = rng.choice("<>") if depth == 16 else "<", rng.randint(1, 8)
    x = values(rng, 2**depth - 1)
    data = x.astype(order + "u2") if depth == 16 else to_bytes(x, depth)
    shown = turned(x if white else 2**depth - 1 - x, orientation)
    content = tiff(white, [depth], data.tobytes(), order, tag_274=orientation)
    return Drawn(content, shown * 255 / (2**depth - 1), kind=f"{depth}, {white} is white")


def tiff_wide(rng: random.Random) -> Drawn:
    """Whole numbers of 32 bits or with a sign: those that fit into 16 and show that they need them can be read."""
    depth, sign, order = rng.choice([16, 32]), rng.randrange(2), rng.choice("<>")
    sign = 1 if depth == 16 else sign
    x = values(rng, rng.choice([255, 32767, 65535, 65536, 2**31 - 1]) if depth == 32 else 32767)
    x -= rng.choice([0, 0, 1, 30000]) * sign
    content = tiff(1, [depth], x.astype(f"{order}i{depth // 8}").tobytes(), order, 1 + sign)
    readable = 0 <= x.min() <= x.max() <= 65535 and (depth == 16 or x.max() > 255 or x.max() == 0)
    return Drawn(content, x / 257 if readable else None, kind=f"{depth}")


def floats(rng: random.Random) -> Drawn:
    x = (values(rng, 60000) / 60000).astype(np.float32) * rng.choice([1, 1, 1, 255, 1.5]) - rng.choice([0, 0, 0.5])
    if rng.random() < 0.1:
        x[rng.randrange(N), rng.randrange(N)] = rng.choice([np.nan, np.inf, -np.inf])
    order, white = rng.choice("<>"), rng.randrange(2)
    seen = (x if white else 1 - x) * 255 if 0 <= x.min() <= x.max() <= 1 else None
    if white and rng.random() < 0.3:
        rows = x[::-1].astype(order + "f4").tobytes()
        return Drawn(pnm("Pf", -1.0 if order == "<" else 1.0, rows), seen, kind="pfm")
    return Drawn(tiff(white, [32], x.astype(order + "f4").tobytes(), order, 3), seen, kind="tiff")


def tiff_colours(rng: random.Random) -> Drawn:
    kind, depth, orientation = rng.choice(["rgb", "rgba", "cmyk"]), rng.choice([8, 16]), rng.randint(1, 8)
    depth = 8 if kind == "cmyk" else depth
    x = values(rng, 2**depth - 1, 3 if kind == "rgb" else 4)
    more = {"tag_338": 2} if kind == "rgba" else {}
    data = x.astype(f"<u{depth // 8}").tobytes()
    content = tiff(5 if kind == "cmyk" else 2, [depth] * x.shape[-1], data, tag_274=orientation, **more)
    shown = of_ink(x) if kind == "cmyk" else x[..., :3] * 255 / (2**depth - 1)
    return Drawn(content, turned(shown, orientation), kind=f"{kind} {depth}")


def pnm_drawn(rng: random.Random) -> Drawn:
    most, kind = rng.choice([1, 3, 85, 254, 255, 256, 1000, 4369, 65534, 65535]), rng.choice(["P2", "P3", "P5", "P6"])
    x = values(rng, most, 3 if kind in ("P3", "P6") else 0)
    text, data = " ".join(map(str, x.flatten())).encode(), x.astype(np.uint8 if most < 256 else ">u2").tobytes()
    content = pnm(kind, most, text if kind in ("P2", "P3") else data)
    return Drawn(content, x * 255 / most, kind=f"{kind} {most > 255}")


def lossless(rng: random.Random) -> Drawn:
    """Of PIL's writers."""
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
    kinds = {"1": "PNG BMP TIFF PPM", "LA": "PNG TIFF", "P": "PNG BMP GIF TIFF", "RGBA": "PNG WEBP TIFF"}
    kinds |= {"I;16": "PNG TIFF PPM", "CMYK": "TIFF"}
    kind = rng.choice(kinds.get(mode, "PNG BMP WEBP TIFF PPM GIF"[: -4 if mode == "RGB" else None]).split())
    x = values(rng, {"1": 1, "I;16": 65535}.get(mode, 255), {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 0))
    image = Image.fromarray((x * 255 if mode == "1" else x).astype(np.uint16 if mode == "I;16" else np.uint8))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    if kind == "TIFF":
        options["compression"] = rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
    if kind in ("PNG", "WEBP") and rng.random() < 0.5:
        options["exif"] = exif(rng.randint(1, 8))
    shown = {"1": x * 255, "LA": x[..., 0], "I;16": x / 257}.get(mode, x[..., :3] if x.ndim == 3 else x)
    if mode == "1":
        image = image.convert("1")
    elif mode == "CMYK":
        image, shown = Image.frombytes("CMYK", (N, N), x.astype(np.uint8).tobytes()), of_ink(x)
    elif mode == "P":
        palette = np.frombuffer(rng.randbytes(768), np.uint8).reshape(-1, 3)
        image.putpalette(palette.tobytes())
        shown = palette[x]
        if kind in ("PNG", "GIF") and rng.random() < 0.5:
            options["transparency"] = rng.randrange(256)
    return Drawn(of_pil(image, kind, **options), shown, kind=f"{mode} {kind}")


def jpeg(rng: random.Random) -> Drawn:
    mode = rng.choice(["L", "RGB", "CMYK"])
    x = values(rng, 255, {"L": 0, "RGB": 3, "CMYK": 4}[mode], smooth=True)
    image = Image.frombytes(mode, (N, N), x.astype(np.uint8).tobytes())
    options = {"exif": exif(rng.randint(1, 8)), "progressive": rng.random() < 0.5, "subsampling": 0}
    return Drawn(of_pil(image, "JPEG", quality=98, **options), of_ink(x) if mode == "CMYK" else x, 12, mode)


KINDS: list[Callable[[random.Random], Drawn]] = [
    png_drawn, png_of_a_palette, tiff_grey, tiff_wide, floats, tiff_colours, pnm_drawn, lossless, jpeg,
]  # fmt: skip


def read_values(path: Path) -> str:
    """Draws an image by the bytes in the file. AssertionError: another image is read, or a good one is refused."""
    rng = random.Random(path.read_bytes())
    draw, reader = rng.choice(KINDS), rng.choice([read, whole])
    content, seen, tolerance, kind = draw(rng)
    image = path.with_name("drawn.png")
    image.write_bytes(content)
    kind = f"{draw.__name__} {kind}"
    try:
        found = reader(str(image), N).astype(float)
    except Unreadable as error:
        if seen is None or "cannot identify image file" in str(error):  # PIL knows no such TIFF
            raise
        raise AssertionError(f"{kind}: refused: {error}") from error
    assert seen is not None, f"{kind}: read, and its values do not say which of them is white"
    seen = np.asarray(seen, float)
    difference = np.abs(found - (seen if seen.ndim == 3 else seen[..., None])).max()
    assert difference <= tolerance, f"{kind}: a value is {difference} from what it should be"
    return kind
