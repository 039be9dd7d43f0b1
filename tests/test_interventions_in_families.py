"""What interventions do is what the same change of the weights, or a hook on the module, does; in every kind of FFN."""

import pytest
import torch

import mmneurons as mmn
from helpers.families import FAMILIES
from mmneurons.errors import AnatomyError, OptionError
from mmneurons.interventions import held_at, mean_activations, noise_changes, noisy, scaled, zeroed

NAMES = ("llava", "qwen3_vl_moe", "llama4", "aria")


class Studied:
    def __init__(self, name):
        case = FAMILIES[name]()
        self.model, self.inputs = case.model, case.inputs
        self.vlm = mmn.wrap(case.model, inputs=None if case.text else case.inputs)
        self.recording = self.record()
        alive = self.recording.activations.abs().sum(0)
        self.neurons = [
            (block, int(column)) for block in range(len(alive)) for column in alive[block].topk(4).indices.tolist()
        ]

    def record(self):
        return mmn.record(self.vlm, inputs=self.inputs, max_new_tokens=3)

    def forward(self):
        with torch.no_grad():
            return self.model(**self.inputs, use_cache=False).logits.float()

    def column(self, place):
        """A view of the weights that a neuron writes with."""
        site = self.vlm.anatomy.site(*place)
        weight = getattr(self.model.get_submodule(site.module), site.parameter)
        unit = place[1] - site.start
        if site.experts is None:
            return weight[:, unit]
        expert, inner = divmod(unit, site.experts.width)
        return weight[expert, inner] if site.experts.transposed else weight[expert, :, inner]


@pytest.fixture(scope="module", params=NAMES)
def studied(request):
    return Studied(request.param)


def edited(studied, change):
    """The logits while columns are what ``change`` makes of them."""
    with torch.no_grad():
        kept = [studied.column(place).clone() for place in studied.neurons]
        for index, place in enumerate(studied.neurons):
            studied.column(place).copy_(change(index, kept[index]))
        try:
            return studied.forward()
        finally:
            for place, own in zip(studied.neurons, kept):
                studied.column(place).copy_(own)


def close(measured, expected, plain):
    assert float((expected - plain).abs().max()) > 1e-3
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 0.5, -2.0])
def test_scaled_activations_are_scaled_columns(studied, factor):
    plain = studied.forward()
    with scaled(studied.vlm, studied.neurons, factor):
        measured = studied.forward()
    close(measured, edited(studied, lambda _, own: own * factor), plain)
    assert torch.equal(studied.forward(), plain)


def test_zeroed_is_scaled_by_nothing(studied):
    with zeroed(studied.vlm, studied.neurons):
        measured = studied.forward()
    with scaled(studied.vlm, studied.neurons, 0.0):
        assert torch.equal(studied.forward(), measured)


def test_noise_on_vectors_is_noise_on_columns(studied):
    drawn = noise_changes(studied.vlm, studied.neurons, sigma=2.0, seed=3)
    noise = {(change.block, int(column)): own for change in drawn for column, own in zip(change.columns, change.noise)}
    size = torch.stack([noise[place] for place in studied.neurons]).square().mean(1).sqrt()
    columns = torch.stack([studied.column(place).detach() for place in studied.neurons]).square().mean(1).sqrt()
    assert 1.5 < float((size / columns).mean()) < 2.5
    plain = studied.forward()
    with noisy(studied.vlm, studied.neurons, sigma=2.0, seed=3):
        measured = studied.forward()
    close(measured, edited(studied, lambda index, own: own + noise[studied.neurons[index]]), plain)
    with noisy(studied.vlm, studied.neurons, sigma=2.0, seed=4):
        assert not torch.allclose(studied.forward(), measured, atol=1e-3)
    assert torch.equal(studied.forward(), plain)


def test_noise_on_activations_scales_each_by_its_own_factor(studied):
    drawn = noise_changes(studied.vlm, studied.neurons, sigma=1.5, on="activation", seed=1)
    factors = {
        (change.block, int(column)): float(own)
        for change in drawn
        for column, own in zip(change.columns, change.factor)
    }
    assert len(set(factors.values())) == len(studied.neurons)
    plain = studied.forward()
    with noisy(studied.vlm, studied.neurons, sigma=1.5, on="activation", seed=1):
        measured = studied.forward()
    close(measured, edited(studied, lambda index, own: own * factors[studied.neurons[index]]), plain)


def test_held_at_a_value_writes_value_times_column(studied):
    """Taken away by the weights, and what is held is added to what the block's FFN gives."""
    values = torch.linspace(-1, 2, len(studied.neurons))
    plain = studied.forward()
    with held_at(studied.vlm, studied.neurons, values):
        measured = studied.forward()
        again = studied.record()
    handles = []
    for place, value in zip(studied.neurons, values):
        site = studied.vlm.anatomy.site(*place)
        added = float(value) * studied.column(place).detach().clone()

        def hook(_module, _args, output, added=added, site=site):
            output = output.clone()
            rows = output
            if site.experts is not None and site.experts.layout == "sorted":
                rows = output.view(site.experts.count, -1, output.shape[-1])[0]
            rows += added
            return output

        handles.append(studied.model.get_submodule(site.module).register_forward_hook(hook))
    expected = edited(studied, lambda _, own: torch.zeros_like(own))
    for handle in handles:
        handle.remove()
    close(measured, expected, plain)
    for place, value in zip(studied.neurons, values):
        torch.testing.assert_close(again.activations[:, *place], torch.full((3,), float(value)))


