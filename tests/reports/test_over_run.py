"""What a whole run says of its neurons, against counting by hand."""

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from mmneurons.reports.over_run import (
    BEST,
    ERRORS,
    LEMMAS,
    PAIRS,
    SERVING,
    block_counts,
    common_lemmas,
    count,
    errors,
    notes,
    serving,
    shared,
)
from mmneurons.table import neuron_name
from reports.synthetic import Sketch, Unit, Word, units, write_run


def random_run(folder, pictures=140, seed=0):
    """Words of 40 lemmas, some twice in a caption, with 13 neurons each of a small model with experts."""
    draw = np.random.default_rng(seed)
    sketches = []
    for number in range(pictures):
        lemmas = [f"w{int(draw.zipf(1.6)) % 40}" for _ in range(draw.integers(0, 4))]
        words = []
        for lemma in lemmas:
            # a lemma has neurons of its own beside those that come and go
            own = np.random.default_rng(int(lemma[1:]))
            places = {(int(own.integers(3, 6)), int(own.integers(0, 4))) for _ in range(6)}
            while len(places) < 13:
                places.add((int(draw.integers(0, 6)), int(draw.integers(0, 20))))
            order = draw.permutation(sorted(places)).tolist()
            best = tuple(
                Unit(
                    layer, unit, expert=unit % 2 if layer == 5 else None, score=13.0 - rank, promotes=(lemma, "x", "x")
                )
                for rank, (layer, unit) in enumerate(order)
            )
            words.append(Word(lemma, best, start=0))
        sketches.append(Sketch(f"{number}.jpg", "caption", words))
    return write_run(folder, sketches, shard=7), sketches


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("random"))


def best(word):
    return [(unit.layer, unit.expert, unit.unit) for unit in word.units[:BEST]]


def pictures_of(sketches):
    """Lemma → picture → the best neurons of the lemma there."""
    found = defaultdict(lambda: defaultdict(set))
    for sketch in sketches:
        for word in sketch.words:
            found[word.lemma or word.word][sketch.source] |= set(best(word))
    return found


def test_everything_is_counted(made):
    run, sketches = made
    words = [word for sketch in sketches for word in sketch.words]
    counts = count(run)
    assert (counts.ok, counts.duplicates, counts.errors) == (len(sketches), 0, 0)
    assert (counts.words, counts.lemmas) == (len(words), len({word.word for word in words}))
    assert counts.words > 50
    assert counts.pictures == len(sketches)


def test_blocks_are_those_of_the_best_neurons(made):
    run, sketches = made
    places = [place for sketch in sketches for word in sketch.words for place in best(word)]
    times = Counter(layer for layer, _, _ in places)
    different = Counter(layer for layer, _, _ in set(places))
    expected = [(layer, times[layer], different[layer]) for layer in sorted(times)]
    assert block_counts(run).rows() == expected
    assert sum(times.values()) == BEST * count(run).words


def test_the_words_compared_are_those_of_most_pictures(made):
    run, sketches = made
    pictures = {lemma: len(served) for lemma, served in pictures_of(sketches).items()}
    assert len(pictures) > LEMMAS
    expected = sorted(pictures.items(), key=lambda item: (-item[1], item[0]))[:LEMMAS]
    assert common_lemmas(run).rows() == expected


def test_neurons_serve_the_pictures_that_they_are_among_the_best_in(made):
    run, sketches = made
    lemmas = common_lemmas(run)
    truth = pictures_of(sketches)
    found = serving(run, lemmas)
    several = [lemma for lemma, pictures in lemmas.rows() if pictures >= 2]
    assert [word.lemma for word in found] == [
        lemma
        for lemma in several
        if max(Counter(place for places in truth[lemma].values() for place in places).values()) >= 2
    ]
    assert len(found) > 5
    for word in found:
        served = Counter(place for places in truth[word.lemma].values() for place in places)
        names = {neuron_name(*place): times for place, times in served.items()}
        assert word.pictures == len(truth[word.lemma])
        assert [names[name] for name, _, _ in word.neurons] == [times for _, times, _ in word.neurons]
        expected = sorted((times for times in served.values() if times >= 2), reverse=True)[:SERVING]
        assert [times for _, times, _ in word.neurons] == expected
        # what it promotes is read from this word, not from another one that has the neuron
        assert all(promotes == (word.lemma, "x") for _, _, promotes in word.neurons)


