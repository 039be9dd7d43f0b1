"""``mmn edit``, ``mmn apply`` and ``mmn export`` as people call them."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from helpers.command import mmn
from mmneurons.edits import Edit
from mmneurons.errors import EditError


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
    done = result.events[-1]
    assert done["converged"] is True
    assert 0 <= done["changed"] <= 0.1 * done["kept"]
    return path


@pytest.mark.demo
def test_an_edit_is_made_tried_and_shipped(edited, tmp_path):
    result = mmn("apply", edited, "demo:pictures", "--limit", 16, "--json")
    assert result.code == 0, result.out
    *captions, done = result.events
    changed = [(one["before"], one["after"]) for one in captions if one["before"] != one["after"]]
    assert changed
    assert done == {"event": "done", "changed": len(changed), "of": 16}
    assert captions[0]["picture"].startswith("demo:pictures/")
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
        (("--say", "dogs", "--instead-of", "dog"), "a form of it: there is nothing to change"),
        (("--say", " ", "--instead-of", "dog"), "to be said instead is empty"),
        (("--never-say", ""), "not to be said is empty"),
        (("--never-say", "dog", "--texts", "none.txt"), "'none.txt' cannot be read"),
        (("--never-say", "dog", "--method", "rome"), "There is no method 'rome'"),
        (("--never-say", "dog", "--option", "margin"), "Write --option NAME=VALUE"),
        (("--never-say", "dog", "--option", "depth=3"), "has no option depth"),
    ],
)
def test_requests_that_make_no_sense(place, arguments, says):
    result = mmn("edit", "photos", *arguments, "--out", "edit.safetensors")
    assert result.code == 1
    assert says in result.err.replace("\n", " ")
    assert not (place / "edit.safetensors").exists()


def test_prompts_of_a_file_are_learned_from(place, tiny_checkpoint, monkeypatch):
    given = {}
    monkeypatch.setattr("mmneurons.edits.make.edit", lambda *_, **more: given.update(more) or stop())
    (place / "texts.txt").write_text("Which animal barks?\n\n  Name a pet. \n")
    (place / "empty.txt").write_text("\n \n")
    own = ("edit", "photos", "--never-say", "dog", "--model", tiny_checkpoint, "--out", "e")
    assert mmn(*own, "--texts", "texts.txt").code == 1
    assert given["texts"] == ["Which animal barks?", "Name a pet."]
    assert "'empty.txt' holds nothing" in mmn(*own, "--texts", "empty.txt").err


def stop():
    raise EditError("Enough.")


def test_where_nothing_can_be_written_nothing_is_run(place):
    (place / "notes.txt").write_text("mine")
    result = mmn("edit", "photos", "--never-say", "dog", "--out", "notes.txt/edit.safetensors")
    assert result.code == 1
    assert "notes.txt' is no folder" in " ".join(result.err.split())
    # not a line of the model
    assert "VLM(" not in result.err
    assert (place / "notes.txt").read_text() == "mine"


def test_a_file_that_is_no_edit(place):
    (place / "broken.safetensors").write_bytes(b"nothing")
    result = mmn("apply", "broken.safetensors", "photos")
    assert result.code == 1
    assert "broken.safetensors" in result.err
    result = mmn("export", "broken.safetensors")
    assert result.code == 1
    assert "--peft FOLDER" in result.err


@pytest.fixture
def tried(place, tiny_checkpoint):
    """An edit of a tiny model that says "a dog and a ball" of everything, and what its making printed."""
    (place / "photos" / "broken.png").write_bytes(b"no picture")
    asked = ("edit", "photos", "--model", tiny_checkpoint, "--say", "cat", "--instead-of", "dog", "--no-bundled")
    return mmn(*asked, "--option", "margin=8", "--out", "edit.safetensors", "--json")


def test_a_picture_that_cannot_be_read_is_left_out(tried, place, tiny_checkpoint):
    skipped, done = tried.events
    assert (skipped["event"], skipped["picture"]) == ("skipped", "photos/broken.png")
    assert "not a picture" in skipped["message"]
    assert (done["event"], done["kept"], done["changed"]) == ("done", 0, 0)
    edit = Edit.load("edit.safetensors")
    assert (edit.recipe["method"], edit.recipe["options"]["margin"]) == ("least_squares", 8.0)
    result = mmn("apply", "edit.safetensors", "photos", "--model", tiny_checkpoint, "--json")
    *captions, done = [one for one in result.events if one["event"] != "skipped"]
    assert [one["picture"] for one in captions] == [f"photos/{index}.png" for index in range(7)]
    changed = sum(one["before"] != one["after"] for one in captions)
    assert done == {"event": "done", "changed": changed, "of": 7}
    # by default of the model that it was made of
    result = mmn("apply", "edit.safetensors", "photos", "--limit", 1)
    assert result.out.startswith("photos/0.png: An image of ")
    for picture in (place / "photos").glob("?.png"):
        picture.unlink()
    for arguments in (
        ("edit", "photos", "--never-say", "dog", "--out", "other"),
        ("apply", "edit.safetensors", "photos"),
    ):
        result = mmn(*arguments, "--model", tiny_checkpoint)
        assert result.code == 1
        assert "error: 'photos/broken.png' is not a picture" in result.err


def test_edits_that_share_neurons_are_said_to_once(tried, place, tiny_checkpoint):
    edit = Edit.load("edit.safetensors")
    for number in (2, 3):
        weights = [replace(delta, weights=delta.weights / number) for delta in edit.deltas]
        replace(edit, deltas=tuple(weights)).save(f"{number}.safetensors")
    also = ("--also", "2.safetensors", "--also", "3.safetensors")
    result = mmn("apply", "edit.safetensors", "photos", *also, "--limit", 1, "--model", tiny_checkpoint)
    assert result.err.count("add up") == 1
    assert f"The edits add up; {len(edit.neurons)} neurons are in more than one of them." in result.err
    twice = ("--also", "edit.safetensors", "--limit", 1, "--model", tiny_checkpoint)
    result = mmn("apply", "edit.safetensors", "photos", *twice)
    assert "Name every edit once." in result.err
    # not a line of the model
    assert "VLM(" not in result.err
    result = mmn("apply", "edit.safetensors", "photos", "--limit", 1, "--model", other_model(place, tiny_checkpoint))
    assert "pass --force to apply it" in result.err


def test_an_edit_of_another_shape_is_refused_before_captions(tried, place, tiny_checkpoint, monkeypatch):
    edit = Edit.load("edit.safetensors")
    wide = [replace(delta, directions=delta.directions.repeat(1, 2)) for delta in edit.deltas]
    replace(edit, deltas=tuple(wide)).save("wide.safetensors")
    monkeypatch.setattr("mmneurons.recordings.caption", lambda *_, **__: pytest.fail("captions were made"))
    result = mmn("apply", "wide.safetensors", "photos", "--force", "--model", tiny_checkpoint)
    assert result.code == 1
    assert "its vectors have" in result.err


def test_exports_that_cannot_be_written_are_refused_before_the_model_is_loaded(tried, place):
    (place / "notes.txt").write_text("mine")
    edit = Edit.load("edit.safetensors")
    replace(edit, deltas=(), banned=((5,),)).save("ban.safetensors")
    for arguments, says in (
        (("edit.safetensors", "--peft", "one", "--checkpoint", "./one"), "name one folder"),
        (("edit.safetensors", "--peft", "notes.txt/adapter"), "notes.txt' is no folder"),
        (("edit.safetensors", "--checkpoint", "."), "Choose the name of a new folder"),
        (("ban.safetensors", "--peft", "adapter"), "changes nothing in the weights"),
    ):
        result = mmn("export", *arguments, "--model", "no/model")
        assert result.code == 1
        assert says in " ".join(result.err.split())
    assert not (place / "one").exists()
    assert (place / "notes.txt").read_text() == "mine"


def other_model(place, checkpoint):
    """The same with one weight changed."""
    shutil.copytree(checkpoint, place / "other")
    (file,) = (place / "other").glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name] * 2
    save_file(tensors, file, {"format": "pt"})
    return place / "other"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--say", "cat", "--instead-of", "zebra"), "Name pictures whose captions say it."),
        (("--say", "cat", "--instead-of", "image"), "but in the prefix 'An image of'"),
        (
            ("--say", "", "--instead-of", "dog"),
            "error: The word that is to be said instead is empty. To have a word not said at all, use --never-say",
        ),
        (("--never-say", "dog", "--option", "margin=abc"), "margin='abc' is not possible: it has to be a number."),
        (("--never-say", "dog", "--option", "blocks=x"), "it has to be a whole number, or a list of such."),
        (("--never-say", "dog", "--option", "blocks=29"), "There is no block 29"),
        (("--never-say", "dog", "--method", "lora", "--option", "help=1"), "Its options are: rank=4, blocks=None,"),
        (("--never-say", "dog", "--limit", "0"), "--limit=0 is not possible"),
        (("--never-say", "dog", "--keep", "photos/1.png"), "Leave such pictures out of --keep;"),
    ],
)
def test_messages_name_the_options_of_the_command(place, tiny_checkpoint, arguments, says):
    few = () if "--limit" in arguments else ("--limit", 1)
    asked = ("--model", tiny_checkpoint, "--no-bundled", "--out", "edit.safetensors")
    result = mmn("edit", "photos", *arguments, *few, *asked)
    assert result.code == 1
    assert says in result.err.replace("\n", " ")
    for python in ("to=", "pictures=", "mmn.", "force="):
        assert python not in result.err


def test_stopped_by_hand_nothing_was_written(place, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmneurons.sources.gather", stop)
    result = mmn("edit", "photos", "--never-say", "dog", "--out", "edit.safetensors")
    assert (result.code, result.err) == (130, "Stopped. No edit was written.\n")
    assert mmn("edit", "photos", "--never-say", "dog", "--out", "e", "--json").events == [{"event": "stopped"}]
