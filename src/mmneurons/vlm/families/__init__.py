"""What the general rule cannot do for a family of models: one file each, and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from mmneurons.vlm.families import llava, llava_next, llava_onevision
from mmneurons.vlm.geometry import Processed, TokenLayout

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: its ``model_type`` in transformers.
        layout: where its image tokens lie on what the image processor returns.
    """

    name: str
    layout: Callable[[Processed], TokenLayout]


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", llava.layout),
        Family("vipllava", llava.layout),
        Family("llava_next", llava_next.layout),
        Family("llava_onevision", llava_onevision.layout),
    )
}
