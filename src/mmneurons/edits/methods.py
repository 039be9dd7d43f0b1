"""Ways of making an edit, one file each. A new one is a new file and one line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Protocol, runtime_checkable

from mmneurons.edits.learned import FineTune, Learned, LoRA, Refined
from mmneurons.edits.least_squares import LeastSquares
from mmneurons.edits.rivals import Ban, Erase, KnowledgeNeurons, Scale
from mmneurons.edits.solution import Solution
from mmneurons.edits.task import Task
from mmneurons.errors import OptionError

__all__ = ["METHODS", "Method", "make_method"]


@runtime_checkable
class Method(Protocol):
    """A way of making an edit: a frozen dataclass of its options that can be called."""

    def __call__(self, task: Task) -> Solution:
        """Find what has to be added to which columns."""
        ...


METHODS: dict[str, type] = {
    "least_squares": LeastSquares,
    "learned": Learned,
    "refined": Refined,
    "knowledge_neurons": KnowledgeNeurons,
    "erase": Erase,
    "scale": Scale,
    "finetune": FineTune,
    "lora": LoRA,
    "ban": Ban,
}


def make_method(method: str | Method, options: Mapping[str, object]) -> Method:
    """The method of a name with options, or the method itself.

    Raises:
        OptionError: there is no such method, or it has no such option.
    """
    if not isinstance(method, str):
        if not callable(method):
            raise OptionError(f"method={method!r} is not possible: pass {', '.join(METHODS)}, or a method.")
        if options:
            raise OptionError(f"{method!r} has its options already; beside it were passed: {', '.join(options)}.")
        return method
    if method not in METHODS:
        raise OptionError(f"There is no method {method!r}. There are: {', '.join(METHODS)}.")
    known = [field.name for field in fields(METHODS[method])]
    if unknown := [name for name in options if name not in known]:
        raise OptionError(f"The method {method!r} has no option {', '.join(unknown)}. It has: {', '.join(known)}.")
    return METHODS[method](**options)
