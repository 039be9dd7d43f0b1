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
    assert own.masks[1][:2, :2].all()
    assert not own.masks[1][2].any()
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
        ([{"file": "a", "objects": [{"box": [0, 0, 1, 1]}]}], "not whole"),
        ([{"file": "a", "objects": [{"name": "x", "box": [0, 0, 1]}]}], "not whole"),
        ({**COCO, "categories": []}, "category 1"),
        ({**COCO, "images": []}, "not listed"),
    ],
)
def test_files_that_are_not_whole(tmp_path, content, match):
    with pytest.raises(SourceError, match=match):
        read_truth(write(tmp_path, content))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        read_truth(tmp_path / "nothing.json")


def test_the_truth_of_other_pictures(tmp_path):
    truths = read_truth(write(tmp_path, [{"file": "a.jpg", "objects": ["dog"]}]))
    assert set(matched(truths, ["elsewhere/a.jpg", "b.jpg"])) == {"a.jpg"}
    with pytest.raises(OptionError, match=r"other pictures: it names a\.jpg"):
        matched(truths, ["b.jpg", "c.jpg"])
