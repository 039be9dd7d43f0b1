"""Parts of an edit's proof, each against another way to get it: fluency, hops, CHAIR, POPE, text prompts."""

import json
import math

import pytest
import torch

import mmneurons as mmn
from helpers import edited, tiny
from mmneurons.errors import EditError, OptionError, RecordingError, SourceError
from mmneurons.measures.edit_hallucination import PopeBefore, ask_pope, chair_figures
from mmneurons.measures.edit_outcome import After, Outcome, Pool
from mmneurons.measures.figures import before_after, changed, mean, share
from mmneurons.measures.fluency import surprises
from mmneurons.measures.hallucination import Question
from mmneurons.measures.hops import Hop, Hops, ask_hops, read_hops
from mmneurons.measures.intervals import wilson
from mmneurons.measures.objects import vocabulary
from mmneurons.measures.text_prompts import PROMPTS
from mmneurons.measures.truth import Truth
from mmneurons.recordings import record_texts
from mmneurons.vlm.inputs import make_text_inputs


@pytest.fixture(scope="module")
def model():
    return mmn.wrap(*tiny.tiny_llava())


def values(figures):
    return {one.name: one.estimate.value for one in figures}


def test_shares_means_and_pairs():
    assert share("x", [True, False]).estimate == wilson(1, 2)
    assert share("x", [True, True, False, False], "aabb").estimate == wilson(1, 2)
    assert math.isnan(share("x", []).estimate.value)
    assert mean("x", [1.0, 2.0, 6.0]).estimate.value == 3
    found = before_after("x", [1.0, 2.0], [2.0, 3.0])
    assert values(found) == {"x before": 1.5, "x after": 2.5, "x added": 1.0}
    # every pair grows by one, whichever is drawn
    assert (found[2].estimate.low, found[2].estimate.high) == (1.0, 1.0)
    one_picture = before_after("x", [1.0, 2.0], [2.0, 3.0], ["p", "p"])
    assert one_picture[0].estimate.low == one_picture[0].estimate.high == 1.5
    counted = changed(("sum",), ["a", "b"], lambda places, after: [sum(places) * (2 if after else 1)])
    assert values(counted) == {"sum before": 1, "sum after": 2, "sum added": 1}


def test_surprise_is_the_mean_of_what_the_forward_gives(model, pictures):
    recordings = mmn.record(model, pictures, max_new_tokens=5)
    pool = Pool(model, recordings, 5)
    tokens = (7, 300, 41)
    same = After(recordings[0].caption, tuple(recordings[0].token_ids.tolist()), None)
    found = surprises(pool, [same, After("x", tokens, None), same])
    assert found[0].before == found[0].after
    one = recordings[1]
    ids = torch.cat([one.inputs["input_ids"], torch.tensor([tokens])], 1)
    inputs = {**one.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model.model(**inputs).logits[0, -4:-1].log_softmax(-1)
    assert found[1].after == pytest.approx(-float(logits[range(3), list(tokens)].mean()), rel=1e-4)
    p = one.logits.log_softmax(-1)[range(len(one)), one.token_ids]
    assert found[1].before == pytest.approx(-float(p.mean()), rel=1e-5)
    with edited.draw(model, blocks=[1]).on(model), pytest.raises(EditError, match="in force"):
        surprises(pool, [same] * 3)


@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_onevision])
def test_prompts_without_a_picture_are_those_of_the_chat_template(make):
    model, processor = make()
    vlm = mmn.wrap(model, processor)
    request = make_text_inputs(vlm, "The capital of France is")
    text = "USER: The capital of France is ASSISTANT:"
    assert request.text == text
    assert request.inputs["input_ids"].tolist() == [processor.tokenizer(text)["input_ids"]]
    found = record_texts(vlm, PROMPTS[:9], 4)
    alone = model.generate(**request.inputs, max_new_tokens=4, do_sample=False)
    assert found[0].token_ids.tolist() == alone[0, request.inputs["input_ids"].shape[1] :].tolist()
    assert len(found) == 9
    edit = edited.draw(vlm, blocks=[1, 2], size=0.5)
    outcomes = Pool(vlm, found, 4).outcomes(edit)
    with edit.on(vlm):
        assert [one.after for one in outcomes] == [one.caption for one in record_texts(vlm, PROMPTS[:9], 4)]
    assert any(not one.unchanged for one in outcomes)


