"""Where image tokens lie, family by family.

The general rule knows no family. It is checked against closed forms where there are some, against rectangles computed
by hand, and, for all, against the model: with the vision tower's layers off, a mark in the original picture changes
exactly the tokens whose rectangles it touches.
"""

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

import mmneurons as mmn
from helpers import tiny
from helpers.families import FAMILIES
from mmneurons.errors import AnatomyError
from mmneurons.vlm.families import FAMILIES as LAYOUTS
from mmneurons.vlm.geometry import geometry, laid_out, placed
from mmneurons.vlm.measured_layout import measured_geometry
from mmneurons.vlm.supports import _without_layers, features_of, tokens_per_image

pytestmark = pytest.mark.families

SIZE = (90, 60)


def square(side, kind=tf.CLIPImageProcessor, **more):
    shape = {"height": side, "width": side}
    return kind(size=shape, **more)


def crop(side):
    return tf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def qwen(patch):
    return tf.Qwen2VLImageProcessor(patch_size=patch, min_pixels=4 * patch**2, max_pixels=24 * patch**2)


def glm(patch):
    side = {"shortest_edge": 4 * patch**2 * 2, "longest_edge": 24 * patch**2 * 2}
    return tf.Glm4vImageProcessor(patch_size=patch, size=side)


GRIDS = [[28, 56], [56, 28], [56, 56]]

PROCESSORS = {
    "llava": lambda: crop(28),
    "vipllava": lambda: crop(28),
    "video_llava": lambda: tf.VideoLlavaImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ),
    "llava_next": lambda: tf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRIDS
    ),
    "llava_onevision": lambda: square(28, tf.LlavaOnevisionImageProcessor, image_grid_pinpoints=GRIDS),
    "paligemma": lambda: square(28, tf.SiglipImageProcessor),
    "paligemma/gemma2": lambda: square(28, tf.SiglipImageProcessor),
    "gemma3": lambda: square(28, tf.Gemma3ImageProcessor),
    "internvl": lambda: square(56, tf.GotOcr2ImageProcessor, crop_to_patches=True, max_patches=4),
    "aya_vision": lambda: square(56, tf.GotOcr2ImageProcessor, crop_to_patches=True, max_patches=4),
    "mistral3": lambda: tf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=28),
    "qwen2_vl": lambda: qwen(14),
    "qwen2_5_vl": lambda: qwen(14),
    "qwen3_vl": lambda: qwen(16),
    "qwen3_vl_moe": lambda: qwen(16),
    "qwen3_5": lambda: qwen(16),
    "qwen3_5_moe": lambda: qwen(16),
    "glm4v": lambda: glm(14),
    "glm4v_moe": lambda: glm(14),
    "deepseek_vl": lambda: square(28, tf.DeepseekVLImageProcessor, min_size=14),
    "janus": lambda: square(28, tf.JanusImageProcessor, min_size=14),
    "ovis2": lambda: square(28, tf.SiglipImageProcessor),
    "idefics3": lambda: tf.Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
    "smolvlm": lambda: tf.SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
    "gemma4": lambda: tf.Gemma4ImageProcessor(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
}
"""The image processors of the families with image tokens that have a place, where they do without torchvision."""


class Patches(tf.CLIPImageProcessor):
    """2 × 2 patches of a picture and how Molmo 2 pools them: one by one, one crop."""

    def __init__(self):
        super().__init__(size={"height": 28, "width": 28}, do_center_crop=False)

    def __call__(self, images, **more):
        pixels = torch.as_tensor(super().__call__(images, **more)["pixel_values"])
        patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 4, 5, 1).reshape(1, 4, -1)
        pooling = {"image_token_pooling": torch.arange(4)[:, None], "image_grids": torch.tensor([[2, 2, 0, 0]])}
        return tf.BatchFeature({"pixel_values": patches, **pooling, "image_num_crops": torch.tensor([1])})


STAND_INS = {
    "cohere2_vision": lambda: square(56, tf.GotOcr2ImageProcessor, crop_to_patches=True, max_patches=4),
    "llama4": lambda: square(56, tf.GotOcr2ImageProcessor, crop_to_patches=True, max_patches=4),
    "lfm2_vl": lambda: tf.Siglip2ImageProcessor(patch_size=14, max_num_patches=24),
    "molmo2": Patches,
}
"""Processors that feed a model as its own does, which needs torchvision: the model's part of the way is shown."""

PROCESSORS |= STAND_INS

