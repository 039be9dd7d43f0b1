"""Which pictures an edit is made of: one or many, named twice, bundled, recorded already."""

import pytest
from PIL import Image

import mmneurons as mmn
from helpers import tiny
from helpers.speaking import SAID, make_it_say
from mmneurons.edits.least_squares import LeastSquares
from mmneurons.errors import EditError, OptionError, PictureError, RecordingError


@pytest.fixture(scope="module")
def speaker():
    """A tiny model that says "a dog and a ball" of everything."""
    vlm = mmn.wrap(*tiny.tiny_llava())
    make_it_say(vlm, SAID)
    return vlm


@pytest.fixture
def captioned(monkeypatch):
    """How many pictures were captioned, call by call."""
    from mmneurons.edits import make

    counts, real = [], make.record_pictures

    def counting(vlm, pictures, **options):
        counts.append(len(pictures))
        return real(vlm, pictures, **options)

    monkeypatch.setattr(make, "record_pictures", counting)
    return counts


@pytest.fixture
def files(tmp_path):
    """Three pictures, and a copy of the first in another format."""
    paths = []
    for index, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (40, 40), colour).save(paths[-1])
    Image.open(paths[0]).save(tmp_path / "copy.bmp")
    return [*paths, tmp_path / "copy.bmp"]


def test_a_picture_is_captioned_and_counts_once(speaker, files, captioned):
    first, second, third, copy = files
    same = Image.open(first)
    ball = [mmn.record(speaker, one, caption="An image of a ball.") for one in (second, second, third)]
    edit = mmn.edit(
        speaker, "dog", "cat", pictures=[first, copy, same, str(second)], keep=[*ball, ball[0]], bundled=False
    )
    assert captioned == [2]
    assert edit.recipe["captions"] == [SAID, SAID]
    assert edit.recipe["kept captions"] == 2
    changed, of = edit.kept_changed
    assert of == 2
    assert repr(edit).endswith(f", {changed} of 2 kept captions changed)")


def test_one_picture_is_one(speaker, files, captioned):
    ball = mmn.record(speaker, files[1], caption="An image of a ball.")
    for one in (files[0], str(files[0]), Image.open(files[0])):
        edit = mmn.edit(speaker, "dog", "cat", pictures=one, keep=ball, bundled=False)
        assert (edit.recipe["captions"], edit.kept_changed[1]) == ([SAID], 1)
    assert captioned == [1, 1, 1]
    with pytest.raises(PictureError, match="not a int"):
        mmn.edit(speaker, "dog", "cat", pictures=5)


def test_bundled_pictures_by_their_name(speaker, captioned):
    count = len(mmn.demo.pictures())
    edit = mmn.edit(speaker, "dog", "cat", pictures="demo:pictures")
    assert captioned == [count]
    assert edit.recipe["captions"] == [SAID] * count
    with pytest.raises(EditError, match="must stay as it is says 'dog'"):
        mmn.edit(speaker, "dog", "cat", pictures="demo:pictures", keep="demo:pictures/dog.jpg")


def test_a_method_is_recorded_by_its_name(speaker, files):
    edit = mmn.edit(speaker, "dog", "cat", pictures=files[0], bundled=False, method=LeastSquares(margin=3.0))
    assert edit.recipe["method"] == "least_squares"

    class Own(LeastSquares):
        pass

    edit = mmn.edit(speaker, "dog", "cat", pictures=files[0], bundled=False, method=Own())
    assert edit.recipe["method"] == "Own"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"margin": "abc"}, "margin='abc' is not possible: it has to be a number."),
        ({"margin": True}, "margin=True is not possible: it has to be a number."),
        ({"blocks": ("last",)}, "it has to be a whole number, or a list of such."),
        ({"columns": 2.5}, "columns=2.5 is not possible: it has to be a whole number or None."),
        ({"depth": 3}, "Its options are: blocks=(-1,), columns=None, margin=12.0,"),
    ],
)
def test_options_of_another_type(speaker, files, options, says):
    with pytest.raises(OptionError) as caught:
        mmn.edit(speaker, "dog", "cat", pictures=files[0], **options)
    assert says in str(caught.value)


def test_whole_numbers_are_numbers_and_one_block_is_a_list_of_it(speaker, files):
    edit = mmn.edit(speaker, "dog", "cat", pictures=files[0], bundled=False, margin=8, blocks=0)
    assert (edit.recipe["options"]["margin"], edit.recipe["options"]["blocks"]) == (8.0, [0])
    assert [delta.block for delta in edit.deltas] == [0]


def test_a_word_of_the_prefix(speaker, files):
    with pytest.raises(EditError, match="but in the prefix 'An image of'"):
        mmn.edit(speaker, "image", "photo", pictures=files[0])


def test_a_model_that_cannot_be_run_with_something_added(speaker, files, monkeypatch):
    """That is an error, and no edit that did not converge."""

    def refused(*_arguments, **_options):
        raise RecordingError("The output head was passed by.")

    monkeypatch.setattr("mmneurons.edits.solution.upper", refused)
    with pytest.raises(RecordingError, match="passed by"):
        mmn.edit(speaker, "dog", "cat", pictures=files[0], bundled=False, method="erase")


@pytest.mark.demo
def test_own_pictures_are_kept_beside_the_bundled_ones(demo, monkeypatch, captioned):
    some = {picture.path.name: picture for picture in mmn.demo.pictures()}
    dog, bundled, own = some["dog.jpg"], [some[n] for n in ("tractor.jpg", "dog-bone.jpg")], some["elephant.jpg"]
    monkeypatch.setattr("mmneurons.demo.pictures", lambda: [dog, *bundled])
    edit = mmn.edit(demo, "dog", "cat", pictures=dog, keep=[own, bundled[0]])
    assert captioned == [1, 2, 1]
    # the tractor and the elephant; the dog with its bone says the word
    assert edit.kept_changed == (0, 2)
    assert mmn.edit(demo, "dog", "cat", pictures=dog, keep=own, bundled=False).kept_changed == (0, 1)
