"""Text as the report shows it: nothing hides, nothing ends a script, numbers keep their digits."""

import json

import pytest

from mmneurons.reports.texts import file_name, json_for_script, number, percent, shortened, visible
from mmneurons.table import neuron_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\x00\x1b[31m\x7f", "a␊b␉c␀␛[31m␡"),
        ("\x85\u2028\u2029", "\\u0085\\u2028\\u2029"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("<b>&\"'", "<b>&\"'"),
        ("שלום 👩‍🚀 naïve 猫 \u00a0", "שלום 👩‍🚀 naïve 猫 \u00a0"),
        ("", ""),
    ],
)
def test_what_hides_is_shown_and_letters_stay(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_json_in_a_script_element_ends_nothing_and_reads_the_same():
    value = {"</script><!--<script>": ["&amp;", "\u2028\u2029", "'\"\\", 1.5, None, True, "猫"]}
    written = json_for_script(value)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_for_script(float("nan"))


@pytest.mark.parametrize(
    ("value", "plain", "padded"),
    [
        (None, "–", "–"),
        (0.0, "0", "0"),
        (1.5, "1.5", "1.50"),
        (-0.00123456, "−0.00123", "−0.00123"),
        (100.0, "100", "100"),
        (55.0, "55", "55.0"),
        (1234567.0, "1.23e+06", "1.23e+06"),
    ],
)
def test_numbers_have_three_significant_digits(value, plain, padded):
    assert number(value) == plain
    assert number(value, zeros=True) == padded


def test_shares_are_percentages_of_three_significant_digits():
    assert percent(0.12345) == "12.3%"
    assert percent(-0.5) == "−50%"
    assert percent(1.0) == "100%"
    assert percent(0.25, zeros=True) == "25.0%"
    assert percent(None) == "–"


def test_long_texts_are_cut_and_say_so():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b/c.jpg", "c.jpg"),
        ("c:\\pictures\\d.png", "d.png"),
        ("table.parquet#17", "table.parquet#17"),
        ("folder/", "folder"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_a_source_is_called_by_the_last_part_of_its_path(source, name):
    assert file_name(source) == name


def test_neurons_have_the_names_that_the_model_gives_them(llava):
    assert neuron_name(1, None, 7) == llava.anatomy.name(1, 7)
    assert neuron_name(3, 2, 70) == "L3.e2.u70"
