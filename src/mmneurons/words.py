"""Which words of a caption are explained, and which generated tokens spell them.

:func:`token_spans` says which characters of a caption every generated token spells; :func:`find_words` finds the nouns,
or the words that somebody names, and the tokens that spell them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmneurons.english import COMPOUNDS, KINDS_OF_THEIR_OWN, are_forms, compounds_in, fold
from mmneurons.errors import OptionError, WordNotFoundError
from mmneurons.nouns import Noun, nouns

__all__ = [
    "Noun",
    "Tokenizer",
    "Word",
    "find_words",
    "nouns",
    "places_of",
    "same_word",
    "stands_in",
    "token_spans",
]

CONTEXT_TOKENS = 16
"""How many tokens of the prompt's end are decoded with the generated ones; tokenizers look back one or two."""

MADE_FOR = tuple(compound for compound in COMPOUNDS if compound.partition(" ")[0].endswith("ing"))
"""What is for boxing or rocking shows neither a box nor a rock: there such a form does not stand for its base."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the bytes of an incomplete character to."""


@dataclass(frozen=True)
class Word:
    """A word of a caption that is explained.

    Attributes:
        text: What it is called: the lemma for a noun that was found ("dog", "wine glass"), the surface form for a word
            that was named.
        surface: As it stands in the caption ("dogs").
        start: The first character of it in the whole caption, the prefix counted in.
        end: The character after its last one.
        steps: 0-based indices into the generated token ids that spell it.
    """

    text: str
    surface: str
    start: int
    end: int
    steps: tuple[int, ...]


@runtime_checkable
class Tokenizer(Protocol):
    """What of a tokenizer is used here; those of transformers have it."""

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that stand for no text."""
        ...

    def __len__(self) -> int: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of some ids."""
        ...


