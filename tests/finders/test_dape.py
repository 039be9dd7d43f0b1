"""DAPE's selection is that of numpy on arrays with planted neurons, in blocks of unequal width, and holds on models."""

import math

import numpy as np
import pytest
import torch

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.errors import OptionError
from mmneurons.finders.sets import SET_FINDERS, Dape, find_domain_neurons
from mmneurons.vlm.recording import image_activations
from mmneurons.vlm.statistics import Statistics

WIDTHS = (40, 25, 40)
DOMAINS = ("streets", "scans", "charts")


def statistics(positive, count, widths=WIDTHS, positions="all", activation="product"):
    positive = torch.as_tensor(positive, dtype=torch.long)
    none = torch.zeros(positive.shape, dtype=torch.double)
    return Statistics(
        count, positive, positive * 0, none, none.clone(), none.clone(), none.clone(), widths, positions, activation
    )


def background(seed, count):
    """Counts of neurons that are as active on everything, far below those that are planted; absent units are 0."""
    counts = np.random.default_rng(seed).integers(count // 20, count // 10, (len(WIDTHS), max(WIDTHS)))
    for block, width in enumerate(WIDTHS):
        counts[block, width:] = 0
    return counts


def planted():
    """Three neurons of a domain each, one of two domains, one that is always on, one that never is, a rare one."""
    counts = [background(seed, 1000) for seed in range(3)]
    for domain, place in enumerate([(0, 7), (1, 24), (2, 0)]):
        for other in range(3):
            counts[other][place] = 900 if other == domain else 3
    for domain, value in enumerate((800, 800, 2)):
        counts[domain][2, 33] = value
    for domain in range(3):
        counts[domain][1, 3] = 950
        counts[domain][0, 11] = 0
    # of one domain alone, but hardly ever: its entropy is 0, and it is discarded
    counts[0][0, 20], counts[1][0, 20], counts[2][0, 20] = 5, 0, 0
    return {name: statistics(own, 1000) for name, own in zip(DOMAINS, counts)}, np.stack(counts) / 1000


def by_numpy(p, share, percentile):
    """The published rule over a list of the units there are."""
    units = [(block, column) for block, width in enumerate(WIDTHS) for column in range(width)]
    flat = np.array([p[:, block, column] for block, column in units])
    bar = np.sort(flat.ravel())[round(percentile / 100 * flat.size) - 1]
    found = []
    for (block, column), own in zip(units, flat):
        if own.max() > bar:
            entropy = -sum(x * math.log(x) for x in own / own.sum() if x > 0)
            found.append((entropy, block, column))
    found = sorted(found)[: round(share * len(units))]
    places = [(block, column) for _, block, column in found]
    return bar, places, [{place for place in places if p[(domain, *place)] > bar} for domain in range(len(p))]


def test_planted_neurons_are_found():
    domains, _ = planted()
    found = Dape(share=0.04)(domains)
    assert found.domains == DOMAINS
    assert set(found.selected[:3]) == {(0, 7), (1, 24), (2, 0)}
    assert found.selected[3] == (2, 33)
    assert found.neurons["streets"] == tuple(place for place in found.selected if place in {(0, 7), (2, 33)})
    assert set(found.neurons["scans"]) == {(1, 24), (2, 33)}
    assert set(found.neurons["charts"]) == {(2, 0)}
    assert (0, 20) not in found.selected
    assert not found.kept[0, 20]
    assert float(found.entropies[0, 20]) == 0
    assert math.isnan(float(found.entropies[0, 11]))
    assert float(found.entropies[1, 3]) == pytest.approx(math.log(3))
    one, two = 900 / 906, 3 / 906
    assert float(found.entropies[0, 7]) == pytest.approx(-one * math.log(one) - 2 * two * math.log(two))


def test_units_that_are_not_there_count_nowhere():
    domains, p = planted()
    for own in domains.values():
        own.positive[1, WIDTHS[1] :] = 999
    expected = Dape(share=0.04)(planted()[0])
    found = Dape(share=0.04)(domains)
    assert found.bar == expected.bar
    assert found.selected == expected.selected
    assert not found.kept[1, WIDTHS[1] :].any()
    assert p[:, 1, WIDTHS[1] :].max() == 0


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 99.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rule_is_that_of_numpy(share, percentile, seed):
    draw = np.random.default_rng(seed)
    counts = (1000 * draw.beta(0.4, 1.5, (3, len(WIDTHS), max(WIDTHS)))).astype(int)
    found = Dape(share, percentile)({name: statistics(own, 1000) for name, own in zip(DOMAINS, counts)})
    bar, places, own = by_numpy(counts / 1000, share, percentile)
    assert found.bar == pytest.approx(bar)
    assert len(places) > 0
    assert list(found.selected) == places
    for name, expected in zip(DOMAINS, own):
        assert set(found.neurons[name]) == expected
    assert set().union(*own) == set(found.selected)


def test_domains_of_other_sizes_are_compared_by_rates():
    domains, _ = planted()
    more = dict(domains)
    more["scans"] = domains["scans"] + domains["scans"]
    assert more["scans"].count == 2000
    assert Dape(0.04)(more).selected == Dape(0.04)(domains).selected


def test_ties_are_taken_in_order_and_too_few_are_told():
    counts = [background(seed, 1000) for seed in range(2)]
    for column in (9, 4, 30):
        counts[0][2, column], counts[1][2, column] = 900, 0
    domains = {name: statistics(own, 1000) for name, own in zip(("one", "two"), counts)}
    assert Dape(share=2 / 105)(domains).selected == ((2, 4), (2, 9))
    few = Dape(share=0.2, percentile=99.0)(domains)
    assert len(few.selected) < 21
    assert f"only {len(few.selected)} of the 21" in few.note
    # p at the bar itself is not over it
    always = {name: statistics(np.full((3, 40), 10), 10) for name in ("one", "two")}
    assert Dape(share=0.1)(always).selected == ()


def test_what_makes_no_sense_is_refused():
    domains, _ = planted()
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"percentile": 0.0}, {"percentile": 100.0}):
        with pytest.raises(OptionError):
            Dape(**wrong)
    with pytest.raises(OptionError, match="two"):
        Dape()({"streets": domains["streets"]})
    with pytest.raises(OptionError, match="different"):
        Dape()({**domains, "text": statistics(np.zeros((3, 40)), 5, positions="text")})
    with pytest.raises(OptionError, match="no positions"):
        Dape()({**domains, "none": statistics(np.zeros((3, 40)), 0)})
    with pytest.raises(OptionError, match="larger share"):
        Dape(share=0.001)(domains)
    assert SET_FINDERS["dape"] is Dape


