"""What has to be known of English to find words in captions: a dictionary of base forms and a few committed lists.

The dictionary is lemminflect's, which holds more plurals of things than the small spaCy pipelines (their lemma of
"syringes" is "syrinx", of "vases" "vas"). The lists hold what neither gets right.
"""

import functools
import re

__all__ = [
    "COLORS",
    "COMPOUNDS",
    "KINDS_OF_THEIR_OWN",
    "LEMMAS",
    "MADE_OF_ORANGES",
    "OTHER_PLURALS",
    "are_forms",
    "base_of_noun",
    "compounds_in",
    "fold",
    "parts_of_speech",
    "takes_an",
]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


KINDS_OF_THEIR_OWN = _names(
    """computer mouse, fire engine, great dane, guinea pig, hot dog, hot plate, hot rod, ice cream,
    magnifying glass, merry go round, peanut butter, praying mantis, rolling pin, sea horse, sea lion,
    teddy bear, walkie talkie"""
)
"""Compounds that are not what their words say: a hot dog is no dog. They hide their words even from who names them."""

COMPOUNDS = _names(
    """bald eagle, baseball bat, baseball cap, baseball glove, bell pepper, billiard ball, blue jay, bow tie,
    boxing glove, brussels sprout, cell phone, cellular phone, changing table, chewing gum, christmas tree,
    clock tower, coffee table, cotton candy, cutting board, dining room, dining table, double bass, ferris wheel,
    fire extinguisher, fire hydrant, fire truck, fishing boat, fishing pole, fishing rod, flying disc,
    flying saucer, french bulldog, french fries, french horn, french toast, frying pan, german shepherd,
    golden retriever, graduation cap, grand piano, grizzly bear, hair drier, hair dryer, hard hat, high chair,
    high heel, ice skate, ironing board, killer whale, koala bear, light bulb, light switch, living room,
    mobile phone, music note, musical instrument, musical note, palm tree, paper clip, parking garage,
    parking lot, parking meter, polar bear, police car, potted plant, prickly pear, puzzle piece, racing car,
    remote control, rocking chair, rocking horse, roller skate, rubber duck, running shoe, sewing machine,
    shooting star, shopping bag, shopping basket, shopping cart, shopping mall, sleeping bag, snow leopard,
    soccer ball, soft drink, solar panel, sports ball, spring roll, stop sign, stuffed animal, stuffed bear,
    stuffed toy, sweet potato, swimming pool, swimming suit, tennis racket, top hat, traffic light, trash can,
    video camera, walking stick, washing machine, water gun, watering can, watering hole, wild boar, wine glass"""
)
"""Names of things that a small parser takes apart now and then, mostly at a first word like "parking" or "light"."""

LEMMAS = {
    "leaves": "leaf",
    "selfies": "selfie",
    "smoothies": "smoothie",
    **{
        plural: plural
        for plural in _names(
            """bellows, binoculars, dice, earphones, fireworks, fries, graffiti, headphones, leggings, media, pajamas,
            pants, pyjamas, shears, shorts, sunglasses, tights"""
        )
    },
}
"""Base forms that the dictionary gets wrong for pictures: plurals without a singular in use, rare homonyms."""

OTHER_PLURALS = {"people": "person"}
"""Plurals of another stem, which the dictionary knows as words of their own."""

COLORS = frozenset(
    _names(
        """beige, black, blue, brown, gold, gray, green, grey, maroon, orange, pink, purple, red, silver, tan,
        turquoise, violet, white, yellow"""
    )
)
"""Words that are the color of the noun after them, whatever a parser says: "an orange peach" is a peach."""

MADE_OF_ORANGES = frozenset(_names("blossom, grove, half, juice, marmalade, peel, segment, slice, soda, tree, wedge"))
"""Before these "orange" is the fruit: "orange juice" is a compound."""

_PLAIN = str.maketrans(
    {"‘": "'", "’": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‐": "-", "‑": "-", "\N{NO-BREAK SPACE}": " "}
)


def fold(text: str) -> str:
    """The text in lower case, with plain quotes, hyphens and blanks; every character stays at its place."""
    characters = text.translate(_PLAIN)
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in characters)


def compounds_in(folded: str, compounds: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where compounds stand in a folded text, in singular or plural, with blanks or hyphens between their words."""
    return [match.span() for match in _compound_pattern(compounds).finditer(folded)]


@functools.cache
def _compound_pattern(compounds: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(compound.replace(" ", r"(?:\s+|-)") for compound in compounds)
    return re.compile(rf"\b(?:{alternatives})(?:e?s)?\b")


def base_of_noun(word: str, plural: bool) -> str:
    """The base form of a noun in lower case.

    Args:
        word: A noun in lower case.
        plural: Whether it is known to be a plural; otherwise a word that is a base form itself is left alone ("bus").
    """
    if word in LEMMAS:
        return LEMMAS[word]
    bases = _dictionary(word).get("NOUN", ())
    if not plural and (word in bases or not bases):
        return word
    return bases[0] if bases else _base_by_spelling(word)


def parts_of_speech(word: str) -> frozenset[str]:
    """The parts of speech (NOUN, VERB, ADJ, ADV, …) that the dictionary knows a word as; none if it is not in there."""
    return frozenset(_dictionary(word))


def are_forms(one: str, other: str) -> bool:
    """Whether one of two words is the base form of the other: "dog" and "dogs", "ride" and "riding"."""
    return one == other or _is_base(one, other) or _is_base(other, one)


def _is_base(base: str, form: str) -> bool:
    """Whether a word is the base form of another one.

    A form that is a base form itself ("left", "rose") is not taken for one of a verb or adjective ("leave", "rise"):
    only the sentence could tell. Those in -ing are, since the noun means the same ("riding").
    """
    known = _dictionary(form)
    if base in (LEMMAS.get(form), OTHER_PLURALS.get(form)) or base in known.get("NOUN", ()):
        return True
    if not known:
        return base == _base_by_spelling(form)
    is_base_itself = any(form in bases for bases in known.values()) and not form.endswith("ing")
    return not is_base_itself and any(base in bases for bases in known.values())


# spelled with a vowel and said without one, and the other way round
_NO_VOWEL = re.compile(r"eu|ewe|on(?:c?e\b|e-)|u(?:ni(?:[cfoqtv]|$)|[fkrst][aeiou]|bi)|u-")
_VOWEL = re.compile(r"heir|hono|hour|honest")


def takes_an(word: str) -> bool:
    """Whether "an", and not "a", stands before a word, as far as spelling tells; of capitals alone each is named."""
    if len(word) > 1 and word.isupper():
        return word[0] in "AEFHILMNORSX"
    folded = fold(word)
    return bool(_VOWEL.match(folded)) or (folded[:1] in {*"aeiou"} and not _NO_VOWEL.match(folded))


@functools.lru_cache(maxsize=65536)
def _dictionary(word: str) -> dict[str, tuple[str, ...]]:
    """Part of speech -> base forms, the most frequent first; empty for a word that is not in the dictionary."""
    from lemminflect import getAllLemmas

    return getAllLemmas(word)


def _base_by_spelling(word: str) -> str:
    """The base form of a plural that is not in the dictionary ("frisbees")."""
    from lemminflect import getAllLemmasOOV

    return getAllLemmasOOV(word, "NOUN")["NOUN"][0]
