"""The list of words: what is read from it, and what is refused."""

import pytest

from mmneurons.errors import SourceError
from mmneurons.mitigation.wishes import Wish, check_wishes, read_wishes


def written(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_words_and_what_is_said_instead(tmp_path):
    text = "\ufeffdog\n\n# a remark\ncat -> house cat  # another\n  hot dog →  sausage\n"
    assert read_wishes(written(tmp_path, text)) == (
        Wish("dog"),
        Wish("cat", "house cat"),
        Wish("hot dog", "sausage"),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no word"),
        ("# only a remark", "holds no word"),
        ("dog ->", "Line 1 .* is no wish"),
        ("cat\n-> dog", "Line 2 .* is no wish"),
        ("dog -> cat -> cow", "is no wish"),
        ("dog -> dogs", "'dogs' is 'dog' itself"),
        ("dog\ndogs", "'dogs', or a form of it, is listed twice"),
        ("dog -> cat\ncat", "'cat' is to be said instead of 'dog', and is not to be said itself"),
    ],
)
def test_lists_that_make_no_sense(tmp_path, text, says):
    with pytest.raises(SourceError, match=says):
        read_wishes(written(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        read_wishes(tmp_path / "none.txt")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SourceError, match="It is a text file"):
        read_wishes(tmp_path / "picture.txt")


def test_two_words_may_become_the_same():
    check_wishes([Wish("dog", "animal"), Wish("cat", "animal")])