@pytest.mark.parametrize("name", ["llava", "glm4v_moe"])
def test_domains_of_a_model(name):
    case = FAMILIES[name]()
    vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
    other = {**case.inputs, "pixel_values": -2 * case.inputs["pixel_values"]}
    groups = {
        "noise": [mmn.record(vlm, inputs=case.inputs, max_new_tokens=steps) for steps in (2, 4)],
        "negative": [mmn.record(vlm, inputs=other, max_new_tokens=4)],
    }
    found = find_domain_neurons(vlm, groups, Dape(share=0.05, percentile=70.0), positions="image")
    for index, (group, own) in enumerate(groups.items()):
        p = [image_activations(vlm, one, found.selected).gt(0).double().mean(1) for one in own]
        expected = torch.stack(p).mean(0)
        measured = torch.stack([found.probabilities[(index, *place)] for place in found.selected])
        torch.testing.assert_close(measured, expected)
        assert set(found.neurons[group]) == {q for q, p in zip(found.selected, expected) if p > found.bar}
        assert group in found.note
    units = sum(block.width for block in vlm.anatomy.blocks)
    assert 0 < len(found.selected) <= round(0.05 * units)
    for block, column in found.selected:
        vlm.anatomy.name(block, column)
    entropies = [float(found.entropies[place]) for place in found.selected]
    assert entropies == sorted(entropies)
