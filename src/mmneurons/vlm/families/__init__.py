"""What the general rule cannot do for a family of models: one file each, and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from mmneurons.vlm.families import fuyu, grids, llava, llava_next, llava_onevision
from mmneurons.vlm.geometry import Processed, TokenLayout

__all__ = ["FAMILIES", "OUT_OF_REACH", "Family"]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: its ``model_type`` in transformers.
        layout: where its image tokens lie on what the image processor returns.
        queries: whether its image tokens are queries, each made of the whole picture.
        head: the dotted name of the output head, where the model does not tell.
        generator: the dotted name of the part whose ``generate`` does the work, where it is not the model itself.
        image_tokens: where the decoder has image tokens: "placeholders" among the ids, "none" (the picture is seen by
            cross-attention alone), or the name of the input that marks them.
        plain: whether the processor puts the image's tokens into the prompt itself, so that it gets the words alone.
        projector: the dotted name of the part that gives the picture's tokens, where they are not placed among the
            embeddings that the decoder gets.
        unread: how many tokens at the end of the prompt ``generate`` leaves out.
        first: which setting of the text configuration names the token that ``generate`` puts first in the prompt.
        said_type: what ``token_type_ids`` holds for a generated token.
        padded: whether an answer is the same where the prompt is padded on the left.
        end: which setting of the text configuration names the token that ends an answer, where ``generate`` takes that
            and not the generation settings.
    """

    name: str
    layout: Callable[[Processed], TokenLayout] | None = None
    queries: bool = False
    head: str | None = None
    generator: str | None = None
    image_tokens: str = "placeholders"
    plain: bool = False
    projector: str | None = None
    unread: int = 0
    said_type: int = 0
    padded: bool = True
    end: str | None = None
    first: str | None = None


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", llava.layout),
        Family("vipllava", llava.layout),
        Family("llava_next", llava_next.layout),
        Family("llava_onevision", llava_onevision.layout),
        Family(
            "blip",
            head="text_decoder.cls.predictions.decoder",
            generator="text_decoder",
            image_tokens="none",
            projector="vision_model",
            plain=True,
            unread=1,
            end="sep_token_id",
            first="bos_token_id",
        ),
        Family("paligemma", said_type=1),
        Family("mplug_owl2"),
        Family("chameleon", grids.square),
        Family("fuyu", fuyu.layout),
        Family("blip-2", generator="language_model", projector="language_projection", plain=True),
        Family("instructblip", generator="language_model", projector="language_projection", plain=True),
        Family(
            "kosmos-2",
            queries=True,
            generator="text_model",
            image_tokens="image_embeds_position_mask",
            projector="image_to_text_projection",
            plain=True,
            padded=False,
        ),
        Family("mllama", image_tokens="none", projector="model.multi_modal_projector"),
        Family("idefics", image_tokens="none", projector="model.vision_model"),
        Family("git", image_tokens="none", projector="git.visual_projection", plain=True),
        Family("florence2", projector="model.multi_modal_projector", plain=True),
        Family("vision-encoder-decoder", image_tokens="none", projector="encoder"),
    )
}

_TIMM = "its vision tower needs timm, and timm needs torchvision, which mmneurons does without"

OUT_OF_REACH = {
    "inkling_mm_model": "a convolution over positions follows its FFNs",
    "inkling2": "a convolution over positions follows its FFNs",
    "glm5_next": "its blocks pass on four residual streams, mixed anew in each",
    "muse_spark": "a projection, a norm and a gate follow its experts",
    "pi0": "it has no head for words",
    "mplugowl3": "its weights come with code for an older transformers, and it has never been seen to run",
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "perception_lm": _TIMM,
}
"""Types of models that the general rule cannot do, and why."""
