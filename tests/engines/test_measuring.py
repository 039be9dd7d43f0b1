"""Measuring into a folder: its numbers are those of the measures, and stopping it changes nothing."""

import json
import re
from dataclasses import replace

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
    with pytest.raises(RunError, match="another suite"):
        measure(vlm, photos, whole.path, other)
    with pytest.raises(RunError, match="another options"):
        measure(vlm, photos, whole.path, plan, seed=3)
    with pytest.raises(RunError, match="another model"):
        measure(mmn.wrap(*tiny_llava_next()), photos, whole.path, plan)


def test_a_picture_that_cannot_be_read_is_a_row(vlm, photos, tmp_path, plan):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0.png").write_bytes((photos / "0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    measured = measure(vlm, folder, tmp_path / "out", plan)
    assert [error is None for error in measured.table("pictures").sort("source")["error"]] == [True, False]
    assert "1 pictures failed" in write_page(measured, plan, None, None, draws=50).read_text()


def test_nothing_to_measure_is_said(vlm, photos, tmp_path, plan):
    measured = measure(vlm, photos, tmp_path / "out", plan, words=["unicorn"], limit=1)
    with pytest.raises(RunError, match="No word of 1 pictures could be measured"):
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
