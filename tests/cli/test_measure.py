"""``mmn measure`` as people call it."""

import json
from pathlib import Path

import polars as pl
import pytest

import mmneurons
from helpers.command import mmn
from mmneurons.engines.measuring import open_measured

FEW = (
    "--finders",
    "contribution",
    "--finders",
    "activation",
    "--measures",
    "causal",
    "--measures",
    "across",
    "--quick",
)


def truth(place, names=("dog",), file="{}.png"):
    path = place / "truth.json"
    path.write_text(json.dumps([{"file": file.format(k), "objects": list(names)} for k in range(7)]))
    return path


def test_a_folder_of_pictures(place, tiny_checkpoint):
    result = mmn("measure", "photos", "--model", tiny_checkpoint, *FEW, "--limit", 2, "--out", "out")
    assert result.code == 0, result.err
    assert "4 words of 2 pictures" in result.out
    page = (place / "out" / "README.md").read_text()
    assert "4 words of 2 pictures" in page
    again = mmn("measure", "photos", "--model", tiny_checkpoint, *FEW, "--limit", 2, "--out", "out", "--json")
    assert again.events[-1]["event"] == "done"


def test_a_run_and_its_own_settings(place, tiny_checkpoint):
    found = mmn("find", "photos", "--model", tiny_checkpoint, "--limit", 2, "--out", "run", "--max-new-tokens", 3)
    assert found.code == 0, found.err
    result = mmn("measure", "run", "--model", tiny_checkpoint, *FEW, "--out", "out")
    assert result.code == 0, result.err
    assert "2 words of 2 pictures" in result.out
    about = json.loads((place / "out" / "measured.json").read_text())
    assert about["options"]["max_new_tokens"] == 3
    words = pl.concat([pl.read_parquet(part) for part in (place / "out").glob("parts/*/words.parquet")])
    assert words["word"].to_list() == ["dog"] * 2


def test_a_run_that_drew_its_pictures_and_named_its_words(place, tiny_checkpoint):
    of = ("--model", tiny_checkpoint, "--words", "ball", "--sample", 3, "--seed", 5, "--limit", 2)
    assert mmn("find", "photos", *of, "--out", "run").code == 0
    result = mmn("measure", "run", *FEW, "--out", "out")
    assert result.code == 0, result.err
    run, measured = mmneurons.runs.open("run"), open_measured("out")
    sources = [Path(source).name for source in measured.table("pictures").sort("source")["source"]]
    assert sources == [Path(source).name for source in run.images.collect().sort("source")["source"]]
    assert sources != ["0.png", "1.png"]
    assert measured.table("words")["word"].to_list() == ["ball"] * 2
    assert measured.about["options"]["seed"] == 5
    # what is said beside the run counts
    result = mmn("measure", "run", *FEW, "--words", "dog", "--limit", 1, "--seed", 0, "--out", "other")
    assert result.code == 0, result.err
    other = open_measured("other")
    assert other.table("words")["word"].to_list() == ["dog"]
    assert other.about["options"]["seed"] == 0


def test_a_page_says_how_it_was_made(place, tiny_checkpoint):
    path = truth(place)
    arguments = ("--model", tiny_checkpoint, "--truth", path, "--limit", 1, "--out", place / "out")
    more = ("--prefix", "An image of a", "--prompt", "What is it?")
    result = mmn("measure", "photos", *arguments, *FEW, *more)
    assert result.code == 0, result.err
    page = (place / "out" / "README.md").read_text()
    assert "Made by `mmn measure photos --model " in page
    assert " --truth truth.json --limit 1 --out out --finders contribution " in page
    assert "--prompt 'What is it?'`." in page
    assert 'asked "What is it?", and its answers begin with "An image of a".' in page
    assert "What the pictures show is said by truth.json." in page
    assert str(place) not in page
    assert f"# What the neurons of {tiny_checkpoint.name} do" in page


def test_what_was_asked_for_and_cannot_be_had_is_said(place, tiny_checkpoint):
    path = truth(place, ("frisbox", "person"))
    finders = ("--finders", "contribution", "--finders", "greedy")
    measures = [
        part for one in ("causal", "region", "looking", "hallucination", "across") for part in ("--measures", one)
    ]
    result = mmn(
        *("measure", "photos", "--model", tiny_checkpoint, "--truth", path, *finders, *measures, "--quick"),
        *("--limit", 1, "--words", "dog", "--words", "unicorn", "--out", "out"),
    )
    assert result.code == 0, result.err
    assert "No caption says 'unicorn'." in result.err
    lines = (place / "out" / "README.md").read_text().splitlines()
    for line in (
        "looking: not taken, because the truth has no boxes of every object of a picture.",
        "region: the neurons of `greedy` are not found again: a set, or too dear for every order of the image tokens.",
        "across: not taken, because no word was said of two pictures, or there is no other one beside it.",
        "What holds is asked of `contribution`. Of others the tables have the figures alone: `greedy`.",
        "No caption says 'unicorn'.",
    ):
        assert line in lines
    page = "\n".join(lines)
    assert "Over 1 of 1 captioned pictures" in page
    assert "'frisbox' is none of them" in page
    assert "No caption names any of them (frisbox, person)" in page
    assert "(few words: read the intervals) |" in page


