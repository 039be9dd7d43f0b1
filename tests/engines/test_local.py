"""A run in this process: its rows are those of ``mmn.find``, and stopping it changes nothing."""

import os
import shutil
import signal

import numpy as np
import polars as pl
import pytest
from PIL import Image

import mmneurons as mmn
from helpers.speaking import SAID, make_it_say
from helpers.tiny import tiny_llava, tiny_llava_next
from mmneurons.engines import local
from mmneurons.engines.local import Progress
from mmneurons.errors import MMNeuronsError, OptionError, RunError, SourceError
from mmneurons.finders import Activation
from mmneurons.runs.schema import TABLES
from mmneurons.vlm.geometry import geometry


@pytest.fixture(scope="module", params=[tiny_llava, tiny_llava_next], ids=["llava", "llava_next"])
def speaker(request):
    vlm = mmn.wrap(*request.param())
    make_it_say(vlm, SAID)
    return vlm


@pytest.fixture(scope="module")
def dog():
    vlm = mmn.wrap(*tiny_llava())
    make_it_say(vlm, SAID)
    return vlm


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(7):
        pixels = noise.integers(0, 256, (40 + 9 * index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def rows(run: mmn.runs.Run) -> dict[str, pl.DataFrame]:
    """All tables, without the times."""
    return {name: run.table(name).collect().drop("seconds", strict=False) for name in TABLES}


def test_its_rows_are_what_find_gives(speaker, photos, tmp_path):
    run = mmn.run(speaker, photos, tmp_path / "run", neurons=4, promotes=3, maps=2, shard=3, batch_size=2)
    images = run.images.collect()
    paths = sorted(photos.iterdir())
    assert [source.rpartition("/")[2] for source in images["source"]] == [path.name for path in paths]
    assert images["status"].to_list() == ["ok"] * 7
    assert run.shards == 3
    words, neurons, heatmaps = (run.table(name).collect() for name in ("words", "neurons", "heatmaps"))
    for image, path in zip(images.iter_rows(named=True), paths, strict=True):
        found = mmn.find(speaker, path)
        assert (image["caption"], (image["width"], image["height"])) == (found.caption, found.picture.size)
        own = words.filter(image_id=image["image_id"])
        assert own["lemma"].to_list() == list(found.words) == ["dog", "ball"]
        for row, word in zip(own.iter_rows(named=True), found, strict=True):
            check_word(row, word)
            table = neurons.filter(word_id=row["word_id"])
            names = [f"L{n['layer']}.u{n['unit']}" for n in table.iter_rows(named=True)]
            top = word.top(4, promotes=3)
            assert names == [best.neuron for best in top]
            assert table["promotes"].to_list() == [list(best.promotes) for best in top]
            np.testing.assert_allclose(table["score"], [best.score for best in top], rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(table["activation"], [best.activation for best in top], rtol=1e-3, atol=1e-5)
            check_maps(heatmaps.filter(word_id=row["word_id"]), word)


def check_word(row, word):
    assert row["word"] == word.found.caption[row["start"] : row["end"]]
    assert (row["token_ids"], row["step"]) == (list(word.token_ids), word.targets[0].step)
    assert row["probability"] == pytest.approx(np.exp(word.log_probability), rel=1e-3)
    logit = word.found.recording.logits[row["step"], row["token_ids"][0]]
    assert row["logit"] == pytest.approx(float(logit), rel=1e-3, abs=1e-4)
    assert row["total"] == pytest.approx(word.total, rel=1e-3, abs=1e-5)
    assert row["note"] == word.note


def check_maps(maps, word):
    looks = {(0, None): word.look(0), (1, None): word.look(1), (None, 2): word.look(first=2)}
    found = word.found
    places = geometry(found.vlm, found.picture.size, len(word.look(0).values))
    assert maps.height == 3 * len(places.grids)
    for row in maps.iter_rows(named=True):
        look, grid = looks[row["rank"], row["first"]], places.grids[row["grid"]]
        assert (row["rows"], row["columns"]) == grid.positions.shape
        expected = look.values[grid.positions].ravel()
        np.testing.assert_allclose(row["values"], expected, rtol=1e-3, atol=1e-5)
        x, y = grid.spans()
        for cell, rectangle in enumerate(row["rectangles"]):
            at_y, at_x = divmod(cell, row["columns"])
            assert rectangle == pytest.approx([x[at_x][0], y[at_y][0], x[at_x][1], y[at_y][1]], abs=1e-3)


def test_gone_on_with_it_is_the_undisturbed_run(dog, photos, tmp_path):
    whole = mmn.run(dog, photos, tmp_path / "whole", shard=2)

    class Stop(Exception):
        pass

    def stop_at_five(now: Progress) -> None:
        if now.done >= 5:
            raise Stop

    with pytest.raises(Stop):
        mmn.run(dog, photos, tmp_path / "parts", shard=2, progress=stop_at_five)
    assert mmn.runs.open(tmp_path / "parts").images.collect().height == 6
    told = []
    resumed = mmn.run(dog, photos, tmp_path / "parts", shard=2, progress=told.append)
    assert [(now.before, now.done) for now in told] == [(6, 6), (6, 7)]
    for name, table in rows(whole).items():
        assert table.equals(rows(resumed)[name]), name
    again = mmn.run(dog, photos, tmp_path / "parts", shard=2, progress=told.append)
    assert again.shards == resumed.shards


def test_ctrl_c_keeps_the_batches_that_are_whole(dog, photos, tmp_path):
    whole = mmn.run(dog, photos, tmp_path / "whole", batch_size=2)

    def interrupt(now: Progress) -> None:
        if now.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mmn.run(dog, photos, tmp_path / "parts", batch_size=2, progress=interrupt)
    assert mmn.runs.open(tmp_path / "parts").images.collect().height == 4
    resumed = mmn.run(dog, photos, tmp_path / "parts", batch_size=2)
    for name, table in rows(whole).items():
        assert table.equals(rows(resumed)[name]), name


def test_the_limit_may_grow_and_samples_are_drawn(dog, photos, tmp_path):
    mmn.run(dog, photos, tmp_path / "run", limit=2)
    grown = mmn.run(dog, photos, tmp_path / "run", limit=5)
    assert grown.images.collect().height == 5
    one, other = (mmn.run(dog, photos, tmp_path / f"s{seed}", sample=3, seed=seed) for seed in (0, 1))
    sources = [set(run.images.collect()["source"]) for run in (one, other)]
    assert [len(each) for each in sources] == [3, 3]
    assert sources[0] != sources[1]


def test_bad_pictures_and_copies_are_rows(dog, photos, tmp_path):
    (photos / "1.png").write_bytes(b"not a picture")
    shutil.copy(photos / "0.png", photos / "8.png")
    (photos / "9.png").write_bytes((photos / "2.png").read_bytes()[:-1000])
    run = mmn.run(dog, photos, tmp_path / "run", batch_size=3)
    images = run.images.collect()
    assert images["status"].to_list() == ["ok", "error", *["ok"] * 5, "duplicate", "error"]
    assert images["image_id"][0] == images["image_id"][7]
    errors = images.filter(status="error")["error"].to_list()
    assert all(error.startswith("PictureError: ") and "docs/errors" not in error for error in errors)
    counted = run.words.collect().group_by("image_id").len()
    assert set(counted["image_id"]) == set(images.filter(status="ok")["image_id"])
    assert counted["len"].to_list() == [2] * 6


def test_a_picture_whose_part_was_deleted_is_explained_anew_though_a_copy_is_there(dog, photos, tmp_path):
    shutil.copy(photos / "0.png", photos / "8.png")
    run = mmn.run(dog, photos, tmp_path / "run", shard=2)
    assert run.images.collect()["status"].to_list() == ["ok"] * 7 + ["duplicate"]
    shutil.rmtree(tmp_path / "run" / "parts" / "000000")
    again = mmn.run(dog, photos, tmp_path / "run", shard=2).images.collect()
    status = {
        source.rpartition("/")[2]: status for source, status in zip(again["source"], again["status"], strict=True)
    }
    assert (status["0.png"], status["1.png"], status["8.png"]) == ("ok", "ok", "duplicate")


def test_one_picture_that_the_model_fails_on_does_not_take_its_batch_along(dog, photos, tmp_path, monkeypatch):
    whole = local.find

    def fail_on_one(vlm, pictures, **options):
        if any(picture.height == 58 for picture in pictures):
            raise RuntimeError("out of memory\nand more")
        return whole(vlm, pictures, **options)

    monkeypatch.setattr(local, "find", fail_on_one)
    images = mmn.run(dog, photos, tmp_path / "run", batch_size=4).images.collect()
    assert images["status"].to_list() == ["ok", "ok", "error", "ok", "ok", "ok", "ok"]
    assert images["error"][2] == "RuntimeError: out of memory\nand more"


def test_what_fails_for_every_picture_ends_the_run(dog, photos, tmp_path, monkeypatch):
    def fail(vlm, pictures, **options):
        if pictures:
            raise RuntimeError("the device is gone")
        return []

    monkeypatch.setattr(local, "find", fail)
    with pytest.raises(RunError, match=r"All 7 pictures of a batch failed \(RuntimeError: the device is gone\)"):
        mmn.run(dog, photos, tmp_path / "run")
    assert mmn.runs.open(tmp_path / "run").shards == 0


def test_words_that_a_caption_does_not_say_are_left_out(dog, photos, tmp_path):
    run = mmn.run(dog, photos, tmp_path / "run", words=["cat", "ball"], limit=3)
    assert run.words.collect()["word"].to_list() == ["ball"] * 3
    none = mmn.run(dog, photos, tmp_path / "none", words=["cat"], limit=3)
    assert none.images.collect()["status"].to_list() == ["ok"] * 3
    assert none.words.collect().height == 0


def test_other_finders(dog, photos, tmp_path):
    run = mmn.run(dog, photos, tmp_path / "run", finder=Activation(), limit=2, maps=0)
    assert run.about["options"]["finder"] == "Activation()"
    assert run.neurons.collect()["share"].null_count() == 2 * 2 * 10
    assert run.heatmaps.collect().height == 0
    gates = mmn.run(dog, photos, tmp_path / "gate", limit=1, against=None, norm=None, activation="gate")
    assert "gate" in gates.words.collect()["note"][0]
    options = gates.about["options"]
    assert (options["against"], options["norm"], options["activation"]) == (None, None, "gate")


def test_another_model_or_other_options_are_refused(dog, photos, tmp_path):
    mmn.run(dog, photos, tmp_path / "run", limit=2)
    with pytest.raises(RunError, match='options against is "distribution" there and none here'):
        mmn.run(dog, photos, tmp_path / "run", limit=2, against=None)
    changed = mmn.wrap(*tiny_llava())
    make_it_say(changed, SAID)
    changed.model.get_output_embeddings().weight.data[0, 0] += 1
    with pytest.raises(RunError, match="model fingerprint"):
        mmn.run(changed, photos, tmp_path / "run", limit=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"neurons": 0}, "neurons=0"),
        ({"promotes": -1}, "promotes=-1"),
        ({"maps": 10**9}, "maps=1000000000"),
        ({"shard": 0}, "shard=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"finder": "contributions"}, "no finder"),
        ({"against": "vocabularly"}, "misspelt"),
        ({"temperature": 1}, "no option temperature"),
        ({"by": "angle"}, "by='angle'"),
        ({"token": "middle"}, "token='middle'"),
        ({"shard": True}, "shard=True"),
        ({"seed": "a"}, "seed='a'"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"words": [" "]}, "is no word"),
        ({"words": [1]}, "is no word"),
        ({"words": 5}, "pass a list of words"),
        ({"against": " "}, "names no word"),
        ({"finder": None}, "finder=None"),
        ({"generation": {"do_sample": True}}, "does not sample"),
        ({"generation": {"stopping_criteria": object()}}, "cannot be written"),
        ({"batch_size": True}, "batch_size=True"),
    ],
)
def test_wrong_options_write_nothing(dog, photos, tmp_path, options, says, unchecked):
    with pytest.raises(OptionError, match=says):
        mmn.run(dog, photos, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inputs", [None, 5, b"photos", [], ["photos", 5]])
def test_no_pictures(dog, tmp_path, inputs, unchecked):
    for named in (inputs, tmp_path / "nowhere"):
        with pytest.raises(SourceError):
            mmn.run(dog, named, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_the_model_cannot_take_writes_nothing(dog, photos, tmp_path):
    with pytest.raises(MMNeuronsError, match="refused the prompt"):
        mmn.run(dog, photos, tmp_path / "run", prompt="What is <image> in the picture?")
    assert not (tmp_path / "run").exists()


def test_one_word_is_a_word(dog, photos, tmp_path):
    run = mmn.run(dog, photos, tmp_path / "run", words="dog", limit=1)
    assert run.about["options"]["words"] == ["dog"]
    assert run.words.collect()["word"].to_list() == ["dog"]


def test_failed_pictures_are_tried_again_where_that_is_asked(dog, photos, tmp_path):
    whole = mmn.run(dog, photos, tmp_path / "whole")
    good = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(good[:100])
    mmn.run(dog, photos, tmp_path / "run")
    (photos / "3.png").write_bytes(good)
    still = mmn.run(dog, photos, tmp_path / "run")
    assert still.images.collect()["status"].to_list() == ["ok"] * 3 + ["error"] + ["ok"] * 3
    told = []
    again = mmn.run(dog, photos, tmp_path / "run", retry_failed=True, progress=told.append)
    assert [(now.before, now.done, now.failed) for now in told] == [(6, 6, 0), (6, 7, 0)]
    for table, key, columns in (
        ("images", "source", ["source", "image_id", "status", "caption"]),
        ("neurons", "word_id", ["word_id", "rank", "layer", "unit"]),
    ):
        expected = rows(whole)[table].sort(key, maintain_order=True).select(columns)
        assert rows(again)[table].sort(key, maintain_order=True).select(columns).equals(expected)


def test_pictures_that_fail_in_a_row_end_the_run(dog, photos, tmp_path, monkeypatch):
    """One by one there is no batch to tell whether it is the picture; and what had been found is kept."""
    calls = []

    def fail_from_the_third_on(vlm, pictures, **options):
        calls.extend(pictures)
        if len(calls) > 2:
            raise MemoryError("no memory left")
        return mmn.find(vlm, pictures, **options)

    monkeypatch.setattr(local, "find", fail_from_the_third_on)
    with pytest.raises(RunError, match=r"3 pictures in a row failed .the last: MemoryError: no memory left.*retry"):
        mmn.run(dog, photos, tmp_path / "run", batch_size=1)
    monkeypatch.undo()
    assert mmn.runs.open(tmp_path / "run").images.collect()["status"].to_list() == ["ok", "ok", "error", "error"]
    again = mmn.run(dog, photos, tmp_path / "run", batch_size=1, retry_failed=True)
    assert again.images.collect()["status"].to_list() == ["ok"] * 7


def test_a_word_that_cannot_be_contrasted_is_left_out_and_its_picture_kept(dog, photos, tmp_path):
    run = mmn.run(dog, photos, tmp_path / "run", against="dog", limit=2)
    assert run.images.collect()["status"].to_list() == ["ok", "ok"]
    assert run.words.collect()["word"].to_list() == ["ball", "ball"]
    with pytest.raises(OptionError, match="cannot be contrasted"):
        mmn.find(dog, photos / "0.png", against="dog")


def test_neurons_by_chance_are_others_for_every_picture_however_it_is_batched(dog, photos, tmp_path):
    tables = [
        rows(mmn.run(dog, photos, tmp_path / f"run{size}", finder="random", batch_size=size, limit=4))["neurons"]
        for size in (1, 3)
    ]
    names = ["word_id", "rank", "layer", "unit", "score"]
    assert tables[0].select(names).equals(tables[1].select(names))
    drawn = tables[0].group_by("word_id").agg(pl.struct("layer", "unit").sort())
    assert drawn["layer"].n_unique() == drawn.height == 8


def test_ctrl_c_waits_for_a_shard_that_is_being_written(dog, photos, tmp_path, monkeypatch):
    usual = local.write_shard

    def interrupted(path, tables):
        os.kill(os.getpid(), signal.SIGINT)
        return usual(path, tables)

    monkeypatch.setattr(local, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmn.run(dog, photos, tmp_path / "run", shard=3)
    assert mmn.runs.open(tmp_path / "run").images.collect().height == 3