PROCESSORS |= {name: PROCESSORS["llava"] for name in FAMILIES if name.startswith("llava/")}

WHOLE = ("idefics2", "blip-2/opt", "instructblip/llama", "instructblip/opt", "mplug_owl2", "kosmos-2")

NONE = ("mllama", "idefics", "git", "blip", "vision-encoder-decoder")


class Processor(tf.ProcessorMixin):
    """A processor of pictures alone."""

    def __init__(self, images):
        self.image_processor = images


def made(name, images):
    case = FAMILIES[name]()
    vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
    return type(vlm)(vlm.model, Processor(images), vlm.anatomy, vlm.name)


def given(vlm, picture):
    prepared = vlm.processor.image_processor(images=[picture], return_tensors="pt")
    return {name: value for name, value in prepared.items() if isinstance(value, torch.Tensor)}


def tokens_of(vlm, picture):
    """With the layers of the vision tower off, the tokens of a picture."""
    with torch.no_grad(), _without_layers(vlm.model, vlm.anatomy):
        return torch.cat(features_of(vlm.model, given(vlm, picture))).float()


@pytest.mark.parametrize("case", PROCESSORS)
def test_rectangles_of_a_family(case):
    vlm = made(case, PROCESSORS[case]())
    count = sum(tokens_per_image(vlm.model, given(vlm, Image.new("RGB", SIZE))))
    found = measured_geometry(vlm, SIZE, count)
    assert not found.whole
    rectangles = found.rectangles()
    assert sum(one is not None for one in rectangles) >= 2
    noise = np.random.default_rng(0).integers(60, 190, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    before = tokens_of(vlm, Image.fromarray(noise))
    for x, y in ((8, 8), (45, 30), (82, 51), (20, 50)):
        marked = noise.copy()
        marked[y - 1 : y + 1, x - 1 : x + 1] = 255
        change = (tokens_of(vlm, Image.fromarray(marked)) - before).abs().amax(1)
        touched = change > 0.02 * change.max().clamp_min(1e-6)
        for token, rectangle in enumerate(rectangles):
            near = rectangle is not None and inside(rectangle, x, y, 4)
            well_inside = rectangle is not None and inside(rectangle, x, y, -4)
            assert not (touched[token] and not near), (token, rectangle, (x, y))
            assert touched[token] or not well_inside, (token, rectangle, (x, y))


def inside(rectangle, x, y, margin):
    x0, y0, x1, y1 = rectangle
    return x0 - margin <= x <= x1 + margin and y0 - margin <= y <= y1 + margin


@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_next, tiny.tiny_llava_onevision])
@pytest.mark.parametrize("size", [(90, 60), (40, 120), (64, 64)])
def test_the_general_rule_gives_what_closed_forms_give(make, size):
    model, processor = make()
    vlm = mmn.wrap(model, processor)
    encoded = processor(images=Image.new("RGB", size), text="<image>\ndescribe", return_tensors="pt")
    count = int((encoded["input_ids"] == model.config.image_token_id).sum())
    closed = laid_out(processor, model.config, LAYOUTS[model.config.model_type].layout, size, count).rectangles()
    measured = measured_geometry(vlm, size, count).rectangles()
    for one, other in zip(closed, measured, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, abs=0.3)


def test_a_crop_by_hand():
    """90 × 60 is made 42 × 28 and its middle taken: x from 15 to 75, in 2 × 2 patches of 30 pixels."""
    found = measured_geometry(made("llava", crop(28)), SIZE, 4)
    expected = [(15, 0, 45, 30), (45, 0, 75, 30), (15, 30, 45, 60), (45, 30, 75, 60)]
    for rectangle, other in zip(found.rectangles(), expected, strict=True):
        assert rectangle == pytest.approx(other, abs=0.2)


def test_merged_patches_by_hand():
    """90 × 60 is made 84 × 56: 6 × 4 patches, merged two by two to 3 × 2 tokens of 30 × 30 pixels."""
    found = measured_geometry(made("qwen2_vl", qwen(14)), SIZE, 6)
    (grid,) = found.grids
    assert (grid.rows, grid.columns) == (2, 3)
    for index, rectangle in enumerate(found.rectangles()):
        row, column = divmod(index, 3)
        assert rectangle == pytest.approx((30 * column, 30 * row, 30 * column + 30, 30 * row + 30), abs=0.3)


