"""Every finder gives what it says, by another way to get it: autograd over the whole sequence, finite differences, sums
by hand. No cache and no hook of the library is used on that side."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import mmneurons as mmn
from helpers.families import FAMILIES
from helpers.speaking import SAID, make_it_say
from helpers.tiny import tiny_llava
from mmneurons.errors import OptionError
from mmneurons.finders import (
    FINDERS,
    Ablation,
    ActivationTimesUnembedding,
    Gradient,
    GradientTimesActivation,
    Greedy,
    IntegratedGradients,
    LogProbabilityIncrease,
    Target,
    Total,
)
from mmneurons.vlm.decoding import forced_inputs

NAMES = ("llava", "paligemma/gemma2", "gemma3", "qwen3_vl_moe", "llama4", "florence2")
DENSE = ("llava", "paligemma/gemma2", "gemma3", "florence2")
STEP = 2


@dataclass
class Studied:
    name: str
    vlm: mmn.VLM
    recording: mmn.Recording

    @property
    def target(self) -> Target:
        return Target(STEP, int(self.recording.token_ids[STEP]))

    @property
    def model(self) -> torch.nn.Module:
        return self.vlm.model

    def sites(self) -> list[tuple[int, str, slice]]:
        """Block, module and columns of every write site."""
        return [(i, s.module, s.columns) for i, b in enumerate(self.vlm.anatomy.blocks) for s in b.sites]

    def logits(self, before: dict[str, Callable] | None = None, after: dict[str, Callable] | None = None):
        """Of the step, from the whole sequence, with hooks of torch on modules."""
        inputs = forced_inputs(self.vlm, self.recording.inputs, self.recording.token_ids[: STEP + 1].tolist())
        handles = [self.model.get_submodule(n).register_forward_pre_hook(h) for n, h in (before or {}).items()]
        handles += [self.model.get_submodule(n).register_forward_hook(h) for n, h in (after or {}).items()]
        try:
            return self.model(**inputs, use_cache=False).logits[0, -1].float()
        finally:
            for handle in handles:
                handle.remove()

    def log_p(self, **hooks) -> torch.Tensor:
        return self.logits(**hooks).log_softmax(-1)[self.target.token]


def study(name: str) -> Studied:
    """A tiny model that is not sure of what it says: where p is 1, every derivative of it is 0."""
    case = FAMILIES[name]()
    inputs = None if case.text else case.inputs
    vlm = mmn.wrap(case.model, inputs=inputs)
    logits = mmn.record(vlm, inputs=case.inputs, max_new_tokens=4).logits[STEP]
    spread = float((logits.max() - logits[logits > -1e30].mean()) / 4)
    last = vlm.anatomy.norm or vlm.anatomy.carriers[-1]
    weight = case.model.get_submodule(last.module).weight
    with torch.no_grad():
        weight.copy_((weight + last.offset) / max(1.0, spread) - last.offset)
    if hasattr(case.model, "set_experts_implementation"):
        case.model.set_experts_implementation("eager")
    vlm = mmn.wrap(case.model, inputs=inputs)
    return Studied(name, vlm, mmn.record(vlm, inputs=case.inputs, max_new_tokens=4))


@pytest.fixture(scope="module", params=NAMES)
def studied(request):
    return study(request.param)


@pytest.fixture(scope="module", params=DENSE)
def dense(request):
    return study(request.param)


@contextmanager
def weights_constant(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    yield
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def dense_derivatives(of: Studied, objective, zero=(), position=-1, scale=None):
    """(z, dz): of every neuron, by autograd over the whole sequence; a leaf is added to what write sites are given."""
    shape = of.recording.activations.shape[1:]
    given, leaves = torch.zeros(shape), {}

    def hook(block, columns):
        def add(_module, args):
            z = args[0]
            leaf = leaves.setdefault((block, columns.start), torch.zeros(z.shape[-1], requires_grad=True))
            place = torch.zeros((*z.shape[:-1], 1))
            place.view(-1)[position] = 1
            kept = torch.ones(z.shape[-1])
            kept[[column - columns.start for b, column in zero if b == block and column >= columns.start]] = 0
            changed = torch.where(place > 0, z * kept * (scale or {}).get(block, 1.0), z)
            given[block, columns] = changed.reshape(-1, z.shape[-1])[position].detach()
            return (changed + place * leaf,)

        return add

    with weights_constant(of.model):
        logits = of.logits({module: hook(block, columns) for block, module, columns in of.sites()})
        places = list(leaves)
        found = torch.autograd.grad(objective(logits), [leaves[place] for place in places])
    slopes = torch.zeros(shape)
    for (block, start), own in zip(places, found):
        slopes[block, start : start + len(own)] = own
    return given, slopes


def left_hand_side(of: Studied, against):
    """As a function of logits; written apart from the library's."""
    token = of.target.token
    cap = of.vlm.anatomy.head.softcap

    def raw(logits):
        return logits if cap is None else cap * torch.atanh(logits / cap)

    from mmneurons.vlm.readout import readout

    ordinary = readout(of.vlm).ordinary
    return {
        None: lambda logits: raw(logits)[token],
        "vocabulary": lambda logits: raw(logits)[token] - raw(logits)[ordinary].mean(),
        "distribution": lambda logits: logits.log_softmax(-1)[token],
    }[against]


