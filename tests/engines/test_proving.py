"""Proofs of edits on a tiny model that says "tomato" of some noise, against what its weights say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from helpers import tiny
from mmneurons.edits.methods import METHODS
from mmneurons.engines import proving as engine
from mmneurons.engines.proving import OTHER_PROMPTS, Column, Picture, Tried, prove, read_pictures
from mmneurons.errors import EditError, OptionError
from mmneurons.measures.edit_quality import Quality
from mmneurons.measures.hops import Hop
from mmneurons.measures.objects import vocabulary
from mmneurons.measures.text_prompts import PROMPTS
from mmneurons.measures.truth import Truth
from mmneurons.reports.unfinished_proof import read_unfinished, write_unfinished
from mmneurons.sources import gather

SHORT = 8


@pytest.fixture(scope="module")
def model():
    return mmn.wrap(*tiny.tiny_llava())


@pytest.fixture(scope="module")
def named():
    """Seven pictures; the model says "tomato" of numbers 2, 4 and 5."""
    noise = np.random.default_rng(0)
    sizes = [(40 + 5 * index, 60, 3) for index in range(7)]
    images = [Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8)) for size in sizes]
    return [Picture(f"photos/{index}.png", image, str(index)) for index, image in enumerate(images)]


@pytest.fixture(scope="module")
def edit(model, named):
    return make(model, named, "tomato", "bicycle")


def make(model, named, source, to, **options):
    pictures = [named[2].image, named[4].image]
    return mmn.edit(model, source, to, pictures=pictures, keep=(), max_new_tokens=SHORT, **options)


@pytest.fixture(scope="module")
def proof(model, named, edit):
    tried = Tried(
        named,
        learned=[named[2], named[4]],
        truths={f"{k}.png": Truth(f"{k}.png", ("tomato", "bicycle") if k == 3 else ("bus",)) for k in range(6)},
        known=vocabulary(["tomato", "bicycle", "bus"]),
        hops=[Hop("5.png", "What fruit is it?", "bicycle")],
        max_new_tokens=SHORT,
    )
    return prove(model, edit, tried)


def test_captions_are_those_of_the_edited_model(model, named, edit, proof):
    rest = [named[k] for k in (0, 1, 3, 5, 6)]
    before = mmn.caption(model, [one.image for one in rest], max_new_tokens=SHORT)
    with edit.on(model):
        after = mmn.caption(model, [one.image for one in rest], max_new_tokens=SHORT)
    own = proof.outcomes.filter(pool="others")
    assert own["picture"].to_list() == [one.name for one in rest]
    assert own["before"].to_list() == before
    assert own["after"].to_list() == after
    assert "2 of the pictures are among those learned from" in proof.notes[0]
    assert "says nothing of 1 of the 5" in proof.notes[1]


def test_figures_are_counted_from_the_captions(proof):
    quality = proof.columns["this edit"]
    learned = proof.outcomes.filter(pool="learned")
    assert quality["reliability"].value == np.mean(
        ["tomato" not in own and "bicycle" in own for own in learned["after"].to_list()]
    )
    own = proof.outcomes.filter(pool="others")
    # number 3 shows both, so it tells nothing
    stays = own.filter(~own["said"] & ~own["said_target"] & (own["picture"] != "photos/3.png"))
    assert stays.height
    assert quality["unchanged"].value == (stays["before"] == stays["after"]).mean()
    assert quality["nats a token after"].value == pytest.approx(own["nats_after"].mean())
    assert quality["KL"].value == pytest.approx(stays["kl"].mean())
    texts = proof.outcomes.filter(pool="texts")
    assert texts["prompt"].to_list() == list(PROMPTS)
    assert set(proof.outcomes.filter(pool="rephrased")["prompt"]) <= set(OTHER_PROMPTS)
    assert proof.outcomes.filter(pool="hops")["prompt"].to_list() == ["What fruit is it?"]
    assert {"portability added", "CHAIRs before", "CHAIR recall added", "text: KL"} <= set(quality.as_json())


def test_the_picture_of_a_finding_counts_as_seen(model, named):
    found = mmn.find(model, named[2].image, words=["tomato"], max_new_tokens=SHORT)
    edit = mmn.edit(model, found["tomato"], "bicycle", bundled=False, max_new_tokens=SHORT)
    for chosen, note in ((named[2:4], True), (named[:2], False)):
        proof = prove(model, edit, Tried(chosen, max_new_tokens=SHORT))
        assert any("1 of the 2 pictures were given when the edit was made" in own for own in proof.notes) is note


def test_the_same_again(model, named, edit):
    tried = Tried(named[:4], max_new_tokens=SHORT)
    first, second = (prove(model, edit, tried) for _ in range(2))
    assert first.outcomes.equals(second.outcomes)
    assert {name: own.as_json() for name, own in first.columns.items()} == {
        name: own.as_json() for name, own in second.columns.items()
    }


def test_what_was_measured_before_is_taken_only_where_captions_are_the_same(model, named, edit, proof):
    tried = Tried(named[:3], learned=[named[4]], max_new_tokens=SHORT)
    before = {}
    first = prove(model, edit, tried, finished=before.update)
    (column,) = before.values()
    marked = Column(Quality(column.quality.figures[:1], column.quality.outcomes), "It was measured before.")
    again = prove(model, edit, tried, done={"this edit": marked, "erase": marked}, finished=pytest.fail)
    assert list(again.columns) == ["this edit"]
    assert len(again.columns["this edit"].figures) == 1
    assert again.notes[-1] == marked.note
    assert again.outcomes.equals(first.outcomes)

    changed = dict(marked.quality.outcomes)
    changed["learned"] = [replace(one, before="An image of another caption") for one in changed["learned"]]
    for outcomes in (changed, {**changed, "learned": []}, {**marked.quality.outcomes, "hops": []}):
        other = Column(Quality(marked.quality.figures, outcomes))
        anew = prove(model, edit, tried, done={"this edit": other})
        assert anew.columns["this edit"].as_json() == first.columns["this edit"].as_json()


@pytest.mark.slow
def test_rivals_are_gone_on_with(model, named, edit, tmp_path):
    tried = Tried([named[1], named[5]], learned=[named[2], named[4]], max_new_tokens=SHORT)
    kept = {}

    def stop(columns):
        kept.update(columns)
        if len(columns) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prove(model, edit, tried, rivals=True, finished=stop)
    write_unfinished(tmp_path, "key", [edit], kept)
    assert read_unfinished(tmp_path, "other key") == {}
    told = []
    proof = prove(model, edit, tried, rivals=True, progress=told.append, done=read_unfinished(tmp_path, "key"))
    assert [line for line in told if line.endswith(": measured before")] == [
        f"{name}: measured before" for name in kept
    ]
    whole = prove(model, edit, tried, rivals=True)
    assert list(proof.columns) == list(whole.columns)
    assert proof.notes == whole.notes
    assert proof.outcomes.equals(whole.outcomes)


@pytest.mark.slow
def test_rivals_learn_the_same_and_are_measured_the_same_way(model, named, edit):
    tried = Tried([named[1], named[5]], learned=[named[2], named[4]], max_new_tokens=SHORT)
    proof = prove(model, edit, tried, rivals=True)
    missing = set(METHODS) - {"least_squares"} - set(proof.columns)
    assert all(any(f"rival {name} could not" in note for note in proof.notes) for name in missing)
    assert {"erase", "finetune", "ban"} <= set(proof.columns)
    # they are of swapped captions, where there are some
    some = {"rest kept", "articles fit"}
    names = {one.name for one in proof.columns["this edit"].figures}
    for own in proof.columns.values():
        # of what is banned no logits can be compared
        assert {"reliability", "generality", "unchanged", "likeness"} <= {one.name for one in own.figures}
        assert {one.name for one in own.figures} <= names | some
    assert proof.outcomes.filter(column="ban")["kl"].is_null().all()
    assert not proof.outcomes.filter(column="erase", pool="others")["kl"].is_null().any()


def test_rivals_keep_what_the_edit_kept(model, named, monkeypatch):
    kept = [named[0], named[3]]
    own = mmn.edit(
        model,
        "tomato",
        "bicycle",
        pictures=[named[2].image, named[4].image],
        keep=[one.image for one in kept],
        texts=["Which fruit?"],
        bundled=False,
        max_new_tokens=SHORT,
    )
    monkeypatch.setattr(engine, "METHODS", {"least_squares": METHODS["least_squares"], "erase": METHODS["erase"]})
    asked = []
    make = engine.make_edit
    monkeypatch.setattr(engine, "make_edit", lambda *args, **more: asked.append(more) or make(*args, **more))
    tried = Tried([named[1], named[5]], learned=[named[2], named[4]], kept=kept, max_new_tokens=SHORT)
    notes = prove(model, own, tried, rivals=True).notes
    (how,) = asked
    assert [one.caption for one in how["keep"]] == mmn.caption(model, [one.image for one in kept], max_new_tokens=SHORT)
    assert how["texts"] == ["Which fruit?"]
    assert not any("Rivals keep" in note for note in notes)
    notes = prove(model, own, replace(tried, kept=kept[:1]), rivals=True).notes
    assert any("Rivals keep 2 captions as they are; the edit kept 3." in note for note in notes)


def test_prompts_that_were_learned_from_are_not_measured(model, named, edit):
    plain = prove(model, edit, Tried(named, max_new_tokens=SHORT))
    assert plain.outcomes.filter(pool="texts").height == len(PROMPTS)
    known = replace(edit, recipe={**edit.recipe, "texts": [PROMPTS[3], "Another."]})
    one = prove(model, known, Tried(named, max_new_tokens=SHORT))
    assert PROMPTS[3] not in one.outcomes.filter(pool="texts")["prompt"].to_list()
    assert one.outcomes.filter(pool="texts").height == len(PROMPTS) - 1
    assert any("1 of 20 prompts without a picture were given" in note for note in one.notes)


def test_edits_in_sequence(model, named, edit):
    second = make(model, named, "tomato", "street", margin=4.0)
    tried = Tried(named, max_new_tokens=SHORT)
    proof = prove(model, [edit, second], tried)
    assert list(proof.columns) == ["first 1", "first 2"]
    one = prove(model, edit, tried)
    assert proof.columns["first 1"].as_json() == one.columns["this edit"].as_json()
    with edit.on(model), second.on(model):
        after = mmn.caption(model, [own.image for own in named], max_new_tokens=SHORT)
    own = proof.outcomes.filter(column="first 2", pool="others")
    assert own["after"].to_list() == after * 2
    assert own["to"].to_list() == ["bicycle"] * 7 + ["street"] * 7


def test_what_cannot_be_proved(model, named, edit, llava):
    with pytest.raises(OptionError, match="in learned the pictures"):
        prove(model, edit, Tried(named), rivals=True)
    with pytest.raises(OptionError, match="no picture to try"):
        prove(model, edit, Tried(named[2:3], learned=named[2:3]))
    twins = [named[0], Picture("drawings/0.png", named[1].image, named[1].pixels)]
    with pytest.raises(OptionError, match=r"two of the pictures are called so"):
        prove(model, edit, Tried(twins, hops=[Hop("0.png", "What fruit is it?", "bicycle")]))
    other = mmn.wrap(*tiny.tiny_llava(seed=1))
    with pytest.raises(EditError, match="fingerprint"):
        prove(other, edit, Tried(named))


def test_a_request_is_met_or_not_only_where_the_source_was_said(proof):
    met = {said: set(own["swapped"]) for (said,), own in proof.outcomes.group_by("said")}
    assert met[False] == {None}
    assert met[True] <= {True, False}


def test_what_an_edit_says_is_looked_for_though_the_truth_names_none(model, named, edit):
    truths = {f"{k}.png": Truth(f"{k}.png", ("bus",)) for k in range(7)}
    tried = Tried(named[3:], learned=[named[2]], truths=truths, known=vocabulary(["bus"]), max_new_tokens=SHORT)
    found = prove(model, edit, tried)
    said = ["bicycle" in caption for caption in found.outcomes.filter(pool="others")["after"]]
    assert any(said)
    assert found.columns["this edit"]["CHAIRs after"].value == sum(said) / len(said)


def test_a_copy_of_what_was_learned_from_is_no_other_picture(tmp_path, model, named, edit):
    for kind in ("png", "tiff", "bmp"):
        named[2].image.save(tmp_path / f"same.{kind}")
    named[3].image.save(tmp_path / "other.png")
    pictures = read_pictures(gather([str(tmp_path)]))
    assert len(pictures) == 2
    (learned,) = read_pictures(gather([str(tmp_path / "same.png")]))
    found = prove(model, edit, Tried(pictures, learned=[learned], max_new_tokens=SHORT))
    assert {Path(name).name for name in found.outcomes.filter(pool="others")["picture"]} == {"other.png"}
