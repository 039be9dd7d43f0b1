from dataclasses import replace

import pytest
import torch
from transformers import GraniteConfig, PhiConfig

import mmneurons as mmn
from helpers import tiny
from mmneurons.errors import OptionError
from mmneurons.exactness import check_places, completeness_at
from mmneurons.finders import Activation, Contribution, Random, Target, make_finder
from mmneurons.vlm.readout import readout
from test_anatomy import SMALL, llava_over

AGAINST = (None, "vocabulary", "distribution", "word")


@pytest.fixture(scope="module")
def recorded(vlm, picture):
    return vlm, mmn.record(vlm, picture, max_new_tokens=6, gates=True)


def target(recording, step=3, other=17):
    return Target(step, int(recording.token_ids[step]), other)


def logits_of(vlm, stream):
    """The model's own final norm and head."""
    with torch.no_grad():
        normed = vlm.model.get_submodule(vlm.anatomy.norm.module)(stream[None, None])
        return vlm.model.get_submodule(vlm.anatomy.head.module)(normed)[0, 0].double()


def left_hand_side(vlm, recording, target, against):
    """From the model's own logits, with no direction formed."""
    logits = logits_of(vlm, recording.stream[target.step])
    own = logits[target.token]
    if against is None:
        return own
    if against == "word":
        return own - logits[target.other]
    if against == "distribution":
        return own - logits.softmax(-1) @ logits
    tokenizer = vlm.processor.tokenizer
    ordinary = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids and i != vlm.image_token_id]
    return own - logits[ordinary].mean()


@pytest.mark.parametrize("against", AGAINST)
def test_completeness(recorded, against):
    vlm, recording = recorded
    for step in range(len(recording)):
        checked = target(recording, step)
        complete = completeness_at(vlm, recording, checked, against)
        expected = float(left_hand_side(vlm, recording, checked, against))
        assert complete.expected == pytest.approx(expected, abs=2e-5 * max(1, abs(expected)))
        assert complete.error < 1e-5
        (scores,) = Contribution(against)(vlm, recording, [checked])
        assert complete.neurons == pytest.approx(float(scores.values.double().sum()), abs=1e-4)
        assert scores.total == pytest.approx(expected, abs=2e-5 * max(1, abs(expected)))


@pytest.mark.parametrize("against", AGAINST)
def test_a_neuron_taken_away_takes_its_contribution_along(recorded, against):
    vlm, recording = recorded
    checked = target(recording)
    (scores,) = Contribution(against)(vlm, recording, [checked])
    for block in range(3):
        columns = torch.randperm(112, generator=torch.Generator().manual_seed(block))[:40].tolist()
        check = check_places(vlm, recording, checked, [(block, c) for c in columns], scores.values, against)
        assert check.error < 1e-5
        assert check.measured.abs().max() > 1e-3


def test_the_checks_see_wrong_scores(recorded):
    """Neurons in another order add up just as well; taken away one by one they do not."""
    vlm, recording = recorded
    checked = target(recording)
    (scores,) = Contribution(None)(vlm, recording, [checked])
    neurons = [(1, column) for column in range(112)]
    permuted = scores.values.flip(1)
    assert check_places(vlm, recording, checked, neurons, permuted, None).error > 1e-3


def test_autograd_gives_the_same(recorded):
    """The derivative of the frozen readout with respect to each activation, times the activation."""
    vlm, recording = recorded
    checked = target(recording)
    stream = recording.stream[checked.step].double()
    norm = vlm.model.model.language_model.norm
    statistic = (stream.square().mean() + norm.variance_epsilon).rsqrt()
    unembedding = vlm.model.lm_head.weight.detach().double()
    for block, layer in enumerate(vlm.model.model.language_model.layers):
        z = recording.activations[checked.step, block].double().requires_grad_()
        written = layer.mlp.down_proj.weight.detach().double() @ z
        logit = unembedding[checked.token] @ ((stream + written) * statistic * norm.weight.detach().double())
        (slope,) = torch.autograd.grad(logit, z)
        (scores,) = Contribution(None)(vlm, recording, [checked])
        torch.testing.assert_close(scores.values[block].double(), (slope * z).detach(), rtol=1e-4, atol=1e-6)


