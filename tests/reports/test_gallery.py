"""Which pictures a report shows, and what of them; and the pictures themselves, read again."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmneurons.reports.gallery import NEURONS, SIDES, WORDS, shown_pictures
from mmneurons.reports.page import segments
from mmneurons.reports.thumbnails import thumbnail
from mmneurons.sources import image_id
from reports.synthetic import Map, Sketch, Word, noise, units, write_run


def some_words(count, maps=2, grid=5):
    draw = np.random.default_rng(count)
    places = units(*((layer, 3) for layer in range(NEURONS + 4)))
    shown = [Map(draw.normal(size=(grid, grid)), rank=rank) for rank in range(maps)]
    mean = Map(draw.normal(size=(grid, grid)), first=maps)
    return [Word("word", places, [*shown, mean], start=number) for number in range(count)]


def test_the_first_pictures_with_words_are_shown_in_the_order_of_the_run(tmp_path):
    sketches = [
        Sketch("z.jpg", "a word", some_words(1)),
        Sketch("none.jpg", "nothing"),
        Sketch("bad.jpg", status="error", error="bad"),
        Sketch("copy.jpg", status="duplicate", id="id of z.jpg"),
        Sketch("y.jpg", "word word", some_words(2)),
        Sketch("a.jpg", "a word", some_words(1)),
        Sketch("b.jpg", "a word", some_words(1)),
    ]
    run = write_run(tmp_path, sketches, shard=2)
    assert [picture.source for picture in shown_pictures(run, 3)] == ["z.jpg", "y.jpg", "a.jpg"]
    assert [picture.source for picture in shown_pictures(run, 40)] == ["z.jpg", "y.jpg", "a.jpg", "b.jpg"]
    first, second = shown_pictures(run, 2)
    assert first.caption == "a word"
    assert len(first.words) == 1
    assert [word.start for word in second.words] == [0, 1]


def test_a_word_has_its_best_neurons_and_their_maps(tmp_path):
    values = np.arange(12.0).reshape(3, 4)
    maps = [Map(values, rank=1), Map(-values, rank=0), Map(values * 2, first=7), Map(values, rank=NEURONS)]
    word = Word("dogs", units(*((20 - number, number) for number in range(NEURONS + 3))), maps, lemma="dog", total=26.0)
    run = write_run(tmp_path, [Sketch("a.jpg", "two dogs", [word])])
    ((shown,),) = (picture.words for picture in shown_pictures(run, 1))
    assert (shown.word, shown.lemma, shown.start, shown.end) == ("dogs", "dog", 4, 8)
    assert [neuron.name for neuron in shown.neurons] == [f"L{20 - number}.u{number}" for number in range(NEURONS)]
    assert shown.neurons[0].share == pytest.approx(shown.neurons[0].score / 26)
    assert [(found.rank, found.first) for found in shown.maps] == [(0, None), (1, None), (None, 7)]
    assert [(found.raster.low, found.raster.high) for found in shown.maps] == [(-11, 0), (0, 11), (0, 22)]


def test_a_map_of_several_grids_is_one_map(tmp_path):
    left = Map(np.zeros((2, 2)), rank=0, rectangle=(0.0, 0.0, 30.0, 40.0), grid=0)
    right = Map(np.ones((2, 2)), rank=0, rectangle=(30.0, 0.0, 60.0, 40.0), grid=1)
    run = write_run(tmp_path, [Sketch("a.jpg", "a word", [Word("word", units((1, 1)), [right, left])])])
    (shown,) = shown_pictures(run, 1)[0].words[0].maps
    codes = shown.raster.codes
    assert (codes[:, : codes.shape[1] // 2] == 0).all()
    assert (codes[:, codes.shape[1] // 2 + 1 :] == 254).all()


def test_words_and_rasters_are_bounded(tmp_path):
    run = write_run(tmp_path, [Sketch("a.jpg", "word " * 30, some_words(WORDS + 5, maps=1, grid=2))])
    (picture,) = shown_pictures(run, 1)
    assert len(picture.words) == WORDS
    assert picture.left_out == 5
    (few,) = shown_pictures(write_run(tmp_path / "few", [Sketch("a.jpg", "word", some_words(1))]), 1)
    assert max(few.words[0].maps[0].raster.codes.shape) == SIDES[1]
    sides = {max(found.raster.codes.shape) for word in picture.words for found in word.maps}
    assert sides == {27}  # √(60 000 / 80 maps)


def word_at(start, end, text=""):
    from mmneurons.reports.gallery import ShownWord

    return ShownWord(text, text, start, end, None, None, None, "", (), ())


def test_a_caption_in_pieces_is_the_caption_again():
    caption = "An image of two dogs and a naïve 🐈‍⬛ cat."
    words = [word_at(16, 20), word_at(caption.index("cat"), len(caption) - 1), word_at(0, 2)]
    pieces = segments(caption, words)
    assert "".join(text for text, _ in pieces) == caption
    assert [(text, word) for text, word in pieces if word is not None] == [("An", 2), ("dogs", 0), ("cat", 1)]
    assert all(text for text, _ in pieces)


def test_words_that_cannot_be_marked_follow_the_caption():
    caption = "a hot dog"
    words = [word_at(2, 9), word_at(6, 9, "dog"), word_at(40, 43, "far"), word_at(3, 3, "empty")]
    pieces = segments(caption, words)
    assert "".join(text for text, _ in pieces).startswith(caption)
    assert pieces[:2] == [("a ", None), ("hot dog", 0)]
    assert {word for _, word in pieces if word is not None} == {0, 1, 2, 3}
    assert {text for text, word in pieces if word in (1, 2, 3)} == {"dog", "far", "empty"}
    assert segments("", []) == []


def decoded(shown):
    kind, _, data = shown.address.partition(";base64,")
    assert kind == "data:image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_picture_is_shown_small_and_upright(tmp_path):
    picture = noise((1200, 900), grain=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    small = decoded(thumbnail("turned.jpg", tmp_path, None, image_id(data)))
    assert small.size == (360, 480)
    expected = picture.transpose(Image.Transpose.ROTATE_270).resize((360, 480))
    assert np.abs(np.asarray(small, dtype=float) - np.asarray(expected, dtype=float)).mean() < 6


def test_a_picture_of_noise_stays_small(tmp_path):
    noise((1000, 1000), grain=1).save(tmp_path / "noise.png")
    shown = thumbnail("noise.png", tmp_path, None, image_id((tmp_path / "noise.png").read_bytes()))
    assert len(shown.address) < 150_000


def test_a_picture_that_is_gone_or_another_one_is_not_shown(tmp_path):
    noise().save(tmp_path / "a.png")
    expected = image_id((tmp_path / "a.png").read_bytes())
    assert thumbnail("a.png", tmp_path, None, expected).address
    noise(seed=1).save(tmp_path / "a.png")
    changed = thumbnail("a.png", tmp_path, None, expected)
    assert changed.address is None
    assert "no longer the one" in changed.missing
    (tmp_path / "a.png").unlink()
    gone = thumbnail("a.png", tmp_path, None, expected)
    assert gone.address is None
    assert "cannot be read any more" in gone.missing
    assert "docs/" not in gone.missing
    (tmp_path / "b.png").write_bytes(b"no picture")
    broken = thumbnail("b.png", tmp_path, None, image_id(b"no picture"))
    assert broken.address is None
    assert broken.missing
