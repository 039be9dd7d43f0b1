"""The diagnosis of a model: what it says agrees with the model, and what is wrong with a model makes it say so."""

import json
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GraniteConfig, PhiConfig

import mmneurons as mmn
from helpers import tiny
from helpers.speaking import make_it_say
from mmneurons import diagnosis
from mmneurons.diagnosis import diagnose
from mmneurons.errors import AnatomyError, NounPipelineMissingError, PictureError, RecordingError
from mmneurons.finders import Contribution
from mmneurons.vlm.sites import weight
from test_anatomy import SMALL, llava_over


def remark(found, what):
    (one,) = [each for each in found.remarks if each.what == what]
    return one


def text(found):
    """All lines as one, so that what was wrapped is found."""
    return " ".join(" ".join(found.lines()).split())


@pytest.fixture
def own():
    """A tiny LLaVA that a test may break."""
    return mmn.wrap(*tiny.tiny_llava())


def test_a_family_that_is_in_order(vlm, picture):
    found = diagnose(vlm, picture)
    assert found.ok
    assert [check.bound for check in found.checks] == [1e-4] * 4
    assert all(check.error is not None and check.error < 1e-5 for check in found.checks)
    assert found.model.parameters == sum(weight.numel() for weight in vlm.model.parameters())
    assert (found.model.kind, found.model.dtype) == (type(vlm.model).__name__, "float32")
    assert found.model.devices == ("cpu",)
    assert not found.model.tied
    assert found.anatomy == vlm.anatomy
    for what in ("scores of neurons", "pictures, captions and words", "heatmaps", "activation='gate'"):
        assert remark(found, what).works in ("yes", "partly")


def test_the_sample_is_what_the_model_is_given(vlm, picture):
    sample = diagnose(vlm, picture).sample
    recording = mmn.record(vlm, picture)
    ids = recording.inputs["input_ids"][0].tolist()
    places = [place for place, token in enumerate(ids) if token == vlm.image_token_id]
    assert (sample.first, sample.last, sample.image_tokens) == (places[0], places[-1], len(places))
    assert sample.prompt_tokens == len(ids)
    assert sample.caption == recording.caption
    assert sample.size == picture.size
    assert sample.token == vlm.processor.tokenizer.decode([int(recording.token_ids[sample.step])])
    start, end = recording.spans[sample.step]
    assert sum(letter.isalpha() for letter in recording.caption[start:end]) >= 3


def test_what_of_the_picture_is_seen_is_measured(llava, pictures):
    """The tiny LLaVA crops the middle square: of 120 rows and 60 columns one half is seen, of 56 by 56 all."""
    every = [diagnose(llava, picture) for picture in pictures]
    for picture, found in zip(pictures, every, strict=True):
        width, height = picture.size
        side = min(width, height)
        (part,) = found.sample.grids
        assert (part.rows, part.columns) == (4, 4)
        expected = ((1 - side / width) / 2, (1 - side / height) / 2, (1 + side / width) / 2, (1 + side / height) / 2)
        assert part.part == pytest.approx(expected, abs=0.02)
        assert found.sample.seen == pytest.approx(side * side / (width * height), abs=0.03)
    assert remark(every[1], "heatmaps").works == "yes"
    cropped = remark(every[2], "heatmaps")
    assert cropped.works == "partly"
    assert re.search(r"see (4[89]|5[012])% of the test picture", cropped.because)


def test_tiles_are_grids(picture):
    found = diagnose(mmn.wrap(*tiny.tiny_llava_next()), picture)
    assert len(found.sample.grids) == 2
    first = found.sample.grids[0]
    assert f"{first.rows} × {first.columns} over the whole picture" in text(found)


def test_a_bundled_picture_is_the_default(llava):
    found = diagnose(llava)
    assert found.sample.picture.endswith("(bundled)")
    assert found.sample.caption == mmn.caption(llava, mmn.demo.pictures()[0])


def test_gains_that_are_not_one_are_shown():
    found = diagnose(mmn.wrap(llava_over(GraniteConfig(**SMALL, residual_multiplier=0.22))))
    assert found.ok
    described = "L0–L1 mlp.down_proj, 48 neurons, gain 0.22; gate mlp.act_fn; also writes: self_attn.o_proj gain 0.22"
    assert described in text(found)
    assert [block["sites"][0]["path"]["gain"] for block in found.to_dict()["blocks"]] == pytest.approx(
        [0.22, 0.22], abs=1e-5
    )


def test_without_a_processor_text_is_tested_and_pictures_are_refused(picture):
    vlm = mmn.wrap(llava_over(GraniteConfig(**SMALL)))
    found = diagnose(vlm)
    assert found.ok
    assert all(check.error is not None for check in found.checks)
    assert (found.sample.picture, found.sample.image_tokens, found.sample.prompt_tokens) == (None, 0, 8)
    missing = remark(found, "pictures, captions and words")
    assert (missing.works, missing.because) == ("no", "the model was wrapped without a processor")
    assert remark(found, "heatmaps").works == "no"
    with pytest.raises(RecordingError, match="without a processor"):
        diagnose(vlm, picture)


