"""Tiny models that say what a test wants them to."""

from PIL import Image

import mmneurons as mmn
from mmneurons.vlm.inputs import continuation, make_inputs

__all__ = ["SAID", "make_it_say"]

SAID = "An image of a dog and a ball."


def make_it_say(vlm: mmn.VLM, caption: str) -> None:
    """Bias a model's generation so that a greedy answer after "An image of" goes on as the caption does."""
    request = make_inputs(vlm, Image.new("RGB", (64, 64)))
    rest = caption.removeprefix(request.prefix)
    ids = [*continuation(vlm, request, rest), vlm.model.generation_config.eos_token_id]
    # longer beginnings count more, so that the second "a" is not followed by what follows the first
    vlm.model.generation_config.sequence_bias = [[ids[:count], 100.0 * count] for count in range(1, len(ids) + 1)]
