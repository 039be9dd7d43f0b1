"""The two that are compared do the same work."""

import numpy as np
import pytest
from PIL import Image

import mmneurons as mmn
from bench import overhead
from helpers.tiny import tiny_llava


@pytest.fixture(scope="module")
def vlm():
    return mmn.wrap(*tiny_llava())


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((60, 80), (90, 70), (56, 56))
    ]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_plain_and_find_say_the_same(vlm, pictures, batch_size):
    said = [found.caption for found in overhead.find(vlm, pictures, batch_size)]
    assert overhead.plain(vlm, pictures, batch_size) == said
    assert len(set(said)) > 1


def test_runs_are_paired(vlm, pictures):
    paired = overhead.compare(vlm, pictures[:1], 1, runs=3)
    assert [len(times) for times in (paired.plain, paired.ours)] == [3, 3]
    assert paired.ratios == [ours / plain for plain, ours in zip(paired.plain, paired.ours)]


def test_times_of_different_work_are_refused(vlm, pictures, monkeypatch):
    monkeypatch.setattr(overhead, "plain", lambda *_: ["An image of something else."])
    with pytest.raises(RuntimeError, match="something else"):
        overhead.compare(vlm, pictures[:1], 1, runs=1)
