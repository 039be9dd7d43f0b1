"""How a tokenizer's vocabulary can write a text: not only as the tokenizer would."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

from transformers import PreTrainedTokenizerBase

__all__ = ["respelled", "spelled", "spellings"]

_BEHIND = ("\n", '"', "(", "-")
"""Behind these a word stands without the blank that some tokenizers put before every text."""

_MARKED = re.compile(r"(?!##)[!-/:-@\[-`{-~]+(.+)")


def spellings(tokenizer: PreTrainedTokenizerBase, texts: frozenset[str]) -> frozenset[tuple[int, ...]]:
    """Token ids that write a text, at the begin of a word: all that a model may say for it.

    The tokenizer's own, with and without a blank before the text. Others, of at most four tokens, only where a blank or
    a capital tells that a word begins: without either they are the end of many words. And tokens that are a text with
    ASCII punctuation before it, such as Qwen's and Llama 3's "-man".

    Args:
        tokenizer: of the model.
        texts: words, without blanks before them.
    """
    vocabulary = tokenizer.get_vocab()
    own = {spelled(tokenizer, before + text) for text in texts for before in ("", " ")}
    own = {one for one in own.union(*(_spelled_behind(tokenizer, text) for text in texts)) if one}
    whole = {one for one in own if _begins(tokenizer, one) or not _read(tokenizer, one)[:1].islower()}
    others = {other for one in whole for other in respelled(tokenizer, vocabulary, one)}
    found = ((one, _MARKED.fullmatch(token)) for token, one in vocabulary.items())
    marked = {(one,) for one, match in found if match is not None and match[1] in texts}
    # what stands for all that cannot be written is none of these texts
    return frozenset(one for one in own | others | marked if tokenizer.unk_token_id not in one)


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokenizer's own token ids of a text."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def respelled(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int], usual: Sequence[int], pieces: int = 4
) -> frozenset[tuple[int, ...]]:
    """All token ids that read as these, of at most so many tokens: a model that is not to say one says another.

    Of a phrase in WordPiece, which writes no blanks, none is found but these.

    Args:
        tokenizer: of the model.
        vocabulary: its ``get_vocab()``, which takes long to be made.
        usual: how the tokenizer spells it.
        pieces: how many tokens at most.
    """
    if not usual:
        return frozenset()
    read, (first, *rest) = _read(tokenizer, usual), tokenizer.convert_ids_to_tokens(list(usual))
    # WordPiece marks what goes on with a word, others what begins one
    written = first + "".join(token.removeprefix("##") for token in rest)
    found = set()
    for count in range(pieces):
        for cuts in combinations(range(1, len(written)), count):
            begin, *more = (written[i:j] for i, j in zip((0, *cuts), (*cuts, len(written)), strict=True))
            own = [vocabulary.get(begin), *(vocabulary.get(f"##{one}", vocabulary.get(one)) for one in more)]
            whole = tuple(one for one in own if one is not None)
            if len(whole) == len(own) and _read(tokenizer, whole) == read:
                found.add(whole)
    return frozenset(found)


def _spelled_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> frozenset[tuple[int, ...]]:
    """Its token ids of a text right behind a line break, a quotation mark, a bracket and a hyphen.

    Llama's puts a blank before every text, so that on its own "dog" is the same as " dog".
    """
    found = set()
    for before in _BEHIND:
        first, whole = spelled(tokenizer, before), spelled(tokenizer, before + text)
        if whole[: len(first)] == first:
            found.add(whole[len(first) :])
    return frozenset(found)


def _begins(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether behind a letter these tokens begin another word, and do not go on with that one."""
    letter = spelled(tokenizer, "a")
    return _read(tokenizer, [*letter, *ids]).removeprefix(_read(tokenizer, letter))[:1].isspace()


def _read(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text
