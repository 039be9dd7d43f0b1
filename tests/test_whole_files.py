"""Whether something can be written is known before the work."""

from pathlib import Path

import pytest

from mmneurons.whole_files import why_unwritable


@pytest.mark.parametrize("place", ["", "new", "new/folder/edit.safetensors"])
def test_what_can_be_made_can_be_made_and_is_not(tmp_path, place):
    assert why_unwritable(tmp_path / place) == ""
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("place", ["file", "file/out", "file/further/out"])
def test_a_file_is_no_folder(tmp_path, place):
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / place) == f"{str(tmp_path / 'file')!r} is no folder"


def test_a_relative_place_is_looked_at_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert why_unwritable(Path("out/edit.safetensors")) == ""
    assert "is no folder" in why_unwritable(Path("file/out"))


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where not even root may write")
def test_a_folder_that_takes_no_file():
    assert why_unwritable(Path("/proc/self/out")).startswith("nothing can be written into '/proc/self': ")