@pytest.mark.parametrize("against", [None, "vocabulary", "distribution"])
def test_total_is_the_full_backward_pass(dense, against):
    (scores,) = Total(against)(dense.vlm, dense.recording, [dense.target])
    z, slopes = dense_derivatives(dense, left_hand_side(dense, against))
    torch.testing.assert_close(scores.activations, z, rtol=1e-3, atol=1e-4)
    bound = 2e-3 * float((z * slopes).abs().max())
    assert bound > 1e-6
    torch.testing.assert_close(scores.values, z * slopes, rtol=2e-3, atol=bound)


def some_neurons(of: Studied, values: torch.Tensor, count: int = 6) -> list[tuple[int, int]]:
    """The largest of every block that has any."""
    places = []
    for block in range(len(values)):
        for column in values[block].abs().topk(count).indices.tolist():
            if values[block, column] != 0:
                places.append((block, column))
    return places


def pushed(of: Studied, place: tuple[int, int], amount: float, position: int = -1) -> dict[str, Callable]:
    """Hooks that add so much of a neuron's column to what its write site gives at one position."""
    site = of.vlm.anatomy.site(*place)
    module = of.model.get_submodule(site.module)
    unit = place[1] - site.start
    if site.experts is None:
        column = module.weight.detach()[:, unit]
    else:
        expert, inner = divmod(unit, site.experts.width)
        weight = getattr(module, site.parameter).detach()[expert]
        column = weight[inner] if site.experts.transposed else weight[:, inner]

    def hook(_module, _args, output):
        output = output.clone()
        tokens = output.view(-1, output.shape[-1])
        if site.experts is not None and site.experts.layout == "sorted":
            tokens = output.view(site.experts.count, -1, output.shape[-1])[0]
        tokens[position] += amount * column
        return output

    return {site.module: hook}


def test_total_and_gradient_are_finite_differences_in_mixtures_of_experts():
    for name in ("qwen3_vl_moe", "llama4"):
        of = study(name)
        (total,) = Total()(of.vlm, of.recording, [of.target])
        (gradient,) = Gradient()(of.vlm, of.recording, [of.target])
        places = some_neurons(of, total.values)
        assert len(places) >= 10
        with torch.no_grad():
            for place in places:
                up, down = (float(of.log_p(after=pushed(of, place, step))) for step in (0.01, -0.01))
                slope = (up - down) / 0.02
                assert float(gradient.values[place]) == pytest.approx(abs(slope), rel=2e-2, abs=1e-4)
                z = float(of.recording.activations[STEP][place])
                assert float(total.values[place]) == pytest.approx(z * slope, rel=2e-2, abs=1e-4)
        unrouted = of.recording.activations[STEP] == 0
        assert bool((total.values[unrouted] == 0).all())
        assert bool((gradient.values[unrouted] == 0).all())


