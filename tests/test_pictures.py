import io
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from helpers.hostile import bomb, encoded, png, write_hostile
from mmneurons import demo
from mmneurons.errors import PictureError
from mmneurons.vlm import pictures
from mmneurons.vlm.pictures import decode_picture, open_picture, picture_name, read_file

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
RGB = Image.fromarray(NOISE[..., :3])


def test_ways_to_pass_the_same_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    for picture in (array, image, tmp_path / "a.png", str(tmp_path / "a.png"), array / 255.0):
        opened = open_picture(picture)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), array)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4)])
def test_grey_and_transparent_arrays(shape):
    array = np.full(shape, 200, dtype=np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 0
    expected = 255 if shape[-1] == 4 else 200
    assert (np.asarray(open_picture(array)) == expected).all()


def test_a_turned_photo_is_turned_back(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_picture(tmp_path / "turned.png")
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 2)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "YCbCr", "HSV", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    gray = Image.new("RGB", (3, 3), (120, 120, 120)).convert("L").convert("RGB")
    image = gray.quantize() if mode == "P" else gray.convert("L").convert(mode) if mode == "LA" else gray.convert(mode)
    opened = open_picture(image)
    assert opened.mode == "RGB"
    if mode != "1":
        assert np.abs(np.asarray(opened).astype(int) - 120).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(open_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_what_is_not_a_picture(tmp_path, unchecked):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.jpg").mkdir()
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    for name in ("empty.jpg", "text.png", "folder.jpg", "cut.png", "nowhere.png"):
        with pytest.raises(PictureError, match=name):
            open_picture(tmp_path / name)
    for bad in (
        np.zeros((2, 3, 5), np.uint8),
        np.zeros((0, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.full((2, 2), 3.0),
        np.full((2, 2), np.nan),
        np.zeros((2, 2), np.int64),
    ):
        with pytest.raises(PictureError):
            open_picture(bad)
    with pytest.raises(PictureError, match="not a dict"):
        open_picture({})


NO_MATTER_OF_EXIF = (MemoryError, AssertionError, Warning, Image.DecompressionBombError, BufferError, StopIteration)
"""What reading which side is up does not raise on damaged data, and is not expected to."""


def pixels(data, name="it"):
    return np.asarray(decode_picture(data, name)).astype(int)


def on_white(array):
    """The independent way: each channel by its formula."""
    alpha = array[..., 3:] / 255
    return array[..., :3] * alpha + 255 * (1 - alpha)


def test_bytes_are_read_as_their_file_is(tmp_path):
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "TGA", "PCX", "PPM", "QOI", "ICO"):
        data = encoded(RGB.resize((32, 32)), kind)
        path = tmp_path / f"picture.{kind}"
        path.write_bytes(data)
        assert np.array_equal(np.asarray(open_picture(path)), pixels(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_a_camera_is_held(kind, orientation):
    ways = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: np.rot90(a),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(data), ways[orientation - 1](NOISE[..., :3]))


def tiff_header(*entries, count=None):
    """A directory of tags (number, type, count, value), as EXIF holds one."""
    packed = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries) if count is None else count) + packed


def test_damaged_exif_does_not_cost_the_picture():
    turned = (0x0112, 3, 1, 6 << 16)
    broken = {
        "nothing": b"",
        "noise": bytes(range(256)),
        "cut off": tiff_header(turned, count=9),
        "a value outside": tiff_header(turned, (0x010F, 2, 2**31, 2**31)),
        "an odd type": tiff_header(turned, (0x8769, 77, 1, 9)),
        "turned by 99": tiff_header((0x0112, 3, 1, 99 << 16)),
        "turned by text": tiff_header((0x0112, 2, 4, 0x36000000)),
        "turned by several": tiff_header((0x0112, 3, 2, (6 << 16) + 6)),
    }
    sizes = {}
    for name, exif in broken.items():
        for kind in ("PNG", "JPEG"):
            data = encoded(RGB, kind, exif=b"Exif\0\0" + exif)
            sizes[name, kind] = decode_picture(data, "it").size
    assert set(sizes.values()) <= {(30, 20), (20, 30)}
    # what the camera says is read where it can be: after it comes only the damage
    assert sizes["a value outside", "JPEG"] == sizes["an odd type", "JPEG"] == (20, 30)
    assert sizes["turned by 99", "JPEG"] == sizes["noise", "JPEG"] == (30, 20)


@pytest.mark.parametrize("color", ["white", "black", "red", "lime", "blue", "silver"])
def test_cmyk_inverted_as_adobe_writes_it_and_as_it_is(color):
    image = Image.new("RGB", (32, 32), color)
    cmyk = image.convert("CMYK")
    adobe = encoded(cmyk, "JPEG", quality=95)
    assert b"Adobe" in adobe
    for data in (adobe, encoded(cmyk, "TIFF")):
        assert np.abs(pixels(data) - np.asarray(image)).max() <= 6


def test_sixteen_bits_of_every_kind():
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    eight = np.rint(deep / 257).astype(int)
    rows = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    # a program that keeps the upper byte alone is off by less than one level
    assert np.abs(pixels(png(30, 20, 16, 2, rows)) - eight).max() <= 1
    grey = Image.fromarray(deep[..., 0])
    for data in (encoded(grey, "PNG"), encoded(grey, "TIFF"), encoded(grey, "PPM")):
        assert np.array_equal(pixels(data), np.repeat(eight[..., :1], 3, axis=2))
    tags = [(256, 3, 1, 30), (257, 3, 1, 20), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 20), (279, 4, 1, deep.nbytes)]
    for order, sign in (("<", b"II*\0"), (">", b"MM\0*")):
        directory = struct.pack(order + "H", len(tags))
        for number, kind, count, value in tags:
            inline = value << 16 if order == ">" and kind == 3 and count == 1 else value
            directory += struct.pack(order + "HHII", number, kind, count, 190 if number == 258 else inline)
        head = (sign + struct.pack(order + "I", 8) + directory + bytes(4)).ljust(190, b"\0")
        data = head + struct.pack(order + "3H", 16, 16, 16) + bytes(4) + deep.astype(order + "u2").tobytes()
        assert np.abs(pixels(data) - eight).max() <= 1


def test_grey_of_sixteen_bits_with_a_transparent_level():
    values = np.array([[0, 1000, 30000, 65535]], dtype=np.uint16)
    rows = b"\0" + values.astype(">u2").tobytes()
    data = png(4, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))
    assert pixels(data)[0, :, 0].tolist() == [0, 255, 117, 255]


