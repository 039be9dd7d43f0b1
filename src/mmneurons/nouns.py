"""The nouns of a caption, by a spaCy pipeline whose habitual mistakes in captions are put right."""

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmneurons.english import (
    COLORS,
    COMPOUNDS,
    KINDS_OF_THEIR_OWN,
    MADE_OF_ORANGES,
    base_of_noun,
    compounds_in,
    fold,
    parts_of_speech,
)
from mmneurons.errors import NounPipelineMissingError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

__all__ = ["PIPELINE_VARIABLE", "Noun", "nouns"]

PIPELINE_VARIABLE = "MMNEURONS_NOUN_PIPELINE"
"""The environment variable that names the pipeline to use, a package or a folder, instead of the one chosen."""

_NOUNS = frozenset({"NOUN", "PROPN"})
_MODIFIERS = frozenset({"amod", "compound", "nmod"})
_NOMINAL = frozenset({"compound", "dobj", "nsubj", "nsubjpass", "pobj"})
_DETERMINERS = frozenset({"det", "nummod"})
_ONE = frozenset({"a", "an", "one"})
_SEVERAL = frozenset({"both", "few", "many", "several"})
_PRONOUNS = frozenset({"few", "little", "many", "more", "most", "much", "other", "others", "several"})
_PLURAL_MODIFIERS = frozenset({"arms", "clothes", "games", "goods", "sales", "sports"})


@dataclass(frozen=True)
class Noun:
    """A noun of a text, a compound being one noun.

    Attributes:
        text: Its base form in lower case ("dog", "wine glass").
        start: Its first character in the text.
        end: The character after its last one.
    """

    text: str
    start: int
    end: int


def nouns(text: str) -> tuple[Noun, ...]:
    """The nouns of an English text, in order: common nouns and names, a compound being one.

    The pipeline reads the text in lower case: where captions write nouns with capitals it would take them for names. So
    a name is a noun like others ("eiffel tower"). What is written with hyphens is one noun if its last part is one
    ("t-shirt"), and none otherwise ("snow-covered"). The color of a thing is no part of its name ("orange cat").

    Args:
        text: A caption of any number of sentences.

    Raises:
        NounPipelineMissingError: No spaCy pipeline for English is installed.
    """
    readable = _readable(text)
    if not readable.strip():
        return ()
    document = _pipeline()(readable)
    fixed = _fixed_compounds(document)
    ends = {token.i for token in document if token.i in fixed or _is_noun(token)}
    found: list[Noun] = []
    unread = len(document)
    for last in sorted(ends, reverse=True):
        if last >= unread or _is_inner_hyphen(document, last + 1):
            continue
        unread = _first_of_noun(document, last, ends, fixed)
        words = document[unread : last + 1]
        before = "".join(token.text_with_ws for token in words[:-1])
        found.append(Noun(" ".join((before + _base(document[last])).split()), words.start_char, words.end_char))
    return tuple(reversed(found))


def _readable(text: str) -> str:
    """The text as the pipeline reads best, every character at its place: folded, no emoji or markup, a full stop."""
    kept = "".join(
        character if character.isalnum() or character.isspace() or character in "'\"-,.;:!?()/&%" else " "
        for character in fold(text)
    ).rstrip()
    return kept if not kept or kept[-1] in ".!?" else kept + " ."


@functools.cache
def _pipeline() -> "Language":
    """The pipeline that the environment names, else the first of the installed ones for English, loaded once.

    Those called en_core_web_sm come first. The lemmatizer and what finds names is left out: they are not needed here.
    """
    import spacy

    named = os.environ.get(PIPELINE_VARIABLE)
    installed = sorted(
        (name for name in spacy.util.get_installed_models() if name.startswith("en_")),
        key=lambda name: (name != "en_core_web_sm", not name.startswith("en_core_web_sm"), name),
    )
    reasons: list[str] = []
    for name in [named] if named else installed:
        try:
            pipeline = spacy.load(name, exclude=["ner", "lemmatizer", "senter", "textcat", "entity_linker"])
        except (ImportError, OSError, ValueError) as error:
            reasons.append(f"{name}: {error}")
            continue
        if {"parser", "tagger"} <= set(pipeline.pipe_names):
            return pipeline
        reasons.append(f"{name}: it has no tagger or no parser")
    raise NounPipelineMissingError(
        "Nouns are found by a spaCy pipeline for English, and "
        + (f"none of these can be used ({'; '.join(reasons)}). " if reasons else "none is installed. ")
        + "Install one: `python -m spacy download en_core_web_sm`, or for the demo "
        "`pip install --no-deps -r requirements/demo.txt`. To explain words that you name, words=[...], none is needed."
    )