def test_words_share_the_neurons_of_at_least_half_of_their_pictures(made):
    run, sketches = made
    lemmas = common_lemmas(run)
    truth = pictures_of(sketches)
    sets = {}
    for lemma, pictures in lemmas.rows():
        served = Counter(place for places in truth[lemma].values() for place in places)
        sets[lemma] = {place for place, times in served.items() if times * 2 >= pictures}
    sets = {lemma: places for lemma, places in sets.items() if places}
    found = shared(run, lemmas)
    assert sorted(found.lemmas) == sorted(sets)
    assert found.matrix.height == len(sets) ** 2
    overlap = {}
    for lemma, other, both, jaccard in found.matrix.rows():
        expected = len(sets[lemma] & sets[other]) / len(sets[lemma] | sets[other])
        assert both == len(sets[lemma] & sets[other])
        assert jaccard == pytest.approx(expected)
        overlap[frozenset((lemma, other))] = expected
    pairs = sorted((value for key, value in overlap.items() if len(key) == 2 and value), reverse=True)[:PAIRS]
    assert [pair.jaccard for pair in found.pairs] == pytest.approx(pairs)
    assert pairs
    for pair in found.pairs:
        assert set(pair.neurons) == {neuron_name(*place) for place in sets[pair.lemma] & sets[pair.other]}


def test_words_that_share_neurons_stand_side_by_side(tmp_path):
    groups = {"a1": 0, "b1": 1, "a2": 0, "b2": 1, "a3": 0, "b3": 1}
    sketches = [
        Sketch(f"{word}.jpg", word, [Word(word, units(*((group, unit) for unit in range(5)), (5, number)))])
        for number, (word, group) in enumerate(groups.items())
    ]
    run = write_run(tmp_path, sketches)
    order = shared(run, common_lemmas(run)).lemmas
    assert {frozenset(order[:3]), frozenset(order[3:])} == {
        frozenset({"a1", "a2", "a3"}),
        frozenset({"b1", "b2", "b3"}),
    }


def test_a_neuron_twice_in_one_picture_serves_it_once(tmp_path):
    twice = Word("dog", units((1, 1)), start=0)
    sketches = [Sketch("a.jpg", "dog", [twice, twice]), Sketch("b.jpg", "dog", [Word("dog", units((1, 1), (2, 2)))])]
    run = write_run(tmp_path, sketches)
    (word,) = serving(run, common_lemmas(run))
    assert (word.pictures, word.neurons) == (2, (("L1.u1", 2, ("alpha", "beta")),))


def test_errors_and_notes_are_listed_and_bounded(tmp_path):
    failed = [Sketch(f"{number}.jpg", status="error", error=f"wrong {number}") for number in range(ERRORS + 5)]
    said = [Sketch("ok.jpg", "a dog and cats", [Word("dog", note="one"), Word("cats", note="two")])]
    more = [Sketch("more.jpg", "a dog", [Word("dog", note="two")]), Sketch("copy.jpg", status="duplicate", id="x")]
    run = write_run(tmp_path, [*failed, *said, *more], shard=50)
    assert errors(run) == tuple((f"{number}.jpg", f"wrong {number}") for number in range(ERRORS))
    assert notes(run) == ("two", "one")
    counts = count(run)
    assert (counts.ok, counts.duplicates, counts.errors, counts.pictures) == (2, 1, ERRORS + 5, ERRORS + 8)


def test_an_empty_run_says_nothing(tmp_path):
    run = write_run(tmp_path, [])
    lemmas = common_lemmas(run)
    assert count(run).pictures == 0
    assert block_counts(run).is_empty()
    assert serving(run, lemmas) == ()
    assert shared(run, lemmas).lemmas == ()
    assert shared(run, lemmas).pairs == ()
    assert errors(run) == notes(run) == ()
    assert lemmas.schema["lemma"] == pl.String
