"""LLaVA-OneVision: as LLaVA-NeXT, but where the tiles have too many tokens, their grid is interpolated to fewer."""

import math
import re

import numpy as np

from mmneurons.errors import AnatomyError
from mmneurons.vlm.families.llava_next import TilePatches, with_newlines
from mmneurons.vlm.geometry import Processed, TokenLayout

__all__ = ["layout"]


def layout(processed: Processed) -> TokenLayout:
    """Lay out the whole picture's patches, then the tiles', interpolated if the configuration's limit asks for it.

    An interpolated token is a mixture of the patches around its center (bilinear, up to two by two). Its rectangle here
    is its cell, the part of the tiles' grid that it stands for; the patches mixed into it can reach over the cell's
    edge by less than one patch.

    Raises:
        AnatomyError: the tiles are not those that the model expects, or the limit is not of the known kind.
    """
    patches = TilePatches(processed)
    limit = re.fullmatch(r"anyres_max_(\d+)", processed.config.vision_aspect_ratio)
    if limit is None:
        raise AnatomyError(
            f"vision_aspect_ratio is {processed.config.vision_aspect_ratio!r}; only 'anyres_max_N' is known."
        )
    height, width = len(patches.rows) - 1, len(patches.columns) - 1
    ratio = math.sqrt(height * width / (int(limit[1]) * patches.side**2))
    shape = (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)
    rows = patches.rows[0] + np.linspace(0, height, shape[0] + 1)
    columns = patches.columns[0] + np.linspace(0, width, shape[1] + 1)
    return with_newlines(processed, patches, rows, columns)
