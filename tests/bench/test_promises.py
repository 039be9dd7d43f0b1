"""Which promoted tokens count for a word, and how they are read."""

import numpy as np
import pytest
import torch
from bench.measured import Measured
from bench.promises import READINGS, hits, promises, terms

import mmneurons as mmn
from helpers.tiny import tiny_llava


class Hypernyms:
    """In WordNet's place."""

    known = {"mouse": {"rodent", "gnawer"}, "fire truck": {"truck"}, "jean": {"trousers"}}  # noqa: RUF012

    def hypernyms(self, noun, senses):
        return frozenset(self.known.get(noun, ()))


def word(scene, name, *units):
    return Measured(scene, name, 1, 0.9, {"way": units}, {"way": 0.0}, {"way": 0.0})


def test_terms_are_forms_of_the_noun_and_what_it_is_a_kind_of():
    assert terms("mouse", Hypernyms()) == {"mouse", "mice", "rodent", "gnawer"}
    assert {"boat", "boats"} <= terms("boat", Hypernyms())
    assert "boating" not in terms("boat", Hypernyms())
    assert terms("fire truck", Hypernyms()) == {"fire", "fires", "truck"}
    assert "trousers" in terms("jeans", Hypernyms())


def test_hits_of_the_word_and_of_other_scenes_words():
    promised = {(0, 0, 1): frozenset({"cats", "x"}), (0, 1, 1): frozenset({"y"}), (0, 1, -1): frozenset({"dog"})}
    meant = {"cat": frozenset({"cat", "cats"}), "dog": frozenset({"dog"}), "sun": frozenset({"sun"})}
    words = [
        word(0, "cat", (0, 0, 1), (0, 1, 1)),
        word(0, "dog", (0, 1, -1), (0, 0, 1)),
        word(1, "sun", (0, 1, 1), (0, 0, 1)),
        word(2, "cat", (0, 1, 1)),
    ]
    own, shuffled = hits(words, "way", promised, meant)
    assert own.tolist() == [1, 1, 0, 0]
    # the first is only compared with "sun" of scene 1 (scene 2's word is its own), the second with "sun" and "cat";
    # the third with "cat", "dog" and "cat", of which its neurons promote "cat"; the last with "dog" and "sun"
    assert shuffled[0] == shuffled[3] == 0
    assert 0 < shuffled[1] < 1
    assert 0.3 < shuffled[2] < 1


def test_hits_draw_the_same_other_words_for_every_way():
    draw = np.random.default_rng(0)
    names = [f"w{k}" for k in range(30)]
    promised = {(0, k, 1): frozenset({f"w{k}"}) for k in range(30)}
    meant = {name: frozenset({name}) for name in names}
    order = draw.permutation(30)
    words = [
        Measured(k, name, 1, 0.9, {way: tuple((0, int(j), 1) for j in order[:15]) for way in ("a", "b")}, {}, {})
        for k, name in enumerate(names)
    ]
    for one, other in zip(hits(words, "a", promised, meant), hits(words, "b", promised, meant), strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize(
    ("name", "with_gain", "normed"), [(n, g, c) for n, g, c in zip(READINGS, (1, 0, 1), (1, 1, 0))]
)
def test_readings_by_brute_force(name, with_gain, normed):
    model, processor = tiny_llava()
    vlm = mmn.wrap(model, processor)
    units = {(0, 3, 1), (2, 50, -1), (1, 7, 1)}
    promised = promises(vlm, units, READINGS[name], chunk=2)
    tokenizer = processor.tokenizer
    silent = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("<image>")}
    silent |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = [index for index in range(len(tokenizer)) if index not in silent]
    rows = model.get_output_embeddings().weight.detach()[ordinary].double()
    centred = rows - rows.mean(0)
    gain = model.model.language_model.norm.weight.detach().double()
    for block, column, sign in units:
        vector = sign * model.model.language_model.layers[block].mlp.down_proj.weight.detach()[:, column].double()
        read = vector * gain if with_gain else vector
        values = centred @ read / (centred.norm(dim=1) if normed else 1)
        best = torch.tensor(ordinary)[values.argsort(descending=True)[:10]].tolist()
        assert promised[block, column, sign] == {tokenizer.decode([index]).strip().lower() for index in best}
