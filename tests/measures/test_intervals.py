"""Bootstrap over scenes against what is known of means."""

import numpy as np
import pytest

from mmneurons.measures.intervals import mean_resampled, resample


def mean(values):
    return values.mean(0)


def test_the_interval_of_a_mean():
    draw = np.random.default_rng(0)
    values = draw.normal(3, 2, (400, 1))
    estimate = resample(range(400), values, mean).estimate(0)
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_words_of_one_scene_stay_together():
    values = np.random.default_rng(0).normal(0, 1, (100, 1))
    scenes = np.arange(100)
    alone = resample(scenes.tolist(), values, mean).estimate(0)
    four_times = resample(scenes.repeat(4).tolist(), values.repeat(4, 0), mean).estimate(0)
    # four copies of a word say no more than one
    assert four_times.high - four_times.low == pytest.approx(alone.high - alone.low, rel=1e-9)


def test_differences_are_paired():
    draw = np.random.default_rng(0)
    first = draw.normal(0, 5, 300)
    second = first + 0.5 + draw.normal(0, 0.1, 300)
    resampled = resample(range(300), np.stack([first, second, first], 1), mean)
    difference = resampled.difference(1, 0)
    assert difference.value == pytest.approx((second - first).mean())
    assert difference.high - difference.low < 0.05
    assert difference.sign == 1
    assert resampled.difference(0, 1).sign == -1
    assert resampled.difference(2, 0).sign == 0


def test_scenes_of_several_words_weigh_by_their_words():
    values = np.array([[0.0], [1.0], [1.0], [1.0]])
    draws = resample([0, 1, 1, 1], values, mean, draws=4000).draws[:, 0]
    # two scenes are drawn: both the first (1/4), both the second (1/4), or one of each, whose mean is 3/4
    for mean_of_words, share in ((0, 0.25), (1, 0.25), (0.75, 0.5)):
        assert np.mean(np.isclose(draws, mean_of_words)) == pytest.approx(share, abs=0.03)


def test_intervals_cover_the_truth_at_their_rate():
    """Words of a picture share a part, as they do; 95 of 100 intervals hold the mean that the words were drawn from."""
    draw = np.random.default_rng(1)
    covered = 0
    for trial in range(400):
        pictures = np.arange(60).repeat(3)
        values = 1.0 + draw.normal(0, 1, 60).repeat(3) + draw.normal(0, 1, 180)
        estimate = resample(pictures.tolist(), values[:, None], mean, draws=300, seed=trial).estimate(0)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


def test_means_with_gaps_are_those_of_the_words_that_have_a_value():
    draw = np.random.default_rng(3)
    pictures = np.arange(80).repeat(2).tolist()
    values = draw.normal(2, 1, (160, 2))
    values[::3, 1] = np.nan
    fast = mean_resampled(pictures, values, draws=4000)
    slow = resample(pictures, values, lambda own: np.nanmean(own, axis=0), draws=4000)
    for way in (0, 1):
        assert fast.estimate(way).value == pytest.approx(np.nanmean(values[:, way]))
        assert fast.estimate(way).low == pytest.approx(slow.estimate(way).low, abs=0.02)
        assert fast.estimate(way).high == pytest.approx(slow.estimate(way).high, abs=0.02)
    assert np.isnan(mean_resampled(pictures, np.full((160, 1), np.nan)).estimate(0).value)
