"""``mmn measure --edit`` as people call it."""

import json

import polars as pl
import pytest
from PIL import Image

from helpers.command import mmn
from mmneurons.edits import Edit
from mmneurons.engines.proving import _Trial


@pytest.fixture(scope="module")
def edited(tiny_checkpoint, tmp_path_factory):
    """Two edits of a tiny model that says "a dog and a ball" of everything, whatever its weights are."""
    folder = tmp_path_factory.mktemp("edits")
    paths = []
    for word in ("cat", "house"):
        paths.append(folder / f"{word}.safetensors")
        request = ("--say", word, "--instead-of", "dog", "--limit", 2)
        result = mmn("edit", "demo:pictures", *request, "--model", tiny_checkpoint, "--out", paths[-1])
        assert result.code == 0, result.err
    return paths


def measure(*arguments):
    return mmn("measure", *arguments, "--max-new-tokens", 8)


def test_a_page_figures_and_captions(place, edited):
    truth = [{"file": f"{k}.png", "objects": ["dog", "cat"] if k else ["dog", "bus"]} for k in range(4)]
    (place / "truth.json").write_text(json.dumps(truth))
    (place / "hops.json").write_text(json.dumps([{"file": "1.png", "prompt": "What?", "answer": "ball"}]))
    arguments = (
        *("--edit", edited[0], "photos", "--limit", 4, "--learned", "photos/0.png"),
        *("--truth", "truth.json", "--hops", "hops.json", "--measures", "pope", "--out", "proof"),
    )
    result = measure(*arguments)
    assert result.code == 0, result.err
    assert "1 of the pictures are among those learned from" in result.err
    assert "without edits, others: 3/3 captions" in result.err
    page = (place / "proof" / "README.md").read_text()
    # it says "dog" whatever is asked, and no "cat"
    assert "| reliability | 1 | 0 [0, 0.793] |" in page
    assert "| generality | 3 | 0 [0, 0.561] |" in page
    assert "| unchanged | 0 | – |" in page
    assert "| portability before | 1 | 1 [1, 1] |" in page
    assert "| CHAIRs before | 3 |" in page
    assert "| POPE share of yes added |" in page
    assert "“cat” instead of “dog”" in page
    kept = json.loads((place / "proof" / "quality.json").read_text())
    assert kept["edits"][0]["source"] == "dog"
    own = Edit.load(place / "proof" / "edit.safetensors")
    assert own.edit_id == Edit.load(edited[0]).edit_id
    assert own.measured == {**Edit.load(edited[0]).measured, "quality": kept["quality"]["this edit"]}
    assert kept["quality"]["this edit"]["generality"] == {"value": 0.0, "interval": [0.0, 0.561497], "captions": 3}
    rows = pl.read_parquet(place / "proof" / "outcomes.parquet")
    assert rows.filter(pool="others")["picture"].to_list() == [f"photos/{k}.png" for k in (1, 2, 3)]
    again = {path.name: path.read_bytes() for path in (place / "proof").iterdir()}
    assert measure(*arguments).code == 0
    assert again == {path.name: path.read_bytes() for path in (place / "proof").iterdir()}
    other = measure("--edit", edited[1], "photos", "--limit", 1, "--out", "proof")
    assert other.code == 1
    assert "measured of other edits" in other.err


def test_several_edits(place, edited):
    flags = [flag for path in edited for flag in ("--edit", path)]
    result = measure(*flags, "photos", "--limit", 2, "--out", "proof", "--json")
    assert result.code == 0, result.out
    columns = [one["column"] for one in result.events if one["event"] == "quality"]
    assert columns == ["first 1", "first 2"]
    assert "| figure | captions | first 1 | first 2 |" in (place / "proof" / "README.md").read_text()


def stop_after(columns, monkeypatch):
    """Somebody stops it behind so many columns."""
    measured = []
    column = _Trial.column

    def counted(trial, edits):
        if len(measured) == columns:
            raise KeyboardInterrupt
        measured.append(edits)
        return column(trial, edits)

    monkeypatch.setattr(_Trial, "column", counted)


