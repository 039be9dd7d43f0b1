"""Fuyu: patches of the picture itself, row by row; padding at the right and below is cut off at whole patches."""

import math

import numpy as np

from mmneurons.errors import AnatomyError
from mmneurons.vlm.geometry import Processed, TokenGrid, TokenLayout, even_spans

__all__ = ["layout"]


def layout(processed: Processed) -> TokenLayout:
    """Lay out the patches of the part that is no padding.

    A picture larger than the processor's size is made smaller until it fits; a smaller one stays as it is.

    Raises:
        AnatomyError: the tokens are not as many as these patches.
    """
    patch = processed.config.patch_size
    width, height = processed.size
    scale = min(1.0, processed.width / width, processed.height / height)
    columns, rows = (math.ceil(int(length * scale) / patch) for length in (width, height))
    if columns * rows != processed.tokens:
        raise AnatomyError(
            f"A picture of {width} × {height} pixels should be {columns} × {rows} image tokens, but there are "
            f"{processed.tokens}. Processor and model may not belong together; where the neurons look cannot be shown."
        )
    positions = np.arange(rows * columns).reshape(rows, columns)
    grid = TokenGrid(
        np.zeros((1, 1), dtype=int), even_spans(columns, float(patch)), even_spans(rows, float(patch)), positions
    )
    return TokenLayout(rows * columns, (grid,))
