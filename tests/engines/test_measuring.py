"""Measuring into a folder: its numbers are those of the measures, and stopping it changes nothing."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import mmneurons as mmn
from helpers.speaking import SAID, make_it_say
from helpers.tiny import tiny_llava, tiny_llava_next
from mmneurons.engines.measuring import MEASURED_FILE, measure, open_measured
from mmneurons.errors import OptionError, RunError
from mmneurons.finders import Contribution
from mmneurons.interventions import logits_without
from mmneurons.measures.causal_effect import CausalEffect
from mmneurons.measures.effects import effects
from mmneurons.measures.suites import is_sampled, suite
from mmneurons.measures.truth import Truth
from mmneurons.reports.measured import write_page


@pytest.fixture(scope="module")
def vlm():
    made = mmn.wrap(*tiny_llava())
    make_it_say(made, SAID)
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(noise.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def plan():
    whole = suite(quick=True, finders=("contribution", "total", "greedy"), measures=("causal", "region", "across"))
    return replace(whole, measures=(CausalEffect(ks=(1, 5, 20)), *whole.measures[1:]))


TABLES = ("pictures", "words", "observed", "tops")


def rows(measured) -> dict[str, pl.DataFrame]:
    """All tables, without the times."""
    tables = {name: measured.table(name) for name in TABLES}
    tables["observed"] = tables["observed"].filter(pl.col("quantity") != "seconds")
    return tables


@pytest.fixture(scope="module")
def whole(vlm, photos, plan, tmp_path_factory):
    return measure(vlm, photos, tmp_path_factory.mktemp("whole") / "out", plan)


def test_its_numbers_are_those_of_the_measures(vlm, photos, whole):
    words = whole.table("words")
    assert words["word"].to_list() == ["dog", "ball"] * 4
    path = sorted(photos.iterdir())[1]
    word = mmn.find(vlm, path)["ball"]
    places = word.neurons(20)
    logits = logits_without(word, [places[:5], places])
    expected = effects(logits, word.token_ids[0])
    source = whole.table("pictures").filter(pl.col("source").str.ends_with("1.png"))["image_id"][0]
    key = words.filter((pl.col("image_id") == source) & (pl.col("word") == "ball"))["word_id"][0]
    own = whole.table("observed").filter((pl.col("word_id") == key) & (pl.col("finder") == "contribution"))
    for k, fall in ((5, expected.fall[0]), (20, expected.fall[1])):
        value = own.filter((pl.col("quantity") == "fall") & (pl.col("k") == k))["value"][0]
        assert value == pytest.approx(float(fall), abs=1e-4)
    tops = whole.table("tops").filter((pl.col("word_id") == key) & (pl.col("finder") == "contribution"))
    width = vlm.anatomy.width
    assert tops["neurons"][0].to_list()[:20] == [block * width + column for block, column in places]


def test_stopped_and_started_again_it_has_the_same_tables(vlm, photos, plan, whole, tmp_path):
    out = tmp_path / "out"

    def stop(told):
        if told.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(vlm, photos, out, plan, progress=stop)
    assert open_measured(out).table("pictures").height == 2
    cut_off = out / "parts" / ".half"
    cut_off.mkdir()
    (cut_off / "words.parquet").write_bytes(b"half")
    told = []
    again = measure(vlm, photos, out, plan, progress=told.append)
    assert not cut_off.exists()
    assert told[-1].done == told[-1].total == 4
    assert told[-1].words == 8
    for name, table in rows(again).items():
        assert table.equals(rows(whole)[name]), name
    pages = [write_page(one, plan, None, None, draws=50).read_text() for one in (whole, again)]
    # times differ: the columns of seconds are left out of the comparison
    shown = [re.sub(r"### Finders compared.*?(?=###)", "", page, flags=re.S) for page in pages]
    assert shown[0] == shown[1]
    for folder in ("tables", "figures"):
        files = [sorted(path.name for path in (one.path / folder).iterdir()) for one in (whole, again)]
        assert files[0] == files[1]
    assert (again.path / "figures" / "fall.svg").read_bytes() == (whole.path / "figures" / "fall.svg").read_bytes()


def test_a_page_has_controls_intervals_and_verdicts(whole, plan):
    page = write_page(whole, plan, None, None, draws=50).read_text()
    assert "8 words of 4 pictures" in page
    for row in ("contribution", "total", "greedy", "random"):
        assert f"\n| {row} | " in page
    assert "By chance" in page
    assert "| verdict |" in page
    frame = pl.read_parquet(whole.path / "tables" / "fall.parquet")
    own = frame.filter((pl.col("row") == "contribution") & (pl.col("column") == "k = 20"))
    observed = whole.table("observed").filter(
        (pl.col("quantity") == "fall") & (pl.col("k") == 20) & (pl.col("finder") == "contribution")
    )
    assert own["value"][0] == pytest.approx(observed["value"].mean())
    assert own["low"][0] <= own["value"][0] <= own["high"][0]
    assert own["words"][0] == 8


def test_another_question_is_refused(vlm, photos, whole, plan):
    other = suite(quick=True, finders=("activation",), measures=("causal",))
    with pytest.raises(RunError, match=r"other finders or measures \(there → asked\): .*'total'.* → nothing; "):
        measure(vlm, photos, whole.path, other)
    with pytest.raises(RunError, match=r"other options \(there → asked\): words: nothing → \['dog'\]; seed: 0 → 3\."):
        measure(vlm, photos, whole.path, plan, seed=3, words=["dog"])
    with pytest.raises(RunError, match=r"another model \(there → asked\): .*'LlavaForCond.* → 'LlavaNextForCond"):
        measure(mmn.wrap(*tiny_llava_next()), photos, whole.path, plan)
    causal = plan.about["measures"]["causal"]
    longer = {**plan.about, "measures": {**plan.about["measures"], "causal": causal.replace("longer=8", "longer=9")}}
    with pytest.raises(RunError, match=r"measures 'causal': …[^;]*, longer=8\)\W → …[^;]*, longer=9\)\W\."):
        measure(vlm, photos, whole.path, replace(plan, about=longer))


def test_more_pictures_of_the_same_truth(vlm, photos, tmp_path, plan):
    truths = {f"{k}.png": Truth(f"{k}.png", ("dog",)) for k in range(4)}
    out = tmp_path / "out"
    assert measure(vlm, photos, out, plan, truths=truths, limit=1).table("pictures").height == 1
    assert measure(vlm, photos, out, plan, truths=truths, limit=2).table("pictures").height == 2
    other = truths | {"0.png": Truth("0.png", ("cat",))}
    with pytest.raises(RunError, match=r"other options \(there → asked\): truth"):
        measure(vlm, photos, out, plan, truths=other, limit=2)
    with pytest.raises(RunError, match="truth"):
        measure(vlm, photos, out, plan, limit=2)


def test_a_folder_of_before_whose_truth_is_of_the_chosen_pictures_alone(vlm, photos, tmp_path, plan):
    truths = {f"{k}.png": Truth(f"{k}.png", ("dog",)) for k in range(4)}
    out = tmp_path / "out"
    measured = measure(vlm, photos, out, plan, truths=truths, limit=1)
    about = json.loads((out / MEASURED_FILE).read_text())
    # as it was written then
    chosen = repr(sorted({"0.png": truths["0.png"]}.items()))
    about["options"]["truth"] = hashlib.sha256(chosen.encode()).hexdigest()[:16]
    (out / MEASURED_FILE).write_text(json.dumps(about))
    again = measure(vlm, photos, out, plan, truths=truths, limit=1)
    assert again.table("observed").equals(measured.table("observed"))
    with pytest.raises(RunError, match="truth"):
        measure(vlm, photos, out, plan, truths={"0.png": Truth("0.png", ("cat",))}, limit=1)


def test_a_folder_in_which_no_word_was_measured_keeps_nothing_out(vlm, photos, tmp_path, plan):
    out = tmp_path / "out"
    measure(vlm, photos, out, plan, words=["unicorn"], limit=2)
    measured = measure(vlm, photos, out, plan, words=["dog"], limit=1)
    assert measured.table("words")["word"].to_list() == ["dog"]
    assert measured.table("pictures").height == 1
    with pytest.raises(RunError, match=r"words: \['dog'\] → \['unicorn'\]"):
        measure(vlm, photos, out, plan, words=["unicorn"], limit=1)


def test_copies_are_measured_once(vlm, photos, tmp_path, plan):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, own in (("a", 0), ("b", 1), ("c", 0)):
        (folder / f"{name}.png").write_bytes((photos / f"{own}.png").read_bytes())
    out = tmp_path / "out"
    measured = measure(vlm, folder, out, plan)
    pictures = measured.table("pictures").sort("source")
    assert [caption is None for caption in pictures["caption"]] == [False, False, True]
    assert pictures["image_id"][0] == pictures["image_id"][2]
    assert pictures["error"].is_null().all()
    assert measured.table("words").height == 4
    page = write_page(measured, plan, None, None, draws=50).read_text()
    assert "4 words of 2 pictures" in page
    assert "1 picture is a copy of another one" in page
    # a folder of before holds the words of copies, too
    first = next(part for part in (out / "parts").iterdir() if pl.read_parquet(part / "words.parquet").height)
    shutil.copytree(first, out / "parts" / "again")
    before = write_page(open_measured(out), plan, None, None, draws=50).read_text()
    assert "4 words of 2 pictures" in before
    assert "2 pictures are copies of others" in before
    tables = [re.findall(r"### Causal effect: log p.*?(?=###)", one, flags=re.S) for one in (page, before)]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1]


def garbage(file):
    file.write_bytes(b"no table")


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-20])


def middle(file):
    data = bytearray(file.read_bytes())
    data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)
    file.write_bytes(bytes(data))


def of_something_else(file):
    pl.DataFrame({"a": [1]}).write_parquet(file)


@pytest.mark.parametrize("name", [*TABLES, "answers"])
@pytest.mark.parametrize("harm", [garbage, cut_off, of_something_else, Path.unlink])
def test_a_damaged_part_is_named(whole, plan, tmp_path, name, harm):
    out = tmp_path / "out"
    shutil.copytree(whole.path, out)
    part = sorted((out / "parts").iterdir())[1]
    harm(part / f"{name}.parquet")
    with pytest.raises(RunError, match=re.escape(f"{name}.parquet' ")) as caught:
        open_measured(out).table(name)
    assert f"Delete the folder {str(part)!r}" in str(caught.value)


def test_a_page_of_a_damaged_part_and_what_mends_it(vlm, photos, whole, plan, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole.path, out)
    part = sorted((out / "parts").iterdir())[1]
    middle(part / "observed.parquet")
    with pytest.raises(RunError, match=r"observed\.parquet"):
        write_page(measure(vlm, photos, out, plan), plan, None, None, draws=50)
    (part / "observed.parquet").unlink()
    with pytest.raises(RunError, match=r"observed\.parquet' is gone"):
        measure(vlm, photos, out, plan)
    shutil.rmtree(part)
    mended = measure(vlm, photos, out, plan)
    for name, table in rows(mended).items():
        assert table.equals(rows(whole)[name]), name
    (out / MEASURED_FILE).write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        open_measured(out)


def test_a_picture_that_cannot_be_read_is_a_row(vlm, photos, tmp_path, plan):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes((photos / "0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    measured = measure(vlm, folder, tmp_path / "out", plan)
    assert [error is None for error in measured.table("pictures").sort("source")["error"]] == [True, False]
    assert "1 picture failed; the first: PictureError" in write_page(measured, plan, None, None, draws=50).read_text()


def test_nothing_to_measure_is_said(vlm, photos, tmp_path, plan):
    measured = measure(vlm, photos, tmp_path / "out", plan, words=["unicorn"], limit=1)
    with pytest.raises(RunError, match="No word of 1 picture could be measured"):
        write_page(measured, plan, None, None)
    with pytest.raises(OptionError, match="other pictures"):
        measure(vlm, photos, tmp_path / "other", plan, truths={"x.jpg": Truth("x.jpg", ("dog",))})
    assert not (tmp_path / "other").exists()
    with pytest.raises(RunError, match=MEASURED_FILE):
        open_measured(tmp_path)
    huge = replace(plan, measures=(CausalEffect(ks=(1,), at=10**6),))
    many = measure(vlm, photos, tmp_path / "many", huge, limit=1)
    with pytest.raises(RunError, match="k = 1000000 is not possible"):
        write_page(many, huge, None, None)


def test_a_folder_of_something_else_is_left_alone(vlm, photos, tmp_path, plan):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="other files"):
        measure(vlm, photos, tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_asked_stands_in_the_folder(whole, plan):
    about = json.loads((whole.path / MEASURED_FILE).read_text())
    assert about["suite"] == json.loads(json.dumps(dict(plan.about)))
    assert about["suite"]["finders"]["contribution"] == repr(Contribution())


def test_suites_and_samples():
    with pytest.raises(OptionError, match="no suite"):
        suite("pan2025")
    with pytest.raises(OptionError, match="no measure"):
        suite(measures=("luck",))
    with pytest.raises(OptionError, match="no finder"):
        suite(finders=("luck",))
    with pytest.raises(OptionError, match="encoder"):
        suite(measures=("sensitivity",))
    assert "paper (gate, no norm)" not in suite(gated=False).finders
    with pytest.raises(OptionError, match="gate"):
        suite(gated=False, finders=("paper (gate, no norm)",))
    assert "random" in suite(finders=("total",)).finders
    chosen = [is_sampled(str(word), 4) for word in range(2000)]
    assert 430 < sum(chosen) < 570
    assert all(is_sampled(str(word), 1) for word in range(20))