def test_floats_and_wide_numbers_are_scaled_or_refused():
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (values * 255, values - 1, values * np.nan, values + np.inf):
        with pytest.raises(PictureError, match=r"'it' could not be read as a picture: .*floats from 0 to 1"):
            decode_picture(encoded(Image.fromarray(wrong), "TIFF"), "it")
    wide = np.array([[0, 257, 65535]], dtype=np.int32)
    assert pixels(encoded(Image.fromarray(wide), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    for wrong in (wide * 2, wide - 1):
        with pytest.raises(PictureError, match="whole numbers from 0 to 65535"):
            open_picture(Image.fromarray(wrong))


def test_what_is_transparent_shows_white():
    alpha = Image.fromarray(NOISE)
    assert np.abs(pixels(encoded(alpha, "PNG")) - on_white(NOISE)).max() <= 1
    assert np.abs(pixels(encoded(alpha, "WEBP", lossless=True, exact=True)) - on_white(NOISE)).max() <= 1
    la = alpha.convert("LA")
    assert np.abs(pixels(encoded(la, "PNG")) - on_white(np.asarray(la)[..., [0, 0, 0, 1]])).max() <= 1
    palette = Image.fromarray(np.arange(4, dtype=np.uint8)[None])
    palette = Image.frombytes("P", (4, 1), palette.tobytes())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = encoded(palette, "PNG", transparency=bytes([255, 0, 51, 255]))
    assert np.abs(pixels(data)[0] - [[0, 0, 0], [255, 255, 255], [204, 255, 204], [0, 0, 255]]).max() <= 1
    assert pixels(encoded(palette, "GIF", transparency=1))[0].tolist()[1] == [255, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_what_moves_the_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.abs(pixels(data) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (20000, 10), (10, 20000)])
def test_odd_sizes(size):
    assert decode_picture(encoded(Image.new("RGB", size, "red"), "PNG"), "it").size == size


@pytest.mark.parametrize(("size", "fits"), [((10, 10), True), ((1, 100), True), ((101, 1), False), ((20, 10), False)])
def test_what_claims_more_pixels_than_pillow_allows_is_not_decoded(monkeypatch, size, fits):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.new("RGB", size, "red"), "PNG")
    if fits:
        assert decode_picture(data, "it").size == size
        return

    def decode(self):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    with pytest.raises(
        PictureError, match=r"'it' claims to be too large to open safely: \d+ × \d+ pixels, more than 100"
    ):
        decode_picture(data, "it")


def test_bombs():
    for size in ((60_000, 60_000), (10_000, 9_500), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(PictureError, match="claims to be too large to open safely"):
            decode_picture(bomb(*size), "it")
    icon = bytearray(encoded(Image.new("RGB", (16, 16)), "ICO", sizes=[(16, 16)]))
    start = icon.index(b"\x89PNG")
    with pytest.raises(PictureError, match="claims to be too large"):
        decode_picture(bytes(icon[:start]) + bomb(20_000, 10_000), "it")


def test_no_other_program_is_started(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    for data, kind in (
        (eps, "EPS"),
        (b"\xd7\xcd\xc6\x9a" + bytes(100), "WMF"),
        (b"GRIB\0\0\0\1" + bytes(100), "GBR or GRIB"),
    ):
        with pytest.raises(PictureError, match=f"'it' is of the kind {kind}, which is not opened. Convert it to PNG"):
            decode_picture(data, "it")
    for data in (b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 99, b"P", b"\0", b"MM", b"BM"):
        with pytest.raises(PictureError, match="'it'"):
            decode_picture(data, "it")
    assert not started


def test_kinds_that_a_plug_in_adds_are_opened(monkeypatch):
    for place in ("ID", "OPEN"):
        monkeypatch.setattr(Image, place, type(getattr(Image, place))(getattr(Image, place)))

    class Dots(PngImagePlugin.PngImageFile):
        format = "DOTS"

        def __init__(self, file, name):
            super().__init__(io.BytesIO(file.read()[4:]), name)

    Image.register_open("DOTS", Dots, lambda beginning: beginning.startswith(b"DOTS"))
    assert np.array_equal(pixels(b"DOTS" + encoded(RGB, "PNG")), NOISE[..., :3])


def test_the_documented_messages(tmp_path):
    whole = encoded(RGB, "PNG")
    for data, message in (
        (b"hello", "is not a picture of a kind that Pillow knows"),
        (b"", "could not be read as a picture: it is empty, 0 bytes"),
        (whole[:300], "could not be read as a picture"),
        (whole[:12], "could not be read as a picture: it begins as PNG does, but is damaged"),
    ):
        with pytest.raises(PictureError, match=f"^'dog.jpg' {message}"):
            decode_picture(data, "dog.jpg")


@pytest.mark.parametrize(
    "error",
    [
        *(struct.error, zlib.error, KeyError, IndexError, OverflowError, TypeError, AttributeError, EOFError, OSError),
        *(NotImplementedError, MemoryError, RecursionError, ZeroDivisionError, SyntaxError, ValueError, AssertionError),
        *(UserWarning, Image.DecompressionBombError, Image.DecompressionBombWarning, BufferError, StopIteration),
    ],
)
@pytest.mark.parametrize("where", ["__init__", "load", "getexif"])
def test_whatever_a_reader_raises(monkeypatch, error, where):
    data = encoded(RGB, "PNG")

    def fail(*_, **__):
        raise error("odd")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, where, fail)
    if where == "getexif" and not issubclass(error, NO_MATTER_OF_EXIF):
        assert np.array_equal(pixels(data), NOISE[..., :3])
        return
    with pytest.raises(PictureError, match="'it'"):
        decode_picture(data, "it")


def test_a_pil_image_that_cannot_be_read(tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(RGB, "PNG")[:1000])
    with pytest.raises(PictureError, match="a PIL image of 30 × 20 could not be read as a picture"):
        open_picture(Image.open(tmp_path / "cut.png"))
    with pytest.raises(PictureError, match="a PIL image of 0 × 5"):
        open_picture(Image.new("RGB", (0, 5)))


def test_hostile_files_are_pictures_or_refused_and_nothing_is_printed(tmp_path, capfd, recwarn):
    warnings.simplefilter("always")
    written = write_hostile(tmp_path, seed=7, count=1200)
    endings = {"good": set(), "bad": set(), "either": set()}
    for name, kind in written.items():
        try:
            opened = open_picture(tmp_path / name)
            assert opened.mode == "RGB"
            assert min(opened.size) >= 1
            endings[kind.split(":")[0]].add("picture")
        except PictureError as error:
            str(error).encode("utf-8")
            endings[kind.split(":")[0]].add("error")
    assert endings == {"good": {"picture"}, "bad": {"error"}, "either": {"picture", "error"}}
    assert not [str(warning.message) for warning in recwarn]
    assert capfd.readouterr() == ("", "")


def test_hostile_files_are_the_same_for_a_seed(tmp_path):
    one, same, other = (write_hostile(tmp_path / str(n), seed, 180) for n, seed in enumerate((0, 0, 1)))
    assert one == same
    names = [name for name in one if (tmp_path / "0" / name).is_file() and not name.endswith("itself.png")]
    assert all((tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes() for name in names)
    assert any((tmp_path / "0" / name).read_bytes() != (tmp_path / "2" / name).read_bytes() for name in names)
    assert len(one) == 180
    assert len({kind for kind in one.values()}) > 40
    assert other.keys() == one.keys()


def test_in_another_process_nothing_reaches_the_terminal(tmp_path):
    """Warnings, what Pillow logs, and what libtiff writes by itself."""
    image = Image.frombytes("RGB", (64, 64), np.random.default_rng(0).bytes(3 * 64 * 64))
    tiff = bytearray(encoded(image, "TIFF", compression="tiff_deflate"))
    tiff[300:400] = bytes(100)
    (tmp_path / "a.tif").write_bytes(tiff)
    (tmp_path / "b.png").write_bytes(bomb(10_000, 9_500))
    samples = encoded(image, "TIFF").replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 99))
    (tmp_path / "c.tif").write_bytes(samples)
    code = (
        "import sys; from mmneurons.vlm.pictures import open_picture; from mmneurons.errors import PictureError\n"
        "for name in sys.argv[1:]:\n    try: open_picture(name)\n    except PictureError: print('refused')"
    )
    names = [str(tmp_path / name) for name in ("a.tif", "b.png", "c.tif")]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *names], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused"] * 3
    assert done.stderr == ""


