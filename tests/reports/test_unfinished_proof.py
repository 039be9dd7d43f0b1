"""What a stopped proof kept is read as it was written, to the last bit."""

import math

import pytest

from mmneurons.edits import Edit
from mmneurons.engines.proving import Column
from mmneurons.measures.edit_outcome import Agreement, Outcome, Surprise
from mmneurons.measures.edit_quality import Figure, Quality
from mmneurons.measures.intervals import Estimate
from mmneurons.reports.unfinished_proof import UNFINISHED, read_unfinished, write_unfinished

EDIT = Edit((), {"source": "dog", "to": "cat"}, {"fingerprint": "dog"})
OUTCOMES = {
    "others": [
        Outcome(
            "a “dog”", "a cat", True, False, True, True, False, Agreement(1 / 3, 0.1, 1e-17), Surprise(0.1, math.inf)
        ),
        Outcome("a tree\n", "a tree", False, False, True, False, False, None, None, "picture", 3),
    ],
    "learned": [],
}
COLUMN = Column(Quality((Figure("KL", Estimate(0.1, 1 / 3, 1e-300), 2),), OUTCOMES), "It did not get far.")


def test_it_is_read_as_it_was_written(tmp_path):
    write_unfinished(tmp_path / "new", "key", [EDIT], {"this edit": COLUMN, "erase": COLUMN})
    found = read_unfinished(tmp_path / "new", "key")
    assert list(found) == ["this edit", "erase"]
    assert found["erase"].note == COLUMN.note
    assert found["erase"].quality.figures == COLUMN.quality.figures
    assert found["erase"].quality.outcomes == OUTCOMES
    assert read_unfinished(tmp_path / "new", "another key") == {}
    assert read_unfinished(tmp_path, "key") == {}


def test_what_is_no_number_stays_none(tmp_path):
    nothing = Figure("KL", Estimate(math.nan, math.nan, math.nan), 0)
    write_unfinished(tmp_path, "key", [EDIT], {"this edit": Column(Quality((nothing,), {}))})
    (figure,) = read_unfinished(tmp_path, "key")["this edit"].quality.figures
    assert math.isnan(figure.estimate.value)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"key": "key"}', b'{"key": "key", "columns": {"a": {}}}', b"\xff"])
def test_what_is_damaged_is_nothing(tmp_path, damage):
    (tmp_path / UNFINISHED).write_bytes(damage)
    assert read_unfinished(tmp_path, "key") == {}
