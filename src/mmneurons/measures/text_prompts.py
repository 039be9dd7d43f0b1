"""Prompts without a picture: what a model says of the world, which an edit of what it sees should leave alone.

They are our own: facts, sayings, numbers, and a few requests. None of them names an animal, a food or a thing of the
kind that pictures are captioned with.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmneurons.errors import RecordingError
from mmneurons.recordings import say_again
from mmneurons.vlm.inputs import make_text_inputs
from mmneurons.vlm.model import VLM
from mmneurons.vlm.recording import Recording

__all__ = ["PROMPTS", "record_texts"]

PROMPTS: tuple[str, ...] = (
    "The capital of France is",
    "The largest ocean on Earth is",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "Seven plus five makes",
    "The first month of the year is",
    "William Shakespeare wrote",
    "The chemical symbol of gold is",
    "A week has as many days as",
    "The language that is spoken in Brazil is",
    "The Moon goes around",
    "Actions speak louder than",
    "In winter the days are",
    "The square root of nine is",
    "The Second World War ended in the year",
    "Name three colors.",
    "What is the plural of the word child?",
    "Translate good morning into Spanish.",
    "Why is the sky blue?",
    "Write one sentence about friendship.",
)
"""What is asked by default."""


def record_texts(vlm: VLM, prompts: Sequence[str] = PROMPTS, max_new_tokens: int = 20) -> list[Recording]:
    """What a model answers to prompts without a picture, greedily.

    Args:
        vlm: the model.
        prompts: what it is asked; the chat template is put around each.
        max_new_tokens: where an answer is cut.

    Raises:
        RecordingError: the model cannot be asked without a picture.
    """
    requests = [make_text_inputs(vlm, prompt) for prompt in prompts]
    try:
        return say_again(vlm, requests, max_new_tokens)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # whatever a model's code says that misses its picture
        raise RecordingError(
            f"{type(vlm.model).__name__} cannot be asked without a picture "
            f"({type(error).__name__}: {str(error)[:80]}). Leave text prompts out."
        ) from error