def test_a_model_that_misses_its_picture(model, monkeypatch):
    monkeypatch.setattr("mmneurons.recordings.record_generation", lambda *_, **__: {}["pixel_values"])
    with pytest.raises(RecordingError, match=r"cannot be asked without a picture \(KeyError"):
        record_texts(model, PROMPTS, 4)


def test_bundled_prompts():
    assert len(PROMPTS) == len(set(PROMPTS)) == 20


def test_questions_are_read_asked_and_answered(model, pictures, tmp_path):
    path = tmp_path / "hops.json"
    path.write_text(json.dumps([{"file": "some/0.png", "prompt": "What sound?", "answer": "meow"}]))
    (hop,) = read_hops(path)
    assert hop == Hop("0.png", "What sound?", "meow")
    assert hop.answered("It says: Meow!")
    assert not hop.answered("homeowner")
    hops = ask_hops(model, {"0.png": pictures[0]}, [hop, hop], 4)
    asked = mmn.caption(model, pictures[0], prompt="What sound?", prefix="", max_new_tokens=4)
    assert [one.caption for one in hops.pool.recordings] == [asked] * 2
    said = Hops((hop, Hop("0.png", "?", asked.split()[0])), hops.pool)
    found = said.figures([After("meow", (), None), After("meow", (), None)])
    assert values(found) == {"portability before": 0.5, "portability after": 0.5, "portability added": 0.0}
    with pytest.raises(OptionError, match=r"none of the pictures: 1.png"):
        ask_hops(model, {"1.png": pictures[0]}, [hop])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '[{"file": "a"}]', '[{"file": "a", "prompt": " ", "answer": "x"}]']
)
def test_what_holds_no_questions(tmp_path, text):
    path = tmp_path / "hops.json"
    path.write_text(text)
    with pytest.raises(SourceError, match="They are a JSON list"):
        read_hops(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_hops(tmp_path / "nothing.json")


def test_hallucinations_before_and_after():
    known = vocabulary(["dog", "cat", "ball"])
    truths = [Truth("a.png", ("dog", "ball")), Truth("b.png", ("cat",)), None]
    captions = [("a dog", "a cat"), ("a cat and a ball", "a cat"), ("a cat", "a dog")]
    outcomes = [Outcome(*own, False, False, False, False, False) for own in captions]
    found = chair_figures(outcomes, truths, known)
    assert values(found) == pytest.approx(
        {
            # b says a ball; afterwards a says a cat
            "CHAIRs before": 0.5,
            "CHAIRs after": 0.5,
            "CHAIRs added": 0,
            "CHAIRi before": 1 / 3,
            "CHAIRi after": 1 / 2,
            "CHAIRi added": 1 / 6,
            # of three objects the dog and the cat, then the cat
            "CHAIR recall before": 2 / 3,
            "CHAIR recall after": 1 / 3,
            "CHAIR recall added": -1 / 3,
        }
    )
    assert {one.captions for one in found} == {2}
    assert chair_figures(outcomes, [None] * 3, known) == []


def test_answers_before_and_after(model, pictures):
    questions = [
        Question("a", "dog", True, "random"),
        Question("a", "cat", False, "random"),
        Question("b", "dog", True, "popular"),
        Question("b", "cat", False, "popular"),
    ]
    asked = PopeBefore(model, {}, tuple(questions), (True, True, True, False))
    found = values(asked.compared([True, False, False, False]))
    assert (found["POPE random accuracy before"], found["POPE random accuracy after"]) == (0.5, 1)
    assert (found["POPE popular accuracy before"], found["POPE popular accuracy after"]) == (1, 0.5)
    assert found["POPE share of yes added"] == -0.5
    assert not any("adversarial" in name for name in found)
    # a tiny model never says no
    named = {"a": pictures[0], "b": pictures[1]}
    real = ask_pope(model, named, questions)
    assert real.before == (True,) * 4
    edit = edited.draw(model, blocks=[2])
    assert values(real.figures(edit))["POPE random accuracy after"] == 0.5
    with pytest.raises(OptionError, match="no questions"):
        ask_pope(model, named, [])
    with pytest.raises(OptionError, match="none of the pictures"):
        ask_pope(model, {"a": pictures[0]}, questions)
