"""Checks of options, with one wording for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import TypeVar

from mmneurons.errors import OptionError

__all__ = ["check_increasing", "check_known", "check_seed", "check_whole", "chosen", "named_words", "refuse_unknown"]

T = TypeVar("T")


def check_whole(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no whole number within bounds; ``True`` is none.

    Raises:
        OptionError: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    bounds = f"from {least}" + ("" if most is None else f" to {most}")
    raise OptionError(f"{name}={value!r} is not possible: it has to be a whole number {bounds}.")


def check_increasing(name: str, values: object) -> None:
    """Refuse what are no whole numbers from 1, each larger than the one before.

    Raises:
        OptionError: they are not.
    """
    given = list(values) if isinstance(values, Sequence) else []
    numbers = [one for one in given if isinstance(one, int) and not isinstance(one, bool) and one >= 1]
    if given and len(numbers) == len(given) and numbers == sorted(set(numbers)):
        return
    raise OptionError(
        f"{name}={values!r} is not possible: pass whole numbers from 1 in growing order, such as (1, 10)."
    )


def check_known(kind: str, given: str, known: Iterable[str]) -> None:
    """Refuse a name that nothing has, and say which was meant.

    Raises:
        OptionError: there is nothing of this name.
    """
    names = list(dict.fromkeys(known))
    if given in names:
        return
    close = get_close_matches(given.lower(), names, 1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    # in quotes, because some names hold commas
    raise OptionError(f"There is no {kind} {given!r}. {meant}There are: {', '.join(map(repr, names))}.")


def chosen(kind: str, registry: Mapping[str, type], given: str | T, options: Mapping[str, object]) -> T:
    """What a registry has under a name, a dataclass of its options, with these options; or what is given instead.

    Raises:
        OptionError: there is nothing of this name or it has no such option; what is given cannot be called, or has its
            options already.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise OptionError(f"{kind}={given!r} is not possible: pass {', '.join(registry)}, or a {kind}.")
        if options:
            raise OptionError(f"{given!r} has its options already; these were passed beside it: {', '.join(options)}.")
        return given
    check_known(kind, given, registry)
    known = [field.name for field in fields(registry[given])]
    if unknown := [option for option in options if option not in known]:
        has = f"Its options are: {', '.join(known)}." if known else "It has none."
        raise OptionError(f"The {kind} {given!r} has no option {', '.join(unknown)}. {has}")
    return registry[given](**options)


def check_seed(seed: object) -> None:
    """Refuse what cannot seed a draw.

    Raises:
        OptionError: it is no whole number of 63 bits.
    """
    check_whole("seed", seed, 0, 2**63 - 1)


def named_words(words: str | Iterable[str] | None) -> list[str] | None:
    """The words that somebody names, one or several, as a list; None where none are named.

    Raises:
        OptionError: one of them is no text, or blank.
    """
    if words is None:
        return None
    try:
        named = [words] if isinstance(words, str) else list(words)
    except TypeError as error:
        raise OptionError(f"words={words!r} is not possible: pass a list of words.") from error
    for word in named:
        if not isinstance(word, str) or not word.strip():
            raise OptionError(f"words={named!r} is not possible: {word!r} is no word.")
    return named


def refuse_unknown(options: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse options that nothing takes, and say what was meant.

    Raises:
        OptionError: there is one.
    """
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise OptionError(
                f"There is no option {name}. {meant}There are: {', '.join(dict.fromkeys(known))}. Options of generate, "
                "such as temperature or num_beams, go into generation={…}."
            )