def token_spans(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Decodes what was generated and says which characters each token spells.

    The generated tokens are decoded after the prompt's last ones, so that the blank before the first word is kept. What
    the first k tokens decode to is compared with the whole text. A character whose bytes are split over several tokens
    belongs to all of them. Special tokens, and ids that the tokenizer does not know, spell nothing.

    Args:
        tokenizer: The tokenizer that the ids are of.
        prompt_ids: What the model was given; image placeholders may be among them, in any number and at any place.
        token_ids: What was generated.

    Returns:
        The generated text, blanks as they are, and for each token its span of characters in it. The spans are in order
        and leave no character out.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    silent = set(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
    size = max(len(tokenizer), *(index + 1 for index in added)) if added else len(tokenizer)

    def spells(index: int) -> bool:
        return 0 <= index < size and index not in silent

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    context: list[int] = []
    for index in reversed(prompt_ids):
        if not spells(index) or len(context) == CONTEXT_TOKENS:
            break
        context.insert(0, int(index))

    spelling = [int(index) for index in token_ids if spells(index)]
    whole = decode(context + spelling)
    offset = _shared(decode(context), whole)
    text = whole[offset:]

    spans: list[tuple[int, int]] = []
    done = count = 0
    for index in token_ids:
        if not spells(index):
            spans.append((done, done))
            continue
        count += 1
        so_far = decode(context + spelling[:count])[offset:]
        known = max(done, _shared(so_far, text))
        end = min(known + (len(so_far) > known), len(text))
        # The rest of a broken character that is never completed adds nothing to the text, yet belongs to it.
        broken = end == done and text[:end].endswith(UNFINISHED)
        spans.append((done - broken, end))
        done = known
    return text, tuple(spans)


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def find_words(
    caption: str,
    generated_start: int,
    spans: Iterable[tuple[int, int]],
    wanted: Sequence[str] | None = None,
) -> tuple[Word, ...]:
    """The words of a caption to explain, in its order.

    What lies in the prefix, or begins there, cannot be explained: the model did not say it.

    A word that is named is found wherever it stands as a whole word, in any case; a blank in the name also stands for a
    hyphen. Only if it stands nowhere a form of it is taken ("dog" finds "dogs"). A few compounds are not what their
    words say (``english.KINDS_OF_THEIR_OWN``): "dog" is not found in "hot dog". Nor is "box" in "boxing glove".

    Args:
        caption: The whole caption, the prefix counted in.
        generated_start: Where in it the generated text begins.
        spans: The characters of the caption that each generated token spells.
        wanted: Words or phrases to explain, of any part of speech; by default the nouns of the caption.

    Returns:
        The words; one that occurs twice is there twice.

    Raises:
        WordNotFoundError: A named word does not stand in what was generated.
        NounPipelineMissingError: Nouns are asked for, and no spaCy pipeline for English is installed.
        OptionError: A named word is blank.
        ValueError: The spans leave out a character of a word, so they are not those of this caption.
    """
    if wanted is None:
        found = [(noun.text, noun.start, noun.end) for noun in nouns(caption) if noun.start >= generated_start]
    else:
        names = [wanted] if isinstance(wanted, str) else wanted
        places = {place for name in names for place in _places(caption, generated_start, name)}
        found = [(caption[start:end], start, end) for start, end in sorted(places)]
    tokens = tuple(spans)
    return tuple(
        Word(text, caption[start:end], start, end, _steps(caption, start, end, tokens)) for text, start, end in found
    )


def same_word(name: str, word: Word) -> bool:
    """Whether a name means a word that was found: its text or surface, or a form of either, in any case.

    Args:
        name: What somebody calls it ("dog").
        word: A word of a caption ("Dogs").
    """
    asked = fold(name.strip())
    return are_forms(asked, fold(word.text)) or are_forms(asked, fold(word.surface))


def stands_in(caption: str, generated_start: int, name: str) -> bool:
    """Whether ``find_words`` would find a word that is named.

    Raises:
        OptionError: The name is blank.
    """
    return bool(places_of(caption, generated_start, name))


def places_of(caption: str, generated_start: int, name: str, forms: bool = True) -> list[tuple[int, int]]:
    """Where ``find_words`` would find a word that is named: first character, and the one after the last; or nowhere.

    Args:
        caption: The whole caption, the prefix counted in.
        generated_start: Where in it the generated text begins.
        name: The word.
        forms: Whether a form of it counts where it does not stand itself.

    Raises:
        OptionError: The name is blank.
    """
    try:
        return _places(caption, generated_start, name, forms)
    except WordNotFoundError:
        return []


def _steps(caption: str, start: int, end: int, spans: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The tokens that spell a character of a word; the blanks around and inside it are nobody's."""
    steps = tuple(
        step for step, (first, last) in enumerate(spans) if caption[max(first, start) : min(last, end)].strip()
    )
    spelled = {place for step in steps for place in range(*spans[step])}
    missing = [place for place in range(start, end) if place not in spelled and not caption[place].isspace()]
    if missing:
        raise ValueError(f"No token spells character {missing[0]} of {caption!r}: the spans are of another text.")
    return steps


def _places(caption: str, generated_start: int, name: str, inflected: bool = True) -> list[tuple[int, int]]:
    """Where a named word, or else a form of it, stands in what was generated."""
    if not name.strip():
        raise OptionError("A word to explain is blank: name a word of the caption, or leave words out for its nouns.")
    folded = fold(caption)
    compounds = compounds_in(folded, KINDS_OF_THEIR_OWN)
    prefix = caption[:generated_start].strip()
    hidden_by, in_prefix = "", False
    for forms in (False, True) if inflected else (False,):
        places = []
        made_for = compounds_in(folded, MADE_FOR) if forms else []
        for start, end in _occurrences(folded, fold(name.strip()), forms):
            hiding = [*compounds, *(place for place in made_for if place[0] == start)]
            compound = next((place for place in hiding if place[0] <= start < end <= place[1]), (start, end))
            if start < generated_start:
                in_prefix = True
            elif compound != (start, end):
                hidden_by = caption[slice(*compound)]
            else:
                places.append((start, end))
        if places:
            return places
    if hidden_by:
        why = f'"{name}" stands in this caption only inside "{hidden_by}", a word of its own: name that.'
    elif in_prefix:
        why = f'"{name}" stands in this caption only in what the model was given, "{prefix}".'
    else:
        why = f'The caption does not say "{name}".'
    said = dict.fromkeys(re.findall(r"\w+(?:[-'’]\w+)*", caption[generated_start:]))
    raise WordNotFoundError(
        f"{why} The words that the model said: {', '.join(said) or 'none'}. "
        'To explain one that it did not say, give a caption that holds it: caption="...".'
    )


def _occurrences(folded: str, name: str, forms: bool) -> list[tuple[int, int]]:
    """Where a name stands in a text as whole words, those joined by a hyphen being one; or where a form of it does."""
    *rest, last = re.split(r"\s+|(?<=\w)-(?=\w)", name)
    words = [*map(re.escape, rest), r"(\w+)" if forms else f"({re.escape(last)})"]
    # An emoji or a sign may stand right beside a word, a word may not.
    left = r"(?<!\w)(?<!\w-)" if re.match(r"\w", name) else ""
    right = r"(?!\w|-\w)" if re.search(r"\w$", name) else ""
    matches = re.finditer(left + r"(?:\s+|-)".join(words) + right, folded)
    return [match.span() for match in matches if are_forms(last, match[1])]
