"""Workflows that end in a model that no longer says something, with the proof that it says all else as before.

``words`` takes a list of words; ``hallucination`` finds the words itself, by the truth of the pictures. Both learn on
some of the pictures, measure on others, and refuse to hand out what changes too much.
"""

from mmneurons.mitigation.survey import Sizes, Survey, survey
from mmneurons.mitigation.wishes import Wish, read_wishes
from mmneurons.mitigation.words import Mitigation, mitigate_words

__all__ = ["Mitigation", "Sizes", "Survey", "Wish", "mitigate_words", "read_wishes", "survey"]
