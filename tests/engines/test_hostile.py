"""A folder full of hostile files: each ends as one row, names survive, and the run goes on."""

import os
import re
import time

import pytest
from PIL import Image

import mmneurons as mmn
from helpers.hostile import write_hostile
from helpers.speaking import make_it_say
from helpers.tiny import tiny_llava
from mmneurons.sources import gather, image_id, open_source

COUNT = 200


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    kinds = write_hostile(folder / "photos", seed=0, count=COUNT)
    Image.new("RGB", (60, 60), "red").save(folder / "photos" / "good.png")
    vlm = mmn.wrap(*tiny_llava())
    make_it_say(vlm, "An image of a dog and a ball.")
    started = time.perf_counter()
    run = mmn.run(vlm, folder / "photos", folder / "run")
    return folder, kinds, run, time.perf_counter() - started


def test_every_file_is_one_row(hostile_run):
    folder, kinds, run, _ = hostile_run
    images = run.images.collect()
    sources = images["source"].to_list()
    assert len(kinds) == COUNT
    assert len(sources) == len(set(sources)) == COUNT + 1
    # two names that look alike as text, one of them no UTF-8, are told apart by a number
    bare = sorted(re.sub(r" \(\d+\)$", "", source.removeprefix(f"{folder}/photos/")) for source in sources)
    assert bare == sorted(os.fsencode(name).decode("utf-8", "backslashreplace") for name in [*kinds, "good.png"])
    assert set(images["status"]) <= {"ok", "error", "duplicate"}
    assert images.filter(images["source"].str.ends_with("good.png"))["status"].to_list() == ["ok"]


def test_good_ones_are_explained_and_bad_ones_say_why(hostile_run):
    folder, kinds, run, _ = hostile_run
    images = run.images.collect()
    status = dict(zip(images["source"], images["status"], strict=True))
    for item in gather([folder / "photos"]):
        kind = kinds.get(item.place.removeprefix(f"{folder}/photos/"), "good")
        allowed = {"good": {"ok", "duplicate"}, "bad": {"error"}, "either": {"ok", "duplicate", "error"}}
        if item.source.endswith(("20000x10.png", "10x20000.png")):
            kind = "bad: too long and thin to be processed"
        assert status[item.source] in allowed[kind.split(":")[0]], (item.source, kind)
    bad = images.filter(images["status"] == "error")
    assert bad["error"].null_count() == 0
    assert all(len(error) > len("PictureError: ") for error in bad["error"])
    good = images.filter(images["status"] == "ok")
    assert good["error"].null_count() == good.height > 20
    words = run.words.collect()
    assert words.height == 2 * good.height
    assert set(words["image_id"]) == set(good["image_id"])


def test_names_survive_into_what_is_shown(hostile_run):
    from mmneurons.runs.printing import pages

    _, _, run, _ = hostile_run
    for page in pages(run):
        shown = str(page)
        assert all(character.isprintable() or character == "\n" for character in shown)
        assert page.to_dict()["source"] == page.source


def test_they_can_be_read_again_by_their_names(hostile_run):
    _, _, run, _ = hostile_run
    images = run.images.collect()
    for row in images.filter(images["image_id"].is_not_null()).iter_rows(named=True):
        assert image_id(open_source(row["source"], run.folder)) == row["image_id"]
