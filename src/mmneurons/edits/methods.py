"""Ways of making an edit, one file each. A new one is a new file and one line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from mmneurons.edits.learned import FiNE, FineTune, Learned, LoRA, Refined
from mmneurons.edits.least_squares import LeastSquares
from mmneurons.edits.rivals import Ban, Erase, KnowledgeNeurons, Scale
from mmneurons.edits.solution import Solution
from mmneurons.edits.task import Task
from mmneurons.options import chosen
from mmneurons.vlm.model import VLM

__all__ = ["METHODS", "Checking", "Method", "check_method", "make_method", "name_of"]


@runtime_checkable
class Method(Protocol):
    """A way of making an edit: a frozen dataclass of its options that can be called."""

    def __call__(self, task: Task) -> Solution:
        """Find what has to be added to which columns."""
        ...


@runtime_checkable
class Checking(Protocol):
    """A method whose options may ask for what a model does not have."""

    def check(self, vlm: VLM) -> None:
        """Say so, before any caption is made."""
        ...


METHODS: dict[str, type] = {
    "least_squares": LeastSquares,
    "learned": Learned,
    "fine": FiNE,
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
    return chosen("method", METHODS, method, options)


def check_method(vlm: VLM, method: Method) -> None:
    """Refuse options that ask for what a model does not have.

    Raises:
        OptionError: there are no such neurons or blocks.
    """
    if isinstance(method, Checking):
        method.check(vlm)


def name_of(method: Method) -> str:
    """The name that a method is called by, or its class's where it has none."""
    return next((name for name, kind in METHODS.items() if type(method) is kind), type(method).__name__)
