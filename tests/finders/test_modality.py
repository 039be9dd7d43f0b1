"""Scores, rules of selection, splits and chance are those of numpy, of sums by hand and of simulated draws."""

import math

import numpy as np
import pytest
import torch

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.errors import OptionError
from mmneurons.finders.sets import (
    SET_FINDERS,
    Contrast,
    Modality,
    find_contrast_neurons,
    find_modality_neurons,
    importance_between,
    overlap_table,
)
from mmneurons.vlm.statistics import Statistics, statistics_at

WIDTHS = (30, 18, 30)
UNITS = [(block, column) for block, width in enumerate(WIDTHS) for column in range(width)]
RULES = ("global", "per_modality", "per_block", "uniform")


def of(z, positions="text", activation="product"):
    """The statistics of activations (positions, blocks, width), by numpy."""
    z = np.array(z, dtype=float)
    for block, width in enumerate(WIDTHS):
        z[:, block, width:] = 0
    return Statistics(
        len(z),
        *(torch.as_tensor((z > level).sum(0)) for level in (0, 0.1)),
        *(torch.as_tensor(own) for own in (z.sum(0), np.abs(z).sum(0), (z**2).sum(0), z.max(0))),
        WIDTHS,
        positions,
        activation,
    )


def drawn(seed, count=50):
    return np.random.default_rng(seed).normal(-0.5, 1, (count, len(WIDTHS), max(WIDTHS)))


def planted():
    """Two neurons for text, two for pictures, one for both, among noise."""
    text, image = drawn(0), drawn(1, 80)
    for place in ((0, 3), (1, 17), (2, 8)):
        text[:, place[0], place[1]] = 6 + 0.1 * np.arange(50)
    for place in ((0, 29), (2, 0), (2, 8)):
        image[:, place[0], place[1]] = 6 + 0.05 * np.arange(80)
    return text, image


def scores_by_numpy(z, weights):
    """A dictionary over the units there are."""
    scores = {}
    for block, width in enumerate(WIDTHS):
        own = z[:, block, :width]
        parts = [(own > 0).mean(0), own.mean(0), own.max(0)]
        parts = [(part - part.min()) / (part.max() - part.min()) for part in parts]
        for column in range(width):
            scores[block, column] = sum(weight * part[column] for weight, part in zip(weights, parts))
    return scores


def best(scores, k):
    return set(sorted(scores, key=lambda place: (-scores[place], place))[:k])


