"""Checks of options, with one wording for all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mmneurons.errors import OptionError

__all__ = [
    "check_increasing",
    "check_known",
    "check_seed",
    "check_share",
    "check_whole",
    "chosen",
    "named_words",
    "refuse_unknown",
]

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
    close = [name for name in names if len(given) > 2 and name.startswith(given.lower())]
    close = close or get_close_matches(given.lower(), names, 1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    # in quotes, because some names hold commas
    raise OptionError(f"There is no {kind} {given!r}. {meant}There are: {', '.join(map(repr, names))}.")


def chosen(kind: str, registry: Mapping[str, type], given: str | T, options: Mapping[str, object]) -> T:
    """What a registry has under a name, a dataclass of its options, with these options; or what is given instead.

    Raises:
        OptionError: there is nothing of this name, it has no such option, or an option is of another type; what is
            given cannot be called, or has its options already.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise OptionError(f"{kind}={given!r} is not possible: pass {', '.join(registry)}, or a {kind}.")
        if options:
            raise OptionError(f"{given!r} has its options already; these were passed beside it: {', '.join(options)}.")
        return given
    check_known(kind, given, registry)
    known = {field.name: field.default for field in fields(registry[given])}
    if unknown := [option for option in options if option not in known]:
        has = ", ".join(f"{name}={default!r}" for name, default in known.items())
        has = f"Its options are: {has}." if known else "It has none."
        raise OptionError(f"The {kind} {given!r} has no option {', '.join(unknown)}. {has}")
    kinds = get_type_hints(registry[given])
    return registry[given](**{name: _typed(name, value, kinds[name]) for name, value in options.items()})


def _typed(name: str, value: object, kind: object) -> object:
    """An option's value as its annotation has it: a whole number is a number, too, and one thing a list of one.

    Raises:
        OptionError: it is of another type.
    """
    for one in _alternatives(kind):
        if get_origin(one) is tuple:
            parts = value if isinstance(value, list | tuple) else (value,)
            own = get_args(one)[0]
            if all(_is(part, own) for part in parts):
                return tuple(parts)
        elif _is(value, one):
            return float(value) if one is float and isinstance(value, int) else value
    wanted = " or ".join(map(_in_words, _alternatives(kind)))
    raise OptionError(f"{name}={value!r} is not possible: it has to be {wanted}.")


def _alternatives(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is(value: object, kind: object) -> bool:
    """Whether a value is of a type; of a type that is not known here everything is."""
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= _LARGEST
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return not isinstance(kind, type) or isinstance(value, kind)


_LARGEST = sys.float_info.max
"""Neither an infinite number, nor a whole one that a float cannot hold."""

_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "None",
}


def _in_words(kind: object) -> str:
    if get_origin(kind) is tuple:
        return f"{_in_words(get_args(kind)[0])}, or a list of such"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return _WORDS.get(kind, str(kind))


def check_share(name: str, value: object) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        OptionError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionError(f"{name}={value!r} is not possible: it is a share, a number from 0 to 1.")


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
