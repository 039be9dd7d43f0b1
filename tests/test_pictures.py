import numpy as np
import pytest
from PIL import Image

from mmneurons.errors import PictureError
from mmneurons.vlm.pictures import open_picture


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
