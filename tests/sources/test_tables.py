"""Parquet files, folders of them, and datasets that Hugging Face's library wrote."""

import json
import os
import pickle
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources import gather, image_id, open_source, rows
from mmneurons.vlm.pictures import decode_picture

DATA = Path(__file__).parents[1] / "data"
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(**columns):
    return pa.table(columns)


def blobs(count):
    return [f"picture {number}".encode() for number in range(count)]


@pytest.mark.parametrize("group", [1, 3, 7, 20, 1000])
@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT, pa.dictionary(pa.int32(), pa.binary())]
)
def test_every_row_is_the_one_that_was_written(group, kind):
    data = blobs(50)
    cells = [{"bytes": blob, "path": None} for blob in data] if kind == STRUCT else data
    column = pa.array(cells, kind) if not pa.types.is_dictionary(kind) else pa.array(cells).dictionary_encode()
    pq.write_table(table(caption=["a"] * 50, image=column), "x.parquet", row_group_size=group)
    items = gather(["x.parquet"])
    assert [item.source for item in items] == [f"x.parquet#{row}" for row in range(50)]
    order = list(range(50))
    random.Random(group).shuffle(order)
    for row in [*range(50), *order, 49, 0, 0]:
        assert items[row].read() == data[row]


def test_a_sample_of_rows_is_the_rows_it_names():
    pq.write_table(table(image=blobs(500)), "x.parquet", row_group_size=64)
    for item in gather(["x.parquet"], sample=20, seed=4):
        assert item.read() == f"picture {item.source.removeprefix('x.parquet#')}".encode()


def test_reading_holds_few_pictures(here):
    megabyte = np.random.default_rng(0).bytes(2**20)
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter("x.parquet", schema, compression="none", write_batch_size=4) as writer:
        writer.write_table(pa.table({"image": [bytes([row]) + megabyte for row in range(80)]}), row_group_size=80)
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    held = []
    for row, item in enumerate(gather(["x.parquet"])):
        assert item.read()[0] == row
        held.append(pool.bytes_allocated() - before)
    assert 0 < max(held) < 30 * 2**20


def test_threads_read_the_right_rows():
    data = blobs(300)
    pq.write_table(table(image=data), "x.parquet", row_group_size=50)
    items = gather(["x.parquet"]) * 2
    random.Random(0).shuffle(items)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda item: item.read(), items))
    assert read == [data[item.row] for item in items]


def test_items_travel_between_processes():
    pq.write_table(table(image=blobs(3)), "x.parquet")
    item = gather(["x.parquet"])[1]
    item.read()
    assert pickle.loads(pickle.dumps(item)).read() == b"picture 1"


def test_a_file_that_was_written_anew_is_read_anew():
    pq.write_table(table(image=[b"old"]), "x.parquet")
    item = gather(["x.parquet"])[0]
    assert item.read() == b"old"
    pq.write_table(table(image=[b"newer"]), "x.parquet")
    assert item.read() == b"newer"
    Path("x.parquet").unlink()
    with pytest.raises(PictureError, match=r"'x\.parquet#0' could not be read: the file is gone"):
        item.read()


def test_empty_cells_and_paths():
    Path("sub").mkdir()
    Path("sub/in.jpg").write_bytes(b"in a file")
    cells = [
        *({"bytes": b"in the cell", "path": "x.jpg"}, {"bytes": None, "path": "in.jpg"}, {"bytes": None, "path": None}),
        *(None, {"bytes": None, "path": "gone.jpg"}, {"bytes": b"", "path": "in.jpg"}),
        {"bytes": None, "path": "https://example.org/dog.jpg"},
    ]
    pq.write_table(table(image=pa.array(cells, STRUCT)), "sub/x.parquet")
    items = gather(["sub/x.parquet"])
    assert items[0].read() == b"in the cell"
    assert items[1].read() == b"in a file"
    assert items[5].read() == b""
    for row in (2, 3):
        with pytest.raises(PictureError, match=rf"'sub/x\.parquet#{row}' holds no picture: the cell is empty"):
            items[row].read()
    with pytest.raises(PictureError, match=r"names 'sub/gone\.jpg', which is not there"):
        items[4].read()
    with pytest.raises(PictureError, match="Addresses are not fetched"):
        items[6].read()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_columns_of_paths(kind, here):
    Path("sub").mkdir()
    Path("sub/a.jpg").write_bytes(b"a")
    Path("b.jpg").write_bytes(b"b")
    paths = pa.array(["a.jpg", "../b.jpg", str(here / "b.jpg"), None, ""], kind)
    pq.write_table(table(caption=["x"] * 5, file_name=paths), "sub/x.parquet")
    items = gather(["sub/x.parquet"])
    assert [item.read() for item in items[:3]] == [b"a", b"b", b"b"]
    for item in items[3:]:
        with pytest.raises(PictureError, match="the cell is empty"):
            item.read()


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"data": b"x", "caption": "c", "id": 1}, "data"),
        ({"image": b"x", "mask": b"y"}, "image"),
        ({"JPG": b"x", "embedding": b"y"}, "JPG"),
        ({"image": "p", "blob": b"y"}, "blob"),
        ({"image": "p", "caption": "c"}, "image"),
        ({"path": "p", "caption": "c"}, "path"),
    ],
)
def test_which_column_is_taken(columns, chosen):
    pq.write_table(pa.table({name: [value] for name, value in columns.items()}), "x.parquet")
    assert gather(["x.parquet"])[0].column == chosen


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"left": b"x", "right": b"y"}, r"several columns could hold pictures.*left \(binary\), right \(binary\)"),
        ({"image": b"x", "img": b"y"}, "several columns could hold pictures"),
        ({"image": "p", "file_name": "q"}, "several columns could hold pictures"),
        ({"caption": "c", "id": 1}, r"no column looks as if it held pictures.*caption \(string\), id \(int64\)"),
        ({"image": [1, 2]}, "no column looks as if it held pictures"),
    ],
)
def test_which_column_is_not_guessed(columns, message):
    pq.write_table(pa.table({name: [value] for name, value in columns.items()}), "x.parquet")
    with pytest.raises(SourceError, match=message) as caught:
        gather(["x.parquet"])
    assert "--column" in str(caught.value)


