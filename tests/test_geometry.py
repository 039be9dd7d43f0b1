"""Tokens' rectangles, against measurements that share no code with them.

Attention in the vision tower is switched off by hooks, so that a token depends on its own patch alone. Then a change of
the original picture must reach exactly the tokens whose rectangles it touches.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    PixtralImageProcessor,
    PixtralVisionConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from helpers.tiny import IMAGE_SIZE, tiny_llava, tiny_llava_next, tiny_llava_onevision
from mmneurons.errors import AnatomyError
from mmneurons.vlm import geometry as module
from mmneurons.vlm.families.llava_next import layout as layout_next
from mmneurons.vlm.families.llava_onevision import layout as layout_onevision
from mmneurons.vlm.geometry import Geometry, ImageGrid, Processed
from mmneurons.vlm.pixel_map import process_chart

SIDE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
ONE_TILE = np.zeros((1, 1), dtype=int)


def geometry(processor, config, size, tokens) -> Geometry:
    """That of a model with this processor and configuration."""
    return module.geometry(SimpleNamespace(processor=processor, model=SimpleNamespace(config=config)), size, tokens)


def padded_llava():
    """A tiny LLaVA whose picture is padded to a square, not cropped."""
    model, processor = tiny_llava()
    processor.image_processor = LlavaImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIDE, do_pad=True)
    return model, processor


def llava_with_class_token():
    model, processor = tiny_llava()
    model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    return model, processor


MODELS = {
    "crop": tiny_llava,
    "pad": padded_llava,
    "class": llava_with_class_token,
    "next": tiny_llava_next,
    "next60": lambda: tiny_llava_next(image_size=60),
    "onevision": tiny_llava_onevision,
    "onevision60": lambda: tiny_llava_onevision(image_size=60),
}
"""60 pixels hold 4 patches of 14 and 4 pixels that belong to none, as 384 pixels of SigLIP hold 27 and 6."""


@pytest.fixture(scope="module")
def tiny():
    made = {}

    def get(name):
        if name not in made:
            made[name] = MODELS[name]()
        return made[name]

    return get


def count_tokens(model, processor, size):
    encoded = processor(images=Image.new("RGB", size), text="<image>\ndescribe", return_tensors="pt")
    return int((encoded["input_ids"] == model.config.image_token_id).sum())


def image_features(model, inputs):
    """The features that take the image tokens' places, one row each, with attention between patches switched off."""

    def silence(module, arguments, output):
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    tower = model.model.vision_tower
    hooks = [m.register_forward_hook(silence) for name, m in tower.named_modules() if name.endswith("self_attn")]
    assert hooks
    names = ("pixel_values", "image_sizes")
    try:
        output = model.model.get_image_features(**{name: inputs[name] for name in names if name in inputs})
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(list(output.pooler_output)).reshape(-1, model.config.text_config.hidden_size)


def changed_tokens(model, processor, before, after):
    def features(picture):
        with torch.no_grad():
            return image_features(model, processor.image_processor(images=[picture], return_tensors="pt"))

    return (features(before) - features(after)).abs().amax(dim=1).numpy() > 1e-4


def overlap(rectangle, box):
    return min(rectangle[2], box[2]) - max(rectangle[0], box[0]), min(rectangle[3], box[3]) - max(rectangle[1], box[1])


