"""mPLUG-Owl2 for transformers 5 (Ye et al. 2023): configuration, model and processor.

The published code runs on transformers 4.31 alone, and the checkpoint brings none. This is a model of our own that
reads the published layout and gives the same numbers. One thing is done otherwise: the original counts positions
plainly and takes what is put in front for no padding, so that three tokens of padding on the left move the last logits
by more than one; here padding changes nothing.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from mmneurons.vlm.families.mplug_owl2.configuration import MPLUGOwl2Config
from mmneurons.vlm.families.mplug_owl2.modeling import MPLUGOwl2ForConditionalGeneration, MPLUGOwl2Model
from mmneurons.vlm.families.mplug_owl2.processing import MPLUGOwl2Processor

__all__ = [
    "MPLUGOwl2Config",
    "MPLUGOwl2ForConditionalGeneration",
    "MPLUGOwl2Model",
    "MPLUGOwl2Processor",
    "register",
]


def register() -> None:
    """Tell transformers' auto classes of the model; once is enough."""
    AutoConfig.register(MPLUGOwl2Config.model_type, MPLUGOwl2Config, exist_ok=True)
    AutoModel.register(MPLUGOwl2Config, MPLUGOwl2Model, exist_ok=True)
    AutoModelForImageTextToText.register(MPLUGOwl2Config, MPLUGOwl2ForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MPLUGOwl2Config, MPLUGOwl2Processor, exist_ok=True)
