"""A folder full of what a picture should not be, and of odd pictures that are fine.

Every entry is listed as exactly one picture. The first word of its kind says how reading it has to end: ``good`` with a
picture, ``bad`` with a PictureError, ``either`` with one of both.
"""

import io
import os
import random
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["bomb", "encoded", "png", "write_hostile"]

WIDTH, HEIGHT = 24, 16
Maker = Callable[[Path], object]


def write_hostile(folder: Path, seed: int = 0, count: int = 200) -> dict[str, str]:
    """Write ``count`` entries into a folder; equal seeds give equal bytes.

    The first hundred or so are each of a kind of its own, the others are good files that were damaged at random.

    Returns:
        From name, relative to the folder, to kind. A name that is not UTF-8 is as ``os.fsdecode`` has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for name, kind, make in _all(random.Random(seed)):
        if len(written) == count:
            break
        try:
            make(folder / name)
        except OSError:  # a file system without such names or such nodes
            continue
        written[name] = kind
    return written


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """A picture as a file of a kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG from its parts: ``rows`` are not compressed yet, each with its filter byte; ``more`` chunks come before."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    return png(width, height, 8, 2, b"\0")


def _noise(width: int = WIDTH, height: int = HEIGHT, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _all(draw: random.Random) -> Iterator[tuple[str, str, Maker]]:
    for name, kind, content in (*_good(), *_bad(), *_named()):
        yield name, kind, lambda path, content=content: path.write_bytes(content)
    yield from _nodes()
    bases = list(_bases())
    number = 0
    while True:
        name, content = bases[number % len(bases)]
        damaged = _damaged(content, draw)
        yield (
            f"fuzz-{number:05d}-{name}",
            "either: damaged at random",
            lambda path, data=damaged: path.write_bytes(data),
        )
        number += 1


def _bases() -> Iterator[tuple[str, bytes]]:
    rgb = Image.fromarray(_noise())
    frames = [rgb.transpose(Image.Transpose.ROTATE_180), rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    yield "a.jpg", encoded(rgb, "JPEG", exif=exif)
    yield "progressive.jpg", encoded(rgb, "JPEG", progressive=True)
    yield "a.png", encoded(rgb, "PNG", exif=exif)
    yield "palette.png", encoded(rgb.quantize(16), "PNG", transparency=3)
    yield "moving.png", encoded(rgb, "PNG", save_all=True, append_images=frames)
    yield "a.gif", encoded(rgb, "GIF", save_all=True, append_images=frames)
    yield "a.webp", encoded(rgb, "WEBP")
    yield "lossless.webp", encoded(rgb.convert("RGBA"), "WEBP", lossless=True)
    yield "a.tif", encoded(rgb, "TIFF", exif=exif)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "group4"):
        image = rgb.convert("1") if compression == "group4" else rgb
        yield f"{compression}.tif", encoded(image, "TIFF", compression=compression)
    yield "a.bmp", encoded(rgb, "BMP")
    yield "a.ico", encoded(rgb, "ICO", sizes=[(16, 16)])
    yield "a.jp2", encoded(rgb, "JPEG2000")
    yield "a.avif", encoded(rgb, "AVIF")
    yield "a.tga", encoded(rgb, "TGA", compression="tga_rle")
    yield "a.pcx", encoded(rgb, "PCX")
    yield "a.ppm", encoded(rgb, "PPM")
    yield "a.qoi", encoded(rgb, "QOI")


def _damaged(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    way = draw.randrange(5)
    # what is read first decides most, so half of the damage is done there
    reach = len(data) if draw.random() < 0.5 else min(len(data), 64)
    if way == 0:
        return bytes(data[: draw.randrange(len(data))])
    if way == 1:
        start = draw.randrange(reach)
        del data[start : start + draw.randint(1, 16)]
    elif way == 2:
        start = draw.randrange(reach)
        data[start:start] = draw.randbytes(draw.randint(1, 16))
    else:
        for _ in range(draw.choice((1, 3, 10, 40))):
            place = draw.randrange(reach)
            data[place] = draw.choice((data[place] ^ (1 << draw.randrange(8)), 0, 255))
    return bytes(data)


def _good() -> Iterator[tuple[str, str, bytes]]:
    rgb = Image.fromarray(_noise())
    alpha = Image.fromarray(_noise(channels=4))
    frames = [rgb.transpose(Image.Transpose.ROTATE_180), rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for size in ((1, 1), (1, 3), (3, 1), (3, 50), (50, 3), (20000, 10), (10, 20000)):
        yield f"{size[0]}x{size[1]}.png", "good: odd size", encoded(Image.new("RGB", size, "red"), "PNG")
    yield "inverted.jpg", "good: CMYK, inverted", encoded(rgb.convert("CMYK"), "JPEG")
    yield "cmyk.tif", "good: CMYK", encoded(rgb.convert("CMYK"), "TIFF")
    grey = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 170)
    yield "grey-16.png", "good: 16 bits", encoded(grey, "PNG")
    yield "grey-16.tif", "good: 16 bits", encoded(grey, "TIFF")
    deep = b"".join(b"\0" + row.tobytes() for row in (_noise().astype(">u2") * 257))
    yield "rgb-16.png", "good: 16 bits", png(WIDTH, HEIGHT, 16, 2, deep)
    yield "one-bit.png", "good: one bit", encoded(rgb.convert("1"), "PNG")
    yield "grey-alpha.png", "good: transparent", encoded(alpha.convert("LA"), "PNG")
    yield "palette-alpha.png", "good: transparent", encoded(alpha.quantize(16), "PNG")
    yield "alpha.webp", "good: transparent", encoded(alpha, "WEBP", lossless=True)
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        yield f"moving.{kind.lower()}", "good: several frames", encoded(rgb, kind, save_all=True, append_images=frames)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"turned-{orientation}.jpg", "good: turned", encoded(rgb, "JPEG", exif=exif)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\xff\xff\xff" * 9
    yield "broken-exif.jpg", "good: broken EXIF", encoded(rgb, "JPEG", exif=exif)
    yield "broken-exif.png", "good: broken EXIF", encoded(rgb, "PNG", exif=exif)
    yield "really-a-png.jpg", "good: named as another kind", encoded(rgb, "PNG")
    yield "SHOUTED.JPG", "good: capitals", encoded(rgb, "JPEG")


def _bad() -> Iterator[tuple[str, str, bytes]]:
    rgb = Image.fromarray(_noise(64, 64))
    yield "empty.jpg", "bad: empty", b""
    yield "one-byte.png", "bad: one byte", b"P"
    yield "zeros.jpg", "bad: zeros", bytes(4096)
    yield "text.png", "bad: text", b"hello\n" * 100
    yield "page.jpg", "bad: a web page", b"<!DOCTYPE html><html><title>404</title><script>alert(1)</script></html>"
    yield "drawing.png", "bad: SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "paper.jpg", "bad: PDF", b"%PDF-1.4\n1 0 obj << >> endobj\ntrailer << >>\n%%EOF"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ran) print showpage\n%%EOF\n"
    yield "postscript.jpg", "bad: EPS", eps
    wmf = struct.pack("<IHhhhhHI", 0x9AC6CDD7, 0, 0, 0, 100, 100, 1440, 0)
    yield "metafile.png", "bad: WMF", wmf + struct.pack("<H", 0) + b"\x01\0\t\0\0\x03" + bytes(64)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"):
        data = encoded(rgb, kind)
        yield f"cut.{kind.lower().replace('jpeg2000', 'jp2')}", "bad: cut off", data[: len(data) // 2]
        yield f"signature.{kind.lower().replace('jpeg2000', 'jp2')}", "bad: only how it begins", data[:12]
    yield "bomb.png", "bad: claims 3.6 billion pixels", bomb(60000, 60000)
    yield "small-bomb.png", "bad: claims 95 million pixels", bomb(10000, 9500)
    yield (
        "bomb.gif",
        "bad: claims 4 billion pixels",
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;",
    )
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 58, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 4, 0, 0, 0, 0)
    yield "bomb.bmp", "bad: claims 2**60 pixels", header + bytes(4)
    yield "nothing.ppm", "bad: no pixels", b"P6 0 0 255\n"
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000))
    yield "text-bomb.png", "bad: text that unpacks to 80 MB", png(1, 1, 8, 0, b"\0\0", (b"zTXt", text))
    for number in range(3):
        yield f"random-{number}.jpg", "bad: random bytes", random.Random(number).randbytes(3000)


