"""The run folder: written whole or not at all, read lazily, and refused where it is not what it is taken for."""

import json
import os
import subprocess
import sys
import threading

import polars as pl
import pytest

from mmneurons import runs
from mmneurons.errors import RunError
from mmneurons.runs import writer
from mmneurons.runs.reader import readable
from mmneurons.runs.schema import TABLES, part_folders, schema

ABOUT = {
    "model": {"name": "demo", "fingerprint": "abc"},
    "options": {"neurons": 10, "against": None},
    "pictures": {"inputs": ["photos"], "limit": 5},
    "total": 5,
    "folder": os.getcwd(),
}


def tables(*names: str) -> dict:
    """One shard: a picture of each name, each with one word, one neuron and one map."""
    made = {table: {column: [] for column in columns} for table, columns in TABLES.items()}
    rows = {
        "images": lambda n: (f"id-{n}", n, 30, 20, f"An image of a {n}.", "ok", None, 0.5),
        "words": lambda n: (f"id-{n}.0", f"id-{n}", n, n, [1, 2], 0, 15, 15 + len(n), 0.9, 12.5, 2.0, "the raw logit"),
        "neurons": lambda n: (f"id-{n}.0", 0, 27, None, 1234, 1.5, 0.75, -3.0, ["dog", "cat"]),
        "heatmaps": lambda n: (f"id-{n}.0", 0, None, 0, 1, 2, [0.5, -0.5], [[0, 0, 15, 20], [15, 0, 30, 20]]),
    }
    for name in names:
        for table, row in rows.items():
            for column, value in zip(made[table].values(), row(name), strict=True):
                column.append(value)
    return made


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a run [with] {odd} *name*"
    with writer.locked(path):
        writer.begin(path, ABOUT)
        writer.write_shard(path, tables("dog", "cat"))
        writer.write_shard(path, tables("ball"))
    return path


def test_what_was_written_is_read(folder):
    run = runs.open(folder)
    assert run.shards == 2
    assert run.about["options"] == ABOUT["options"]
    assert run.images.collect()["source"].to_list() == ["dog", "cat", "ball"]
    word = run.words.collect().row(2, named=True)
    assert (word["word_id"], word["token_ids"], word["end"], word["total"]) == ("id-ball.0", [1, 2], 19, 2.0)
    neuron = run.neurons.collect().row(0, named=True)
    assert (neuron["layer"], neuron["expert"], neuron["unit"], neuron["promotes"]) == (27, None, 1234, ["dog", "cat"])
    heatmap = run.heatmaps.collect().row(0, named=True)
    assert heatmap["rectangles"] == [[0, 0, 15, 20], [15, 0, 30, 20]]
    for table in TABLES:
        assert run.table(table).collect_schema() == schema(table)


def test_an_empty_run_has_all_tables(tmp_path):
    with writer.locked(tmp_path / "run"):
        writer.begin(tmp_path / "run", ABOUT)
    run = runs.open(tmp_path / "run")
    for table in TABLES:
        assert run.table(table).collect().height == 0
        assert run.table(table).collect_schema() == schema(table)
    with pytest.raises(RunError, match="no table 'edits'"):
        run.table("edits")


def test_it_is_lazy_and_sees_what_is_written_meanwhile(folder):
    run = runs.open(folder)
    assert isinstance(run.images, pl.LazyFrame)
    with writer.locked(folder):
        writer.write_shard(folder, tables("boat"))
    assert run.images.collect()["source"].to_list() == ["dog", "cat", "ball", "boat"]


