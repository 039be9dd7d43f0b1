"""The report as a file: whole in itself, small, and made of text that stays text."""

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from mmneurons.errors import ExtraMissingError, OptionError
from mmneurons.reports import html
from mmneurons.reports.html import write_report
from mmneurons.reports.over_run import ERRORS
from mmneurons.reports.texts import visible
from mmneurons.runs.writer import PARTS
from reports.synthetic import Map, Sketch, Unit, Word, noise, units, write_run

HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "image": "\"><img src=x onerror='window.hacked = 2'>",
    "end": "</script></style></title><!-- <b>bold</b> -->",
    "template": "{{ 7 * 7 }}{% raw %} ${1} &lt;i&gt;",
    "control": "a\x00b\x1b[31m\nc\u2028d",
    "turned": "safe\u202egpj.exe",
}


class Page(HTMLParser):
    """What a browser would make of the file: elements with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return "".join(data for tag, data in self.texts if tag not in ("script", "style"))


def shown(run, path, **options):
    return Page(write_report(run, path, **options).read_text(encoding="utf-8"))


def data_of(page):
    (text,) = [data for tag, data in page.texts if tag == "script" and data.startswith('{"colors"')]
    return json.loads(text)


def small_run(folder):
    grid = np.arange(6.0).reshape(2, 3)
    dog = Word("dog", units((3, 1), (2, 7)), [Map(grid, rank=0), Map(grid, first=2)], probability=0.25, logit=3.5)
    cat = Word("cats", (Unit(1, 5, expert=2, activation=-4.0),), lemma="cat", total=None)
    return write_run(
        folder,
        [
            Sketch("one.png", "a dog and cats", [dog, cat], noise(seed=1)),
            Sketch("two.png", "a dog", [Word("dog", units((3, 1), (4, 4)))], noise(seed=2)),
            Sketch("bad.png", status="error", error="PictureError: it is bad"),
        ],
    )


def test_the_file_holds_everything_that_it_names(tmp_path):
    page = shown(small_run(tmp_path), tmp_path / "report.html")
    named = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "background")
    ]
    assert named
    assert all(value.startswith(("data:", "#")) for value in named)
    style = "".join(data for tag, data in page.texts if tag == "style")
    assert "var(--accent)" in style
    assert "url(" not in style
    assert "@import" not in style
    assert not {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "form", "base"}


def test_the_browser_may_only_run_the_scripts_of_the_report(tmp_path):
    page = shown(small_run(tmp_path), tmp_path / "report.html")
    (policy,) = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    scripts = [data for tag, data in page.texts if tag == "script" and not data.startswith('{"colors"')]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(scripts) == 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_page_says_what_was_run_and_what_was_found(tmp_path):
    page = shown(small_run(tmp_path), tmp_path / "report.html")
    text = re.sub(r"\s+", " ", page.text())
    for said in (
        "test-model",
        "3 pictures: 2 captioned, 1 error. 3 words explained, 2 different.",
        "fingerprint abababababab",
        "“Describe.”, begun with “An image of”",
        "against the test",
        "2026-01-02 03:04 UTC",
        "a dog and cats",
        "one.png",
        "PictureError: it is bad",
    ):
        assert said in text
    # two words have L3.u1, and it serves both pictures of one of them
    assert "L3.u1 100%" in text


def test_a_word_is_given_to_the_script_with_its_neurons_and_maps(tmp_path):
    page = shown(small_run(tmp_path), tmp_path / "report.html")
    marked = [(a["data-picture"], a["data-word"]) for a in page.of("a") if "data-word" in a]
    assert marked == [("0", "0"), ("0", "1"), ("1", "0")]
    dog, cat = data_of(page)["pictures"][0]["words"]
    assert (dog["probability"], dog["logit"], dog["total"]) == ("25%", "3.5", "4")
    assert [neuron["name"] for neuron in dog["neurons"]] == ["L3.u1", "L2.u7"]
    assert [neuron["bar"] for neuron in dog["neurons"]] == [1, 0.5]
    assert dog["neurons"][0]["share"] == "50.0%"
    assert (cat["word"], cat["lemma"]) == ("cats", "cat")
    assert (cat["neurons"][0]["name"], cat["neurons"][0]["share"]) == ("L1.e2.u5", "–")
    assert cat["neurons"][0]["activation"] == "−4.00"
    first, mean = dog["maps"]
    assert (first["rank"], first["first"], mean["rank"], mean["first"]) == (0, None, None, 2)
    codes = np.frombuffer(base64.b64decode(first["codes"]), dtype=np.uint8).reshape(first["rows"], first["columns"])
    assert (first["low"], first["high"]) == ("0", "5")
    assert (codes[0, 0], codes[-1, -1]) == (0, 254)
    assert (np.diff(codes.astype(int), axis=1) >= 0).all()
    colors = np.frombuffer(base64.b64decode(data_of(page)["colors"]), dtype=np.uint8).reshape(256, 3)
    assert colors[0].tolist() == [68, 1, 84]  # viridis begins and ends so
    assert colors[255].tolist() == [253, 231, 37]


@pytest.mark.parametrize("name", HOSTILE)
def test_text_of_models_and_files_stays_text(tmp_path, name):
    text = HOSTILE[name]
    word = Word(text, (Unit(1, 1, promotes=(text,)),), lemma=text, note=text)
    other = Word(text, (Unit(1, 1, promotes=(text,)),), lemma=f"{text}2", note=text)
    source = text.replace("\0", "0").replace("/", "∕") + ".png"
    sketches = [
        Sketch(f"1{source}", f"A {text} here", [word], noise()),
        Sketch("2.png", f"{text}", [word, other]),
        Sketch(text, status="error", error=text),
    ]
    plain = shown(small_run(tmp_path / "plain"), tmp_path / "plain.html")
    run = write_run(
        tmp_path,
        sketches,
        model={"name": text, "class": text, "fingerprint": text},
        options={text: text, "prompt": text},
    )
    page = shown(run, tmp_path / "report.html")
    kinds = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in page.elements} <= kinds
    assert len(page.of("script")) == len(plain.of("script"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(image.get("src", "data:").startswith("data:") for image in page.of("img"))
    told = page.text()
    assert visible(text) in told
    assert f"A {visible(text)} here" in told
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", told)
    neuron = data_of(page)["pictures"][0]["words"][0]
    assert neuron["word"] == visible(text)
    assert neuron["neurons"][0]["promotes"] == [visible(text.strip())]


def test_a_page_of_nothing_says_so(tmp_path):
    nothing = shown(write_run(tmp_path / "nothing", []), tmp_path / "nothing.html").text()
    assert "No picture is done yet" in nothing
    failed = [Sketch(f"{number}.jpg", status="error", error="bad") for number in range(ERRORS + 2)]
    page = shown(write_run(tmp_path / "errors", failed, shard=60), tmp_path / "errors.html")
    assert "No picture could be captioned" in page.text()
    assert f"The first {ERRORS} of {ERRORS + 2}" in page.text()
    wordless = shown(write_run(tmp_path / "wordless", [Sketch("a.jpg", "hm")]), tmp_path / "wordless.html")
    assert "No word of a caption is explained" in wordless.text()
    for each in (page, wordless):
        assert data_of(each) == {"colors": data_of(each)["colors"], "charts": {}, "pictures": []}


def test_a_run_that_is_still_written_is_reported_as_far_as_it_is(tmp_path):
    run = write_run(tmp_path, [Sketch("a.png", "a dog", [Word("dog", units((1, 1)))], noise())], total=100)
    (run.path / PARTS / ".000001").mkdir()
    text = re.sub(r"\s+", " ", shown(run, tmp_path / "report.html").text())
    assert "1 picture of 100 so far: 1 captioned." in text
    assert "a dog" in text


def test_a_run_file_that_says_little_is_enough(tmp_path):
    sketches = [Sketch("a.png", "a dog", [Word("dog", units((1, 1)))], noise())]
    run = write_run(tmp_path, sketches, model="x", options=None, versions=3, created="yesterday", pictures=None)
    text = shown(run, tmp_path / "report.html").text()
    assert "unnamed model" in text
    assert "yesterday" in text


def test_a_picture_that_is_gone_is_said_to_be(tmp_path):
    run = small_run(tmp_path)
    (tmp_path / "one.png").unlink()
    noise(seed=9).save(tmp_path / "two.png")
    page = shown(run, tmp_path / "report.html")
    assert "cannot be read any more" in page.text()
    assert "no longer the one that was captioned" in page.text()
    assert [image for image in page.of("img") if "src" in image] == []


def test_only_so_many_pictures_are_shown_and_the_rest_counts(tmp_path):
    page = shown(small_run(tmp_path), tmp_path / "report.html", pictures=1)
    assert len(data_of(page)["pictures"]) == 1
    assert "Shown are 1 of 2 pictures, the first that have words" in page.text()
    assert "all 3 words of the run" in page.text()
    for bad in (0, -1):
        with pytest.raises(OptionError, match="whole number from 1"):
            write_report(small_run(tmp_path / f"bad{bad}"), tmp_path / "bad.html", pictures=bad)


@pytest.mark.slow
def test_forty_pictures_stay_below_the_limit_whatever_they_show(tmp_path):
    """Pictures that compress badly, captions of many words, ten maps of each."""
    draw = np.random.default_rng(0)
    maps = [Map(draw.normal(size=(16, 16)), rank=rank) for rank in range(10)] + [
        Map(draw.normal(size=(16, 16)), first=10)
    ]
    tokens = tuple(f"token number {number} with text" for number in range(10))
    best = tuple(Unit(layer, 1, promotes=tokens) for layer in range(10))
    words = [Word("word", best, maps, start=number * 5, lemma=f"word{number}") for number in range(10)]
    sketches = [
        Sketch(f"{number}.png", "word " * 10, words, noise((500, 500), seed=number, grain=1)) for number in range(40)
    ]
    path = write_report(write_run(tmp_path, sketches, shard=20), tmp_path / "report.html")
    assert path.stat().st_size < 15_000_000


def test_what_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch):
    find = html.find_spec
    monkeypatch.setattr(html, "find_spec", lambda name: None if name in ("altair", "vl_convert") else find(name))
    with pytest.raises(
        ExtraMissingError, match=r"needs altair, vl-convert-python, .*pip install 'mmneurons\[report\]'"
    ):
        write_report(write_run(tmp_path, []), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_report_takes_the_place_of_the_old_one_whole_or_not_at_all(tmp_path, monkeypatch):
    run, path = small_run(tmp_path), tmp_path / "new" / "folder" / "report.html"
    write_report(run, path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    monkeypatch.setattr("os.replace", _fail)
    with pytest.raises(OSError, match="full"):
        write_report(run, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["report.html"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fail(*_):
    raise OSError("full")


def test_writing_a_report_loads_no_model_library(tmp_path):
    run = small_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from mmneurons import runs\n"
        "from mmneurons.reports.html import write_report\n"
        f"write_report(runs.open({str(run.path)!r}), Path({str(tmp_path / 'r.html')!r}))\n"
        "print(*sorted({'torch', 'transformers', 'spacy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
