"""Prompts without a picture: what a model says of the world, which an edit of what it sees should leave alone.

They are our own: facts, sayings, numbers, and a few requests. None of them names an animal, a food or a thing of the
kind that pictures are captioned with.
"""

from __future__ import annotations

__all__ = ["PROMPTS"]

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
