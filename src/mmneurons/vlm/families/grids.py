"""Chameleon and the like: one grid of equal cells over all that the image processor gives, row by row."""

import numpy as np

from mmneurons.errors import AnatomyError
from mmneurons.vlm.geometry import Processed, TokenGrid, TokenLayout, even_spans

__all__ = ["square"]


def square(processed: Processed) -> TokenLayout:
    """Lay out as many cells side by side as one below the other.

    Raises:
        AnatomyError: the tokens are no square, or the processor made several pictures.
    """
    side = round(processed.tokens**0.5)
    if side**2 != processed.tokens or processed.tiles != 1:
        raise AnatomyError(
            f"{processed.tokens} image tokens of {processed.tiles} pictures are no square, so where the neurons look "
            "cannot be shown."
        )
    columns, rows = (even_spans(side, length / side) for length in (processed.width, processed.height))
    grid = TokenGrid(np.zeros((1, 1), dtype=int), columns, rows, np.arange(side**2).reshape(side, side))
    return TokenLayout(side**2, (grid,))
