"""Listing as such: order, draws, names, options, reading again."""

import os
import pickle
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from helpers.hostile import write_hostile
from mmneurons import demo
from mmneurons.errors import OptionError, PictureError, SourceError
from mmneurons.sources import SOURCES, Item, gather, image_id, open_source
from mmneurons.vlm.pictures import decode_picture


@pytest.fixture
def ten(tmp_path, monkeypatch):
    """Ten files, each holding its name, and the working folder beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ten").mkdir()
    for number in range(10):
        (tmp_path / "ten" / f"{number}.jpg").write_text(str(number))
    return "ten"


def sources(items):
    return [item.source for item in items]


def test_limit_takes_the_first(ten):
    assert sources(gather([ten], limit=3)) == ["ten/0.jpg", "ten/1.jpg", "ten/2.jpg"]
    assert len(gather([ten], limit=99)) == 10


def test_sample_is_drawn_once_for_a_seed_and_keeps_the_order(ten):
    drawn = [tuple(sources(gather([ten], sample=4, seed=seed))) for seed in range(60)]
    assert drawn == [tuple(sources(gather([ten], sample=4, seed=seed))) for seed in range(60)]
    assert all(len(set(each)) == 4 and list(each) == sorted(each) for each in drawn)
    assert len(set(drawn)) > 30
    assert set().union(*drawn) == set(sources(gather([ten])))
    assert sources(gather([ten], sample=4, seed=5, limit=2)) == list(drawn[5][:2])
    assert len(gather([ten], sample=99)) == 10


@pytest.mark.parametrize("option", ["limit", "sample"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
def test_impossible_counts(ten, unchecked, option, value):
    with pytest.raises(OptionError, match=option):
        gather([ten], **{option: value})


def test_options_that_mean_nothing_to_what_is_named(ten):
    with pytest.raises(OptionError, match="images='ten' is for an annotation file"):
        gather([ten], images="ten")
    with pytest.raises(OptionError, match="column='image' is for a table"):
        gather([ten], column="image")


def test_what_is_named_twice_is_listed_once_where_it_comes_first(ten, tmp_path):
    (tmp_path / "link").symlink_to("ten", target_is_directory=True)
    named = ["ten/7.jpg", "ten", "./ten/", str(tmp_path / "ten"), "ten/../ten/3.jpg", "link", "ten/*.jpg", "ten/7.jpg"]
    assert sources(gather(named)) == ["ten/7.jpg", *(f"ten/{number}.jpg" for number in range(10) if number != 7)]


def test_one_name_is_as_good_as_a_list(ten):
    assert sources(gather(ten)) == sources(gather(Path(ten))) == sources(gather([Path(ten)]))


def test_nothing_is_named():
    with pytest.raises(SourceError, match="No pictures are named"):
        gather([])


def test_items_read_and_travel_between_processes(ten):
    for item in gather([ten]):
        assert isinstance(item, Item)
        assert pickle.loads(pickle.dumps(item)).read() == item.read() == Path(item.source).read_bytes()


def test_read_again_from_another_folder(ten, tmp_path, monkeypatch):
    listed = [(item.source, item.read()) for item in gather([ten, str(tmp_path / "ten" / "3.jpg"), "demo:pictures"])]
    monkeypatch.chdir("/")
    for source, data in listed:
        assert open_source(source, tmp_path) == data
    (tmp_path / "ten" / "3.jpg").unlink()
    with pytest.raises(PictureError, match=r"There is no file 'ten/3\.jpg'"):
        open_source("ten/3.jpg", tmp_path)


def test_image_ids_are_the_sha_of_the_bytes():
    assert image_id(b"dog") == sha256(b"dog").hexdigest()[:32]
    assert len(image_id(b"")) == 32


def test_the_bundled_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = demo.pictures()
    items = gather(["demo:pictures"])
    assert sources(items) == [f"demo:pictures/{picture.path.name}" for picture in bundled]
    assert items[2].read() == bundled[2].path.read_bytes()
    one = items[4].source
    assert sources(gather([one, "demo:pictures/"])) == [one, *(source for source in sources(items) if source != one)]
    assert sources(gather(["demo:pictures", str(bundled[0].path)])) == sources(items)
    for wrong in ("demo:pictures/no-such.jpg", "demo:other", "demo:"):
        with pytest.raises(SourceError, match="There is no bundled picture"):
            gather([wrong])
        with pytest.raises(PictureError, match="no bundled picture"):
            open_source(wrong, tmp_path)


def test_what_is_there_is_taken_as_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo:pictures").write_bytes(b"mine")
    (tmp_path / "[ab]*.jpg").write_bytes(b"signs")
    (tmp_path / "a.jpg").write_bytes(b"a")
    assert [item.read() for item in gather(["demo:pictures", "[ab]*.jpg"])] == [b"mine", b"signs"]
    assert open_source("demo:pictures", tmp_path) == b"mine"


def test_names_are_text_and_none_is_given_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        rb"a\xff.jpg",
        b"a\xff.jpg",
        b"a\xff\\xfe.jpg",
        b"a\\xff\xfe.jpg",
        b"line\nfeed \"'.jpg",
        "🐕.jpg".encode(),
    ]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(name)
    items = gather(["."])
    assert sorted(item.read() for item in items) == sorted(names)
    assert len({item.source for item in items}) == len(names)
    for item in items:
        assert item.source.encode("utf-8")
        assert pickle.loads(pickle.dumps(item)).read() == item.read()
        # a sign and a byte that are written alike cannot be told apart again
        if item.read() not in names[2:4]:
            assert open_source(item.source, tmp_path) == item.read()


def test_hostile_files_are_each_listed_once_and_read_or_refused(tmp_path):
    written = write_hostile(tmp_path, seed=3, count=300)
    assert len(written) == 300
    items = gather([tmp_path])
    assert sorted(item.place for item in items) == sorted(str(tmp_path / name) for name in written)
    assert len({item.source for item in items}) == 300
    outcomes = {}
    for item in items:
        try:
            data = item.read()
            assert open_source(item.source, Path("/")) == data
            decode_picture(data, item.source)
            outcomes[item.place] = "good"
        except PictureError as error:
            str(error).encode("utf-8")
            outcomes[item.place] = "bad"
    for name, kind in written.items():
        expected = kind.split(":")[0]
        assert expected in ("either", outcomes[str(tmp_path / name)]), (name, kind)
    assert set(outcomes.values()) == {"good", "bad"}


def test_importing_and_listing_load_nothing_heavy(ten):
    code = (
        "import sys; from mmneurons.sources import gather; items = gather(['ten', 'demo:pictures']); "
        "print(len(items), *{name.split('.')[0] for name in sys.modules})"
    )
    count, *loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert int(count) > 10
    assert not {"torch", "transformers", "numpy", "PIL", "polars", "pyarrow"} & set(loaded)


def test_every_kind_is_registered():
    claimed = {name: next(kind for kind in SOURCES if kind.claims(name)) for name in ("demo:pictures", "x.jpg")}
    assert claimed["demo:pictures"] is SOURCES[0]
    assert claimed["x.jpg"] is SOURCES[-1]
