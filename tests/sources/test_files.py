"""Files, folders and patterns."""

import os
import random
import time
from pathlib import Path

import pytest

from mmneurons.errors import PictureError, SourceError
from mmneurons.sources import files, gather, walking


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(str(name))


def sources(*inputs, **options):
    return [item.source for item in gather(inputs, **options)]


def test_folders_are_searched_in_the_order_of_the_names_bytes():
    names = ["z.jpg", "B.jpg", "a.jpg", "a/1.jpg", "a/b/2.jpg", "a-b/3.jpg", "é.jpg", "e\u0301.jpg", "10.jpg", "9.jpg"]
    write(*(f"photos/{name}" for name in names))
    listed = sources("photos")
    assert listed == sorted((f"photos/{name}" for name in names), key=lambda name: name.encode().split(b"/"))
    assert listed[:4] == ["photos/10.jpg", "photos/9.jpg", "photos/B.jpg", "photos/a/1.jpg"]
    assert sources("photos/") == listed
    assert sources("photos", recursive=False) == [name for name in listed if name.count("/") == 1]


def test_what_a_folders_files_are_told_by():
    taken = [f"{number:02}.{ending}" for number, ending in enumerate(sorted(walking.EXTENSIONS))]
    shouted = [name.upper() for name in taken]
    assert {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm"} | {
        *("pnm", "jp2", "j2k", "avif", "ico", "tga", "pcx", "qoi", "heic", "heif")
    } == walking.EXTENSIONS
    write(*taken, *(f"in/{name}" for name in shouted))
    write("notes.txt", "a.jpg.part", "jpg", ".hidden.jpg", ".git/x.jpg", "x.svg", "x.eps", "x.parquet.jpg.zip", "..jpg")
    assert sources(".") == [f"./{name}" for name in taken] + [f"./in/{name}" for name in shouted]


def test_files_that_are_named_are_taken_whatever_they_are_called():
    write("x.dat", ".hidden.jpg", "jpg", "words.txt")
    assert sources("x.dat", ".hidden.jpg", "jpg", "words.txt") == ["x.dat", ".hidden.jpg", "jpg", "words.txt"]


def test_a_hidden_folder_that_is_named_is_searched():
    write(".cache/a.jpg", ".cache/.b.jpg")
    assert sources(".cache") == [".cache/a.jpg"]


def test_folders_that_are_called_like_pictures():
    write("album.jpg/one.png", "photos/inner.png/two.jpg")
    Path("photos/empty.jpg/deeper").mkdir(parents=True)
    assert sources("album.jpg", "photos") == ["album.jpg/one.png", "photos/empty.jpg", "photos/inner.png/two.jpg"]
    (item,) = gather(["photos/empty.jpg"])
    for empty in (item, gather(["photos"])[0]):
        with pytest.raises(PictureError, match=r"'photos/empty\.jpg' is a folder, not a picture"):
            empty.read()
    assert sources("photos", recursive=False) == ["photos/empty.jpg", "photos/inner.png"]


def test_links_in_circles_are_left():
    write("photos/a.jpg", "photos/b/c.jpg", "outside/d.jpg")
    Path("photos/b/up").symlink_to("..")
    Path("photos/b/top").symlink_to("/")
    Path("photos/b/self").symlink_to("self")
    Path("photos/b/self.jpg").symlink_to("self.jpg")
    Path("photos/out").symlink_to("../outside")
    Path("photos/out-again").symlink_to("../outside")
    expected = ["photos/a.jpg", "photos/b/c.jpg", "photos/b/self.jpg", "photos/out/d.jpg"]
    assert sources("photos") == expected
    assert sources("photos/**/*.jpg") == expected
    with pytest.raises(PictureError, match=r"self\.jpg"):
        gather(["photos/b/self.jpg"])[0].read()


def test_folders_that_all_link_to_each_other_are_searched_once_each():
    names = [f"web/{letter}" for letter in "abcdefghijkl"]
    write(*(f"{name}/{name[-1]}.jpg" for name in names))
    for name in names:
        for other in names:
            Path(name, f"to-{other[-1]}").symlink_to(f"../{other[-1]}")
    started = time.perf_counter()
    assert sorted(source[-5:] for source in sources("web")) == [f"{name[-1]}.jpg" for name in names]
    assert len(sources("web/**/*.jpg")) == len(names)
    assert time.perf_counter() - started < 5


def test_links_to_files_are_pictures_of_their_own():
    write("a.jpg")
    Path("b.jpg").symlink_to("a.jpg")
    Path("gone.jpg").symlink_to("nowhere")
    items = gather(["."])
    assert [item.source for item in items] == ["./a.jpg", "./b.jpg", "./gone.jpg"]
    assert items[1].read() == b"a.jpg"
    with pytest.raises(PictureError, match="There is no file"):
        items[2].read()


def test_deep_folders():
    deep = Path("deep", *["d"] * 900)
    deep.mkdir(parents=True)
    (deep / "a.jpg").touch()
    assert sources("deep") == [str(deep / "a.jpg")] == sources("deep/**/*.jpg")


def test_a_folder_below_that_cannot_be_searched_is_not_passed_over_in_silence(monkeypatch):
    write("photos/a.jpg", "photos/locked/b.jpg", "photos/z.jpg")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    items = gather(["photos"])
    assert [item.source for item in items] == ["photos/a.jpg", "photos/locked", "photos/z.jpg"]
    with pytest.raises(PictureError, match=r"'photos/locked' cannot be searched: Permission denied"):
        items[1].read()
    with pytest.raises(SourceError, match="cannot be searched: Permission denied"):
        gather(["photos/locked"])