def chosen_by_numpy(text, image, share, rule):
    """The two selections, from dictionaries of scores."""
    k = int(share * len(UNITS) + 1e-9)
    if rule == "global":
        both = best({place: text[place] + image[place] for place in UNITS}, k)
        return {p for p in both if text[p] >= image[p]}, {p for p in both if text[p] < image[p]}
    if rule == "per_modality":
        return best(text, k // 2), best(image, k // 2)
    one, other = set(), set()
    for block, width in enumerate(WIDTHS):
        quota = int(share * width + 1e-9)
        own = [{p: s for p, s in scores.items() if p[0] == block} for scores in (text, image)]
        if rule == "uniform":
            one |= best(own[0], quota // 2)
            other |= best(own[1], quota // 2)
        else:
            joint = {(index, *p): s for index, scores in enumerate(own) for p, s in scores.items()}
            for index, *place in best(joint, quota):
                (one, other)[index].add(tuple(place))
    return one, other


def test_planted_neurons_are_told_apart():
    text, image = planted()
    found = Modality(share=6 / 78)(of(text), of(image, "image"))
    assert set(found.text) == {(0, 3), (1, 17), (2, 8)}
    assert set(found.image) == {(0, 29), (2, 0), (2, 8)}
    assert set(found.text_only) == {(0, 3), (1, 17)}
    assert set(found.image_only) == {(0, 29), (2, 0)}
    assert found.multimodal == ((2, 8),)
    assert found.counts == {"text only": 2, "image only": 2, "multi-modal": 1, "neither": 73}
    whole = found.overlap[-1]
    assert (whole.block, whole.units, whole.first, whole.second, whole.both) == (None, 78, 3, 3, 1)
    assert whole.jaccard == pytest.approx(1 / 5)
    assert whole.chance == pytest.approx(9 / 78)
    assert [row.both for row in found.overlap[:-1]] == [0, 0, 1]
    for said in ("attention-weighted", "pooled", "50 positions (text)", "80 positions (image)"):
        assert said in found.note


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.0, 2.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_numpy(weights, seed):
    text, image = drawn(seed), drawn(seed + 10, 80)
    found = Modality(share=0.2, weights=weights)(of(text), of(image, "image"))
    for scores, z in ((found.text_scores, text), (found.image_scores, image)):
        expected = scores_by_numpy(z, weights)
        for place in UNITS:
            assert float(scores[place]) == pytest.approx(expected[place])
        assert (scores[1, WIDTHS[1] :] == 0).all()
        assert [float(row.max()) <= sum(weights) + 1e-9 for row in scores] == [True] * 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_rules_are_those_of_numpy(rule, share):
    text, image = planted()
    found = Modality(share=share, rule=rule)(of(text), of(image, "image"))
    expected = chosen_by_numpy(
        scores_by_numpy(text, (1, 1, 1)), scores_by_numpy(image, (1, 1, 1)), share=share, rule=rule
    )
    assert (set(found.text), set(found.image)) == expected
    assert set(found.text) | set(found.image) <= set(UNITS)
    if rule == "global":
        assert found.multimodal == ()
    for places, scores in ((found.text, found.text_scores), (found.image, found.image_scores)):
        values = [float(scores[place]) for place in places]
        assert values == sorted(values, reverse=True)
    assert sum(found.counts.values()) == len(UNITS)


def test_where_all_are_alike_there_is_no_score_and_the_first_are_taken():
    z = np.ones((10, 3, 30))
    found = Modality(share=0.1)(of(z), of(z, "image"))
    assert (found.text_scores == 0).all()
    assert found.text == found.image == ((0, 0), (0, 1), (0, 2))


def test_chance_is_what_draws_share():
    draw = np.random.default_rng(0)
    there = torch.tensor([[True] * 20, [True] * 12 + [False] * 8])
    first, second = torch.zeros(2, 20, dtype=torch.bool), torch.zeros(2, 20, dtype=torch.bool)
    first[0, :7], first[1, :3] = True, True
    second[0, 5:14], second[1, 11:] = True, True  # those beyond the twelfth are not there
    rows = overlap_table(first, second, there)
    assert [(row.block, row.units, row.first, row.second, row.both) for row in rows] == [
        (0, 20, 7, 9, 2),
        (1, 12, 3, 1, 0),
        (None, 32, 10, 10, 2),
    ]
    for row in rows:
        common = []
        for _ in range(4000):
            one = draw.choice(row.units, row.first, replace=False)
            common.append(len(np.intersect1d(one, np.arange(row.second))))
        common = np.array(common)
        assert row.chance == pytest.approx(common.mean(), abs=0.1)
        assert row.chance_jaccard == pytest.approx((common / (row.first + row.second - common)).mean(), abs=0.02)
    assert rows[-1].jaccard == pytest.approx(2 / 18)
    # by hand: of 2 of 3 and 2 of 3, one is common with probability 2/3, two with 1/3
    (row, _) = overlap_table(*(torch.tensor([own]) for own in ([True, True, False], [False, True, True], [True] * 3)))
    assert row.chance == pytest.approx(4 / 3)
    assert row.chance_jaccard == pytest.approx(2 / 3 * 1 / 3 + 1 / 3 * 1)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert math.isnan(overlap_table(nothing, nothing, ~nothing)[0].jaccard)


@pytest.mark.parametrize("mean", ["absolute", "signed"])
def test_importance_is_the_formula(mean):
    one, other = drawn(3, 40), drawn(4, 25) * 2
    one[:, 0, 5] = other[:, 0, 5] = 0
    scores = importance_between(of(one), of(other), mean)
    assert torch.equal(scores, importance_between(of(other), of(one), mean))
    for block, column in UNITS:
        a, b = one[:, block, column], other[:, block, column]
        size = np.abs if mean == "absolute" else np.asarray
        m, t = size(a).mean(), size(b).mean()
        n, k = (a > 0.1).mean(), (b > 0.1).mean()
        s, r = (a**2).mean(), (b**2).mean()
        expected = 0.0
        if (block, column) != (0, 5):
            expected = abs(m - t) / (m + t) + abs(n - k) / (n + k)
            expected += math.sqrt(a.var() + b.var()) + math.sqrt(abs(s - r) / (s + r))
        assert float(scores[block, column]) == pytest.approx(expected)
    assert (scores[1, WIDTHS[1] :] == 0).all()


def test_contrast_finds_what_only_one_set_drives():
    one, other = drawn(5, 60) * 0.1, drawn(6, 60) * 0.1
    for place in ((0, 4), (1, 9)):
        one[:, place[0], place[1]] = 3 + np.random.default_rng(0).normal(0, 1, 60)
    found = Contrast(share=2 / 78)(of(one), of(other))
    assert set(found.selected) == {(0, 4), (1, 9)}
    # what is as different in what is to be kept is no longer chosen
    kept = drawn(7, 60) * 0.1
    kept[:, 0, 4] = 3 + np.random.default_rng(1).normal(0, 5, 60)
    pair = (of(kept), of(drawn(8, 60) * 0.1))
    over = Contrast(share=1 / 78)(of(one), of(other), retain=pair)
    quotients = {place: float(found.scores[place] / importance_between(*pair)[place]) for place in UNITS}
    for place, quotient in quotients.items():
        assert float(over.scores[place]) == pytest.approx(quotient)
    assert over.selected == tuple(best(quotients, 1))
    assert quotients[1, 9] > 3 * quotients[0, 4]
    assert "to be kept" in over.note


def test_what_makes_no_sense_is_refused(unchecked):
    text, image = of(drawn(0)), of(drawn(1), "image")
    for wrong in ({"share": 0.0}, {"share": 2.0}, {"rule": "best"}, {"weights": (0, 0, 0)}, {"weights": (-1, 1, 1)}):
        with pytest.raises(OptionError):
            Modality(**wrong)
    with pytest.raises(OptionError, match="text"):
        Modality()(image, text)
    with pytest.raises(OptionError, match="different"):
        Modality()(text, of(drawn(1), "image", "gate"))
    for rule in RULES:
        with pytest.raises(OptionError, match="larger share"):
            Modality(share=0.001, rule=rule)(text, image)
    with pytest.raises(OptionError, match="larger share"):
        Contrast(share=0.001)(text, text)
    with pytest.raises(OptionError, match="mean"):
        Contrast(mean="median")
    assert SET_FINDERS["modality"] is Modality
    assert SET_FINDERS["contrast"] is Contrast


@pytest.mark.parametrize("name", ["llava", "glm4v_moe"])
def test_modalities_of_a_model(name):
    case = FAMILIES[name]()
    vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
    own = [mmn.record(vlm, inputs=case.inputs, max_new_tokens=steps) for steps in (2, 4)]
    found = find_modality_neurons(vlm, {"all": own, "one": own[:1]}, Modality(share=0.1))
    assert list(found) == ["all", "one"]
    statistics = statistics_at(vlm, own, ("text", "image"))
    direct = Modality(share=0.1)(statistics["text"], statistics["image"])
    assert torch.equal(found["all"].text_scores, direct.text_scores)
    assert found["all"].image == direct.image
    assert found["all"].units == sum(block.width for block in vlm.anatomy.blocks)
    for block, column in (*direct.text, *direct.image):
        vlm.anatomy.name(block, column)


def test_with_and_without_the_picture():
    case = FAMILIES["llava"]()
    vlm = mmn.wrap(case.model)
    ids = case.inputs["input_ids"]
    ids = ids[ids != vlm.image_token_id][None]
    seen = [mmn.record(vlm, inputs=case.inputs, max_new_tokens=steps) for steps in (3, 4)]
    blind = [
        mmn.record(vlm, inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, max_new_tokens=steps)
        for steps in (3, 4)
    ]
    found = find_contrast_neurons(vlm, seen, blind)
    z, y = (torch.stack([one.activations[-1] for one in own]).double().numpy() for own in (seen, blind))
    block, column = found.selected[0]
    a, b = z[:, block, column], y[:, block, column]
    n, k = (a > 0.1).mean(), (b > 0.1).mean()
    expected = abs(np.abs(a).mean() - np.abs(b).mean()) / (np.abs(a).mean() + np.abs(b).mean())
    expected += abs(n - k) / max(n + k, 1e-9) + math.sqrt(a.var() + b.var())
    expected += math.sqrt(abs((a**2).mean() - (b**2).mean()) / ((a**2).mean() + (b**2).mean()))
    assert float(found.scores[block, column]) == pytest.approx(expected, rel=1e-3)
    assert float(found.scores[block, column]) == float(found.scores.max())