def test_recordings_see_what_was_changed(studied):
    with scaled(studied.vlm, studied.neurons, -1.5):
        measured = studied.record()
        forced = mmn.vlm.recording.record_forced(studied.vlm, studied.recording.request, measured.token_ids.tolist())
    first = min(block for block, _ in studied.neurons)
    for place in studied.neurons:
        if place[0] == first:
            expected = -1.5 * studied.recording.activations[0, *place]
            torch.testing.assert_close(measured.activations[0, *place], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(forced.activations, measured.activations, rtol=2e-3, atol=2e-3)
    # what was recorded adds up to the logit that was changed
    from mmneurons.exactness import completeness_at
    from mmneurons.finders import Target

    whole = completeness_at(studied.vlm, measured, Target(1, int(measured.token_ids[1])))
    assert whole.error < 1e-4


def test_blocks_may_be_nested(studied):
    with scaled(studied.vlm, studied.neurons, 3.0):
        with scaled(studied.vlm, studied.neurons[:5], 0.5), zeroed(studied.vlm, studied.neurons[:2]):
            measured = studied.forward()
            again = studied.record()
        inner = studied.forward()
    factors = [0.0] * 2 + [1.5] * 3 + [3.0] * (len(studied.neurons) - 5)
    plain = studied.forward()
    close(measured, edited(studied, lambda index, own: own * factors[index]), plain)
    close(inner, edited(studied, lambda _, own: own * 3.0), plain)
    assert float(again.activations[:, *studied.neurons[0]].abs().max()) == 0


def test_emitting_positions_of_a_given_caption_are_all_that_emit_it(studied):
    """Teacher-forced and generated are changed alike."""
    with zeroed(studied.vlm, studied.neurons, "emitting"):
        said = studied.record()
        forced = mmn.vlm.recording.record_forced(studied.vlm, studied.recording.request, said.token_ids.tolist())
    torch.testing.assert_close(forced.logits, said.logits, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(said.logits[0], studied.recording.logits[0], atol=1e-3)
    for place in studied.neurons:
        assert float(forced.activations[:, *place].abs().max()) == 0
        assert float(said.activations[:, *place].abs().max()) == 0


def test_an_exception_leaves_nothing_behind(studied):
    plain = studied.forward()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in studied.model.modules())
    with pytest.raises(KeyError), scaled(studied.vlm, studied.neurons, 2.0), zeroed(studied.vlm, studied.neurons):
        raise KeyError("inside")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in studied.model.modules()) == hooks
    assert torch.equal(studied.forward(), plain)
    again = studied.record()
    assert torch.equal(again.activations, studied.recording.activations)


def test_means_are_over_the_emitting_positions(studied):
    means = mean_activations(studied.vlm, [studied.recording, studied.recording], studied.neurons)
    for place, mean in zip(studied.neurons, means):
        assert float(mean) == pytest.approx(float(studied.recording.activations[:, *place].mean()), rel=1e-5, abs=1e-7)


def test_wrong_options_are_told():
    studied = Studied("llava")
    vlm, neurons = studied.vlm, studied.neurons
    for refused in (
        scaled(vlm, neurons, float("nan")),
        noisy(vlm, neurons, sigma=float("inf")),
        noisy(vlm, neurons, seed=-1),
        held_at(vlm, neurons, torch.zeros(2)),
        held_at(vlm, [neurons[0]] * 2, torch.zeros(2)),
    ):
        with pytest.raises(OptionError), refused:
            pass
    with pytest.raises(OptionError):
        mean_activations(vlm, [], neurons)
    for places in ([(0, 10**6)], [(99, 0)]):
        for make in (lambda own: zeroed(vlm, own), lambda own: scaled(vlm, own, 0.5), lambda own: noisy(vlm, own)):
            with pytest.raises(AnatomyError), make(places):
                pass


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_experts_whose_weights_are_elsewhere_are_held_likewise(name):
    from accelerate import cpu_offload

    here, away = Studied(name), Studied(name)
    cpu_offload(away.model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(away.forward(), here.forward(), rtol=1e-5, atol=1e-5)
    with zeroed(here.vlm, here.neurons), zeroed(away.vlm, here.neurons):
        expected = here.forward()
        torch.testing.assert_close(away.forward(), expected, rtol=1e-4, atol=1e-4)
    assert float((expected - here.forward()).abs().max()) > 1e-2
    again = mmn.record(away.vlm, inputs=away.inputs, max_new_tokens=3)
    torch.testing.assert_close(again.activations, here.recording.activations, rtol=1e-4, atol=1e-5)
