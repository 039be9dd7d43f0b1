"""Forms of a word and of what takes its place."""

import pytest

from mmneurons.edits.forms import Form, forms_of, is_plural, matching, plural_of


@pytest.mark.parametrize(
    ("word", "plural"),
    [("dog", "dogs"), ("box", "boxes"), ("mouse", "mice"), ("hot dog", "hot dogs"), ("knife", "knives")],
)
def test_plurals(word, plural):
    assert plural_of(word) == plural
    assert forms_of(word) == (Form(word, False), Form(plural, True))
    assert forms_of(word, inflections=False) == (Form(word, False),)
    assert is_plural(plural)
    assert not is_plural(word)


def test_what_has_no_other_plural_is_one_form():
    assert forms_of("sheep") == (Form("sheep", False),)
    assert forms_of("dogs") == (Form("dogs", True),)
    assert not is_plural("bus")


def test_a_form_is_replaced_by_the_same_number_and_case():
    cats = forms_of("cat")
    assert matching("dogs", True, cats) == "cats"
    assert matching("Dog", False, cats) == "Cat"
    assert matching("dogs", True, forms_of("cat", inflections=False)) == "cat"