def test_gradient_is_the_size_of_the_derivative(dense):
    (scores,) = Gradient()(dense.vlm, dense.recording, [dense.target])
    _, slopes = dense_derivatives(dense, left_hand_side(dense, "distribution"))
    torch.testing.assert_close(scores.values, slopes.abs(), rtol=2e-3, atol=2e-3 * float(slopes.abs().max()))


def test_several_words_are_scored_as_each_is_alone(studied):
    """One prefix serves all of them, cut to the length of each."""
    tokens = studied.recording.token_ids.tolist()
    targets = [Target(step, token) for step, token in enumerate(tokens)]
    together = Total()(studied.vlm, studied.recording, targets)
    for target, own in zip(targets, together):
        (alone,) = Total()(studied.vlm, studied.recording, [target])
        torch.testing.assert_close(own.values, alone.values, rtol=1e-3, atol=1e-3 * float(alone.values.abs().max()))


@pytest.mark.parametrize(
    ("by", "against"), [("total", "distribution"), ("total", "vocabulary"), ("contribution", "distribution")]
)
def test_greedy_takes_the_best_handful_of_what_is_left(by, against):
    of = study("llava")
    greedy = Greedy(k=7, handful=3, choose_by=by, against=against)
    (scores,) = greedy(of.vlm, of.recording, [of.target])
    chosen: list[tuple[int, int]] = []
    for size in (3, 3, 1):
        if by == "total":
            z, slopes = dense_derivatives(of, left_hand_side(of, against), zero=chosen)
            values = z * slopes
        else:
            values = contributions_by_hand(of, chosen)
        for place in chosen:
            values[place] = -torch.inf
        width = values.shape[1]
        best = [divmod(int(index), width) for index in values.flatten().topk(size).indices]
        for place in best:
            assert float(scores.values[place]) == pytest.approx(float(values[place]), rel=1e-2, abs=1e-5)
        chosen += best
    assert list(scores.order) == chosen
    assert scores.best(5, [width] * len(values)) == chosen[:5]


def test_what_stands_behind_a_set_is_marked():
    vlm = mmn.wrap(*tiny_llava())
    make_it_say(vlm, SAID)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    word = mmn.find(vlm, picture, words=["dog"], finder="greedy", k=4, handful=2)["dog"]
    alone = mmn.find(vlm, picture, words=["dog"], finder="total", against="vocabulary")["dog"]
    table = word.top(7)
    # the first handful is chosen with every neuron in place
    assert [row.neuron for row in table.rows[:2]] == [row.neuron for row in alone.top(2)]
    assert [row.outside for row in table] == [False] * 4 + [True] * 3
    assert "the first 4 are the set, the 3 behind them are not of it" in table.note
    lines = str(table).splitlines()
    assert [line.strip().startswith("(") for line in lines[2:9]] == [False] * 4 + [True] * 3
    assert not any(row.outside for row in word.top(4))
    assert "are not of it" not in word.top(4).note
    assert [row.neuron for row in word.top(3)] == [row.neuron for row in table.rows[:3]]
    assert not any(row.outside for row in alone.top(7))


