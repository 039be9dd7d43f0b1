"""Reading a picture, whatever it comes as."""

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmneurons.errors import PictureError

__all__ = ["PictureLike", "open_picture", "picture_name"]

PictureLike: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"
"""A path, a PIL image, or an array: (height, width), or (height, width, 1, 3 or 4), uint8, or floats from 0 to 1."""


def open_picture(picture: PictureLike) -> Image.Image:
    """Return the picture as RGB, turned as its camera says, on white where it is transparent.

    Raises:
        PictureError: there is no such file, it is not a picture, or the array is not one.
    """
    if isinstance(picture, Image.Image):
        image = picture
    elif isinstance(picture, np.ndarray):
        image = _from_array(picture)
    elif isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise PictureError(
            f"{picture!r} is an address. Addresses are not fetched: download the picture and pass its path."
        )
    elif isinstance(picture, str | os.PathLike):
        image = _from_file(Path(picture))
    else:
        raise PictureError(f"A picture is a path, a PIL image or an array, not a {type(picture).__name__}.")
    return _to_rgb(ImageOps.exif_transpose(image))


def picture_name(picture: PictureLike) -> str:
    """What to call a picture in messages: its path, or what it is."""
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    if isinstance(picture, Image.Image):
        return f"a PIL image of {picture.width} × {picture.height}"
    return f"an array of shape {picture.shape}"


def _from_file(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise PictureError(f"There is no file {str(path)!r}. Check the path; it is taken from {Path.cwd()}.") from error
    except IsADirectoryError as error:
        raise PictureError(f"{str(path)!r} is a folder, not a picture. Pass the pictures in it one by one.") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{str(path)!r} is not a picture of a kind that Pillow knows.") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{str(path)!r} claims to be too large to open safely: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{str(path)!r} could not be read as a picture: {error}") from error
    return image


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        image = Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")