def test_a_shard_is_never_seen_in_parts(tmp_path):
    """A reader that looks all the time sees for every picture its word, neuron and map."""
    path = tmp_path / "run"
    seen, wrong, stop = set(), [], threading.Event()

    def look():
        while not stop.is_set():
            parts = part_folders(path)
            for part in parts:
                heights = {table: pl.read_parquet(part / f"{table}.parquet").height for table in TABLES}
                if set(heights.values()) != {2}:
                    wrong.append(heights)
            seen.add(len(parts))

    with writer.locked(path):
        writer.begin(path, ABOUT)
        reader = threading.Thread(target=look)
        reader.start()
        for shard in range(60):
            writer.write_shard(path, tables(f"dog{shard}", f"cat{shard}"))
        stop.set()
        reader.join()
    assert not wrong
    assert len(seen) > 2


@pytest.mark.parametrize("table", TABLES)
def test_a_write_that_fails_leaves_nothing(folder, monkeypatch, table):
    whole = pl.DataFrame.write_parquet
    written = []

    def fail(frame, file, **options):
        written.append(file.name)
        if file.name.endswith(f"{table}.parquet"):
            file.write(b"PAR1 half of it")
            raise OSError(28, "No space left on device")
        return whole(frame, file, **options)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    before = sorted(folder.rglob("*"))
    with writer.locked(folder), pytest.raises(RunError, match=r"cannot be written.*No space"):
        writer.write_shard(folder, tables("boat"))
    assert written
    assert sorted(folder.rglob("*")) == before
    assert runs.open(folder).images.collect().height == 3


def test_what_a_kill_left_behind_is_cleared_away_and_never_read(folder):
    (folder / "parts" / ".000002").mkdir()
    (folder / "parts" / ".000002" / "images.parquet").write_bytes(b"PAR1 cut off")
    assert runs.open(folder).images.collect().height == 3
    with writer.locked(folder):
        writer.begin(folder, ABOUT)
        assert not (folder / "parts" / ".000002").exists()
        assert writer.write_shard(folder, tables("boat")).name == "000002"
    assert writer.finished_sources(folder)["source"].to_list() == ["dog", "cat", "ball", "boat"]


@pytest.mark.parametrize("run_file", [None, '{"cmd": "train"}'])
def test_files_of_somebody_else_are_never_deleted(tmp_path, run_file):
    mine = tmp_path / "out" / "parts" / "engine" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    if run_file:
        (tmp_path / "out" / "run.json").write_text(run_file)
    with pytest.raises(RunError), writer.locked(tmp_path / "out"):
        writer.begin(tmp_path / "out", ABOUT)
    assert mine.read_text() == "mine"


def test_what_else_lies_among_the_parts_stays(folder):
    (folder / "parts" / ".DS_Store").write_text("of a file browser")
    (folder / "parts" / "notes").mkdir()
    with writer.locked(folder):
        writer.begin(folder, ABOUT)
        writer.write_shard(folder, tables("boat"))
    assert {".DS_Store", "notes"} <= {path.name for path in (folder / "parts").iterdir()}
    assert runs.open(folder).images.collect().height == 4