def contributions_by_hand(of: Studied, zero) -> torch.Tensor:
    """Of a plain Llama, against its own distribution, without some neurons at the step's position."""
    given, kept = torch.zeros(of.recording.activations.shape[1:]), {}

    def hook(block, columns):
        def drop(_module, args):
            z = args[0].clone()
            z[:, -1, [column for b, column in zero if b == block]] = 0
            given[block] = z[0, -1]
            return (z,)

        return drop

    norm = of.model.model.language_model.norm
    handle = norm.register_forward_pre_hook(lambda _module, args: kept.update(stream=args[0][0, -1]))
    with torch.no_grad():
        logits = of.logits({module: hook(block, columns) for block, module, columns in of.sites()})
        handle.remove()
        head = of.model.lm_head.weight
        direction = head[of.target.token] - logits.softmax(-1) @ head
        scale = (kept["stream"].square().mean() + norm.variance_epsilon).rsqrt()
        pulled = direction * norm.weight * scale
        columns = torch.stack([layer.mlp.down_proj.weight for layer in of.model.model.language_model.layers])
        return given * torch.einsum("bhw,h->bw", columns, pulled)


def test_gradient_times_activation_is_the_maximum_over_image_tokens():
    for name in ("llava", "gemma3"):
        of = study(name)
        (scores,) = GradientTimesActivation()(of.vlm, of.recording, [of.target])
        products = []
        for position in of.recording.image_positions.tolist():
            z, slopes = dense_derivatives(of, left_hand_side(of, None), position=position)
            products.append(z * slopes)
        expected = torch.stack(products).amax(0)
        torch.testing.assert_close(scores.values, expected, rtol=5e-3, atol=2e-3 * float(expected.abs().max()))


def test_gradient_times_activation_in_a_mixture_is_a_finite_difference():
    of = study("qwen3_vl_moe")
    (scores,) = GradientTimesActivation()(of.vlm, of.recording, [of.target])
    from mmneurons.vlm.recording import image_activations

    places = some_neurons(of, scores.values, 2)
    assert len(places) >= 4
    z = image_activations(of.vlm, of.recording, places)
    with torch.no_grad():
        for place, own in zip(places, z):
            products = []
            for position, active in zip(of.recording.image_positions.tolist(), own.tolist()):
                up, down = (
                    float(of.logits(after=pushed(of, place, step, position))[of.target.token]) for step in (0.02, -0.02)
                )
                products.append(active * (up - down) / 0.04)
            assert float(scores.values[place]) == pytest.approx(max(products), rel=2e-2, abs=1e-5)


def test_integrated_gradients_sum_the_slopes_along_the_way(dense):
    (scores,) = IntegratedGradients(steps=4)(dense.vlm, dense.recording, [dense.target])
    token, whole = dense.target.token, dense.recording.activations[STEP]
    for block in range(len(whole)):
        slopes = torch.zeros(whole.shape[1])
        for step in range(1, 5):
            _, own = dense_derivatives(dense, lambda logits: logits.softmax(-1)[token], scale={block: step / 4})
            slopes += own[block]
        expected = whole[block] / 4 * slopes
        torch.testing.assert_close(scores.values[block], expected, rtol=5e-3, atol=3e-3 * float(expected.abs().max()))


def test_integrated_gradients_are_mean_slopes_along_the_way_in_every_family(studied):
    """Those of a block add up to the mean derivative by what the block's activations are scaled with."""
    (scores,) = IntegratedGradients(steps=2)(studied.vlm, studied.recording, [studied.target])
    token = studied.target.token
    largest = 0.0
    with torch.no_grad():
        for block, anatomy in enumerate(studied.vlm.anatomy.blocks):

            def p(factor, sites=anatomy.sites):
                hooks = {site.module: silenced(studied, site, factor) for site in sites}
                return float(studied.logits(after=hooks).double().softmax(-1)[token])

            slopes = [(p(factor + 0.01) - p(factor - 0.01)) / 0.02 for factor in (0.5, 1.0)]
            largest = max(largest, abs(sum(slopes)))
            assert float(scores.values[block].sum()) == pytest.approx(sum(slopes) / 2, rel=0.03, abs=2e-4)
    # a norm behind the FFN takes the scale away
    normed = studied.name in ("gemma3", "paligemma/gemma2")
    assert (largest > 1e-2) != normed
    assert ("a norm behind the FFN" in scores.note) == normed


