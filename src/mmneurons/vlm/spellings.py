"""How a tokenizer's vocabulary can write a text: not only as the tokenizer would."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from transformers import PreTrainedTokenizerBase

__all__ = ["respelled", "spelled"]


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokenizer's own token ids of a text."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def respelled(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int], text: str, pieces: int = 4
) -> frozenset[tuple[int, ...]]:
    """All token ids that read as a text, of at most so many tokens: a model that is not to say one says another.

    Args:
        tokenizer: of the model.
        vocabulary: its ``get_vocab()``, which takes long to be made.
        text: a word, with the blank before it where it has one.
        pieces: how many tokens at most.
    """
    usual = spelled(tokenizer, text)
    if not usual:
        return frozenset()
    read, (first, *rest) = tokenizer.decode(list(usual)), tokenizer.convert_ids_to_tokens(list(usual))
    # WordPiece marks what goes on with a word, others what begins one
    written = first + "".join(token.removeprefix("##") for token in rest)
    found = set()
    for count in range(pieces):
        for cuts in combinations(range(1, len(written)), count):
            begin, *more = (written[i:j] for i, j in zip((0, *cuts), (*cuts, len(written)), strict=True))
            own = [vocabulary.get(begin), *(vocabulary.get(f"##{one}", vocabulary.get(one)) for one in more)]
            whole = tuple(one for one in own if one is not None)
            if len(whole) == len(own) and tokenizer.decode(list(whole)) == read:
                found.add(whole)
    return frozenset(found)
