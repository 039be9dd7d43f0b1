"""COCO, SBU Captions and plain lists, with their pictures in a folder."""

import json
import os
from pathlib import Path

import pytest

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources import gather, open_source


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(str(name))


def dump(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))


def coco(*names):
    return {
        "info": {"description": "COCO"},
        "images": [{"id": number, "file_name": name, "width": 4} for number, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 0, "caption": "A dog."}],
        "categories": [],
    }


def sources(*inputs, **options):
    return [item.source for item in gather(inputs, **options)]


def test_coco_lists_its_pictures_in_its_order():
    dump("annotations/captions_val2017.json", coco("2.jpg", "1.jpg", "gone.jpg", "2.jpg"))
    write("pictures/1.jpg", "pictures/2.jpg", "pictures/not-named.jpg")
    items = gather(["annotations/captions_val2017.json"], images="pictures")
    assert [item.source for item in items] == ["pictures/2.jpg", "pictures/1.jpg", "pictures/gone.jpg"]
    assert [item.read() for item in items[:2]] == [b"pictures/2.jpg", b"pictures/1.jpg"]
    message = r"'annotations/captions_val2017\.json' names 'pictures/gone\.jpg', which is not there"
    with pytest.raises(PictureError, match=message):
        items[2].read()
    assert open_source(items[0].source, Path.cwd()) == b"pictures/2.jpg"


@pytest.mark.parametrize(
    "folder",
    ["coco/val2017", "coco/images/val2017", "coco/annotations/val2017", "coco/images", "coco/annotations", "coco"],
)
def test_the_folder_is_found_where_it_usually_lies(folder, here):
    dump("coco/annotations/instances_val2017.json", coco("gone.jpg", "1.jpg"))
    write(f"{folder}/1.jpg", "coco/train2017/2.jpg")
    assert sources("coco/annotations/instances_val2017.json") == [f"{folder}/gone.jpg", f"{folder}/1.jpg"]
    os.chdir("coco/annotations")
    relative = os.path.relpath(here / folder)
    assert sources("instances_val2017.json")[1] == os.path.normpath(f"{relative}/1.jpg")


def test_the_folder_that_is_given_may_hold_the_splits():
    dump("instances_val2017.json", coco("1.jpg"))
    dump("instances_train2017.json", coco("2.jpg"))
    write("images/val2017/1.jpg", "images/train2017/2.jpg", "1.jpg")
    both = ["instances_val2017.json", "instances_train2017.json"]
    assert sources(*both, images="images") == ["images/val2017/1.jpg", "images/train2017/2.jpg"]


def test_where_the_pictures_lie_is_not_guessed_blindly():
    dump("annotations/instances_val2017.json", coco("1.jpg", "2.jpg"))
    write("val2017/other.jpg")
    with pytest.raises(SourceError, match=r"names 2 pictures, but not where its pictures lie.*--images"):
        gather(["annotations/instances_val2017.json"])
    with pytest.raises(SourceError, match="There is no folder 'nowhere' for the pictures of"):
        gather(["annotations/instances_val2017.json"], images="nowhere")
    with pytest.raises(SourceError, match=r"None of the 2 pictures .* is in 'val2017'; the first is '1\.jpg'"):
        gather(["annotations/instances_val2017.json"], images="val2017")


def test_only_a_late_picture_is_there():
    dump("x.json", coco(*(f"{number}.jpg" for number in range(300))))
    write("pictures/299.jpg")
    items = gather(["x.json"], images="pictures")
    assert len(items) == 300
    assert items[299].read() == b"pictures/299.jpg"


