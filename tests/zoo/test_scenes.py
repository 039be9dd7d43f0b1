"""Scenes: what their truth says is what the picture shows."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from zoo.data import collate
from zoo.scenes import MIN_VISIBLE, Scene, SceneObject, color_of, coverage, describe, make_scene, plural
from zoo.sprites import read_concepts


def scenes(vocabulary, how_many, **options):
    rng = random.Random(5)
    return [make_scene(vocabulary, rng, **options) for _ in range(how_many)]


def test_a_seed_gives_the_same_scene_again(vocabulary):
    first, second = (make_scene(vocabulary, random.Random(3)) for _ in range(2))
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert first.names == second.names
    assert not np.array_equal(np.asarray(first.image), np.asarray(make_scene(vocabulary, random.Random(4)).image))


def test_masks_boxes_and_order_agree(vocabulary):
    for scene in scenes(vocabulary, 40):
        assert 1 <= len(scene.objects) <= 4
        assert np.stack([o.mask for o in scene.objects]).sum(0).max() == 1
        middles = [o.box[0] + o.box[2] for o in scene.objects]
        assert middles == sorted(middles)
        for o in scene.objects:
            x0, y0, x1, y1 = o.box
            rows, columns = np.nonzero(o.mask)
            assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y0, y1, x0, x1)
            assert o.style == "one"


def test_no_thing_is_mostly_hidden(vocabulary):
    for scene in scenes(vocabulary, 40, count=4):
        for o in scene.objects:
            x0, y0, x1, y1 = o.box
            # an ellipse fills pi/4 of its box when nothing hides it and it stands straight, a turned one less
            assert o.mask.sum() > 0.45 * MIN_VISIBLE * (x1 - x0) * (y1 - y0)


def test_the_mask_is_where_the_thing_is(vocabulary):
    for scene in scenes(vocabulary, 10, names=["frog"], strength=0.0):
        inside = np.asarray(scene.image)[scene.objects[0].mask].astype(int)
        greenish = (inside[:, 1] - inside[:, 0] > 100) & (inside[:, 1] - inside[:, 2] > 100)
        assert greenish.mean() > 0.95


def test_captions_name_count_and_order_what_is_there(vocabulary):
    image, empty = Image.new("RGB", (224, 224)), np.zeros((224, 224), dtype=bool)

    def caption(*names, colors=0.0, seed=0):
        scene = Scene(image, tuple(SceneObject(n, "one", (0, 0, 1, 1), empty) for n in names))
        return describe(scene, vocabulary.concepts, random.Random(seed), colors)

    assert caption("apple") == "an apple"
    assert caption("unicorn") == "a unicorn"
    assert caption("scissors") == "scissors"
    assert caption("bread") == "bread"
    assert caption("bus", "bus", "frog", seed=1).startswith("two buses")
    assert {caption("frog", "apple", "bus", seed=s) for s in range(40)} == {
        "a frog, an apple and a bus",
        "a frog and an apple next to a bus",
        "a frog and an apple with a bus",
    }


def test_colors_are_said_only_where_they_are_true(vocabulary):
    said = 0
    for seed in range(30):
        scene = make_scene(vocabulary, random.Random(seed), names=["apple", "frog"], strength=0.0)
        caption = describe(scene, vocabulary.concepts, random.Random(seed), colors=1.0)
        assert "green apple" not in caption
        assert "red frog" not in caption
        said += "a red apple" in caption
    assert said > 20


def test_two_colors_at_once_are_no_color():
    picture = Image.new("RGB", (10, 10), (220, 20, 20))
    picture.paste((20, 200, 30), (0, 0, 5, 10))
    everywhere = np.ones((10, 10), dtype=bool)
    assert color_of(picture, everywhere) is None
    left = everywhere.copy()
    left[:, 5:] = False
    assert color_of(picture, left) == "green"
    assert color_of(picture, ~left) == "red"


def test_coverage_is_the_share_of_each_cell():
    mask = np.zeros((224, 224), dtype=bool)
    mask[32:64, 64:80] = True
    expected = np.zeros((7, 7))
    expected[1, 2] = 0.5
    assert np.array_equal(coverage(mask), expected)


def test_batches_mark_cells_and_things(vocabulary):
    some = scenes(vocabulary, 8)
    batch = collate(some, ["x"] * 8, vocabulary.names)
    assert batch.pixels.shape == (8, 3, 224, 224)
    assert batch.pixels.dtype == torch.uint8
    for row, scene in enumerate(some):
        numbers = {vocabulary.names.index(name) for name in scene.names}
        assert set(batch.present[row].nonzero().flatten().tolist()) == numbers
        assert set(batch.cells[row].tolist()) - {-1} == numbers
        for cell in (batch.cells[row] >= 0).nonzero().flatten().tolist():
            name = vocabulary.names[batch.cells[row, cell]]
            y, x = divmod(cell, 7)
            there = [o.mask[32 * y : 32 * y + 32, 32 * x : 32 * x + 32].any() for o in scene.objects if o.name == name]
            assert any(there)


@pytest.mark.parametrize(
    ("name", "expected"), [("mouse", "mice"), ("knife", "knives"), ("fish", "fish"), ("palm tree", "palm trees")]
)
def test_plurals(name, expected):
    assert plural(name) == expected


def test_the_list_of_concepts_is_in_order():
    concepts = read_concepts()
    names = [c.name for c in concepts]
    slugs = [slug for c in concepts for slug in c.slugs]
    assert len(names) == len(set(names)) >= 300
    assert len(slugs) == len(set(slugs))
    assert all(name == name.lower().strip() for name in names)