def test_hallucinations_and_where_they_look(place, tiny_checkpoint):
    path = truth(place, ("dog", "cat"))
    measures = ("--measures", "hallucination", "--measures", "looking", "--finders", "contribution")
    result = mmn(
        "measure", "photos", "--model", tiny_checkpoint, "--truth", path, *measures, "--limit", 2, "--out", "out"
    )
    assert result.code == 0, result.err
    page = (place / "out" / "README.md").read_text()
    # "a dog and a ball", where a dog and a cat are; COCO calls a ball a sports ball
    assert "| captions | 1 | 0.5 [0.5, 0.5] | 0.5 [0.5, 0.5] |" in page
    assert "What holds is asked of `contribution`.\n" in page


def test_pope_asks_the_model(place, tiny_checkpoint):
    path = place / "truth.json"
    path.write_text(json.dumps([{"file": "0.png", "objects": ["dog"]}, {"file": "1.png", "objects": ["cat"]}]))
    measures = ("--measures", "pope", "--finders", "contribution")
    result = mmn(
        "measure", "photos", "--model", tiny_checkpoint, "--truth", path, *measures, "--limit", 2, "--out", "out"
    )
    assert result.code == 0, result.err
    # whatever it is asked it speaks of a dog and a ball, which is no "no"
    page = (place / "out" / "README.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| popular |"))
    assert [cell.split()[0] for cell in row.split("|")[2:-1]] == ["0.5", "0.5", "1", "0.667", "1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--suite", "pan2025"), "no suite 'pan2025'"),
        (("--finders", "luck"), "no finder 'luck'. There are: 'contribution', 'contribution, vocabulary', "),
        (("--finders", "greedy,distribution"), "Did you mean 'greedy, distribution'?"),
        (("--measures", "luck"), "no measure 'luck'. There are: 'causal', "),
        (("--measures", "Causal"), "Did you mean 'causal'?"),
        (("--measures", "looking"), "pass --truth"),
        (("--measures", "hallucination"), "pass --truth"),
        (("--wordnet",), "--truth"),
        (("--truth", "nothing.json"), "cannot be read"),
        (("--encoder", "photos"), "no text encoder"),
        (("--seed", "-1"), "seed=-1"),
    ],
)
def test_mistakes_are_messages(place, tiny_checkpoint, arguments, says):
    result = mmn("measure", "photos", "--model", tiny_checkpoint, "--out", "out", *arguments)
    assert result.code == 1
    assert says in result.err
    assert not (place / "out").exists()


def test_the_truth_of_other_pictures(place, tiny_checkpoint):
    path = truth(place, file="other{}.png")
    result = mmn("measure", "photos", "--model", tiny_checkpoint, "--truth", path, *FEW, "--out", "out")
    assert result.code == 1
    assert "other pictures" in result.err


def test_a_word_that_never_occurs(place, tiny_checkpoint):
    result = mmn(
        "measure", "photos", "--model", tiny_checkpoint, "--words", "unicorn", *FEW, "--limit", 1, "--out", "o"
    )
    assert result.code == 1
    assert "No word of 1 picture could be measured. No caption says 'unicorn'." in result.err
    # the folder does not keep the right word out
    result = mmn("measure", "photos", "--model", tiny_checkpoint, "--words", "dog", *FEW, "--limit", 1, "--out", "o")
    assert result.code == 0, result.err
    assert "1 word of 1 picture\n" in result.out
    assert "1 word of 1 picture;" in (place / "o" / "README.md").read_text()
    result = mmn("measure", "photos", "--model", tiny_checkpoint, "--words", "cat", *FEW, "--limit", 1, "--out", "o")
    assert result.code == 1
    assert "'o' was begun with other options (there → asked): words: ['dog'] → ['cat']. Ask" in result.err


def test_an_empty_run(place, tiny_checkpoint):
    found = mmn("find", "photos", "--model", tiny_checkpoint, "--limit", 1, "--out", "run")
    assert found.code == 0
    for part in (place / "run" / "parts").iterdir():
        for table in part.iterdir():
            table.unlink()
        part.rmdir()
    result = mmn("measure", "run", "--model", tiny_checkpoint, *FEW, "--out", "out")
    assert result.code == 1
    assert "holds no picture yet" in result.err


def test_pictures_have_to_be_named(place, tiny_checkpoint):
    result = mmn("measure", "--model", tiny_checkpoint, "--out", "out")
    assert result.code == 1
    assert "Name the pictures" in result.err
    result = mmn("measure", "--model", tiny_checkpoint, "--images", "photos", *FEW, "--limit", 1, "--out", "out")
    assert result.code == 0, result.err
