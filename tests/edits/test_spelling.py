"""How a word is spelled in tokens, by tokenizers that put a blank in front of every text and others."""

import pytest

import mmneurons as mmn
from helpers import tiny
from mmneurons.vlm.inputs import word_ids


@pytest.mark.parametrize("text", ["llama", "qwen2"])
@pytest.mark.parametrize("word", ["dog", "street sign"])
def test_a_word_is_spelled_as_in_a_caption(text, word):
    model = mmn.wrap(*tiny.tiny_llava(text=text))
    assert model.processor is not None
    tokenizer = model.processor.tokenizer
    caption = tokenizer(f"I see a big {word}", add_special_tokens=False)["input_ids"]
    begun = tokenizer("I see a big", add_special_tokens=False)["input_ids"]
    assert word_ids(model, word) == caption[len(begun) :]
    assert tokenizer.decode(caption[len(begun)]).strip(), "the first token is more than a blank"