@pytest.mark.parametrize("name", ["llava", "llama4"])
def test_integrated_gradients_add_up_to_what_the_block_does(name):
    """The fundamental theorem of calculus, where no norm and no router makes the way jump."""
    studied = study(name)
    (scores,) = IntegratedGradients(steps=200)(studied.vlm, studied.recording, [studied.target])
    largest = 0.0
    with torch.no_grad():
        p = float(studied.log_p().exp())
        for block, anatomy in enumerate(studied.vlm.anatomy.blocks):
            hooks = {}
            for site in anatomy.sites:
                hooks[site.module] = silenced(studied, site)
            without = float(studied.log_p(after=hooks).exp())
            assert float(scores.values[block].sum()) == pytest.approx(p - without, rel=0.03, abs=2e-5)
            largest = max(largest, abs(p - without))
    assert largest > 1e-4


def silenced(of: Studied, site, factor: float = 0.0) -> Callable:
    """What the neurons of a site write at the last position is multiplied; its bias stays."""
    bias = getattr(of.model.get_submodule(site.module), "bias", None)

    def hook(_module, _args, output):
        output = output.clone()
        if site.experts is not None and site.experts.layout == "sorted":
            output.view(site.experts.count, -1, output.shape[-1])[:, -1] *= factor
        else:
            own = 0 if bias is None or site.experts else bias.detach()
            last = output.view(-1, output.shape[-1])
            last[-1] = own + factor * (last[-1] - own)
        return output

    return hook


def test_log_probability_increase_is_that_of_the_stream_at_the_block():
    of = study("llava")
    (scores,) = LogProbabilityIncrease(candidates=None)(of.vlm, of.recording, [of.target])
    (few,) = LogProbabilityIncrease(candidates=5)(of.vlm, of.recording, [of.target])
    assert "exact;" in scores.note
    assert "exact for the 5 largest, the rest to first order" in few.note
    layers, streams, final = of.model.model.language_model.layers, {}, {}
    handles = [
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _module, args, index=index: streams.update({index: args[0][0, -1]})
        )
        for index, layer in enumerate(layers)
    ]
    norm = of.model.model.language_model.norm
    handles.append(norm.register_forward_pre_hook(lambda _module, args: final.update(h=args[0][0, -1])))
    with torch.no_grad():
        of.logits()
        for handle in handles:
            handle.remove()
        scale = (final["h"].square().mean() + norm.variance_epsilon).rsqrt()

        def log_p(h):
            return (of.model.lm_head.weight @ (h * scale * norm.weight)).log_softmax(-1)[of.target.token]

        for place in some_neurons(of, scores.values, 10):
            block, column = place
            z = of.recording.activations[STEP][place]
            h = streams[block]
            increase = log_p(h + z * layers[block].mlp.down_proj.weight[:, column]) - log_p(h)
            assert float(scores.values[place]) == pytest.approx(float(increase), rel=1e-3, abs=2e-6)
    first = torch.zeros_like(few.values)
    for block, layer in enumerate(layers):
        leaf = streams[block].clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_p(leaf), leaf)
        first[block] = of.recording.activations[STEP, block] * (slope @ layer.mlp.down_proj.weight.detach())
    best = first.flatten().topk(5).indices
    expected = first.flatten().clone()
    expected[best] = scores.values.flatten()[best]
    torch.testing.assert_close(few.values.flatten(), expected, rtol=1e-3, atol=2e-6)


def test_the_stream_as_it_grows_ends_in_the_logits(studied):
    from mmneurons.finders.log_probability_increase import _Reader
    from mmneurons.vlm.readout import readout

    reader = _Reader(studied.vlm, readout(studied.vlm), studied.recording, studied.target)
    last = len(studied.vlm.anatomy.blocks) - 1
    z = studied.recording.activations[STEP]
    places = [(last, int(column)) for column in z[last].nonzero().flatten()]
    from mmneurons.vlm.sites import bias

    whole = reader.streams()[last] + reader.written(places, z).sum(0)
    for site in studied.vlm.anatomy.blocks[last].sites:
        if (own := bias(studied.vlm.model, site)) is not None:
            whole = whole + reader._forward(site.path, own)
    expected = studied.recording.logits[STEP]
    said = expected > -1e30
    torch.testing.assert_close(reader.logits(whole[None])[0][said], expected[said], rtol=1e-3, atol=1e-3)


