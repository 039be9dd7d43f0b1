import json
from collections import Counter
from pathlib import Path

import pytest

import mmneurons as mmn
from mmneurons.words import nouns

WRITTEN = json.loads((Path(__file__).parent / "data" / "demo_captions.json").read_text())
PREFIX = "An image of"


def test_nouns_of_captions_that_the_demo_model_wrote():
    found, wanted = Counter(), Counter()
    for row, gold in enumerate(WRITTEN["captions"]):
        found.update((row, noun.text) for noun in nouns(gold["text"]) if noun.start >= len(PREFIX))
        wanted.update((row, text) for text in gold["nouns"])
    assert len(WRITTEN["captions"]) == 100
    f1 = 2 * (found & wanted).total() / (found.total() + wanted.total())
    assert f1 >= 0.95, sorted(((found - wanted) + (wanted - found)).elements())


@pytest.mark.demo
def test_the_tokens_of_a_word_spell_it(demo):
    tokenizer = demo.processor.tokenizer
    words = 0
    for picture in mmn.demo.pictures()[:3]:
        found = mmn.find(demo, picture.path)
        assert found.caption.startswith(PREFIX)
        for part in found.parts:
            surface = found.caption[slice(*part.span)]
            assert part.token_ids == tuple(found.recording.token_ids[list(part.steps)].tolist())
            assert tokenizer.decode(part.token_ids).strip(" ,.") == surface
            words += 1

        again = mmn.find(demo, picture.path, words=[found.caption[slice(*part.span)] for part in found.parts])
        assert {part.steps for part in again.parts} == {part.steps for part in found.parts}
    assert words >= 3
