"""Every family that is claimed, on a tiny random model: what is said of it holds there, measured in other ways."""

import pytest
import torch

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.errors import OptionError, RecordingError
from mmneurons.exactness import check_places, completeness_at
from mmneurons.finders import Contribution, Target, Total
from mmneurons.finders.objective import log_probability
from mmneurons.interventions import zeroed
from mmneurons.vlm.decoding import family_of
from mmneurons.vlm.derivatives import caption_derivatives
from mmneurons.vlm.inputs import check_inputs
from mmneurons.vlm.recording import record_forced, record_generation
from mmneurons.vlm.upper import Added, Said, upper

pytestmark = pytest.mark.families

STEPS = 5
NEURONS = 4
"""Of every block and site."""


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    made = FAMILIES[request.param]()
    with torch.no_grad():
        made.model.generate(**made.inputs, max_new_tokens=2)
    # some families set up hooks of their own when they first run
    made.hooks = hooks(made.model)
    return made, mmn.wrap(made.model, inputs=None if made.text else made.inputs)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module")
def recording(case):
    made, vlm = case
    return mmn.record(vlm, inputs=made.inputs, max_new_tokens=STEPS)


def test_what_is_recorded_is_what_generate_gives(case, recording):
    made, vlm = case
    with torch.no_grad():
        plain = made.model.generate(
            **made.inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    silenced = recording.token_ids.tolist()
    logits = torch.stack([step[0] for step in plain.logits]).float()
    same = plain.sequences[0, -len(plain.logits) :].tolist() == silenced
    if same:
        assert torch.equal(recording.logits, logits)
    else:  # a placeholder is never said
        assert vlm.image_token_id in plain.sequences[0].tolist()
    assert len(recording) == STEPS


@pytest.mark.parametrize("against", [None, "vocabulary", "distribution"])
def test_shares_add_up_to_the_logit(case, recording, against):
    _, vlm = case
    for step, token in enumerate(recording.token_ids.tolist()):
        assert completeness_at(vlm, recording, Target(step, token), against).error < 1e-4
        assert completeness_at(vlm, recording, Target(step, 17), against).error < 1e-4


def test_scores_are_what_the_logit_loses_without_a_neuron(case, recording):
    _, vlm = case
    target = Target(2, int(recording.token_ids[2]))
    (scores,) = Contribution(against=None)(vlm, recording, [target])
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(vlm.anatomy.blocks):
        drawn = []
        for site in block.sites:
            alive = recording.activations[2, index, site.columns].nonzero().flatten()
            assert len(alive) >= NEURONS
            drawn += (site.start + alive[torch.randperm(len(alive), generator=generator)[:NEURONS]]).tolist()
        check = check_places(vlm, recording, target, [(index, column) for column in drawn], scores.values)
        assert check.error < 1e-4
        assert (check.measured - check.claimed).abs().max() < 0.02 * check.measured.abs().max()


def test_a_forward_without_a_cache_sees_the_same(case, recording):
    _, vlm = case
    forced = record_forced(vlm, recording.request, recording.token_ids.tolist())
    for name in ("activations", "logits", "entry", "writes", "statistics", "factors", "stream"):
        one, other = getattr(recording, name), getattr(forced, name)
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3 * float(one.abs().max()) if one.numel() else 1)


def test_nothing_is_left_behind(case, recording):
    made, vlm = case
    again = mmn.record(vlm, inputs=made.inputs, max_new_tokens=STEPS)
    assert torch.equal(again.logits, recording.logits)
    assert hooks(made.model) == made.hooks
    assert all(weight.grad is None for weight in made.model.parameters())
    assert torch.is_grad_enabled()


