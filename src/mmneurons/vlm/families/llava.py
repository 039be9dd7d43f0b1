"""LLaVA and ViP-LLaVA: one grid of patches over one processed picture, row by row."""

import numpy as np

from mmneurons.errors import AnatomyError
from mmneurons.vlm.geometry import Processed, TokenGrid, TokenLayout, even_spans

__all__ = ["layout", "patch_grid", "patch_size"]


def layout(processed: Processed) -> TokenLayout:
    """Lay the tokens out as patches of the one processed picture; a class token before them shows no part of it.

    Whether there is a class token is told by the number of tokens, and believed only where the configuration selects
    all features of the vision tower.

    Raises:
        AnatomyError: there are several processed pictures, or the patch size is not stated.
    """
    if processed.tiles != 1:
        raise AnatomyError(
            f"A model of type {processed.config.model_type!r} takes one processed picture, but the image processor "
            f"made {processed.tiles}. Processor and model may not belong together."
        )
    whole = getattr(processed.config, "vision_feature_select_strategy", "default") == "full"
    patches = (processed.height // patch_size(processed)) * (processed.width // patch_size(processed))
    first = 1 if whole and processed.tokens == patches + 1 else 0
    return TokenLayout(first + patches, (patch_grid(processed, first),))


def patch_grid(processed: Processed, first: int = 0) -> TokenGrid:
    """Return the patches of processed picture 0, whose first token is number ``first``.

    Pixels on the right and below that do not fill a patch belong to none, as with a convolution without padding.
    """
    patch = patch_size(processed)
    rows, columns = processed.height // patch, processed.width // patch
    positions = first + np.arange(rows * columns).reshape(rows, columns)
    return TokenGrid(
        np.zeros((1, 1), dtype=int), even_spans(columns, float(patch)), even_spans(rows, float(patch)), positions
    )


def patch_size(processed: Processed) -> int:
    """Return the side of a patch in pixels, as the vision tower's configuration or else the processor states it.

    Raises:
        AnatomyError: neither states it.
    """
    vision = getattr(processed.config, "vision_config", None)
    for source in (vision, processed.processor):
        side = getattr(source, "patch_size", None)
        if isinstance(side, int):
            return side
    raise AnatomyError(
        f"Neither the configuration nor the processor of this model of type {processed.config.model_type!r} states a "
        "patch size. Set processor.patch_size to the number of pixels along one side of an image token."
    )