# Bicubic resampling carries a change two pixels far, counted in the larger of the two pixel sizes, in both steps of
# LLaVA-NeXT's resizing; interpolated tokens mix neighbors.
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(90, 60), (61, 95), (56, 56), (240, 31), (33, 200), (150, 149)])
def test_a_white_square_changes_the_tokens_whose_rectangles_it_touches(tiny, name, size):
    model, processor = tiny(name)
    tokens = count_tokens(model, processor, size)
    found = geometry(processor, model.config, size, tokens)
    rectangles = found.rectangles()
    assert len(rectangles) == tokens
    scale = max(size) / IMAGE_SIZE
    leak = 2.5 * max(1.0, scale)
    rng = np.random.default_rng(len(name) + size[0])
    base = rng.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    side = max(4, round(4 * scale))
    for _ in range(12):
        x, y = rng.integers(0, size[0] - min(side, size[0] - 1)), rng.integers(0, size[1] - min(side, size[1] - 1))
        box = (x, y, min(x + side, size[0]), min(y + side, size[1]))
        after = base.copy()
        after[y : box[3], x : box[2]] = 255
        changed = changed_tokens(model, processor, Image.fromarray(base), Image.fromarray(after))
        assert len(changed) == tokens
        for token, rectangle in enumerate(rectangles):
            if rectangle is None:
                near_border = min(box[0], box[1], size[0] - box[2], size[1] - box[3]) < leak
                # A padding token next to the picture's border can catch the filter's tail.
                assert not changed[token] or near_border
                continue
            wide, high = overlap(rectangle, box)
            if min(wide, high) > 0.5 * max(1.0, scale):
                assert changed[token], (token, rectangle, box)
            if min(wide, high) < -leak:
                assert not changed[token], (token, rectangle, box)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(90, 60), (40, 170), (56, 56)])
def test_every_token_that_has_no_rectangle_sees_nothing_of_the_picture(tiny, name, size):
    model, processor = tiny(name)
    tokens = count_tokens(model, processor, size)
    rectangles = geometry(processor, model.config, size, tokens).rectangles()
    # Left of, right of, above and below the middle by turns, so that every visible patch changes.
    black, white = Image.new("RGB", size, "black"), Image.new("RGB", size, "white")
    changed = changed_tokens(model, processor, black, white)
    assert [rectangle is not None for rectangle in rectangles] == changed.tolist()