def test_the_papers_form_is_the_papers_formula(recorded):
    vlm, recording = recorded
    checked = target(recording)
    (scores,) = Contribution(against=None, norm=None, activation="gate")(vlm, recording, [checked])
    u = vlm.model.lm_head.weight[checked.token].detach()
    for block, layer in enumerate(vlm.model.model.language_model.layers):
        for unit in (0, 50, 111):
            expected = recording.gates[checked.step, block, unit] * (layer.mlp.down_proj.weight[:, unit].detach() @ u)
            assert float(scores.values[block, unit]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert scores.total is None
    assert "gate" in scores.note


def test_distribution_is_the_first_order_change_of_log_probability(recorded):
    """Finite differences of log p with the norm frozen."""
    vlm, recording = recorded
    checked = target(recording)
    (scores,) = Contribution("distribution")(vlm, recording, [checked])
    head = readout(vlm)
    stream = recording.stream[checked.step].double()
    statistic = head.statistic(stream[None])
    unembedding = vlm.model.lm_head.weight.detach().double()

    def log_probability(h):
        return (unembedding @ (h * statistic[0] * head.gain.double())).log_softmax(-1)[checked.token]

    block, unit = divmod(int(scores.values.abs().argmax()), vlm.anatomy.width)
    weight = vlm.model.model.language_model.layers[block].mlp.down_proj.weight[:, unit].detach().double()
    written = recording.activations[checked.step, block, unit].double() * weight
    step = 1e-4
    slope = (log_probability(stream + step * written) - log_probability(stream - step * written)) / (2 * step)
    assert float(scores.values[block, unit]) == pytest.approx(float(slope), rel=1e-4)


def test_against_the_distribution_where_the_model_is_certain(picture):
    """With p so near to 1 that float32 cannot tell, against the same in float64."""
    vlm = mmn.wrap(*tiny.tiny_llava())
    with torch.no_grad():
        vlm.model.lm_head.weight *= 40
    recording = mmn.record(vlm, picture, max_new_tokens=6)
    step = int(recording.log_probabilities.argmax())
    checked = Target(step, int(recording.token_ids[step]))
    (scores,) = Contribution("distribution")(vlm, recording, [checked])
    head, unembedding = readout(vlm), vlm.model.lm_head.weight.detach().double()
    normed = head.normalize(recording.stream[step][None]).double()[0]
    p = (unembedding @ normed).softmax(-1)
    assert 1e-14 < 1 - p[checked.token] < 1e-8
    direction = (p[:, None] * (unembedding[checked.token] - unembedding)).sum(0)
    pulled = direction * head.gain.double() * head.statistic(recording.stream[step][None])
    for index, layer in enumerate(vlm.model.model.language_model.layers):
        expected = recording.activations[step, index].double() * (pulled @ layer.mlp.down_proj.weight.detach().double())
        torch.testing.assert_close(
            scores.values[index].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )


@pytest.mark.parametrize(
    "config",
    [GraniteConfig(**SMALL, residual_multiplier=0.22), PhiConfig(**dict(SMALL, num_key_value_heads=4))],
    ids=["residual multiplier", "layer norm, biases, parallel block"],
)
@pytest.mark.parametrize("against", AGAINST)
def test_other_language_models_are_exact_too(config, against):
    vlm = mmn.wrap(llava_over(config))
    ids = torch.tensor([[1, 5, 9, *[3] * 4, 7, 8]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    recording = mmn.record(vlm, inputs={"input_ids": ids, "pixel_values": pixels}, max_new_tokens=4)
    checked = target(recording, step=2)
    complete = completeness_at(vlm, recording, checked, against)
    assert complete.error < 1e-5
    logits = logits_of(vlm, recording.stream[2])
    if against is None:
        assert complete.expected == pytest.approx(float(logits[checked.token]), rel=1e-4)
    (scores,) = Contribution(against)(vlm, recording, [checked])
    neurons = [(0, column) for column in range(vlm.anatomy.blocks[0].width)]
    assert check_places(vlm, recording, checked, neurons, scores.values, against).error < 1e-5


def test_finding_after_an_edit_by_hand_and_its_undoing(picture):
    """Also through ``.data``, which no version counter sees."""
    model, processor = tiny.tiny_llava()
    vlm = mmn.wrap(model, processor)
    caption = "An image of a dog."
    weight = model.model.language_model.layers[2].mlp.down_proj.weight

    def scores():
        return mmn.find(vlm, picture, caption=caption)["dog"].scores

    before = scores()
    column = weight[:, 9].detach().clone()
    weight.data[:, 9] *= -3
    edited = scores()
    weight.data[:, 9] = column
    after = scores()
    assert torch.equal(before, after)
    # the last block's other neurons act through the norm's statistics alone, this one through its column, too
    others = torch.arange(112) != 9
    ratio = (edited[2] / before[2])[others]
    assert edited[2, 9] / before[2, 9] < 0
    assert ratio.median() > 0


def test_half_precision_scores_are_close_to_full(picture):
    full = mmn.wrap(*tiny.tiny_llava())
    model, processor = tiny.tiny_llava()
    half = mmn.wrap(model.bfloat16(), processor)
    caption = "An image of a dog."
    one, other = (mmn.find(v, picture, caption=caption)["dog"].scores for v in (full, half))
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert correlation > 0.99
    recording = mmn.record(half, picture, caption=caption)
    assert completeness_at(half, recording, target(recording, 1), None).error < 0.05


@pytest.mark.parametrize("against", AGAINST)
def test_several_recordings_at_once_are_one_by_one(vlm, pictures, against):
    recordings = mmn.record(vlm, pictures, max_new_tokens=5)
    steps = ([3, 0], [], [1])
    work = [(own, [target(own, step) for step in some]) for own, some in zip(recordings, steps, strict=True)]
    finder = Contribution(against)
    for together, (own, targets) in zip(finder.many(vlm, work), work, strict=True):
        alone = finder(vlm, own, targets)
        assert len(together) == len(alone) == len(targets)
        for one, other, checked in zip(together, alone, targets, strict=True):
            torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-5)
            assert one.total == pytest.approx(other.total, rel=1e-4, abs=1e-5)
            assert torch.equal(one.activations, own.activations[checked.step])


def test_baselines(recorded):
    vlm, recording = recorded
    checked = target(recording)
    (active,) = Activation()(vlm, recording, [checked])
    assert torch.equal(active.values, recording.activations[3].abs())
    another = replace(checked, step=checked.step - 1)
    one, two = Random(seed=1)(vlm, recording, [checked, another])
    (again,) = Random(seed=1)(vlm, recording, [checked])
    (other,) = Random(seed=2)(vlm, recording, [checked])
    brighter = {**recording.inputs, "pixel_values": recording.inputs["pixel_values"] + 1}
    elsewhere = replace(recording, request=replace(recording.request, inputs=brighter))
    (of_another_picture,) = Random(seed=1)(vlm, elsewhere, [checked])
    assert not torch.equal(one.values, of_another_picture.values)
    assert torch.equal(one.values, again.values)
    assert not torch.equal(one.values, two.values)
    assert not torch.equal(one.values, other.values)


def test_options_that_cannot_be(recorded):
    vlm, recording = recorded
    with pytest.raises(
        OptionError, match=r"no finder 'contributions'\. Did you mean 'contribution'\? There are: 'cont"
    ):
        make_finder("contributions", {})
    with pytest.raises(OptionError, match="Its options are: against='distribution', norm='frozen', activation="):
        make_finder("contribution", {"agains": None})
    for bad in ({"norm": "rms"}, {"activation": "up"}, {"against": "mean"}):
        with pytest.raises(OptionError, match="Choose one of"):
            Contribution(**bad)
    with pytest.raises(OptionError, match="other token"):
        Contribution("word")(vlm, recording, [Target(0, 5)])
    assert Contribution()(vlm, recording, []) == []


def test_an_ffn_without_a_gate_has_no_gate_alone():
    vlm = mmn.wrap(llava_over(PhiConfig(**dict(SMALL, num_key_value_heads=4))))
    recording = mmn.record(vlm, inputs={"input_ids": torch.tensor([[1, 5, 9]])}, max_new_tokens=2, gates=True)
    assert recording.gates is None
    with pytest.raises(OptionError, match="gated"):
        Contribution(activation="gate")(vlm, recording, [target(recording, 0)])


def test_the_checks_of_a_word(vlm, picture):
    """The same as of its token, with the reference that its scores have."""
    word = mmn.find(vlm, picture, caption="An image of a dog.", against="vocabulary")["dog"]
    recording, (checked,) = word.found.recording, word.targets
    assert mmn.completeness(word) == completeness_at(vlm, recording, checked, "vocabulary")
    neurons = word.neurons(30)
    assert len({block for block, _ in neurons}) > 1
    check = mmn.check_neurons(word, neurons)
    assert check.error < 1e-5
    assert check.claimed.tolist() == [float(word.scores[place]) for place in neurons]

    both = mmn.find(vlm, picture, caption="An image of a hot dog.", token="sum", against=None)["hot dog"]
    each = [completeness_at(vlm, both.found.recording, target) for target in both.targets]
    assert len(each) > 1
    assert mmn.completeness(both).expected == pytest.approx(sum(one.expected for one in each))
    assert mmn.completeness(both).error < 1e-5


def test_what_cannot_be_checked_is_refused(llava, picture):
    def dog(**options):
        return mmn.find(llava, picture, caption="An image of a hot dog.", words=["hot dog"], **options)["hot dog"]

    for options in ({"norm": None}, {"activation": "gate"}, {"finder": "activation"}):
        with pytest.raises(OptionError, match="Only contributions"):
            mmn.check_neurons(dog(**options), [(0, 0)])
    with pytest.raises(OptionError, match="several tokens"):
        mmn.check_neurons(dog(token="sum"), [(0, 0)])
    with pytest.raises(OptionError, match="no neurons"):
        mmn.check_neurons(dog(), [])


def test_gates_that_were_not_kept_are_asked_for(llava, picture):
    recording = mmn.record(llava, picture, max_new_tokens=2)
    with pytest.raises(OptionError, match="gates=True"):
        Contribution(activation="gate")(llava, recording, [target(recording, 0)])


def test_the_gate_is_shown_where_it_was_scored(llava, picture):
    word = mmn.find(llava, picture, caption="An image of a dog.", norm=None, activation="gate", against=None)["dog"]
    gates = word.found.recording.gates[word.steps[0]]
    assert torch.equal(word.activations, gates)
    assert "shares of u·h" not in word.note


def test_a_misspelt_reference_is_no_word(llava, picture):
    for misspelt in ("vocab", "Vocabulary", "distributon", "vocabularies"):
        with pytest.raises(OptionError, match="misspelt"):
            mmn.find(llava, picture, caption="An image of a dog.", against=misspelt)
    word = mmn.find(llava, picture, caption="An image of a dog.", words=["dog"], against="cat")["dog"]
    assert word.note == "against 'cat'"
    with pytest.raises(OptionError, match="cannot be contrasted with a word"):
        word.found.at(0)


def test_neurons_of_all_blocks_are_checked_together_in_as_many_rows_as_there_is_room_for(recorded, monkeypatch):
    vlm, recording = recorded
    word = mmn.find(vlm, inputs=recording.inputs, max_new_tokens=4, against=None).at(2)
    places = [(block, column) for column in (3, 50) for block in range(len(vlm.anatomy.blocks))]
    at_once = mmn.check_neurons(word, places)
    monkeypatch.setattr("mmneurons.vlm.replay.MOST", 3)
    in_parts = mmn.check_neurons(word, places)
    torch.testing.assert_close(at_once.measured, in_parts.measured, rtol=1e-3, atol=1e-6)
    assert torch.equal(at_once.claimed, torch.stack([word.scores[place] for place in places]))
    assert at_once.error < 1e-5
