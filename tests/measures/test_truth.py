"""What pictures show, read from files made by hand."""

import json

import numpy as np
import pytest

from mmneurons.errors import OptionError, SourceError
from mmneurons.measures.truth import BUNDLED, Outline, matched, outline_mask, read_truth


def write(folder, content, name="truth.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_our_own_list(tmp_path):
    path = write(
        tmp_path,
        [
            {"file": "a.jpg", "objects": ["dog", "ball"], "captions": ["A dog."]},
            {
                "file": "sub/b.jpg",
                "size": [3, 2],
                "objects": [{"name": "cat", "box": [0, 0, 2, 1], "runs": [1, 2, 3]}],
            },
        ],
    )
    truths = read_truth(path)
    assert truths["a.jpg"].objects == ("dog", "ball")
    assert truths["a.jpg"].captions == ("A dog.",)
    assert truths["a.jpg"].masks is None
    assert truths["b.jpg"].boxes == ((0.0, 0.0, 2.0, 1.0),)
    (mask,) = truths["b.jpg"].masks
    assert mask.tolist() == [[False, True, True], [False, False, False]]


def test_the_bundled_pictures():
    from mmneurons.demo import pictures

    truths = read_truth(BUNDLED)
    for picture in pictures():
        own = truths[picture.path.name]
        assert own.objects == picture.objects
        if picture.masks is None:
            assert own.masks is None
        else:
            assert all(np.array_equal(a, b) for a, b in zip(own.masks, picture.masks, strict=True))


COCO = {
    "images": [{"id": 7, "file_name": "x.jpg", "width": 4, "height": 3}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 0, 2, 3], "segmentation": {"counts": [3, 6, 3]}},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
    ],
}


def test_coco_instances_and_captions(tmp_path):
    captions = {
        "images": COCO["images"],
        "annotations": [{"id": 5, "image_id": 7, "caption": "Two pets."}],
    }
    truths = read_truth([write(tmp_path, COCO), write(tmp_path, captions, "captions.json")])
    own = truths["x.jpg"]
    assert own.objects == ("dog", "cat")
    assert own.captions == ("Two pets.",)
    assert own.boxes == ((1, 0, 3, 3), (0, 0, 2, 2))
    # COCO counts down the columns: three pixels of column 0 outside, six inside, three outside
    assert own.masks[0].tolist() == [[False, True, True, False]] * 3
    # a square from 0 to 1 is one pixel
    assert own.masks[1].sum() == 1
    assert own.masks[1][0, 0]
    swapped = read_truth([tmp_path / "captions.json", tmp_path / "truth.json"])
    assert swapped["x.jpg"] == own