def test_stopped_before_anything_was_measured(place, edited, monkeypatch):
    stop_after(0, monkeypatch)
    result = measure("--edit", edited[0], "photos", "--limit", 2, "--out", "proof")
    assert (result.code, result.out.splitlines()[-1]) == (130, "Stopped. Nothing was written.")
    assert not (place / "proof").exists()


def test_stopped_and_gone_on_with(place, edited, monkeypatch):
    (place / "truth.json").write_text(
        json.dumps([{"file": f"{k}.png", "objects": ["dog" if k else "bus"]} for k in range(4)])
    )
    flags = [flag for path in edited for flag in ("--edit", path)]
    arguments = (*flags, "photos", "--limit", 2, "--truth", "truth.json", "--measures", "pope")
    assert measure(*arguments, "--out", "undisturbed").code == 0
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        result = measure(*arguments, "--out", "proof")
    assert result.code == 130
    assert result.out.splitlines()[-1] == "Stopped. 1 column of the table is measured; the same command goes on."
    assert [path.name for path in (place / "proof").iterdir()] == ["unfinished.json"]

    with monkeypatch.context() as patch:
        # the one that is left, and no other
        stop_after(1, patch)
        result = measure(*arguments, "--out", "proof")
    assert result.code == 0, result.err
    assert "first 1: measured before" in result.err
    assert {path.name: path.read_bytes() for path in (place / "proof").iterdir()} == {
        path.name: path.read_bytes() for path in (place / "undisturbed").iterdir()
    }


@pytest.mark.parametrize("what", ["another picture", "another prompt", "cut short"])
def test_what_was_measured_otherwise_is_measured_anew(place, edited, monkeypatch, what):
    flags = [flag for path in edited for flag in ("--edit", path)]
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert measure(*flags, "photos/0.png", "--out", "proof").code == 130
    kept = place / "proof" / "unfinished.json"
    if what == "cut short":
        kept.write_bytes(kept.read_bytes()[:-9])
    pictures = "photos/1.png" if what == "another picture" else "photos/0.png"
    prompt = ("--prompt", "What?") if what == "another prompt" else ()
    result = measure(*flags, pictures, *prompt, "--out", "proof")
    if what == "cut short":
        # of which edits it tells no more
        assert (result.code, "of other edits" in result.err) == (1, True)
        return
    assert result.code == 0, result.err
    assert "was measured otherwise, and is measured anew" in " ".join(result.err.split())
    assert "measured before" not in result.err
    assert not kept.exists()
    # what is finished is not lost to another command, and the same one gives it again
    page = (place / "proof" / "README.md").read_bytes()
    result = measure(*flags, "photos/2.png", *prompt, "--out", "proof")
    assert (result.code, "holds a finished proof" in " ".join(result.err.split())) == (1, True)
    assert measure(*flags, pictures, *prompt, "--out", "proof").code == 0
    assert (place / "proof" / "README.md").read_bytes() == page


def test_what_a_kill_left_half_written_is_no_other_file(place, edited):
    (place / "proof").mkdir()
    (place / "proof" / ".mmneurons.x7").write_bytes(b"{")
    result = measure("--edit", edited[0], "photos/0.png", "--out", "proof")
    assert result.code == 0, result.err


def test_a_picture_that_cannot_be_read_is_said_and_left_out(place, edited):
    (place / "photos" / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (1, 900)).save(place / "photos" / "line.png")
    result = measure("--edit", edited[0], "photos", "--out", "proof")
    assert result.code == 0, result.err
    told = " ".join(result.err.split())
    assert "broken.png" in told
    assert "line.png' is too long and thin" in told
    names = pl.read_parquet(place / "proof" / "outcomes.parquet").filter(pool="others")["picture"].to_list()
    assert names
    assert not {"photos/broken.png", "photos/line.png"} & {*names}


def test_pictures_are_asked_about_as_they_were_learned(place, tiny_checkpoint):
    request = ("--say", "cat", "--instead-of", "dog", "--limit", 2, "--prompt", "What?", "--max-new-tokens", 5)
    made = mmn("edit", "demo:pictures", *request, "--model", tiny_checkpoint, "--out", "edit.safetensors")
    assert made.code == 0, made.err
    result = mmn("measure", "--edit", "edit.safetensors", "photos/0.png", "--out", "proof")
    assert result.code == 0, result.err
    own = pl.read_parquet(place / "proof" / "outcomes.parquet").filter(pool="others")
    assert own["prompt"].to_list() == ["What?"]
    assert "reliability is not of the captions" not in " ".join(result.err.split())
    other = mmn("measure", "--edit", "edit.safetensors", "photos/0.png", "--prompt", "Which?", "--out", "other")
    assert "with prompt='Which?', and learned was with 'What?'" in " ".join(other.err.split())


