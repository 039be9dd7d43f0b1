"""The bundled pictures against their truth."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmneurons.demo import pictures

ALL = pictures()
SCENES = [p for p in ALL if p.kind == "scene"]


def test_there_are_as_many_as_promised():
    assert len([p for p in SCENES if not p.held_out]) >= 20
    assert len([p for p in SCENES if p.style == "twemoji"]) >= 12
    assert len([p for p in ALL if p.kind == "photo"]) >= 4
    assert "dog" in ALL[0].objects


@pytest.mark.parametrize("picture", ALL, ids=lambda p: p.path.stem)
def test_truth_fits_the_file(picture):
    with Image.open(picture.path) as image:
        assert image.size == picture.size
    assert len(picture.objects) == len(picture.boxes) > 0
    assert picture.credit
    for x0, y0, x1, y1 in picture.boxes:
        assert 0 <= x0 < x1 <= picture.size[0]
        assert 0 <= y0 < y1 <= picture.size[1]


@pytest.mark.parametrize("picture", SCENES, ids=lambda p: p.path.stem)
def test_masks_fill_their_boxes_and_do_not_overlap(picture):
    masks = picture.masks
    assert len(masks) == len(picture.objects)
    assert np.stack(masks).sum(0).max() == 1
    for mask, (x0, y0, x1, y1) in zip(masks, picture.boxes, strict=True):
        assert mask.shape == picture.size[::-1]
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


@pytest.mark.parametrize("picture", SCENES, ids=lambda p: p.path.stem)
def test_things_stand_from_left_to_right(picture):
    middles = [x0 + x1 for x0, _, x1, _ in picture.boxes]
    assert middles == sorted(middles)


def test_share_alike_drawings_are_not_bundled():
    assert not {p.style for p in SCENES} & {"openmoji", "emojione-v1"}


def test_listing_them_needs_no_torch():
    code = "import sys, mmneurons.demo as d; d.pictures(); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
