"""A list of words is learned, proved and handed out, or refused."""

import json

import pytest

import mmneurons as mmn
from helpers.command import mmn as command
from helpers.edited import draw, studied
from mmneurons.errors import EditError
from mmneurons.measures.edit_quality import Quality
from mmneurons.measures.figures import share
from mmneurons.mitigation.proof import too_much
from mmneurons.mitigation.survey import survey
from mmneurons.mitigation.wishes import Wish
from mmneurons.mitigation.words import mitigate_words
from mmneurons.reports.mitigation import write_folder
from mmneurons.vlm.pictures import PictureLike, open_picture


@pytest.mark.parametrize(
    ("hits", "at_least", "refused"), [(18, 0.9, False), (17, 0.9, True), (17, 0.85, False), (20, 1.0, False)]
)
def test_too_few_unchanged_captions_are_refused(hits, at_least, refused):
    quality = Quality((share("unchanged", [index < hits for index in range(20)]),), {})
    assert bool(too_much(quality, at_least)) is refused


def test_locality_that_could_not_be_measured_is_refused():
    assert "No caption was left" in too_much(Quality((share("unchanged", []),), {}), 0.0)


@pytest.mark.demo
def test_a_word_that_no_caption_says(demo):
    named = [(picture.path.name, picture.path) for picture in mmn.demo.pictures()[:2]]
    found = survey(demo, [(name, open_picture(path)) for name, path in named], [Wish("submarine")])
    with pytest.raises(EditError, match="No caption of these 2 pictures says 'submarine'"):
        mitigate_words(demo, found)


@pytest.mark.demo
def test_words_are_gone_and_the_summary_says_how_well(tmp_path):
    (tmp_path / "words.txt").write_text("dog\ncat -> horse\nsubmarine\n")
    asked = (
        "mitigate",
        "words",
        "demo:pictures",
        "--limit",
        20,
        "--list",
        tmp_path / "words.txt",
        "--out",
        tmp_path / "out",
        "--json",
    )
    dry = command(*asked, "--dry-run")
    assert dry.code == 0, dry.out
    assert not (tmp_path / "out").exists()
    said = dry.events[-1]["said"]
    made = command(*asked, "--at-least", "0.5", "--peft")
    assert made.code == 0, made.out
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {one["word"]: one["captions"] for one in told["words"]} == said
    assert said["submarine"] == 0
    edit = mmn.Edit.load(tmp_path / "out" / "edit.safetensors")
    assert edit.measured["quality"] == {name: told[name] for name in ("words", "elsewhere")}
    vlm = mmn.load("demo")
    paths: list[PictureLike] = [picture.path for picture in mmn.demo.pictures()[:20]]
    before = dict(zip((path.name for path in paths), mmn.caption(vlm, paths), strict=True))
    with edit.on(vlm):
        after = dict(zip((path.name for path in paths), mmn.caption(vlm, paths), strict=True))
    # what the summary shows is what the file does, learned from or not
    own = [change for one in told["words"] for kind in ("changes", "changes learned from") for change in one[kind]]
    changes = own + told["changed elsewhere"]
    assert changes
    for change in changes:
        name = change["name"].rpartition("/")[2]
        assert (before[name], after[name]) == (change["before"], change["after"])
    learned = {one["word"]: one["reliability"] for one in told["words"] if "reliability" in one}
    assert learned["dog"]["value"] == learned["cat"]["value"] == 1
    for one in told["words"]:
        held, seen = ({change["name"] for change in one[kind]} for kind in ("changes", "changes learned from"))
        assert not held & seen
        assert len(seen) <= one["learned from"]
    page = (tmp_path / "out" / "README.md").read_text()
    assert "**Can be used, as far as" in page
    assert "Signed off by" in page
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    assert command(*asked).code == 1


@pytest.mark.demo
def test_edits_that_change_too_much_are_not_handed_out(tmp_path):
    (tmp_path / "words.txt").write_text("dog -> cat\n")
    out = tmp_path / "out"
    asked = (
        "demo:pictures",
        "--limit",
        12,
        "--list",
        tmp_path / "words.txt",
        "--out",
        out,
        "--option",
        "margin=300",
        "--json",
    )
    result = command("mitigate", "words", *asked)
    assert result.code == 1
    assert result.events[-1]["message"].startswith("Refused, and no edit was written")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "summary.json"]
    assert "**Refused.**" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("extra", "says"),
    [(("--at-least", "90"), "a number from 0 to 1"), (("--method", "rome"), "no method 'rome'")],
)
def test_requests_that_make_no_sense(tmp_path, extra, says):
    (tmp_path / "words.txt").write_text("dog\n")
    asked = ("mitigate", "words", tmp_path, "--list", tmp_path / "words.txt", "--out", tmp_path / "out", *extra)
    result = command(*asked)
    assert result.code == 1
    assert says in result.err.replace("\n", " ")


def test_what_was_measured_is_there_where_peft_cannot_hold_the_edit(tmp_path, monkeypatch):
    def refuses(*_):
        raise EditError("peft cannot.")

    vlm, _ = studied("llava")
    edit = draw(vlm)
    monkeypatch.setattr(mmn.Edit, "to_peft", refuses)
    with pytest.raises(EditError, match="peft cannot"):
        write_folder(tmp_path / "out", vlm, edit, {"share": 0.5}, "# Page", peft=True)
    assert (tmp_path / "out" / "README.md").read_text() == "# Page"
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"share": 0.5}
    assert mmn.Edit.load(tmp_path / "out" / "edit.safetensors").edit_id == edit.edit_id