@pytest.mark.parametrize("name", ["crop", "class", "next", "next60", "onevision", "onevision60"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (30, 170), (100, 100)])
def test_the_layout_is_what_gradients_say_on_processed_pixels(tiny, name, size):
    model, processor = tiny(name)
    inputs = processor.image_processor(images=[Image.new("RGB", size, "gray")], return_tensors="pt")
    pixels = inputs["pixel_values"].clone().requires_grad_(True)
    features = image_features(model, {**inputs, "pixel_values": pixels})
    shape = pixels.shape if pixels.dim() == 5 else (1, *pixels.shape)
    found = []
    for feature in features:
        gradient = torch.zeros(())
        if feature.requires_grad:
            gradient = torch.autograd.grad(feature.sum(), pixels, retain_graph=True)[0].reshape(shape).abs().sum((0, 2))
        if not gradient.any():
            found.append(None)
            continue
        (tile,) = gradient.sum((1, 2)).nonzero()[:, 0].tolist()
        rows, columns = (gradient[tile].sum(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
        found.append((tile, columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))

    processed = Processed(model.config, processor, size, shape[1], shape[4], shape[3], len(features))
    from mmneurons.vlm.families import FAMILIES

    plan = FAMILIES[model.config.model_type].layout(processed)
    expected = [None] * plan.tokens
    for grid in plan.grids:
        for row, column in np.ndindex(grid.positions.shape):
            (x0, x1), (y0, y1) = grid.x_spans[column], grid.y_spans[row]
            tile_row, tile_column = int(y0 // shape[3]), int(x0 // shape[4])
            left, top = tile_column * shape[4], tile_row * shape[3]
            expected[grid.positions[row, column]] = (
                int(grid.tiles[tile_row, tile_column]),
                *(round(edge) for edge in (x0 - left, y0 - top, x1 - left, y1 - top)),
            )
    if name == "class":
        # The class token has a feature of its own that no pixel reaches with attention switched off.
        assert found[0] is None
        assert len(found) == 17
    assert found == expected


@pytest.mark.parametrize("size", [(100, 100), (150, 40), (60, 170)])
@pytest.mark.parametrize("aspect", ["anyres_max_1", "anyres_max_2"])
def test_an_interpolated_token_stands_for_the_patches_around_its_cell(size, aspect):
    model, processor = tiny_llava_onevision(aspect=aspect)
    inputs = processor.image_processor(images=[Image.new("RGB", size, "gray")], return_tensors="pt")
    pixels = inputs["pixel_values"].clone().requires_grad_(True)
    features = image_features(model, {**inputs, "pixel_values": pixels})
    processed = Processed(model.config, processor, size, pixels.shape[1], IMAGE_SIZE, IMAGE_SIZE, len(features))
    plan = layout_onevision(processed)
    assert plan.tokens == len(features) == count_tokens(model, processor, size)
    plain = layout_next(processed)
    assert plan.tokens < plain.tokens, "the limit did nothing, so the test would show nothing"
    grid = plan.grids[1]
    rows, columns = grid.tiles.shape
    for (row, column), position in np.ndenumerate(grid.positions):
        gradient = torch.autograd.grad(features[position].sum(), pixels, retain_graph=True)[0][0, 1:].abs().sum(1)
        mosaic = gradient.reshape(rows, columns, IMAGE_SIZE, IMAGE_SIZE).permute(0, 2, 1, 3).flatten(0, 1).flatten(1, 2)
        for spans, index, axis in ((grid.x_spans, column, 0), (grid.y_spans, row, 1)):
            weight = mosaic.sum(axis).double().numpy()
            seen = np.nonzero(weight)[0]
            assert seen[0] > spans[index, 0] - 14
            assert seen[-1] + 1 < spans[index, 1] + 14
            assert seen[0] <= spans[index].mean() <= seen[-1] + 1


def clip_truth(size, side):
    """Resize the shorter edge to ``side``, then crop the middle: scale and offset along x and y."""
    short = min(size)
    resized = [side if length == short else int(side * length / short) for length in size]
    return [(length / to, (to - side) // 2 * length / to) for length, to in zip(size, resized)]


def pad_truth(size, side):
    """Pad to a square, then resize to ``side``."""
    square = max(size)
    return [(square / side, -((square - length) // 2)) for length in size]


SIZES = [(16, 16), (90, 60), (31, 77), (333, 500), (640, 480), (1001, 751), (2400, 1600), (1500, 100), (20, 400)]


def clip_processor(kind, side, resample=Image.Resampling.BICUBIC):
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": resample}
    return CLIPImageProcessor(**settings) if kind == "crop" else LlavaImageProcessor(do_pad=True, **settings)


def worst_error(axis, scale, offset, side, length):
    """How far an axis is off at the ends of what both the picture and the processed picture hold."""
    ends = np.clip([-offset / scale, (length - offset) / scale], 0, side)
    return np.abs(axis.original(ends) - (scale * ends + offset)).max()


@pytest.mark.parametrize("side", [56, 224, 336])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_the_measured_map_is_that_of_the_known_processors(kind, size, side):
    truth = (clip_truth if kind == "crop" else pad_truth)(size, side)
    measured = process_chart(clip_processor(kind, side), size).pixel_map(ONE_TILE)
    for axis, (scale, offset), length in zip((measured.x, measured.y), truth, size):
        error = worst_error(axis, scale, offset, side, length)
        few = kind == "pad" and min(size) * side / max(size) < 10
        assert error < max(0.15, (0.2 if few else 0.06) * scale), (error, scale)


SMOOTH = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.HAMMING]
EXACT = [(224, 224), (448, 448), (672, 672), (896, 896), (112, 112), (336, 336), (448, 224), (300, 448), (448, 600)]
EXACT += [(640, 448), (672, 448), (112, 200), (150, 112)]


# Where a picture of whole levels is halved, every second level is an exact half, and all of them are rounded one way.
@pytest.mark.parametrize("resample", SMOOTH)
@pytest.mark.parametrize("size", EXACT)
@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_exact_factors_are_measured_as_well_as_others(kind, size, resample):
    truth = (clip_truth if kind == "crop" else pad_truth)(size, 224)
    measured = process_chart(clip_processor(kind, 224, resample), size).pixel_map(ONE_TILE)
    for axis, (scale, offset), length in zip((measured.x, measured.y), truth, size):
        assert worst_error(axis, scale, offset, 224, length) < 0.05


@pytest.mark.parametrize("resample", SMOOTH)
@pytest.mark.parametrize("size", [(447, 449), (449, 336), (448, 601), (671, 673), (672, 1000)])
def test_almost_exact_factors_are_measured_to_an_eighth_of_a_processed_pixel(size, resample):
    measured = process_chart(clip_processor("crop", 224, resample), size).pixel_map(ONE_TILE)
    for axis, (scale, offset), length in zip((measured.x, measured.y), clip_truth(size, 224), size):
        assert worst_error(axis, scale, offset, 224, length) < scale / 8


@pytest.mark.parametrize("resample", [*SMOOTH, Image.Resampling.NEAREST, Image.Resampling.BOX])
@pytest.mark.parametrize("size", [(448, 448), (300, 300), (896, 896), (500, 333)])
def test_the_map_says_which_pixels_are_read(size, resample):
    # Halved with the nearest neighbor, pixels 1, 3, 5 … are read, half a pixel to the right of the closed form. What
    # is read is where a ramp of numbers, not of levels, ends up.
    measured = process_chart(clip_processor("crop", 224, resample), size).pixel_map(ONE_TILE)
    for axis, (scale, offset), length in zip((measured.x, measured.y), clip_truth(size, 224), size):
        resized, cut = round(length / scale), round(offset / scale)
        ramp = Image.fromarray(np.tile(np.arange(length, dtype=np.float32) + 0.5, (2, 1)))
        read = np.asarray(ramp.resize((resized, 2), resample))[0, cut : cut + 224]
        assert axis.original(np.arange(20, 204) + 0.5) == pytest.approx(read[20:204], abs=0.5 * scale + 0.05)
        off = axis.original(np.arange(20, 204) + 0.5) - read[20:204]
        assert abs(off.mean()) < 0.05


@pytest.mark.parametrize("resample", SMOOTH)
@pytest.mark.parametrize("size", [(448, 448), (300, 300), (447, 447), (640, 640), (90, 90), (16, 16), (3, 3)])
def test_a_picture_shown_whole_is_shown_to_its_very_border(tiny, size, resample):
    model, processor = tiny_llava()
    processor.image_processor = clip_processor("crop", IMAGE_SIZE, resample)
    found = geometry(processor, model.config, size, 16)
    assert found.grids[0].rectangle == (0.0, 0.0, *size)


@pytest.mark.parametrize("size", [(448, 450), (448, 452), (224, 225), (224, 226), (111, 112), (20, 21)])
def test_an_edge_that_is_cut_off_is_not_taken_for_the_border(size):
    # As little as one pixel of the resized picture, which may be a fraction of a pixel of the picture.
    scale, start = clip_truth(size, 224)[1]
    end = start + 224 * scale
    assert end < size[1]
    measured = process_chart(clip_processor("crop", 224), size).pixel_map(ONE_TILE)
    assert measured.y.offset == pytest.approx(start, abs=0.05 * scale)
    assert measured.y.original(np.array([224.0])) == pytest.approx(end, abs=0.05 * scale)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3), (5, 4), (9, 15)])
@pytest.mark.parametrize("kind", ["crop", "next", "onevision"])
def test_a_picture_of_a_few_pixels(tiny, kind, size):
    model, processor = tiny(kind)
    tokens = count_tokens(model, processor, size)
    found = geometry(processor, model.config, size, tokens)
    first = found.grids[0]
    if kind == "crop":
        (x_scale, x0), (y_scale, y0) = clip_truth(size, IMAGE_SIZE)
        expected = (x0, y0, x0 + IMAGE_SIZE * x_scale, y0 + IMAGE_SIZE * y_scale)
    else:
        expected = (0, 0, *size)
    assert first.rectangle == pytest.approx(expected, abs=0.05)


def test_a_tall_picture_in_llava_next_by_hand(tiny):
    # 40 × 120 in one column of three tiles of 56: enlarged 1.4 times to 56 × 168, nothing is padding.
    model, processor = tiny("next")
    found = geometry(processor, model.config, (40, 120), 16 + 12 * 5)
    whole, tiles = found.grids
    assert (whole.rows, whole.columns, tiles.rows, tiles.columns) == (4, 4, 12, 4)
    assert whole.rectangle == pytest.approx((0, 0, 40, 120), abs=0.05)
    assert tiles.rectangle == pytest.approx((0, 0, 40, 120), abs=0.05)
    rectangles = found.rectangles()
    assert rectangles[0] == pytest.approx((0, 0, 10, 30), abs=0.05)
    assert rectangles[16] == pytest.approx((0, 0, 10, 10), abs=0.05)
    assert rectangles[16 + 3] == pytest.approx((30, 0, 40, 10), abs=0.05)
    assert rectangles[16 + 4] is None
    assert rectangles[-2] == pytest.approx((30, 110, 40, 120), abs=0.05)
    assert rectangles[-1] is None


class RealNext:
    """What LLaVA-NeXT and LLaVA-OneVision have at their real sizes, without weights."""

    next_config = LlavaNextConfig(vision_config=CLIPVisionConfig(image_size=336, patch_size=14))
    next_images = LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    onevision_config = LlavaOnevisionConfig(vision_config=SiglipVisionConfig(image_size=384, patch_size=14))
    onevision_images = LlavaOnevisionImageProcessor()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 200), (333, 2000), (500, 500), (37, 41)])
@pytest.mark.parametrize("family", ["next", "onevision"])
def test_real_sizes_have_as_many_tokens_as_the_processor_writes(tiny, family, size):
    _, tiny_processor = tiny(family)
    config = getattr(RealNext, f"{family}_config")
    processor = type(tiny_processor)(
        image_processor=getattr(RealNext, f"{family}_images"),
        tokenizer=tiny_processor.tokenizer,
        vision_feature_select_strategy="default" if family == "next" else "full",
        **({"patch_size": 14, "num_additional_image_tokens": 1} if family == "next" else {"num_image_tokens": 729}),
    )
    encoded = processor(images=Image.new("RGB", size), text="<image>", return_tensors="pt")
    tokens = int((encoded["input_ids"] == tiny_processor.tokenizer.convert_tokens_to_ids("<image>")).sum())
    found = geometry(processor, config, size, tokens)
    side = 24 if family == "next" else 27
    assert (found.grids[0].rows, found.grids[0].columns) == (side, side)
    # 27 patches of 14 pixels leave 6 of 384 unseen on the right and below.
    seen = 1.0 if family == "next" else 378 / 384
    assert found.grids[0].rectangle == pytest.approx((0, 0, size[0] * seen, size[1] * seen), abs=0.1 * max(size) / 384)
    rectangles = [rectangle for rectangle in found.rectangles() if rectangle is not None]
    assert min(r[0] for r in rectangles) < 0.1
    assert max(r[2] for r in rectangles) > size[0] * 0.98
    assert max(r[3] for r in rectangles) > size[1] * 0.98
    newlines = found.grids[1].rows
    assert sum(r is None for r in found.rectangles()) >= newlines


def test_vip_llava_lays_out_its_tokens_as_llava(tiny):
    model, processor = tiny("crop")
    config = VipLlavaConfig(vision_config=model.config.vision_config, text_config=model.config.text_config)
    ours = geometry(processor, config, (90, 60), 16).rectangles()
    assert ours == geometry(processor, model.config, (90, 60), 16).rectangles()
    assert ours[0] == pytest.approx((15, 0, 30, 15), abs=0.05)


def test_a_vision_tower_of_any_shape_makes_a_grid_that_is_not_square():
    config = LlavaConfig(vision_config=PixtralVisionConfig(patch_size=14, image_size=112), text_config=None)
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14})

    class Pixtral:
        image_processor = images

    found = geometry(Pixtral(), config, (200, 100), 32)
    assert (found.grids[0].rows, found.grids[0].columns) == (4, 8)
    assert found.grids[0].rectangle == pytest.approx((0, 0, 200, 100), abs=0.2)


