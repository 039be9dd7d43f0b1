"""``mmn edit``, ``mmn apply`` and ``mmn export`` as people call them."""

import pytest

from helpers.command import mmn


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """An edit of the demo model."""
    path = tmp_path_factory.mktemp("edit") / "dog-to-cat.safetensors"
    few = ("--limit", 16, "--keep", "demo:pictures")
    result = mmn("edit", "demo:pictures", "--say", "cat", "--instead-of", "dog", *few, "--out", path, "--json")
    # the bundled pictures hold the word, so they cannot all be kept
    assert result.code == 1
    assert "must stay as it is says 'dog'" in result.events[-1]["message"]
    result = mmn("edit", "demo:pictures", "--say", "cat", "--instead-of", "dog", "--limit", 16, "--out", path, "--json")
    assert result.code == 0, result.out
    assert result.events[-1]["converged"] is True
    return path


@pytest.mark.demo
def test_an_edit_is_made_tried_and_shipped(edited, tmp_path):
    result = mmn("apply", edited, "demo:pictures", "--limit", 16, "--json")
    assert result.code == 0, result.out
    changed = [(one["before"], one["after"]) for one in result.events if one["before"] != one["after"]]
    assert changed
    assert all(new == old.replace("dog", "cat") for old, new in changed)
    result = mmn("export", edited, "--peft", tmp_path / "adapter")
    assert result.code == 0, result.err
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    again = mmn("edit", "demo:pictures", "--never-say", "dog", "--out", edited)
    assert again.code == 1
    assert "is there already" in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--say cat --instead-of dog, or --never-say dog"),
        (("--say", "cat"), "--say cat --instead-of dog, or --never-say dog"),
        (("--say", "cat", "--instead-of", "dog", "--never-say", "bird"), "Say what is to change"),
        (("--never-say", "dog", "--method", "rome"), "There is no method 'rome'"),
        (("--never-say", "dog", "--option", "margin"), "Write NAME=VALUE"),
        (("--never-say", "dog", "--option", "depth=3"), "has no option depth"),
    ],
)
def test_requests_that_make_no_sense(place, arguments, says):
    result = mmn("edit", "photos", *arguments, "--out", "edit.safetensors")
    assert result.code == 1
    assert says in result.err.replace("\n", " ")
    assert not (place / "edit.safetensors").exists()


def test_a_file_that_is_no_edit(place):
    (place / "broken.safetensors").write_bytes(b"nothing")
    result = mmn("apply", "broken.safetensors", "photos")
    assert result.code == 1
    assert "broken.safetensors" in result.err
    result = mmn("export", "broken.safetensors")
    assert result.code == 1
    assert "--peft FOLDER" in result.err