def test_ffns_without_a_gate_are_named():
    found = diagnose(mmn.wrap(llava_over(PhiConfig(**dict(SMALL, num_key_value_heads=4)))))
    assert found.ok
    assert remark(found, "activation='gate'").works == "no"
    assert "2 of 2 FFNs" in remark(found, "activation='gate'").because
    assert "layer, eps" in text(found)


def test_blocks_that_differ_are_not_shown_as_one():
    model, processor = tiny.tiny_llava()
    model.model.language_model.layers[1].register_forward_hook(lambda module, args, output: output * 0.5)
    found = diagnose(mmn.wrap(model, processor))
    assert found.ok
    assert "L0–L1 mlp.down_proj, 112 neurons, gain 0.5" in text(found)
    assert "L2 mlp.down_proj, 112 neurons, gain 1" in text(found)
    assert "entry gain 0.5" in text(found)


def break_the_stream(vlm):
    vlm.model.model.language_model.layers[1].register_forward_hook(lambda module, args, output: output * 0.5)


def break_a_write_site(vlm):
    site = vlm.model.get_submodule(vlm.anatomy.blocks[1].sites[0].module)
    site.register_forward_hook(lambda module, args, output: output * 1.01)


def break_a_weight(vlm):
    with torch.no_grad():
        weight(vlm.model, vlm.anatomy.blocks[1].sites[0])[3, 5] = float("nan")


@pytest.mark.parametrize("breaking", [break_the_stream, break_a_write_site, break_a_weight])
def test_a_model_that_was_broken_after_loading_is_not_ok(own, picture, breaking):
    assert diagnose(own, picture).ok
    breaking(own)
    found = diagnose(own, picture)
    assert not found.ok
    assert not any(check.passed for check in found.checks)
    assert remark(found, "scores of neurons").works == "no"
    assert sum(line.startswith("  FAILED") for line in found.lines()) == 4
    json.dumps(found.to_dict(), allow_nan=False)


def test_errors_that_are_no_numbers_are_named(own, picture):
    break_a_weight(own)
    found = diagnose(own, picture)
    assert {check.error for check in found.checks} == {None}
    assert "the error is no number" in text(found)


def test_scores_of_other_neurons_are_noticed(llava, picture, monkeypatch):
    """Permuted neurons add up to the same logit: it is the one-FFN check that sees them."""
    score = Contribution.many

    def permuted(self, vlm, work):
        return [[replace(one, values=one.values.flip(1)) for one in own] for own in score(self, vlm, work)]

    monkeypatch.setattr(Contribution, "many", permuted)
    found = diagnose(llava, picture)
    assert [check.passed for check in found.checks] == [True, True, True, False]
    assert not found.ok
    assert found.checks[3].error > 1e-2


