"""Text from models and files, as it can be shown: nothing hidden in it, nothing that runs."""

from __future__ import annotations

import json
import unicodedata

__all__ = ["cell", "count_of", "file_name", "json_for_script", "number", "percent", "plain", "shortened", "visible"]

REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the reading direction of what follows, up to making a file's name look like another one."""

LENGTH = 600
"""How much of a text from a model or a file is shown, in characters."""

SCRIPT_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """The text with control characters as their pictures (␊ for a line feed) and others that hide as escapes.

    Letters of every script, emoji and their joiners stay as they are.
    """
    return text if text.isprintable() else "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if category in ("Cc", "Zl", "Zp", "Cs") or character in REORDERING:
        return f"\\u{code:04x}"
    return character


def plain(value: object) -> str:
    """Anything that a model or a file says, as text of bounded length: strings as they are, everything else as JSON."""
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value, ensure_ascii=False)
    return visible(shortened(text, LENGTH))


def cell(value: object) -> str:
    """The same inside a table of Markdown, where no character of it means anything."""
    return plain(value).replace("|", "\\|").replace("<", "\\<")


def shortened(text: str, length: int) -> str:
    """The text, cut off behind ``length`` characters with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def count_of(count: int, what: str) -> str:
    """How many of something: "1 word", "2 words"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def file_name(source: str) -> str:
    """What a source is called for short: the last part of its path."""
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2] or source


def number(value: float | None, zeros: bool = False) -> str:
    """A number with three significant digits and a true minus; a dash where there is none.

    Args:
        value: the number.
        zeros: whether to keep zeros at the end (1.50), as numbers under one another need.
    """
    if value is None:
        return "–"
    text = f"{value:#.3g}".rstrip(".") if zeros and value else f"{value:.3g}"
    return text.replace("-", "−")


def percent(value: float | None, zeros: bool = False) -> str:
    """A probability or a share as a percentage, with digits as ``number`` has them; a dash where there is none."""
    return "–" if value is None else f"{number(100 * value, zeros)}%"


def json_for_script(value: object) -> str:
    """JSON that can stand in a ``script`` element: nothing in it ends the element or opens a comment."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(SCRIPT_ESCAPES)