def _named() -> Iterator[tuple[str, str, bytes]]:
    data = encoded(Image.new("RGB", (4, 3), "green"), "PNG")
    names = (
        *("two\nlines.png", "tab\there.png", "carriage\rreturn.png", "back\\slash.png", "a\\xff.png", "bell\x07.png"),
        *("'single'.png", '"double".png', "`tick`.png", "$(true).png", "%s%d{}.png", "-rf.png", "[a-z]*?.png"),
        *('"><img src=x onerror=alert(1)>.png', "<script>alert(1)<script>.png", "&amp;.png", "=1+1.png", "#17.png"),
        *(" before and after .png", "dog 🐕‍🦺.png", "über.png", "u\u0308ber.png", "قطة.png", "\u202egnp.png", "~.png"),
        *("a#0.png", "data.parquet#0.png", "demo:pictures.png", "http:.png", "\ufeffbom.png", "{{ name }}.png"),
    )
    for name in names:
        yield name, "good: named oddly", data
    yield "n" * 251 + ".png", "good: a name of 255 bytes", data
    yield "é" * 125 + "e.png", "good: a name of 255 bytes", data
    for raw in (b"a\xff.png", b"\xc3.png", b"latin-\xe9\n.png"):
        yield os.fsdecode(raw), "good: a name that is not UTF-8", data


def _nodes() -> Iterator[tuple[str, str, Maker]]:
    data = encoded(Image.new("RGB", (4, 3), "blue"), "PNG")

    def nested(path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(data)

    yield "folder.jpg", "bad: a folder", lambda path: path.mkdir()
    yield "album.jpg/inside.png", "good: in a folder named as a picture", nested
    yield "pipe.jpg", "bad: a pipe", lambda path: os.mkfifo(path)
    yield "socket.png", "bad: a socket", lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)
    yield "dangling.png", "bad: a link to nothing", lambda path: path.symlink_to("not-there.png")
    yield "itself.png", "bad: a link to itself", lambda path: path.symlink_to(path.name)
    yield "loop.png", "bad: a link to its own folder", lambda path: path.symlink_to(".", target_is_directory=True)
    yield "link.png", "good: a link", lambda path: path.symlink_to("1x1.png")
