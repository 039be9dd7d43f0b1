"""Forms of a word and of what takes its place."""

import pytest

from mmneurons.edits.forms import Form, all_forms, forms_of, is_plural, matching, plural_of
from mmneurons.edits.task import Swap
from mmneurons.words import stands_in


@pytest.mark.parametrize(
    ("word", "plural"),
    [
        ("dog", "dogs"),
        ("box", "boxes"),
        ("mouse", "mice"),
        ("hot dog", "hot dogs"),
        ("knife", "knives"),
        ("Knife", "Knives"),
    ],
)
def test_plurals(word, plural):
    assert plural_of(word) == plural
    assert forms_of(word) == (Form(word, False), Form(plural, True))
    assert forms_of(word, inflections=False) == (Form(word, False),)
    assert is_plural(plural)
    assert not is_plural(word)


@pytest.mark.parametrize(("word", "plural"), [("TV", "TVs"), ("iPhone", "iPhones"), ("McDonald", "McDonalds")])
def test_capitals_inside_a_word_stay(word, plural):
    assert forms_of(word) == (Form(word, False), Form(plural, True))


def test_what_has_no_other_plural_is_one_form():
    assert forms_of("sheep") == (Form("sheep", False),)
    assert forms_of("headphones") == (Form("headphones", False),)
    assert forms_of("Great Danes") == (Form("Great Danes", False),)
    assert not is_plural("bus")


def test_a_plural_that_is_named_stands_for_one_thing_too():
    assert forms_of("dogs") == (Form("dogs", True), Form("dog", False))
    assert forms_of("Mice") == (Form("Mice", True), Form("Mouse", False))
    assert forms_of("hot dogs") == (Form("hot dogs", True), Form("hot dog", False))
    assert forms_of("dogs", inflections=False) == (Form("dogs", True),)
    assert forms_of("Knives") == (Form("Knives", True), Form("Knife", False))
    assert matching(False, forms_of("cats")) == "cat"


@pytest.mark.parametrize("word", ["ride", "dog", "dogs", "Dogs", "mouse", "hot dogs", "frisbee", "sheep", "leaf"])
def test_all_forms_are_all_that_count_as_one(word):
    forms = all_forms(word)
    assert all(stands_in(f"a {form} here", 0, word) for form in forms)
    assert {form.text.lower() for form in forms_of(word)} <= forms


def test_a_plural_of_another_stem():
    assert forms_of("person") == (Form("person", False), Form("people", True))
    assert forms_of("People") == (Form("People", True), Form("Person", False))
    assert stands_in("two people", 0, "person")
    assert stands_in("a person", 0, "people")
    assert all_forms("person") == {"person", "persons", "people"}


def test_a_verb_has_more_forms():
    assert all_forms("ride") == {"ride", "rides", "riding", "ridden", "rode"}


def test_a_form_is_replaced_by_the_same_number():
    cats = forms_of("cat")
    assert matching(True, cats) == "cats"
    assert matching(False, cats, capital=True) == "Cat"
    assert matching(True, forms_of("cat", inflections=False)) == "cat"


@pytest.mark.parametrize(
    ("source", "to", "surface", "begins", "said"),
    [
        ("dog", "cat", "Dogs", False, "Cats"),
        ("dog", "cat", "dogs", True, "cats"),
        ("Dog", "cat", "Dog", False, "cat"),
        ("Dog", "cat", "Dog", True, "Cat"),
        ("TV", "radio", "TV", False, "radio"),
        ("TV", "radio", "TVs", True, "Radios"),
        ("TV", "iPhone", "TVs", False, "iPhones"),
        ("dog", "TV", "dogs", False, "TVs"),
        ("iPhone", "phone", "iPhone", True, "phone"),
        ("ride", "walk", "riding", False, "walk"),
    ],
)
def test_what_takes_the_place_has_a_capital_only_where_the_word_would_not_have_one(source, to, surface, begins, said):
    assert Swap(source, to).instead_of(surface, begins) == said
