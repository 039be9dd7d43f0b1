"""The page of a proof shows the captions of what was asked about."""

import polars as pl

from mmneurons.edits import Edit
from mmneurons.engines.proving import Proof
from mmneurons.measures.edit_quality import Quality
from mmneurons.measures.figures import share
from mmneurons.reports.proof import SHOWN, write_proof

MODEL = {"name": "tiny", "fingerprint": "0"}


def edit(source):
    return Edit((), {"source": source, "to": "cat", "method": "ban"}, MODEL, banned=((len(source),),))


def row(column, source, picture, before, after):
    return {
        "column": column,
        "source": source,
        "pool": "others",
        "picture": picture,
        "prompt": "What?",
        "before": before,
        "after": after,
    }


def page(folder, edits, columns, rows):
    quality = Quality((share("unchanged", [True, False], ["a", "b"]),), {})
    proof = Proof(tuple(edits), dict.fromkeys(columns, quality), pl.DataFrame(rows), ())
    return write_proof(folder, proof, "key").read_text().partition("## What the figures are")[2].partition("## ")[2]


def test_of_several_edits_the_captions_with_all_in_force(tmp_path):
    rows = [
        row(column, source, picture, "a dog", after)
        for column, after in (("first 1", "one cat"), ("first 2", "two cats"))
        for source in ("dog", "horse")
        for picture in ("a|b.png", "c.png")
    ]
    told = page(tmp_path, [edit("dog"), edit("horse")], ["first 1", "first 2"], rows)
    assert told.startswith("2 of 2 captions changed (first 2)\n")
    assert "| a\\|b.png | a dog | two cats |" in told
    assert "one cat" not in told


def test_of_one_edit_its_own_captions_and_not_its_rivals(tmp_path):
    rows = [
        row(column, "dog", f"{number}.png", "a dog", f"a cat by {column}")
        for column in ("this edit", "lora")
        for number in range(SHOWN + 3)
    ]
    told = page(tmp_path, [edit("dog")], ["this edit", "lora"], rows)
    assert told.startswith(f"{SHOWN + 3} of {SHOWN + 3} captions changed (this edit), {SHOWN} of them\n")
    assert told.count("a cat by this edit") == SHOWN
    assert "lora" not in told