def test_nothing_is_waited_for():
    write("photos/a.jpg")
    os.mkfifo("photos/pipe.jpg")
    os.mkfifo("pipe")
    items = gather(["photos/pipe.jpg", "pipe", "photos", "/dev/zero"])
    assert [item.source for item in items] == ["photos/pipe.jpg", "pipe", "photos/a.jpg", "/dev/zero"]
    for item in (items[0], items[1], items[3]):
        with pytest.raises(PictureError, match="is a pipe, a socket or a device"):
            item.read()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["[a].jpg", "a.jpg", "b.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!b].jpg", ["a.jpg"]),
        ("[[]*.jpg", ["[a].jpg"]),
        ("[a].jpg", ["[a].jpg"]),
        ("*/*.jpg", ["c/d.jpg"]),
        ("**/*.jpg", ["[a].jpg", "a.jpg", "b.jpg", "c/d.jpg", "c/e/f.jpg"]),
        ("**/**/f.*", ["c/e/f.jpg"]),
        ("c/**", ["c/d.jpg", "c/e/f.jpg"]),
        ("c/**/d.jpg", ["c/d.jpg"]),
        ("c*", ["c/d.jpg", "c/e/f.jpg"]),
        ("*", ["[a].jpg", "a.jpg", "b.jpg", "c/d.jpg", "c/e/f.jpg"]),
        ("*.dat", ["x.dat"]),
        ("x.*", []),
        ("*.JPG", []),
        (".*.jpg", [".h.jpg"]),
        ("./c/../?.jpg", ["./c/../a.jpg", "./c/../b.jpg"]),
        ("c/d.jpg/*", []),
        ("nowhere/*.jpg", []),
    ],
)
def test_patterns(pattern, expected, here):
    write("a.jpg", "b.jpg", "[a].jpg", "c/d.jpg", "c/e/f.jpg", ".h.jpg", ".hid/g.jpg", "x.dat", "c/notes.txt")
    for prefix in ("", f"{here}/"):
        if expected:
            assert sources(prefix + pattern) == [prefix + name for name in expected]
        else:
            with pytest.raises(SourceError, match="pattern"):
                gather([prefix + pattern])


def test_patterns_agree_with_a_plain_way_to_fit_them():
    draw = random.Random(0)
    names = {"/".join(draw.choice("abc.") + draw.choice("ab1") for _ in range(draw.randint(1, 3))) for _ in range(60)}
    for name in sorted(names):
        try:
            write(f"tree/{name}.jpg")
        except (FileExistsError, NotADirectoryError):
            continue
    for pattern in (
        "tree/*a.jpg",
        "tree/*/*b.jpg",
        "tree/[ab]?/*",
        "tree/**/a*.jpg",
        "tree/**/b?/*.jpg",
        "tree/*/**/*1.jpg",
    ):
        plain = {path for path in Path().glob(pattern) if path.is_file()}
        plain = {str(path) for path in plain if not any(part.startswith(".") for part in path.parts)}
        assert plain
        found = {entry.path for entry in walking.fitting(pattern) if not entry.is_folder}
        assert found == plain


def test_a_pattern_says_how_much_it_found():
    write("notes/a.txt", "notes/b.txt")
    with pytest.raises(SourceError, match=r"No picture among the 2 files and folders that fit the pattern 'notes/\*'"):
        gather(["notes/*"])
    with pytest.raises(SourceError, match=r"Nothing fits the pattern 'notes/\*\.jpg'"):
        gather(["notes/*.jpg"])


def test_patterns_reach_tables_only_by_their_ending():
    write("photos/a.jpg", "photos/b.parquet")
    assert sources("photos/*") == ["photos/a.jpg"]
    with pytest.raises(SourceError, match=r"b\.parquet"):
        gather(["photos/*.parquet"])


@pytest.mark.parametrize("name", ["nowhere.jpg", "nowhere/", "a.jpg/b", "", "\0", "\ud800.jpg", "n" * 300, "nowhere\n"])
def test_what_is_not_there(name):
    write("a.jpg")
    with pytest.raises(SourceError, match="There is no file or folder") as caught:
        gather(["a.jpg", name])
    str(caught.value).encode("utf-8")


def test_addresses_are_not_fetched():
    for address in ("https://example.org/dog.jpg", "http://example.org/?q=*"):
        with pytest.raises(SourceError, match="Addresses are not fetched"):
            gather([address])


def test_folders_without_pictures():
    Path("empty").mkdir()
    write("notes/a.txt", "outer/inner/a.jpg")
    for name in ("empty", "notes"):
        with pytest.raises(SourceError, match=rf"The folder '{name}' holds no picture"):
            gather([name])
    with pytest.raises(SourceError, match="holds no picture: no file in it ends"):
        gather(["outer"], recursive=False)


def test_listing_looks_at_no_file(monkeypatch):
    write(*(f"photos/{number}.jpg" for number in range(50)))
    stat, looked_at = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **options: looked_at.append(str(path)) or stat(path, **options))
    assert len(list(files.pictures_in("photos"))) == 50
    assert looked_at
    assert not [path for path in looked_at if path.endswith(".jpg")]
