"""What a vocabulary can write a word with, against what tokenizers of several kinds make of it in a sentence."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizerFast, LlamaTokenizer, PreTrainedTokenizerFast

from helpers.tiny import tiny_tokenizer
from mmneurons.edits.solution import holds
from mmneurons.vlm.spellings import respelled, spelled, spellings

DOG = frozenset({"dog", "dogs", "Dog", "Dogs", "DOG"})
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hot", "##dog", "##do", "##g", "dog", "##s", "##house")
MERGES = ("▁ d", "▁d o", "▁do g", "▁dog s", "d o", "do g", "▁ D", "▁D o", "▁Do g", "▁ a")

# as Qwen2 and Llama 3 cut a text: one mark may stand at the begin of a word
MARKS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def llama():
    """The tokenizer of Llama, which puts a blank before every text."""
    merges = [tuple(one.split()) for one in MERGES]
    tokens = ["<unk>", "<s>", "</s>", *'▁dogsDOGSaiue"()-', *map("".join, merges)]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    vocabulary |= {f"<0x{byte:02X}>": len(tokens) + byte for byte in range(256)}
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


def marking():
    """One whose tokens may begin with a mark."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(MARKS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(['a dog "dog" (dog) the-dog -dog dogs "Dog" a man'] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def wordpiece(**options):
    """BERT's, which marks what goes on with a word."""
    return BertTokenizerFast(vocab={token: place for place, token in enumerate(PIECES)}, **options)


@pytest.mark.parametrize(
    "said", ["a dog", 'a "dog"', "(dogs)", "guide-dog", "\ndog", "\nDog", "a Dog", "- Dogs", "dogs."]
)
@pytest.mark.parametrize("made", [llama, marking, tiny_tokenizer, lambda: tiny_tokenizer("byte-level")])
def test_what_a_tokenizer_makes_of_a_word_in_a_text_is_a_spelling_of_it(made, said):
    tokenizer = made()
    assert holds(spelled(tokenizer, said), spellings(tokenizer, DOG))


def test_marks_are_parts_of_tokens_in_some_vocabularies():
    tokenizer = marking()
    assert tokenizer.tokenize("the-dog")[-1] == "-dog"
    assert (tokenizer.get_vocab()["-dog"],) in spellings(tokenizer, DOG)


@pytest.mark.parametrize(
    "tokens", [("▁do", "g"), ("▁d", "o", "g"), ("▁", "d", "o", "g"), ("▁Do", "g"), ("D", "o", "g")]
)
def test_other_tokens_that_read_as_a_word_are_spellings_of_it(tokens):
    tokenizer = llama()
    assert tuple(tokenizer.convert_tokens_to_ids(list(tokens))) in spellings(tokenizer, DOG)


def test_what_may_be_the_end_of_another_word_is_none():
    tokenizer = llama()
    assert tuple(tokenizer.convert_tokens_to_ids(["do", "g"])) not in spellings(tokenizer, DOG)


def test_pieces_of_words_are_marked_in_wordpiece():
    tokenizer = wordpiece()
    vocabulary = tokenizer.get_vocab()
    assert respelled(tokenizer, vocabulary, spelled(tokenizer, "hotdog")) == {
        (vocabulary["hot"], vocabulary["##dog"]),
        (vocabulary["hot"], vocabulary["##do"], vocabulary["##g"]),
    }
    assert spellings(tokenizer, DOG) == {(vocabulary["dog"],), (vocabulary["dog"], vocabulary["##s"])}


def test_the_token_for_all_that_cannot_be_written_is_no_spelling():
    tokenizer = wordpiece(do_lower_case=False)
    assert tokenizer.unk_token_id in spelled(tokenizer, "DOG")
    assert (tokenizer.unk_token_id,) not in spellings(tokenizer, DOG)