def test_a_batch_gives_what_single_pictures_give(case, recording):
    made, vlm = case
    shorter = dict(made.inputs)
    if "input_ids" in shorter:
        length = shorter["input_ids"].shape[1]
        for name, value in shorter.items():
            if value.dim() >= 2 and value.shape[1] == length and name != "pixel_values":
                shorter[name] = value[:, :-1]
    requests = [check_inputs(vlm, inputs) for inputs in (shorter, made.inputs)]
    alone, _ = (record_generation(vlm, [request], STEPS)[0] for request in requests)
    for one, other in zip(record_generation(vlm, requests, STEPS), (alone, recording), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("activations", "logits", "entry", "writes", "stream"):
            seen, expected = getattr(one, name), getattr(other, name)
            torch.testing.assert_close(seen, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
        if one.image_activations is not None:
            torch.testing.assert_close(one.image_activations, other.image_activations, rtol=2e-3, atol=2e-3)


def test_a_static_cache_gives_the_same(case, recording):
    made, vlm = case
    try:
        made.model.generate(**made.inputs, max_new_tokens=2, cache_implementation="static", disable_compile=True)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError, IndexError) as error:
        pytest.skip(f"the family itself does not run with a static cache: {error}")
    static = mmn.record(vlm, inputs=made.inputs, max_new_tokens=STEPS, generation={"cache_implementation": "static"})
    assert static.token_ids.tolist() == recording.token_ids.tolist()
    torch.testing.assert_close(static.activations, recording.activations, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(static.logits, recording.logits, rtol=2e-3, atol=2e-3)


def test_beams_are_recorded_by_what_they_said(case):
    made, vlm = case
    try:
        with torch.no_grad():
            plain = made.model.generate(**made.inputs, max_new_tokens=4, num_beams=3, do_sample=False)
    except ValueError as error:
        pytest.skip(f"the family itself does not run with beams: {error}")
    beams = mmn.record(vlm, inputs=made.inputs, max_new_tokens=4, generation={"num_beams": 3})
    said = plain[0].tolist()
    if vlm.image_token_id not in said[-4:]:
        assert beams.token_ids.tolist() == said[-len(beams) :]
    token = int(beams.token_ids[1])
    assert completeness_at(vlm, beams, Target(1, token)).error < 1e-4


def test_image_tokens_are_shuffled_behind_the_projector(case, recording):
    """What the decoder gets at image positions is the same in another order, and afterwards all is as before."""
    from mmneurons.vlm.decoding import image_positions

    made, vlm = case
    if made.pictures < 2:
        with pytest.raises((OptionError, RecordingError)):
            mmn.record(vlm, inputs=made.inputs, max_new_tokens=2, shuffle_image_tokens=3)
        return
    said = recording.token_ids.tolist()
    shuffled = mmn.record(vlm, inputs=made.inputs, max_new_tokens=2, shuffle_image_tokens=3)
    assert not torch.equal(shuffled.logits[0], recording.logits[0])
    assert len(shuffled.image_positions) == 0
    places = image_positions(vlm, recording.inputs)
    if len(places) and family_of(vlm).projector is None:
        before, after = (_entries(vlm, recording, seed) for seed in (None, 3))
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(3))
        assert torch.equal(after[places], before[places][order])
        rest = [place for place in range(len(before)) if place not in places.tolist()]
        assert torch.equal(after[rest], before[rest])
    assert mmn.record(vlm, inputs=made.inputs, max_new_tokens=STEPS).token_ids.tolist() == said


def _entries(vlm, recording, seed):
    """What enters block 0 at every position of the prompt."""
    from contextlib import nullcontext

    from mmneurons.vlm.hooks import evaluating, listening
    from mmneurons.vlm.shuffling import shuffled_image_tokens

    heard = []
    shuffling = nullcontext() if seed is None else shuffled_image_tokens(vlm, recording.inputs, seed)
    with evaluating(vlm.model), shuffling, listening(vlm.model, {vlm.anatomy.blocks[0].module: heard.append}):
        vlm.model(**recording.inputs, use_cache=False)
    return heard[0][0].clone()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_measured_and_adds_up_to_its_rounding(case, dtype):
    made, _ = case
    name = next(name for name, build in FAMILIES.items() if build is made.build)
    half = FAMILIES[name]()
    inputs = {key: one.to(dtype) if one.is_floating_point() else one for key, one in half.inputs.items()}
    vlm = mmn.wrap(half.model.to(dtype), inputs=None if half.text else inputs)
    assert vlm.dtype == dtype
    recording = mmn.record(vlm, inputs=inputs, max_new_tokens=2)
    target = Target(1, int(recording.token_ids[1]))
    assert completeness_at(vlm, recording, target).error < 0.05
    (scores,) = Contribution()(vlm, recording, [target])
    assert torch.isfinite(scores.values).all()


@pytest.mark.parametrize("positions", ["all", "emitting"])
def test_neurons_taken_away_in_a_batch_are_taken_away_in_every_row(case, recording, positions):
    """What a module is given may be rows and positions as one, or every token for every expert."""
    made, vlm = case
    alive = recording.activations[0].abs()
    neurons = [divmod(int(index), alive.shape[1]) for index in alive.flatten().topk(6).indices]
    request = check_inputs(vlm, made.inputs)
    with zeroed(vlm, neurons, positions):
        (alone,) = record_generation(vlm, [request], 2)
        both = record_generation(vlm, [request, request], 2)
    assert not torch.allclose(alone.logits[0], recording.logits[0], atol=1e-4)
    for one in both:
        torch.testing.assert_close(one.logits[0], alone.logits[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("step", [0, 2])
def test_derivatives_against_the_cache_are_those_of_the_whole_sequence(case, recording, step):
    """And so is what each neuron does, to first order; experts that were not chosen do nothing.

    What lies before the last step serves the others, too, but for the first one, which a prompt's other tokens may see.
    """
    _, vlm = case
    # not the likeliest token: where p is 1 every derivative of log p is 0
    token = int(recording.logits[step].topk(2).indices[1])
    objective = log_probability(Target(step, token))
    last = Target(4, int(recording.token_ids[4]))
    total, _ = Total()(vlm, recording, [Target(step, token), last])
    ((z, slopes),) = caption_derivatives(vlm, recording, [step], [objective], torch.tensor([-1]))
    expected = (z * slopes)[:, 0]
    size = float(expected.abs().max())
    assert size > 1e-7
    torch.testing.assert_close(total.values, expected, rtol=5e-3, atol=5e-3 * size)
    unrouted = recording.activations[step] == 0
    assert float(total.values[unrouted].abs().sum()) == 0
    assert hooks(vlm.model) == case[0].hooks


def _weights_with(vlm, added):
    """A state dict's changed tensors, W[:, i] + δ by hand."""
    changed = {}
    for own in added:
        for site in vlm.anatomy.blocks[own.block].sites:
            module = vlm.model.get_submodule(site.module)
            weight = module.get_parameter(site.parameter).detach().clone()
            for column, vector in zip(own.columns.tolist(), own.vectors.detach(), strict=True):
                unit = column - site.start
                if not 0 <= unit < site.width:
                    continue
                if site.experts is None and site.transposed:
                    weight[unit] += vector
                elif site.experts is None:
                    weight[:, unit] += vector
                else:
                    expert, place = divmod(unit, site.experts.width)
                    if site.experts.transposed:
                        weight[expert, place] += vector
                    else:
                        weight[expert, :, place] += vector
            changed[f"{site.module}.{site.parameter}"] = weight
    return changed


def test_the_upper_part_gives_what_the_whole_model_gives(case, recording):
    made, vlm = case
    lowest = len(vlm.anatomy.blocks) - 2
    ids = tuple(recording.token_ids.tolist())
    said = [Said(recording.request, ids, (0, 3)), Said(recording.request, ids[:4], (2,))]
    above = upper(vlm, said, lowest)
    plain = recording.logits[[0, 3, 2]]
    scale = float(plain[plain > -1e30].abs().max())
    torch.testing.assert_close(above.logits().cpu(), plain, rtol=1e-3, atol=1e-4 * scale)
    generator = torch.Generator().manual_seed(1)
    added = []
    for block in (lowest, lowest + 1):
        width = vlm.anatomy.blocks[block].width
        columns = torch.randperm(width, generator=generator)[:12].sort().values
        vectors = torch.randn(len(columns), vlm.anatomy.hidden, generator=generator).requires_grad_()
        added.append(Added(block, columns, vectors))
    seen = above.logits(added)
    weights = _weights_with(vlm, added)
    kept = {name: vlm.model.get_parameter(name).detach().clone() for name in weights}
    chosen = (torch.arange(3), torch.tensor([17, 23, 29]))
    slopes = torch.autograd.grad(seen[chosen].sum(), [own.vectors for own in added])
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                vlm.model.get_parameter(name).copy_(weight)
        again = record_forced(vlm, recording.request, ids).logits
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                vlm.model.get_parameter(name).copy_(weight)
    expected = again[[0, 3, 2]]
    assert (expected - plain)[plain > -1e30].abs().max() > 1e-3 * scale
    torch.testing.assert_close(seen.detach().cpu(), expected, rtol=1e-3, atol=1e-4 * scale)
    # along a line the derivative is what the whole model's logits change by
    ways = [torch.randn(own.vectors.shape, generator=generator) for own in added]
    step = 1e-2
    ends = []
    for sign in (1, -1):
        moved = [
            Added(own.block, own.columns, own.vectors.detach() + sign * step * way)
            for own, way in zip(added, ways, strict=True)
        ]
        ends.append(float(above.logits(moved)[chosen].double().sum()))
    claimed = sum(float((slope * way).sum()) for slope, way in zip(slopes, ways, strict=True))
    measured = (ends[0] - ends[1]) / (2 * step)
    assert claimed == pytest.approx(measured, rel=0.03, abs=2e-3 * scale)
    assert all(weight.grad is None for weight in made.model.parameters())
    assert hooks(made.model) == made.hooks
    assert not any("forward" in module.__dict__ for module in made.model.modules())


WHOLE: frozenset[str] = frozenset()
"""Families of which nothing can be left out."""


def test_what_lies_below_is_not_run_again(case, recording, request):
    made, vlm = case
    lowest = len(vlm.anatomy.blocks) - 1
    ids = tuple(recording.token_ids.tolist())
    above = upper(vlm, [Said(recording.request, ids, (1,))], lowest)
    ran: list[str] = []
    sites = {site.module for block in vlm.anatomy.blocks for site in block.sites}
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in made.model.named_modules()
        if name in sites
    ]
    try:
        above.logits()
    finally:
        for handle in handles:
            handle.remove()
    own = {site.module for site in vlm.anatomy.blocks[lowest].sites}
    assert above.whole == (request.node.callspec.params["case"] in WHOLE)
    assert above.whole or set(ran) == own
