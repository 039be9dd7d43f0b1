"""CHAIR and the words that count."""

from zoo.score import Lexicon, Tally, read_aliases
from zoo.sprites import Concept, read_concepts


def lexicon():
    return Lexicon(read_concepts(), read_aliases())


def test_names_plurals_and_aliases_count_and_nothing_else():
    said, others = lexicon().said(" Two mice, a plane and a doggy.")
    assert said == ["mouse", "airplane"]
    assert others == ["doggy"]


def test_the_longest_name_wins():
    assert lexicon().said("a fire truck next to a polar bear and a teddy bear")[0] == [
        "fire truck",
        "bear",
        "teddy bear",
    ]
    assert lexicon().said("a hot dog and a palm tree") == (["hot dog", "palm tree"], [])


def test_plural_names_have_no_second_plural():
    words = Lexicon([Concept("scissors", (), "plural")], {})
    assert words.said("scissors and scissorses") == (["scissors"], ["scissorses"])


def test_aliases_name_known_concepts_and_clash_with_none():
    names = {c.name for c in read_concepts()}
    aliases = read_aliases()
    others = [alias for entries in aliases.values() for alias in entries]
    assert set(aliases) <= names
    assert not set(others) & names
    assert len(others) == len(set(others))


def test_tally_by_hand():
    tally = Tally()
    tally.add(["dog", "dog", "cat"], {"dog", "bus"})
    tally.add(["bus"], {"bus"}, ["sky"])
    assert tally.recall == 2 / 3
    assert tally.chair_i == 1 / 4
    assert tally.chair_s == 1 / 2
    assert tally.others == ["sky"]