@pytest.mark.parametrize("name", ["crop", "pad", "next", "onevision"])
@pytest.mark.parametrize("off", [-1, 1, 5])
def test_a_wrong_number_of_tokens_is_refused(tiny, name, off):
    model, processor = tiny(name)
    tokens = count_tokens(model, processor, (90, 60))
    with pytest.raises(AnatomyError, match="image tokens"):
        geometry(processor, model.config, (90, 60), tokens + off)


def test_tiles_that_are_not_the_models_are_refused(tiny):
    model, _ = tiny("next")
    _, processor = tiny_llava_next()
    processor.image_processor.image_grid_pinpoints = [[168, 56]]
    with pytest.raises(AnatomyError, match="tiles"):
        geometry(processor, model.config, (90, 60), 70)


class Distorting(CLIPImageProcessor):
    """An image processor that does something else to the pixels at the end."""

    def __call__(self, images, **options):
        processed = super().__call__(images, **options)
        processed["pixel_values"] = self.change(processed["pixel_values"])
        return processed


ROOT = torch.tensor([round(IMAGE_SIZE * math.sqrt(k / IMAGE_SIZE)) for k in range(IMAGE_SIZE)])
DISTORTIONS = {
    "mirrored": (lambda pixels: pixels.flip(-1), "upright"),
    "turned": (lambda pixels: pixels.transpose(-1, -2), "upright"),
    "upside down": (lambda pixels: pixels.flip(-2), "upright"),
    "stretched unevenly": (lambda pixels: pixels[..., ROOT.clamp(0, IMAGE_SIZE - 1)], "upright"),
    "halves exchanged": (lambda pixels: pixels.roll(IMAGE_SIZE // 2, dims=-1), "upright"),
    "scaled all the same": (lambda pixels: pixels / 255, "scales its pixels"),
    "flattened": (lambda pixels: pixels.flatten(1), "shape"),
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_processor_that_is_not_upright_and_even_is_refused(name):
    processor = Distorting(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIDE)
    processor.change, message = DISTORTIONS[name]
    with pytest.raises(AnatomyError, match=message):
        process_chart(processor, (90, 60)).pixel_map(ONE_TILE)


@pytest.mark.parametrize("mean", [(0, 0, 0), (1, 1, 1), (0, 0, 1), (0.5, 0.5, 0.5), (1, 0.5, 1), (0.5, 0.5, 0.8)])
def test_padding_of_any_color_is_told_from_the_picture(mean):
    processor = LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SIDE, do_pad=True, image_mean=list(mean))
    measured = process_chart(processor, (120, 80)).pixel_map(ONE_TILE)
    assert (measured.y.scale, measured.y.offset) == pytest.approx((120 / 56, -20), abs=0.05)


def test_a_changed_processor_meets_no_stale_geometry():
    model, processor = tiny_llava()
    assert geometry(processor, model.config, (90, 60), 16).grids[0].rectangle[0] == pytest.approx(15, abs=0.05)
    processor.image_processor.size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    assert geometry(processor, model.config, (90, 60), 16).grids[0].rectangle == pytest.approx((0, 0, 90, 60), abs=0.1)


def test_rectangles_are_cut_off_at_the_picture_and_padding_has_none():
    grid = ImageGrid(2, 3, (-10.0, -5.0, 20.0, 15.0), np.array([[1, 2, 3], [5, 6, 7]]))
    rectangles = Geometry((15, 10), 9, (grid,)).rectangles()
    assert rectangles == [
        None,
        None,
        (0.0, 0.0, 10.0, 5.0),
        (10.0, 0.0, 15.0, 5.0),
        None,
        None,
        (0.0, 5.0, 10.0, 10.0),
        (10.0, 5.0, 15.0, 10.0),
        None,
    ]