@pytest.mark.parametrize("case", ["fuyu"])
@pytest.mark.parametrize(
    ("size", "columns", "rows", "cell"), [((90, 60), 3, 2, 30), ((100, 70), 4, 3, 30), ((240, 160), 4, 3, 60)]
)
def test_patches_of_fuyu_by_hand_and_in_the_order_of_its_processor(case, size, columns, rows, cell):
    """A picture of up to 120 × 120 pixels stays, one of 240 × 160 is halved; both are cut into patches of 30 pixels."""
    images = tf.FuyuImageProcessor(size={"height": 120, "width": 120}, patch_size={"height": 30, "width": 30})
    vlm = made(case, images)
    found = geometry(vlm, size, columns * rows)
    for index, rectangle in enumerate(found.rectangles()):
        row, column = divmod(index, columns)
        expected = (cell * column, cell * row, min(cell * (column + 1), size[0]), min(cell * (row + 1), size[1]))
        assert rectangle == pytest.approx(expected, abs=0.3)
    numbered = torch.arange(rows * columns).reshape(rows, columns).float()
    picture = numbered.repeat_interleave(30, 0).repeat_interleave(30, 1).expand(1, 3, -1, -1)
    assert images.patchify_image(image=picture.numpy()).reshape(rows * columns, -1).mean(-1).tolist() == list(
        range(rows * columns)
    )
    with pytest.raises(AnatomyError, match="image tokens, but there are"):
        geometry(vlm, size, columns * rows + 1)


@pytest.mark.parametrize("case", ["chameleon"])
def test_codes_of_chameleon_by_hand_and_in_the_order_of_its_grid(case):
    """90 × 60 is made 24 × 16 and its middle taken: x from 15 to 75, in 8 × 8 cells of 7.5 pixels."""
    vlm = made(case, crop(16))
    found = geometry(vlm, SIZE, 64)
    for index, rectangle in enumerate(found.rectangles()):
        row, column = divmod(index, 8)
        expected = (15 + 7.5 * column, 7.5 * row, 22.5 + 7.5 * column, 7.5 + 7.5 * row)
        assert rectangle == pytest.approx(expected, abs=0.3)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    vq = vlm.model.model.vqmodel
    with torch.no_grad():
        features = vq.quant_conv(vq.encoder(pixels))
        distances = (features[0].flatten(1).T[:, None] - vq.quantize.embedding.weight[None]).square().sum(-1)
        codes = vlm.model.model.get_image_tokens(pixels)
    # one code a cell, row by row: the nearest of the code book
    expected = vlm.model.model.vocabulary_mapping.convert_img2bpe(distances.argmin(1)[None])
    assert codes.flatten().tolist() == expected.flatten().tolist()


@pytest.mark.parametrize("case", WHOLE)
def test_queries_see_the_whole_picture_and_it_is_said(case):
    images = tf.BlipImageProcessor(size={"height": 28, "width": 28})
    if case == "idefics2":
        images = tf.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 28}, do_image_splitting=False)
    vlm = made(case, images)
    count = 4 if case == "kosmos-2" else sum(tokens_per_image(vlm.model, given(vlm, Image.new("RGB", SIZE))))
    found = geometry(vlm, SIZE, count)
    assert found.whole
    assert found.rectangles() == [(0, 0, 90, 60)] * count
    with pytest.raises(AnatomyError, match="made of the whole picture"):
        placed(vlm, SIZE, count)


@pytest.mark.parametrize("case", NONE)
def test_what_cannot_be_measured_is_refused_by_name(case):
    vlm = made(case, crop(28))
    with pytest.raises(AnatomyError, match=f"models of type '{vlm.model.config.model_type}'.*everything else works"):
        measured_geometry(vlm, SIZE, 4)


def test_tokens_that_are_not_as_many_are_refused():
    with pytest.raises(AnatomyError, match=r"makes 4 image tokens .* but there are 5"):
        measured_geometry(made("llava", crop(28)), SIZE, 5)


@pytest.mark.parametrize("make", [tiny.tiny_llava, tiny.tiny_llava_next])
def test_adjacent_pictures_of_one_prompt_are_told_apart(make):
    model, processor = make()
    pictures = [Image.new("RGB", (90, 60)), Image.new("RGB", (40, 120))]
    both = processor(images=pictures, text="<image><image>\ndescribe", return_tensors="pt")
    single = [processor(images=[one], text="<image>\ndescribe", return_tensors="pt") for one in pictures]
    counts = [int((one["input_ids"] == model.config.image_token_id).sum()) for one in single]
    assert tokens_per_image(model, both) == counts
    assert int((both["input_ids"] == model.config.image_token_id).sum()) == sum(counts)