def test_a_column_that_is_named():
    pq.write_table(table(image=[b"x"], mask=[b"y"], **{"a.b": [b"z"]}, id=[1]), "x.parquet")
    for column, data in (("mask", b"y"), ("a.b", b"z")):
        (item,) = gather(["x.parquet"], column=column)
        assert item.read() == data == open_source(item.source, Path.cwd(), column)
    with pytest.raises(SourceError, match=r"no column 'picture'\. Its columns are: image \(binary\)"):
        gather(["x.parquet"], column="picture")
    with pytest.raises(SourceError, match=r"'id' of .* holds neither bytes nor paths"):
        gather(["x.parquet"], column="id")


def test_folders_of_tables_come_split_by_split():
    names = [
        "test-00000-of-00001",
        "train-00001-of-00002",
        "other",
        "train-00000-of-00002",
        "validation-00000-of-00001",
    ]
    for name in names:
        Path("set/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table(image=[name.encode()]), f"set/data/{name}.parquet")
    Path("set/README.md").touch()
    Path("set/data/.hidden.parquet").touch()
    order = [names[index] for index in (3, 1, 4, 0, 2)]
    for folder in ("set", "set/data"):
        items = gather([folder])
        assert [item.source for item in items] == [f"set/data/{name}.parquet#0" for name in order]
        assert [item.read().decode() for item in items] == order
    by_folder = [
        "default/test/0.parquet",
        "default/train/0.parquet",
        "default/train/1.parquet",
        "default/val/0.parquet",
    ]
    for name in by_folder:
        Path("hub", name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(image=[b"x"]), f"hub/{name}")
    assert [item.source for item in gather(["hub"])] == [f"hub/{by_folder[index]}#0" for index in (1, 2, 3, 0)]


def test_a_folder_with_pictures_is_one_of_pictures():
    Path("photos/run/parts").mkdir(parents=True)
    Path("photos/z.jpg").write_bytes(b"z")
    pq.write_table(table(caption=["x"]), "photos/run/parts/images.parquet")
    assert [item.source for item in gather(["photos"])] == ["photos/z.jpg"]


def test_tables_beside_files_and_named_twice():
    pq.write_table(table(image=blobs(2)), "x.parquet")
    Path("x.parquet#1").write_bytes(b"a file that is called like a row")
    items = gather(["x.parquet#1", "x.parquet", "./x.parquet", "*.parquet"])
    assert [item.source for item in items] == ["x.parquet#1", "x.parquet#0", "x.parquet#1 (2)"]
    assert [item.read() for item in items] == [b"a file that is called like a row", *blobs(2)]
    assert [open_source(item.source, Path.cwd()) for item in items] == [item.read() for item in items]


def test_tables_whose_names_are_odd(here):
    for raw in (b"odd\xff.parquet", "line\nfeed 🐕#3.parquet".encode(), b"s3:x.parquet", b"SHOUTED.PARQUET"):
        name = os.fsdecode(raw)
        with open(name, "wb") as file:
            pq.write_table(table(image=[raw]), file)
        (item,) = gather([name])
        item.source.encode("utf-8")
        assert item.read() == raw == open_source(item.source, here)


def test_read_again_from_another_folder(here, monkeypatch):
    pq.write_table(table(image=blobs(4)), "x.parquet")
    source = gather(["x.parquet"])[3].source
    monkeypatch.chdir("/")
    assert open_source(source, here) == b"picture 3"
    for row in ("4", "99999999999999999999"):
        with pytest.raises(PictureError, match="it has 4 rows"):
            open_source(f"x.parquet#{row}", here)
    for wrong in ("x.parquet#", "x.parquet#-1", "x.parquet#1.0", "x.parquet#²", "y.parquet#0"):
        with pytest.raises(PictureError, match="There is no file"):
            open_source(wrong, here)
    pq.write_table(table(left=[b"x"], right=[b"y"]), here / "x.parquet")
    with pytest.raises(PictureError, match="several columns"):
        open_source(source, here)


def test_tables_without_rows_or_sense(here):
    pq.write_table(table(image=pa.array([], pa.binary())), "x.parquet")
    with pytest.raises(SourceError, match=r"'x\.parquet' holds no picture: it has no rows"):
        gather(["x.parquet"])
    for name in ("text.parquet", "empty.parquet"):
        Path(name).write_text("no table" * (name == "text.parquet"))
        with pytest.raises(SourceError, match=f"'{name}' could not be read as a table"):
            gather([name])
    os.mkfifo("pipe.parquet")
    with pytest.raises(PictureError, match="is a pipe"):
        gather(["pipe.parquet"])[0].read()


def test_a_saved_dataset_is_read_split_by_split(here):
    """The folder was written by the datasets library: pictures of 4 × 3 pixels of noise, drawn from the seeds below."""
    folder = DATA / "saved_dataset"
    items = gather([folder])
    seeds = {"train": [1, 2], "validation": [20], "test": [30], "extra": [40]}
    expected = [(split, row) for split, drawn in seeds.items() for row in range(len(drawn))]
    assert [item.source for item in items] == [
        f"{folder}/{split}/data-00000-of-00001.arrow#{row}" for split, row in expected
    ]
    for item, (split, row) in zip(items, expected, strict=True):
        noise = np.random.default_rng(seeds[split][row]).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        assert np.array_equal(np.asarray(decode_picture(item.read(), item.source)), noise)
        assert open_source(item.source, here) == item.read()
    assert len({image_id(item.read()) for item in items}) == 5
    assert [item.source for item in gather([folder / "train"])] == [item.source for item in items[:2]]
    assert gather([folder], column="thumb")[0].read() == b"x"


def test_a_dataset_as_the_hub_has_it():
    folder = DATA / "hub_dataset"
    items = gather([folder])
    assert [item.source.rpartition("/")[2] for item in items] == [
        "train-00000-of-00001.parquet#0",
        "train-00000-of-00001.parquet#1",
        "test-00000-of-00001.parquet#0",
    ]
    saved = gather([DATA / "saved_dataset"])
    assert [item.read() for item in items] == [saved[index].read() for index in (0, 1, 3)]


def test_saved_datasets_of_several_files_and_batches():
    Path("set").mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    data = blobs(10)
    for name, part in zip(names, (data[:7], data[7:]), strict=True):
        with pa.ipc.new_stream(f"set/{name}", pa.schema([("image", pa.binary())])) as writer:
            writer.write_table(pa.table({"image": part}), max_chunksize=3)
    Path("set/state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    items = gather(["set"])
    assert [item.read() for item in items] == data
    assert [item.read() for item in reversed(items)] == data[::-1]
    assert items[8].source == f"set/{names[1]}#1"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", "{"),
        ("state.json", "[]"),
        ("state.json", '{"_data_files": [{"file": 1}]}'),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}'),
        ("state.json", '{"_data_files": []}'),
        ("dataset_dict.json", '{"splits": null}'),
        ("dataset_dict.json", '{"splits": ["gone"]}'),
        ("dataset_dict.json", "[" * 100_000),
    ],
)
def test_damaged_datasets(file, content):
    Path("set").mkdir()
    Path("set", file).write_text(content)
    with pytest.raises(SourceError, match="set"):
        gather(["set"])