def test_warnings_of_others_and_their_filters_are_left_alone():
    before = list(warnings.filters)
    data = encoded(RGB.quantize(8), "PNG", transparency=bytes([0, 255, 128]))
    gate = threading.Barrier(4)

    def decode(_):
        gate.wait()
        for _ in range(50):
            decode_picture(data, "it")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode, range(4)))
    assert list(warnings.filters) == before
    with pictures._PILLOW_IS_QUIET, pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


def test_files_that_are_none_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for name in ("pipe.jpg", "socket.jpg", "/dev/zero", "/dev/null"):
            with pytest.raises(PictureError, match=f"'{name}' is a pipe, a socket or a device"):
                open_picture(name)


def test_what_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"123456")
    Path("loop.jpg").symlink_to("loop.jpg")
    for name, message in (
        ("nowhere.jpg", f"There is no file 'nowhere.jpg'. Check the path; it is taken from {tmp_path}."),
        (f"{tmp_path}/nowhere.jpg", f"There is no file '{tmp_path}/nowhere.jpg'. Check the path."),
        ("a.jpg/b.jpg", "There is no file 'a.jpg/b.jpg'"),
        (".", "'.' is a folder, not a picture. Pass the pictures in it one by one."),
        ("loop.jpg", "'loop.jpg' could not be read as a picture"),
        ("n" * 300, "could not be read as a picture"),
        ("nul\0.jpg", r"'nul\x00.jpg' could not be read as a picture"),
        ("half\ud800.jpg", r"'half\ud800.jpg' could not be read as a picture"),
    ):
        with pytest.raises(PictureError, match=re.escape(message)) as caught:
            open_picture(name)
        str(caught.value).encode("utf-8")
    monkeypatch.setattr(pictures, "LARGEST_FILE", 5)
    with pytest.raises(PictureError, match=r"'a\.jpg' is too large to be a picture"):
        read_file("a.jpg")


def test_no_permission(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"123456")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PictureError, match=r"a\.jpg' may not be read. Change its permissions"):
        read_file(tmp_path / "a.jpg")


def test_the_working_folder_is_gone(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PictureError, match="the folder that it was taken from is gone"):
        open_picture("dog.jpg")


def test_what_pictures_are_called():
    picture = demo.pictures()[0]
    assert picture_name(picture) == str(picture.path)
    assert np.array_equal(
        np.asarray(open_picture(picture)), np.asarray(ImageOps.exif_transpose(Image.open(picture.path)))
    )
    assert picture_name(RGB) == "a PIL image of 30 × 20"
    assert picture_name(NOISE) == "an array of shape (20, 30, 4)"