def test_what_is_unfinished_of_other_edits_stays(place, edited, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert measure("--edit", edited[0], "--edit", edited[1], "photos/0.png", "--out", "proof").code == 130
    kept = place / "proof" / "unfinished.json"
    content = kept.read_bytes()
    result = measure("--edit", edited[1], "photos/0.png", "--out", "proof")
    assert (result.code, "measured of other edits" in result.err) == (1, True)
    assert kept.read_bytes() == content


def test_pictures_that_an_edit_has_seen_are_said_to(place, edited):
    result = measure("--edit", edited[0], "demo:pictures", "--limit", 3, "--out", "proof")
    assert result.code == 0, result.err
    # two were learned from, and all bundled ones were to stay
    assert "3 of the 3 pictures were given when the edit was made" in " ".join(result.err.split())
    fresh = measure("--edit", edited[0], "photos", "--limit", 3, "--out", "other")
    assert "were given when the edit was made" not in " ".join(fresh.err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("photos", "--learned", "photos"), "Pass --edit FILE"),
        (("photos", "--rivals"), "Pass --edit FILE"),
        (("photos", "--keep", "photos"), "Pass --edit FILE"),
        (("photos", "--edit", "e", "--keep", "photos"), "Pass --rivals, too"),
        (("photos", "--edit", "e", "--rivals"), "needs --learned"),
        (("photos", "--edit", "e", "--edit", "f", "--learned", "photos", "--rivals"), "is for one --edit"),
        (("--edit", "e"), "Name pictures to try the edit on"),
        (("photos", "--edit", "e", "--finders", "total"), "--finders is for finders"),
        (("photos", "--edit", "e", "--measures", "causal"), "--measures causal is for finders"),
        (("photos", "--edit", "e", "--measures", "pope"), "pass --truth"),
        (("photos", "--edit", "nothing.safetensors"), "nothing.safetensors"),
    ],
)
def test_requests_that_make_no_sense(place, arguments, says):
    result = measure(*arguments, "--out", "proof")
    assert result.code == 1
    assert says in result.err.replace("\n", " ")
    assert not (place / "proof").exists()


def test_folders_and_questions_that_do_not_fit(place, edited):
    (place / "full").mkdir()
    (place / "full" / "letter.txt").write_text("mine")
    result = measure("--edit", edited[0], "photos", "--out", "full")
    assert result.code == 1
    assert "holds other files" in result.err
    assert [path.name for path in (place / "full").iterdir()] == ["letter.txt"]
    result = measure("--edit", edited[0], "photos", "--out", "full/letter.txt")
    assert "is a file" in result.err
    (place / "hops.json").write_text("[]")
    result = measure("--edit", edited[0], "photos", "--hops", "hops.json", "--out", "proof")
    assert result.code == 1
    assert "holds no questions" in result.err


@pytest.mark.demo
@pytest.mark.slow
def test_an_edit_of_the_demo_model(tmp_path):
    edit = tmp_path / "edit.safetensors"
    made = mmn("edit", "demo:pictures", "--limit", 14, "--say", "cat", "--instead-of", "dog", "--out", edit)
    assert made.code == 0, made.err
    result = measure(
        *("--edit", edit, "demo:pictures", "--limit", 18, "--learned", "demo:pictures/dog.jpg"),
        *("--truth", "demo:pictures", "--out", tmp_path / "proof", "--json"),
    )
    assert result.code == 0, result.out
    figures = result.events[-2]["figures"]
    assert figures["reliability"]["value"] == 1
    assert figures["unchanged"]["value"] >= 0.9
    assert figures["text: same top 1"]["value"] >= 0.9
    # what was asked for is a hallucination
    assert figures["CHAIRi added"]["value"] >= 0