def packed(runs):
    """COCO's packing, after its published description: the difference to the run two before, five bits a sign."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = not ((value == 0 and not bits & 16) or (value == -1 and bits & 16))
            text += chr(48 + bits + (32 if more else 0))
    return text


@pytest.mark.parametrize("runs", [[0, 12], [3, 6, 3], [100, 2000, 31, 5, 17, 40, 3, 900], [5, 1, 5, 1, 5, 1, 6]])
def test_packed_runs(tmp_path, runs):
    whole = sum(runs)
    content = json.loads(json.dumps(COCO))
    content["images"][0] |= {"width": 1, "height": whole}
    content["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": {"counts": packed(runs)}}
    ]
    (mask,) = read_truth(write(tmp_path, content))["x.jpg"].masks
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert np.array_equal(mask[:, 0], expected)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(SourceError, match="does not fit"):
        outline_mask(Outline("runs", ((1, 2),)), (2, 2))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("not json", "not JSON"),
        ({"other": 1}, "no truth that is known"),
        ([{"objects": ["dog"]}], "not whole"),
        ([{"file": "a", "objects": "dog"}], "a list, not 'dog'"),
        ([{"file": "a", "objects": ["dog"], "captions": "A dog."}], "list of texts"),
        ([{"file": "a", "objects": ["dog"], "captions": [3]}], "list of texts"),
        ([{"file": "x/a.jpg", "objects": ["dog"]}, {"file": "y/a.jpg", "objects": ["cat"]}], r"twice what a\.jpg"),
        ([{"file": "a", "objects": [{"name": "x", "runs": [1, 2, 1]}]}], "picture of 0 × 0"),
        ([{"file": "a", "size": [2, 2], "objects": [{"name": "x", "runs": [1, 2]}]}], "3 pixels"),
        ([{"file": "a", "objects": [{"box": [0, 0, 1, 1]}]}], "not whole"),
        ([{"file": "a", "objects": [{"name": "x", "box": [0, 0, 1]}]}], r"x0, y0, x1, y1.* a has \[0, 0, 1\]"),
        ([{"file": "a", "objects": [{"name": "x", "box": [5, 0, 1, 9]}]}], r"x0 < x1.* a has \[5, 0, 1, 9\]"),
        ([{"file": "a", "objects": [{"name": "x", "box": [0, 9, 1, 9]}]}], "y0 < y1"),
        ([{"file": "a", "objects": [{"name": "x", "box": [0, 0, float("inf"), 9]}]}], "x0 < x1"),
        ([{"file": "a", "objects": [{"name": "x", "box": "0 0 1 1"}]}], "x0, y0, x1, y1"),
        ([{"file": "a", "objects": [{"name": "x", "box": [0, 0, "1", "one"]}]}], "not whole"),
        ({**COCO, "annotations": [COCO["annotations"][0] | {"bbox": [4, 0, -2, 3]}]}, r"width, height.* x\.jpg"),
        ({**COCO, "categories": []}, "category 1"),
        ({**COCO, "images": []}, "not listed"),
    ],
)
def test_files_that_are_not_whole(tmp_path, content, match):
    with pytest.raises(SourceError, match=match):
        read_truth(write(tmp_path, content))


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        ([[0, 0, 2, 0, 2]], "three corners"),
        ([[0, 0, 2, 2]], "three corners"),
        ({"counts": "o"}, "not whole"),
        ({"counts": [0, 12], "size": [4, 3]}, "3 × 4"),
        ({"counts": [0, 11], "size": [3, 4]}, "11 pixels"),
        ({"counts": [-1, 13], "size": [3, 4]}, "12 pixels"),
    ],
)
def test_outlines_of_coco_that_are_none(tmp_path, segmentation, match):
    content = json.loads(json.dumps(COCO))
    content["annotations"] = [content["annotations"][0] | {"segmentation": segmentation}]
    with pytest.raises(SourceError, match=match):
        read_truth(write(tmp_path, content))


def test_a_crowd_is_a_thing(tmp_path):
    content = json.loads(json.dumps(COCO))
    content["annotations"] = [content["annotations"][0] | {"iscrowd": 1, "segmentation": {"counts": [0, 3, 9]}}]
    own = read_truth(write(tmp_path, content))["x.jpg"]
    assert own.objects == ("dog",)
    assert own.masks[0].tolist() == [[True, False, False, False]] * 3


def inside(x, y, corners):
    """By the angle that the corners turn around a point, which is 0 outside of a polygon that does not cross itself."""
    at = [complex(a - x, b - y) for a, b in zip(corners[::2], corners[1::2], strict=True)]
    turned = sum(np.angle(after / before) for before, after in zip(at, at[1:] + at[:1], strict=True))
    return abs(turned) > np.pi


@pytest.mark.parametrize("seed", range(4))
def test_polygons_hold_the_pixels_whose_centers_they_hold(seed):
    draw = np.random.default_rng(seed)
    angles, lengths = np.sort(draw.uniform(0, 2 * np.pi, 9)), draw.uniform(2, 11, 9)
    star = np.stack([9 + np.cos(angles) * lengths, 7 + np.sin(angles) * lengths], 1).ravel().tolist()
    mask = outline_mask(Outline("polygons", (tuple(star),)), (17, 13))
    expected = [[inside(x + 0.5, y + 0.5, star) for x in range(17)] for y in range(13)]
    assert 10 < mask.sum() < 17 * 13
    assert mask.tolist() == expected


def test_polygons_of_one_thing_are_joined():
    squares = ((0, 0, 2, 0, 2, 2, 0, 2), (1, 1, 3, 1, 3, 3, 1, 3))
    assert outline_mask(Outline("polygons", squares), (4, 3)).tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, False],
    ]


def test_files_that_contradict_one_another(tmp_path):
    one = write(tmp_path, [{"file": "a.jpg", "size": [2, 2], "objects": ["dog"], "captions": ["A dog."]}], "1.json")
    other = write(tmp_path, [{"file": "a.jpg", "objects": ["cat"]}], "2.json")
    larger = write(tmp_path, [{"file": "a.jpg", "size": [3, 2], "objects": ["dog"]}], "3.json")
    with pytest.raises(SourceError, match="do not agree"):
        read_truth([one, other])
    with pytest.raises(SourceError, match="two sizes"):
        read_truth([one, larger])
    assert read_truth([one, one]) == read_truth(one)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        read_truth(tmp_path / "nothing.json")


def test_the_truth_of_other_pictures(tmp_path):
    truths = read_truth(write(tmp_path, [{"file": "a.jpg", "objects": ["dog"]}]))
    assert set(matched(truths, ["elsewhere/a.jpg", "b.jpg"])) == {"a.jpg"}
    with pytest.raises(OptionError, match=r"other pictures: it names a\.jpg"):
        matched(truths, ["b.jpg", "c.jpg"])
    with pytest.raises(OptionError, match=r"several: x/a\.jpg, y/a\.jpg"):
        matched(truths, ["x/a.jpg", "y/a.jpg"])
    # which names others share does not matter
    assert set(matched(truths, ["a.jpg", "a.jpg", "x/b.jpg", "y/b.jpg"])) == {"a.jpg"}