def test_ablation_is_the_fall_of_log_p(studied):
    (scores,) = Ablation(candidates=None)(studied.vlm, studied.recording, [studied.target])
    z = studied.recording.activations[STEP]
    places = some_neurons(studied, scores.values, 5)
    assert len(places) >= 5
    with torch.no_grad():
        whole = float(studied.log_p())
        for place in places:
            without = float(studied.log_p(after=pushed(studied, place, -float(z[place]))))
            assert float(scores.values[place]) == pytest.approx(whole - without, rel=2e-2, abs=2e-5)


def test_ablation_of_candidates_leaves_the_others_at_zero():
    of = study("llava")
    (all_,) = Ablation(candidates=None)(of.vlm, of.recording, [of.target])
    (few,) = Ablation(candidates=10, choose_by="total")(of.vlm, of.recording, [of.target])
    tried = few.values != 0
    assert int(tried.sum()) == 10
    assert "10 candidates" in few.note
    torch.testing.assert_close(few.values[tried], all_.values[tried], rtol=1e-3, atol=1e-5)
    (total,) = Total()(of.vlm, of.recording, [of.target])
    assert set(map(tuple, tried.nonzero().tolist())) == set(total.best(10, [all_.values.shape[1]] * len(all_.values)))


def test_activation_times_unembedding_is_the_plain_product():
    for name in ("llava", "gemma3"):
        of = study(name)
        (scores,) = ActivationTimesUnembedding()(of.vlm, of.recording, [of.target])
        head = of.model.get_output_embeddings().weight.detach()[of.target.token]
        for block, module, columns in of.sites():
            weight = of.model.get_submodule(module).weight.detach()
            expected = of.recording.activations[STEP, block, columns] * (weight.T @ head)
            torch.testing.assert_close(scores.values[block, columns], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FINDERS if name != "random"])
def test_a_finder_leaves_the_model_as_it_was(name):
    of = study("llava")
    first, second = list(of.model.parameters())[:2]
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    asked = [parameter.requires_grad for parameter in of.model.parameters()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in of.model.modules())
    before = {key: value.clone() for key, value in of.model.state_dict().items()}
    (scores,) = FINDERS[name]()(of.vlm, of.recording, [of.target])
    assert scores.values.shape == of.recording.activations.shape[1:]
    assert not scores.values.requires_grad
    assert scores.note
    assert [parameter.requires_grad for parameter in of.model.parameters()] == asked
    assert torch.equal(second.grad, torch.ones_like(second))
    assert all(p.grad is None for p in of.model.parameters() if p is not second)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in of.model.modules()) == hooks
    assert all(torch.equal(value, before[key]) for key, value in of.model.state_dict().items())


def test_wrong_options_say_what_is_possible():
    of = study("llava")
    for make in (
        lambda: Total("nothing"),
        lambda: Greedy(k=0),
        lambda: Greedy(choose_by="luck"),
        lambda: IntegratedGradients(steps=0),
        lambda: Ablation(choose_by="luck"),
        lambda: Ablation(candidates=0),
        lambda: LogProbabilityIncrease(candidates=0),
        lambda: Greedy(k=10**6)(of.vlm, of.recording, [of.target]),
        lambda: Total("word")(of.vlm, of.recording, [of.target]),
    ):
        with pytest.raises(OptionError):
            make()


def test_image_tokens_are_needed_where_they_are_looked_at():
    of = study("florence2")
    with pytest.raises(OptionError, match="image tokens"):
        GradientTimesActivation()(of.vlm, of.recording, [of.target])