def _fixed_compounds(document: "Doc") -> dict[int, int]:
    """The committed compounds in a text: index of their last token -> index of their first."""
    places = compounds_in(document.text, KINDS_OF_THEIR_OWN + COMPOUNDS)
    spans = (document.char_span(start, end) for start, end in places)
    return {span.end - 1: span.start for span in spans if span is not None}


def _is_noun(token: "Token") -> bool:
    """Whether a token is a noun: what the tagger says, corrected by the dictionary and by the words around it.

    A word tagged as an adjective, adverb or verb is a noun

    - if the dictionary knows it as a noun and not as what it was tagged ("a lantern, gray rice"; "ski poles"),
    - or as a noun, too, and it stands where nouns stand: as a subject, object or part of a compound ("cows graze"), or
      after an article or number that belongs to it, with nothing but adjectives in between ("a red rose and").

    A word tagged as a noun is none if it is the color of what follows, or see :func:`_is_predicate`.
    """
    if not any(character.isalpha() for character in token.text) or _is_color(token):
        return False
    known = parts_of_speech(token.text)
    if token.pos_ in _NOUNS:
        return "VERB" not in known or not _is_predicate(token)
    if token.pos_ not in ("ADJ", "ADV", "VERB") or token.text in _PRONOUNS or (known and "NOUN" not in known):
        return False
    mistagged = bool(known) and token.pos_ not in known
    return mistagged or token.dep_ in _NOMINAL or _has_determiner(token)


def _is_color(token: "Token") -> bool:
    """Whether a word is the color of the noun after it."""
    if token.text not in COLORS or token.i + 1 == len(token.doc):
        return False
    after = token.nbor()
    is_fruit = token.text == "orange" and _base(after) in MADE_OF_ORANGES
    is_noun = after.pos_ in _NOUNS or "NOUN" in parts_of_speech(after.text)
    return is_noun and after.tag_ != "VBZ" and not is_fruit


def _has_determiner(token: "Token") -> bool:
    """Whether an article or number that agrees with the word stands before it, with only adjectives in between."""
    for before in reversed(token.doc[: token.i]):
        if before.dep_ in _DETERMINERS:
            agrees = not (before.text in _ONE and token.tag_ == "VBZ")
            return agrees and (before.head == token or _is_color(before.head))
        if before.pos_ != "ADJ" and not _is_color(before):
            return False
    return False


def _is_predicate(token: "Token") -> bool:
    """Whether a word that is tagged as a noun, but may be a verb, is one.

    It is if it has a subject ("women in dresses dance"), or if it follows a noun and

    - an article follows it ("two zebras and a giraffe share a"),
    - or it is a participle before another noun ("a man riding horses"),
    - or it contradicts the article or number before both ("a tabby cat stares", "several sheep graze").
    """
    if any(child.dep_ == "nsubj" for child in token.lefts):
        return True
    before = token.nbor(-1) if token.i else None
    if before is None or before.pos_ not in _NOUNS or token.text in _PLURAL_MODIFIERS:
        return False
    after = token.nbor() if token.i + 1 < len(token.doc) else None
    if before.head == token and after is not None and after.tag_ == "DT":
        return True
    is_modifier = token.dep_ == "compound"
    if is_modifier and token.text.endswith("ing"):
        return True
    openers = {child.text for child in (token.head if is_modifier else token).lefts if child.i < before.i}
    if openers & _ONE:
        return token.tag_ == "NNS"
    return not is_modifier and token.tag_ == "NN" and (bool(openers & _SEVERAL) or _is_counted(token))


def _is_counted(token: "Token") -> bool:
    """Whether a number above one belongs to a word."""
    return any(child.dep_ == "nummod" and child.text not in _ONE for child in token.lefts)


def _first_of_noun(document: "Doc", last: int, ends: set[int], fixed: dict[int, int]) -> int:
    """The index of the first token of the noun that ends with a given one."""
    first = fixed.get(last, last)
    while first > 0:
        index = first - 1
        before = document[index]
        if _is_inner_hyphen(document, index):
            first -= 2
        elif index in ends and (_modifies(before, last) or document[first].head == before):
            first = fixed.get(index, index)
        else:
            break
    return first


def _modifies(token: "Token", last: int) -> bool:
    """Whether a noun belongs to another one after it, at or before an index."""
    return token.dep_ in _MODIFIERS and token.i < token.head.i <= last


def _is_inner_hyphen(document: "Doc", index: int) -> bool:
    """Whether a token is a hyphen that joins what stands before and after it."""
    if not 0 < index < len(document) - 1 or document[index].text != "-":
        return False
    before, after = document[index - 1], document[index + 1]
    blank = before.whitespace_ or document[index].whitespace_
    return not blank and before.text[-1].isalnum() and after.text[0].isalnum()


def _base(token: "Token") -> str:
    return base_of_noun(token.text, plural=token.tag_ not in ("NN", "NNP") or _is_counted(token))
