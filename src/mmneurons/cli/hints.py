"""What the library's messages say to Python, said to the command line."""

from __future__ import annotations

import re

__all__ = ["for_shell"]

_HINTS: tuple[tuple[str, str], ...] = (
    (r"force=True", "--force"),
    (r"pass to=None", "use --never-say WORD"),
    (r"out of keep;", "out of --keep;"),
    (r"Pass pictures=\[…\] whose captions say it, or .*: mmn\.find\(.*\]\.", "Name pictures whose captions say it."),
    (r"mmn\.caption\(vlm, picture\) shows", "mmn find shows"),
    (r"Pass each once\.", "Name every edit once."),
    (r"Use it with edit\.on\(vlm\)", "Use it with mmn apply"),
    (r"edit\.to_peft\(folder, vlm\)", "mmn export EDIT --peft FOLDER"),
    (r"edit\.merge\(vlm, folder\)", "mmn export EDIT --checkpoint FOLDER"),
    (r"; or apply this one, and call vlm\.model\.save_pretrained\(folder\)", ""),
    (r"\b(limit|sample|seed|images|column|prompt|prefix)=(?=['\d-])", r"--\1="),
    (r"\bmax_new_tokens=(?=['\d-])", "--max-new-tokens="),
)
"""Patterns of what messages advise, and what that is on the command line; all that apply do."""


def for_shell(message: str) -> str:
    """A message with the options of the command in place of Python's."""
    for pattern, said in _HINTS:
        message = re.sub(pattern, said, message)
    return message