def test_every_block_is_checked_with_neurons_that_the_seed_draws(llava, picture, monkeypatch):
    drawn = []
    check = diagnosis.check_neurons

    def watched(word, places):
        drawn.append(places)
        return check(word, places)

    monkeypatch.setattr(diagnosis, "check_neurons", watched)
    steps = [diagnose(llava, picture, seed).sample.step for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {block for block, _ in drawn[0]} == set(range(len(llava.anatomy.blocks)))
    word = mmn.find(llava, picture, words=[], against=None).at(steps[0])
    for block in range(len(llava.anatomy.blocks)):
        assert (block, int(word.scores[block].abs().argmax())) in drawn[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounding_and_no_failure(picture, dtype):
    model, processor = tiny.tiny_llava()
    vlm = mmn.wrap(model.to(dtype), processor)
    found = diagnose(vlm, picture)
    assert found.ok
    assert any(check.error > 1e-4 for check in found.checks)
    assert {check.bound for check in found.checks} == {0.25}
    name = str(dtype).removeprefix("torch.")
    assert name in remark(found, "exact scores").because
    assert f"{name} on cpu" in text(found)
    break_the_stream(vlm)
    assert not diagnose(vlm, picture).ok


def test_a_family_whose_image_tokens_cannot_be_measured_has_no_heatmaps(llava, picture, monkeypatch):
    from mmneurons.vlm import families

    def fail(*_):
        raise AnatomyError("Nobody knows.")

    monkeypatch.setattr(families, "FAMILIES", {})
    monkeypatch.setattr("mmneurons.vlm.measured_layout.supports", fail)
    monkeypatch.setattr("mmneurons.vlm.geometry._found", OrderedDict())
    found = diagnose(llava, picture)
    assert found.ok
    assert found.sample.grids == ()
    assert "'llava'" in found.sample.no_heatmap
    assert remark(found, "heatmaps").works == "no"
    assert "no map: How models of type 'llava' lay out" in text(found)


def test_activations_over_the_budget_are_named(llava, picture, monkeypatch):
    monkeypatch.setattr("mmneurons.recordings.IMAGE_BUDGET", 1)
    found = remark(diagnose(llava, picture), "heatmaps")
    assert found.works == "partly"
    assert "one more prefill" in found.because


def test_a_missing_noun_pipeline_is_named_with_what_to_install(llava, picture, monkeypatch):
    monkeypatch.setattr("mmneurons.nouns._pipeline", _refusing)
    found = diagnose(llava, picture)
    assert found.ok
    nouns = remark(found, "nouns of captions")
    assert nouns.works == "no"
    assert nouns.because.endswith("none is installed")
    assert "spacy download" in nouns.do


def _refusing():
    raise NounPipelineMissingError(
        "Nouns are found by a pipeline, and none is installed. Install one: `spacy download`."
    )


def test_an_accelerator_that_is_not_used_is_named(llava, picture, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    unused = remark(diagnose(llava, picture), "speed")
    assert "cuda" in unused.because
    assert "device_map" in unused.do
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert not [one for one in diagnose(llava, picture).remarks if one.what == "speed"]


@pytest.mark.parametrize(
    ("settings", "what", "said"),
    [
        ({"do_sample": True, "temperature": 0.7}, "the checkpoint's own way to generate", "it samples by default"),
        ({"num_beams": 4}, "the checkpoint's own way to generate", "searches with 4 beams"),
        ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}, "what is said", "repetition_penalty, no_repeat"),
        ({"use_cache": False}, "recording while generating", "recorded by a second forward"),
        ({"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}, "recording while generating", "second forward"),
        ({"eos_token_id": None}, "the end of captions", "names no token that ends"),
    ],
)
def test_what_the_checkpoint_asks_of_generate(own, picture, settings, what, said):
    config = own.model.generation_config
    config.suppress_tokens = None
    assert not [one for one in diagnose(own, picture).remarks if one.what in (what,) and "second" in one.because]
    for name, value in settings.items():
        setattr(config, name, value)
    found = diagnose(own, picture)
    assert found.ok
    assert said in remark(found, what).because
    assert remark(found, what).works == "partly"
    assert remark(found, what).do


def test_a_caption_that_does_not_end_is_named(own, picture):
    own.model.generation_config.suppress_tokens = [
        *own.model.generation_config.suppress_tokens,
        own.model.generation_config.eos_token_id,
    ]
    found = diagnose(own, picture)
    assert not found.sample.ended
    assert "did not end within 50 tokens" in remark(found, "the end of captions").because


def test_a_caption_that_ends_is_not_named(own, picture):
    make_it_say(own, "An image of a dog and a ball.")
    found = diagnose(own, picture)
    assert found.sample.ended
    assert (found.sample.caption, found.sample.token.strip()) == ("An image of a dog and a ball.", "dog")
    assert not [one for one in found.remarks if one.what == "the end of captions"]


def test_a_processor_without_a_chat_template_is_named(own, picture):
    own.processor.chat_template = None
    assert remark(diagnose(own, picture), "the prompt").works == "partly"


def test_what_cannot_be_recorded_is_a_failed_check(own, picture, monkeypatch):
    def refuse(*_args, **_options):
        raise RecordingError("The hooks were passed by.")

    monkeypatch.setattr(diagnosis, "find", refuse)
    found = diagnose(own, picture)
    assert not found.ok
    assert found.sample is None
    assert "FAILED a caption is recorded (The hooks were passed by.)" in text(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_picture_that_cannot_be_read_is_the_users_mistake(llava, tmp_path):
    with pytest.raises(PictureError):
        diagnose(llava, tmp_path / "none.png")


def test_lines_fit_and_hide_nothing(own):
    own.model.name_or_path = "x" * 130 + "\x1b[31m\n" + "y"
    vlm = mmn.wrap(own.model, own.processor)
    found = diagnose(vlm, np.zeros((40, 60, 3), dtype=np.uint8))
    lines = found.lines()
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert "an array of shape (40, 60, 3), 60 × 40 pixels" in text(found)
    for heading in ("Are scores exact?", "What works?"):
        assert heading in lines


def test_to_dict_is_json_that_says_the_same(vlm, picture):
    found = diagnose(vlm, picture)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["ok"] is True
    assert data["model"]["parameters"] == found.model.parameters
    assert [block["sites"][0]["module"] for block in data["blocks"]] == [
        block.sites[0].module for block in vlm.anatomy.blocks
    ]
    assert data["norm"]["eps"] == vlm.anatomy.norm.eps
    assert [check["error"] for check in data["checks"]] == [check.error for check in found.checks]
    assert {remark["works"] for remark in data["remarks"]} <= {"yes", "partly", "no"}
    assert data["sample"]["first"] == found.sample.first
    assert set(data["seconds"]) == {"caption", "completeness", "neurons", "image tokens"}
    assert data["versions"]["torch"] == torch.__version__
    # the command passes them on as keyword arguments beside the text
    assert "text" not in data


def hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_diagnosing_changes_nothing(own, picture):
    # transformers leaves hooks of its own in the vision tower
    mmn.caption(own, picture)
    hooked = hooks(own.model)
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    diagnose(own, picture)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    assert hooks(own.model) == hooked


@pytest.mark.demo
def test_the_demo_model_is_in_order(demo):
    found = diagnose(demo)
    assert found.ok
    assert found.model.tied
    assert "L0–L29 mlp.down_proj, 1,536 neurons, gain 1" in text(found)
    assert "7 × 7 over the whole picture" in text(found)
