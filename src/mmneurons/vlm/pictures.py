"""Reading a picture, whatever it comes as."""

import ctypes
import hashlib
import io
import logging
import os
import stat
import struct
import threading
import warnings
import zlib
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmneurons.errors import PictureError

__all__ = ["LARGEST_FILE", "PictureLike", "decode_picture", "open_picture", "picture_name", "pixel_digest", "read_file"]

PictureLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"
"""A path, a PIL image, or an array: (height, width), or (height, width, 1, 3 or 4), uint8, or floats from 0 to 1."""

LARGEST_FILE = 2**30
"""Bytes. More than any picture takes that is not above Pillow's limit of pixels."""

KINDS = frozenset(
    {
        *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD"),
        *("QOI", "SGI", "TGA", "TIFF", "WEBP"),
    }
)
"""What is opened of the kinds that Pillow knows by itself; what a plug-in adds is opened, too.

Left out are drawings, for which Pillow starts other programs (EPS, WMF), kinds that it cannot decode, and rare ones
whose readers take for a picture what is none.
"""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112

_DAMAGED_DATA = (
    *(
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
    ),
    *(struct.error, zlib.error),
)

# without a handler, Python would print what Pillow logs of damaged files
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_picture(picture: PictureLike) -> Image.Image:
    """Return the picture as RGB, turned as its camera says, on white where it is transparent.

    Raises:
        PictureError: there is no such file, it is not a picture, or the array is not one.
    """
    if isinstance(picture, Image.Image):
        return _finish(picture, picture_name(picture))
    if isinstance(picture, np.ndarray):
        return _finish(_from_array(picture), picture_name(picture))
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise PictureError(
            f"{picture!r} is an address. Addresses are not fetched: download the picture and pass its path."
        )
    if isinstance(picture, str | os.PathLike):
        name = picture_name(picture)
        return decode_picture(read_file(picture, name), name)
    raise PictureError(f"A picture is a path, a PIL image or an array, not a {type(picture).__name__}.")


def decode_picture(data: bytes, name: str) -> Image.Image:
    """Return the picture that a file's bytes hold, as ``open_picture`` does for a file: of several frames the first.

    Args:
        data: the file's bytes.
        name: what to call it in messages.

    Raises:
        PictureError: they are not a picture, are damaged, or claim more pixels than Pillow's ``MAX_IMAGE_PIXELS``.
    """
    label = repr(name)
    if not data:
        raise PictureError(f"{label} could not be read as a picture: it is empty, 0 bytes.")
    Image.init()
    _hush_libtiff()
    kinds = [kind for kind in Image.ID if _is_opened(kind)]
    with _PILLOW_IS_QUIET:
        try:
            image = Image.open(io.BytesIO(data), formats=kinds)
        except UnidentifiedImageError as error:
            raise PictureError(_not_opened(data, label)) from error
        except Image.DecompressionBombError as error:
            raise PictureError(f"{label} claims to be too large to open safely: {error}") from error
        # damaged files make Pillow's readers raise errors of nearly every class
        except Exception as error:
            raise PictureError(_damaged(label, error)) from error
    _check_size(image, label)
    finished = _finish(image, label)
    # an icon may hold more than it claims
    _check_size(finished, label)
    return finished


def read_file(path: str | os.PathLike[str], name: str | None = None) -> bytes:
    """Return the bytes of an ordinary file; never wait for a pipe or a device.

    Args:
        path: the file.
        name: what to call it in messages; by default its path.

    Raises:
        PictureError: there is no such file, it may not be read, it is a folder, a pipe, a socket or a device, or it is
            larger than ``LARGEST_FILE``.
    """
    label = repr(os.fspath(path) if name is None else name)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{label} is a pipe, a socket or a device, and no file. Copy what it holds into a file.")
        if status.st_size > LARGEST_FILE:
            raise PictureError(f"{label} is too large to be a picture: more than {LARGEST_FILE // 2**20} MiB.")
        # should a pipe have taken its place by now, this does not wait for it
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError(f"There is no file {label}. Check the path{_taken_from(path)}.") from error
    except IsADirectoryError as error:
        raise PictureError(f"{label} is a folder, not a picture. Pass the pictures in it one by one.") from error
    except PermissionError as error:
        raise PictureError(f"{label} may not be read. Change its permissions or its folder's.") from error
    except (OSError, ValueError, MemoryError) as error:
        raise PictureError(_damaged(label, error)) from error


