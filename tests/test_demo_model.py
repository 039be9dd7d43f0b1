"""The whole way on the demo model: a real language model, real pictures, float32."""

import pytest
import torch

import mmneurons as mmn
from mmneurons.exactness import check_places, completeness_at
from mmneurons.finders import Contribution, Target
from mmneurons.vlm.sites import weight as weight_of

pytestmark = pytest.mark.demo

AGAINST = (None, "vocabulary", "distribution", "word")


@pytest.fixture(scope="module")
def findings(demo):
    return mmn.find(demo, [picture.path for picture in mmn.demo.pictures()[:6]])


def targets(found):
    """The first token of every word, against a token that means something else."""
    other = found.vlm.processor.tokenizer(" house")["input_ids"][0]
    return [Target(part.steps[0], part.token_ids[0], other) for part in found]


@pytest.mark.parametrize("against", AGAINST)
def test_completeness(demo, findings, against):
    checked = [(found.recording, target) for found in findings for target in targets(found)]
    assert len(checked) >= 6
    for recording, target in checked:
        complete = completeness_at(demo, recording, target, against)
        assert complete.error < 1e-4
        stream = recording.stream[target.step]
        with torch.no_grad():
            logits = demo.model.lm_head(demo.model.model.language_model.norm(stream)).double()
        if against is None:
            assert complete.expected == pytest.approx(float(logits[target.token]), abs=1e-3)
        if against == "distribution":
            expected = logits[target.token] - logits.softmax(-1) @ logits
            assert complete.expected == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("against", [None, "distribution"])
def test_a_hundred_neurons_of_every_block_taken_away_one_by_one(demo, findings, against):
    found = findings[0]
    target = targets(found)[0]
    (scores,) = Contribution(against)(demo, found.recording, [target])
    draw = torch.Generator().manual_seed(0)
    for block in range(len(demo.anatomy.blocks)):
        columns = torch.randperm(demo.anatomy.width, generator=draw)[:100].tolist()
        neurons = [(block, column) for column in columns]
        assert check_places(demo, found.recording, target, neurons, scores.values, against).error < 1e-4


def test_a_batch_is_the_same_as_one_by_one(demo, findings):
    for picture, together in zip(mmn.demo.pictures()[:3], findings, strict=False):
        alone = mmn.find(demo, picture.path)
        assert alone.caption == together.caption
        assert alone.recording.token_ids.tolist() == together.recording.token_ids.tolist()
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)


def test_teacher_forced_is_the_same_as_generated(demo, findings):
    for picture, generated in zip(mmn.demo.pictures()[:3], findings, strict=False):
        forced = mmn.find(demo, picture.path, caption=generated.caption)
        assert forced.recording.token_ids.tolist() == generated.recording.token_ids.tolist()
        assert forced.words == generated.words
        for one, other in zip(forced, generated, strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_find_edit_find_undo_find(demo):
    picture = mmn.demo.pictures()[0].path
    before = mmn.find(demo, picture)
    part = before.parts[0]
    block, column = part.neurons(1)[0]
    weight = weight_of(demo.model, demo.anatomy.blocks[block].sites[0])
    kept = weight[:, column].detach().clone()
    try:
        with torch.no_grad():
            weight[:, column] *= -1
        edited = mmn.find(demo, picture, caption=before.caption).parts[0]
    finally:
        with torch.no_grad():
            weight[:, column] = kept
    after = mmn.find(demo, picture)
    assert edited.scores[block, column] < 0 < part.scores[block, column]
    assert edited.log_probability < part.log_probability
    assert torch.equal(after.parts[0].scores, part.scores)


def test_the_words_of_the_bundled_pictures(demo, findings):
    """The model sees: most of what it names is there."""
    for found, picture in zip(findings, mmn.demo.pictures(), strict=False):
        assert found.caption.startswith("An image of ")
        assert found.picture.size == picture.size
    named = [(word in picture.objects) for f, picture in zip(findings, mmn.demo.pictures()) for word in f.words]
    assert sum(named) >= 0.5 * len(named) > 0
