"""LLaVA-NeXT: the whole picture in one grid of patches, then the picture again in tiles, with padding cut away.

The tiles' patches form one large grid. Its rows or columns that show padding alone are dropped, and a newline token
ends every row that is left.
"""

import numpy as np

from mmneurons.errors import AnatomyError
from mmneurons.vlm.families.llava import patch_grid, patch_size
from mmneurons.vlm.geometry import Processed, TokenGrid, TokenLayout

__all__ = ["TilePatches", "layout", "with_newlines"]


class TilePatches:
    """The patches of all tiles that are left after unpadding.

    Attributes:
        tiles: numbers of the tiles as they lie in the picture, (tile rows, tile columns); 0 is the whole picture.
        rows: edges of the rows that are left, in patches from the large grid's upper edge.
        columns: edges of the columns that are left, in patches from its left edge.
    """

    def __init__(self, processed: Processed):
        import torch
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        config = processed.config
        self.patch = patch_size(processed)
        self.side = config.vision_config.image_size // self.patch
        if (processed.height, processed.width) != (config.vision_config.image_size,) * 2:
            raise AnatomyError(
                f"The image processor makes tiles of {processed.width} × {processed.height} pixels, but the vision "
                f"tower takes {config.vision_config.image_size}. Processor and model may not belong together."
            )
        self.pixels = processed.height
        size = (processed.size[1], processed.size[0])
        shape = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        if processed.tiles != 1 + shape[0] * shape[1]:
            raise AnatomyError(
                f"The model expects {shape[0]} × {shape[1]} tiles and the whole picture, but the image processor made "
                f"{processed.tiles} in all. Their image_grid_pinpoints may differ."
            )
        self.tiles = 1 + np.arange(shape[0] * shape[1]).reshape(shape)
        width = shape[1] * self.side
        # The model's own function, on numbers instead of features, tells which patches it keeps.
        numbers = torch.arange(shape[0] * self.side * width).reshape(1, -1, width)
        left = unpad_image(numbers, size)[0].numpy()
        height, width_left = left.shape
        row, column = divmod(int(left[0, 0]), width) if left.size else (0, 0)
        self.rows = row + np.arange(height + 1, dtype=np.float64)
        self.columns = column + np.arange(width_left + 1, dtype=np.float64)

    def edge(self, patches: np.ndarray, upper: bool) -> np.ndarray:
        """Return where the lower or upper edge of patches lies, in pixels of the tiles put together.

        Args:
            patches: Coordinates in the large grid, in patches from its edge; fractions lie inside a patch.
            upper: Whether a coordinate between two tiles is the end of the first, not the start of the second: a few
                pixels between them may belong to no patch.
        """
        # Rounded, or an edge between tiles that was computed with an error of 1e-15 would fall on the wrong side.
        patches = np.round(patches, 9)
        tile = np.ceil(patches / self.side) - 1 if upper else np.floor(patches / self.side)
        return tile * self.pixels + (patches - tile * self.side) * self.patch

    def spans(self, edges: np.ndarray) -> np.ndarray:
        """Return the edges in pixels, (cells, 2), of cells with these edges in patches, (cells + 1,)."""
        return np.stack([self.edge(edges[:-1], upper=False), self.edge(edges[1:], upper=True)], axis=1)


def layout(processed: Processed) -> TokenLayout:
    """Lay out the whole picture's patches, then the tiles', each row of them with a newline token at its end.

    Raises:
        AnatomyError: the tiles are not those that the model expects.
    """
    patches = TilePatches(processed)
    return with_newlines(processed, patches, patches.rows, patches.columns)


def with_newlines(processed: Processed, patches: TilePatches, rows: np.ndarray, columns: np.ndarray) -> TokenLayout:
    """Put the tiles' grid, with these edges in patches, behind that of the whole picture.

    Of a very long and thin picture in few tiles, unpadding leaves no patch at all, but for every row its newline token.
    """
    whole = patch_grid(processed)
    height, width = len(rows) - 1, len(columns) - 1
    numbers = whole.positions.size + np.arange(height * (width + 1)).reshape(height, width + 1)
    grids = (whole,)
    if height and width:
        grids += (TokenGrid(patches.tiles, patches.spans(columns), patches.spans(rows), numbers[:, :-1]),)
    return TokenLayout(whole.positions.size + numbers.size, grids)