def picture_name(picture: PictureLike) -> str:
    """What to call a picture in messages: its path, or what it is."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    if isinstance(picture, Image.Image):
        return f"a PIL image of {picture.width} × {picture.height}"
    return f"an array of shape {picture.shape}"


class _Quiet:
    """Keeps Pillow's warnings from being shown while any thread is inside.

    The filters are the whole process's: threads that each saved and restored them would restore each other's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|mmneurons\.vlm\.pictures$")
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(kind, error, traceback)


_PILLOW_IS_QUIET = _Quiet()


def pixel_digest(image: Image.Image) -> str:
    """16 hex digits that are the same for pictures that show the same, whatever file they came from."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def _taken_from(path: str | os.PathLike[str]) -> str:
    """What a relative path is relative to, as the end of a sentence."""
    try:
        return "" if os.path.isabs(path) else f"; it is taken from {os.fsencode(Path.cwd()).decode(errors='replace')}"
    except FileNotFoundError:
        return "; the folder that it was taken from is gone"


@cache
def _hush_libtiff() -> None:
    """Keep libtiff from writing to the terminal about every damaged file; Pillow raises an error all the same.

    Pillow does this for its warnings, but not for its errors. Where libtiff is linked in without a name, it goes on.
    """
    try:
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
    except (AttributeError, OSError):
        return


def _is_opened(kind: str) -> bool:
    return kind in KINDS or not Image.OPEN[kind][0].__module__.startswith("PIL.")


def _not_opened(data: bytes, label: str) -> str:
    """Why nothing that may be opened took these bytes."""
    begins = [kind for kind in Image.ID if _begins_as(kind, data[:16])]
    if any(_is_opened(kind) for kind in begins):
        return f"{label} could not be read as a picture: it begins as {begins[0]} does, but is damaged."
    if begins:
        return f"{label} is of the kind {' or '.join(begins)}, which is not opened. Convert it to PNG or JPEG."
    return f"{label} is not a picture of a kind that Pillow knows."


def _begins_as(kind: str, beginning: bytes) -> bool:
    accepts = Image.OPEN[kind][1]
    try:
        return accepts is not None and accepts(beginning) is True
    except (LookupError, SyntaxError, TypeError, struct.error):
        return False


def _check_size(image: Image.Image, label: str) -> None:
    # Pillow itself decodes up to twice its limit, and warns
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise PictureError(
            f"{label} claims to be too large to open safely: {image.width} × {image.height} pixels, more than "
            f"{limit:,}. Scale it down."
        )


def _damaged(label: str, error: Exception) -> str:
    return f"{label} could not be read as a picture: {str(error) or type(error).__name__}"


def _finish(image: Image.Image, label: str) -> Image.Image:
    """The pixels, upright, as RGB."""
    with _PILLOW_IS_QUIET:
        try:
            image.load()
            return _to_rgb(_upright(image), label)
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            raise PictureError(f"{label} claims to be too large to open safely: {error}") from error
        except Exception as error:
            raise PictureError(_damaged(label, error)) from error


def _upright(image: Image.Image) -> Image.Image:
    # Pillow's own exif_transpose writes the rest of the data anew, and fails where that is damaged
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED_DATA:
        return image
    return image if turn is None else image.transpose(turn)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise PictureError(
            f"An array of shape {array.shape} is not a picture: pass (height, width), or (height, width, 3 or 4)."
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise PictureError("An array of floats should hold numbers from 0 to 1; divide by 255, or pass uint8.")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise PictureError(f"An array of {array.dtype} is not a picture: pass uint8, or floats from 0 to 1.")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if 0 in image.size:
        raise PictureError(f"{label} could not be read as a picture: it has no pixels, {image.width} × {image.height}.")
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image, label)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image, label: str) -> Image.Image:
    """A grey picture of more than eight bits: whole numbers from 0 to 65535, or floats from 0 to 1."""
    values = np.asarray(image)
    if values.size and not (values.min() >= 0 and values.max() <= (1 if image.mode == "F" else 65535)):
        allowed = "floats from 0 to 1" if image.mode == "F" else "whole numbers from 0 to 65535"
        raise PictureError(
            f"{label} could not be read as a picture: it holds numbers from {values.min()} to {values.max()}, and grey "
            f"pictures should hold {allowed}. Scale them."
        )
    if image.mode == "F":
        grey = (values * 255).round().astype(np.uint8)
    else:
        grey = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)[values]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