def test_sbu_captions():
    urls = [
        "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
        "http://static.flickr.com/2762/4446926850_a2c3d4.jpg?size=large#top",
        "https://example.org/a%20dog.jpg",
        "http://static.flickr.com/1/gone.jpg",
    ]
    dump("dataset.json", {"image_urls": urls, "user_ids": ["a"] * 4, "captions": ["b"] * 4})
    dump("SBU_captioned_photo_dataset_urls.txt", "\n\n" + "\r\n".join(urls) + "\n")
    write("sbu/4385058960_b0f291553e.jpg", "sbu/4446926850_a2c3d4.jpg", "sbu/a dog.jpg")
    names = ["4385058960_b0f291553e.jpg", "4446926850_a2c3d4.jpg", "a dog.jpg", "gone.jpg"]
    for file in ("dataset.json", "SBU_captioned_photo_dataset_urls.txt"):
        items = gather([file], images="sbu")
        assert [item.source for item in items] == [f"sbu/{name}" for name in names]
        assert [item.read().decode() for item in items[:3]] == [f"sbu/{name}" for name in names[:3]]
        with pytest.raises(PictureError, match=r"names 'sbu/gone\.jpg', which is not there"):
            items[3].read()


def test_plain_lists():
    entries = [
        {"image": "dog.jpg", "caption": "A dog."},
        {"conversations": "without a picture"},
        {"image": None},
        {"file_name": "sub/cat.jpg"},
        {"image": "http://example.org/x/ball.jpg"},
        "boat.jpg",
        {"image": "dog.jpg", "caption": "Again."},
    ]
    dump("list.json", entries)
    write("dog.jpg", "sub/cat.jpg")
    assert sources("list.json") == ["dog.jpg", "sub/cat.jpg", "ball.jpg"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "null", "3", '"dog.jpg"', "[]", "{}", '{"images": 3}', '{"images": [3]}', '{"images": [{"id": 1}]}'),
        *('{"image_urls": []}', '[{"image": 3}]', '[{"image": ""}]', "[" * 100_000, '{"images": {"file_name": "x"}}'),
    ],
)
def test_what_is_no_annotation_file(content):
    dump("x.json", content)
    write("dog.jpg")
    with pytest.raises(SourceError, match=r"'x\.json'"):
        gather(["x.json"], images=".")


def test_bytes_that_are_no_json():
    for content in (b"\xff\xfe\xfd", b"\0\0\0", '{"images": [{"file_name": "dog.jpg"}]}'.encode("utf-16")):
        Path("x.json").write_bytes(content)
        write("dog.jpg")
        if content.startswith(b"\xff\xfe{"):
            assert sources("x.json") == ["dog.jpg"]
        else:
            with pytest.raises(SourceError, match="could not be read as an annotation file"):
                gather(["x.json"])


def test_odd_names_in_annotation_files():
    names = [
        "good.jpg",
        "\ud800.jpg",
        "nul\0/nul.jpg",
        "n" * 300 + ".jpg",
        "..",
        "",
        "sub/../good.jpg",
        "🐕\n.jpg",
        "\\xff.jpg",
    ]
    dump("x.json", coco(*names))
    write("good.jpg", "sub/x", "🐕\n.jpg")
    items = gather(["x.json"])
    # no name at all is left out, and the same file by another way
    assert len(items) == len(names) - 2
    read = 0
    for item in items:
        item.source.encode("utf-8")
        try:
            assert item.read() in (b"good.jpg", "🐕\n.jpg".encode())
            read += 1
        except PictureError as error:
            str(error).encode("utf-8")
    assert read == 2


def test_pipes_are_not_waited_for():
    os.mkfifo("pipe.json")
    os.mkfifo("pipe.txt")
    os.mkfifo("pipe.jpg")
    write("dog.jpg")
    dump("x.json", coco("pipe.jpg", "dog.jpg"))
    for item in gather(["pipe.json", "pipe.txt", "x.json"], images=".")[:3]:
        with pytest.raises(PictureError, match="is a pipe"):
            item.read()


def test_a_text_file_that_lists_no_addresses_is_a_file():
    dump("words.txt", "hello\nhttp://example.org/dog.jpg\n")
    (item,) = gather(["words.txt"])
    assert item.read() == Path("words.txt").read_bytes()


def test_pictures_of_an_annotation_file_and_of_its_folder_are_listed_once():
    dump("x.json", coco("b.jpg", "a.jpg"))
    write("pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg")
    assert sources("x.json", "pictures", images="pictures") == ["pictures/b.jpg", "pictures/a.jpg", "pictures/c.jpg"]