def test_damaged_tables_end_in_our_errors(here):
    """Bits flipped and ends cut off, in a Parquet file and in an Arrow stream, with equal seeds in every run."""
    shutil.copytree(DATA / "saved_dataset" / "train", "saved")
    arrow = Path("saved/data-00000-of-00001.arrow")
    parquet = Path("x.parquet")
    good = {arrow: arrow.read_bytes(), parquet: next((DATA / "hub_dataset/data").glob("train*")).read_bytes()}
    draw = random.Random(0)
    outcomes = set()
    for _ in range(150):
        for path, content in good.items():
            data = bytearray(content)
            for _ in range(draw.choice((1, 3, 20))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            # in another file each time: what is mapped into memory must not change
            path.unlink(missing_ok=True)
            path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
            try:
                items = gather(["saved" if path == arrow else path])
            except SourceError:
                outcomes.add((path, "not listed"))
                continue
            for item in items[:5]:
                try:
                    item.read()
                    outcomes.add((path, "read"))
                except PictureError:
                    outcomes.add((path, "refused"))
    assert outcomes == {(path, outcome) for path in good for outcome in ("not listed", "read", "refused")}


def test_pictures_in_a_table_are_pictures(here):
    Image.new("RGB", (5, 4), "red").save("a.png")
    pq.write_table(table(image=[Path("a.png").read_bytes(), b"no picture"]), "x.parquet")
    one, other = gather(["x.parquet"])
    assert decode_picture(one.read(), one.source).size == (5, 4)
    with pytest.raises(PictureError, match=r"'x\.parquet#1' is not a picture"):
        decode_picture(other.read(), other.source)


def test_few_files_are_kept_open():
    for number in range(30):
        pq.write_table(table(image=[b"x"]), f"{number:02}.parquet")
    for item in gather(["*.parquet"]):
        item.read()
    assert rows._opened.cache_info().currsize <= 8