def test_a_folder_killed_before_its_first_word_can_be_begun(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".run.json").write_bytes(b'{"schema": 1, "mod')
    (path / ".lock").touch()
    with writer.locked(path):
        writer.begin(path, ABOUT)
    assert runs.open(path).about["total"] == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"name": "demo", "fingerprint": "xyz"}}, 'model fingerprint is "abc" there and "xyz" here'),
        ({"options": {"neurons": 5, "against": None}}, "options neurons is 10 there and 5 here"),
        ({"options": {"neurons": 10, "against": "cat"}}, 'options against is none there and "cat" here'),
        ({"pictures": {"inputs": ["others"], "limit": 5}}, r'pictures inputs is \["photos"\] there and \["others"\]'),
        ({"pictures": {"inputs": ["photos"], "limit": 4}}, "pictures limit is 5 there and 4 here"),
        ({"options": {"neurons": 10, "against": None, "new": 1}}, "options new is none there and 1 here"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(folder, change, says):
    before = (folder / "run.json").read_bytes()
    with writer.locked(folder), pytest.raises(RunError, match=says):
        writer.begin(folder, {**ABOUT, **change})
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.parametrize("limit", [5, 6, None])
def test_the_limit_may_grow(folder, limit):
    with writer.locked(folder):
        writer.begin(folder, {**ABOUT, "pictures": {"inputs": ["photos"], "limit": limit}})
    assert runs.open(folder).about["pictures"]["limit"] == limit


HOLD = """
import sys, time
from pathlib import Path
from mmneurons.runs.writer import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(RunError, match="Another process is writing"), writer.locked(path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with writer.locked(path):
        writer.begin(path, ABOUT)


def test_folders_of_something_else_are_refused(tmp_path, folder):
    (tmp_path / "file").write_text("hello")
    with pytest.raises(RunError, match="is a file"), writer.locked(tmp_path / "file"):
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").write_text("a dog")
    with pytest.raises(RunError, match="holds other files"), writer.locked(tmp_path / "photos"):
        pass
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["dog.jpg"]
    with pytest.raises(RunError, match="no folder"):
        runs.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds no run\.json"):
        runs.open(tmp_path / "photos")
    (folder / "run.json").write_text('{"schema": 1')
    with pytest.raises(RunError, match="is damaged"):
        runs.open(folder)
    (folder / "run.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(RunError, match="of version 99"):
        runs.open(folder)
    for odd in (["schema", 1], {"schema": 1, **ABOUT, "total": "x"}):
        (folder / "run.json").write_text(json.dumps(odd))
        with pytest.raises(RunError, match="is damaged"):
            runs.open(folder)
    (folder / "run.json").write_text('{"schema": 1, "model": 5}')
    with pytest.raises(RunError, match="says nothing of model, options, pictures"), writer.locked(folder):
        writer.begin(folder, ABOUT)
    (folder / "run.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="is damaged"):
        runs.open(folder)


def test_a_damaged_part_is_named(folder):
    (folder / "parts" / "000000" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"000000.*Delete this folder"):
        writer.finished_sources(folder)


@pytest.mark.parametrize("table", TABLES)
def test_a_part_without_one_of_its_tables_is_noticed_on_going_on(folder, table):
    (folder / "parts" / "000001" / f"{table}.parquet").unlink()
    with pytest.raises(RunError, match=r"000001.*Delete this folder"):
        writer.finished_sources(folder)


def test_a_damaged_page_behind_a_whole_footer_is_named(folder):
    file = folder / "parts" / "000001" / "images.parquet"
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    run = runs.open(folder)
    with pytest.raises(RunError, match=r"000001.*Delete this folder"), readable(folder):
        run.images.collect()


def test_failed_pictures_are_forgotten_and_nothing_else(folder):
    with writer.locked(folder):
        failed = tables("boat", "car")
        failed["images"]["status"][0] = "error"
        writer.write_shard(folder, failed)
        assert writer.forget_failed(folder) == 1
        assert writer.forget_failed(folder) == 0
    run = runs.open(folder)
    assert run.images.collect()["source"].to_list() == ["dog", "cat", "ball", "car"]
    assert sorted(path.name for path in (folder / "parts" / "000002").iterdir()) == sorted(
        f"{t}.parquet" for t in TABLES
    )


def test_names_that_mean_something_else_in_another_folder_are_refused(folder):
    elsewhere = {**ABOUT, "folder": "/elsewhere"}
    with pytest.raises(RunError, match=r"'photos' was named in the folder .* there and in '/elsewhere' here"):
        writer.begin(folder, elsewhere)
    absolute = folder.parent / "absolute"
    named = {**ABOUT, "pictures": {"inputs": ["/photos", "demo:pictures"], "images": None}}
    with writer.locked(absolute):
        writer.begin(absolute, named)
        writer.begin(absolute, {**named, "folder": "/elsewhere"})
    assert runs.open(absolute).about["folder"] == ABOUT["folder"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(RunError, match="not UTF-8"):
        writer.check_folder(tmp_path / os.fsdecode(b"run\xff"))
