"""Every finder on the demo model, against autograd over the whole sequence and sums by hand."""

import pytest
import torch

import mmneurons as mmn
from mmneurons.finders import (
    Ablation,
    Activation,
    ActivationTimesUnembedding,
    Contribution,
    Gradient,
    GradientTimesActivation,
    Greedy,
    IntegratedGradients,
    LogProbabilityIncrease,
    Total,
)

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def word(demo):
    return mmn.find(demo, mmn.demo.pictures()[0])["dog"]


class Whole:
    """The sequence up to the word's token, run whole, with hooks of torch on Llama's modules found by their names."""

    def __init__(self, word):
        self.word, self.model = word, word.found.vlm.model
        recording, step = word.found.recording, word.steps[0]
        tokens = torch.cat([recording.inputs["input_ids"], recording.token_ids[None, :step]], 1)
        self.inputs = {**recording.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        self.layers = self.model.model.language_model.layers
        self.norm, self.head = self.model.model.language_model.norm, self.model.lm_head.weight.detach()
        self.token = word.token_ids[0]

    def logits(self, change=None, listen=None):
        """``change(block, z)`` gives what the block's write site is given; ``listen`` gets streams."""
        handles = []
        for block, layer in enumerate(self.layers):
            if change is not None:
                handles.append(
                    layer.mlp.down_proj.register_forward_pre_hook(
                        lambda _module, args, block=block: (change(block, args[0]),)
                    )
                )
            if listen is not None:
                handles.append(
                    layer.post_attention_layernorm.register_forward_pre_hook(
                        lambda _module, args, block=block: listen.update({block: args[0][0, -1].detach()})
                    )
                )
        if listen is not None:
            handles.append(
                self.norm.register_forward_pre_hook(lambda _module, args: listen.update(end=args[0][0, -1].detach()))
            )
        try:
            return self.model(**self.inputs, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    def derivatives(self, objective):
        """Activations and derivatives at every position, (blocks, positions, width)."""
        kept = {}

        def keep(block, z):
            kept[block] = z.detach().requires_grad_() if block == 0 and not z.requires_grad else z
            return kept[block]

        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        value = objective(self.logits(keep))
        slopes = torch.autograd.grad(value, [kept[block] for block in range(len(self.layers))])
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        z = torch.stack([kept[block].detach()[0] for block in range(len(self.layers))])
        return z, torch.stack([own[0] for own in slopes])

    def without(self, places):
        """log p of the token with neurons at zero at the last position."""

        def drop(block, z):
            columns = [column for own, column in places if own == block]
            z = z.clone()
            z[:, -1, columns] = 0
            return z

        with torch.no_grad():
            return float(self.logits(drop).double().log_softmax(-1)[self.token])


@pytest.fixture(scope="module")
def whole(word):
    return Whole(word)


@pytest.fixture(scope="module")
def slopes(whole):
    """Of log p."""
    return whole.derivatives(lambda logits: logits.log_softmax(-1)[whole.token])


def scores(finder, word):
    (own,) = finder(word.found.vlm, word.found.recording, word.targets)
    return own


def close(values, expected, share=2e-3):
    size = float(expected.abs().max())
    assert size > 1e-9
    torch.testing.assert_close(values, expected, rtol=2e-3, atol=share * size)


def test_total_and_gradient(word, whole, slopes):
    z, slope = (own[:, -1] for own in slopes)
    close(scores(Total(), word).values, z * slope)
    close(scores(Gradient(), word).values, slope.abs())
    raw_z, raw = whole.derivatives(lambda logits: logits[whole.token])
    close(scores(Total(None), word).values, (raw_z * raw)[:, -1])


def test_gradient_times_activation(word, whole):
    z, slope = whole.derivatives(lambda logits: logits[whole.token])
    images = (whole.inputs["input_ids"][0] == word.found.vlm.image_token_id).nonzero().flatten()
    assert len(images) == 49
    expected = (z * slope)[:, images].amax(1)
    close(scores(GradientTimesActivation(), word).values, expected)


def test_contribution_activation_and_unembedding(word, whole):
    heard = {}
    with torch.no_grad():
        logits = whole.logits(lambda block, z: heard.setdefault(block, z), listen := {})
    z = torch.stack([heard[block][0, -1] for block in range(len(whole.layers))])
    columns = torch.stack([layer.mlp.down_proj.weight.detach() for layer in whole.layers])
    close(scores(Activation(), word).values, z.abs())
    plain = torch.einsum("bhw,h->bw", columns, whole.head[whole.token])
    close(scores(ActivationTimesUnembedding(), word).values, z * plain)
    scale = (listen["end"].square().mean() + whole.norm.variance_epsilon).rsqrt()
    for against, direction in (
        (None, whole.head[whole.token]),
        (
            "distribution",
            (whole.head[whole.token].double() - logits.double().softmax(-1) @ whole.head.double()).float(),
        ),
    ):
        pulled = direction * whole.norm.weight.detach() * scale
        close(scores(Contribution(against), word).values, z * torch.einsum("bhw,h->bw", columns, pulled))


def test_greedy_takes_what_matters_most_without_those_taken(word, whole, slopes):
    found = scores(Greedy(k=4, handful=2, against="distribution"), word)
    z, slope = (own[:, -1] for own in slopes)
    width = z.shape[1]
    first = [divmod(int(index), width) for index in (z * slope).flatten().topk(2).indices]
    assert list(found.order[:2]) == first
    kept = {}

    def drop(block, given):
        columns = [column for own, column in first if own == block]
        given = given.clone()
        given[:, -1, columns] = 0
        kept[block] = given if given.requires_grad else given.requires_grad_()
        return kept[block]

    for parameter in whole.model.parameters():
        parameter.requires_grad_(False)
    value = whole.logits(drop).log_softmax(-1)[whole.token]
    own = torch.autograd.grad(value, [kept[block] for block in range(len(whole.layers))])
    for parameter in whole.model.parameters():
        parameter.requires_grad_(True)
    left = torch.stack([(kept[b].detach() * own[b])[0, -1] for b in range(len(whole.layers))])
    for place in first:
        left[place] = -torch.inf
    assert list(found.order[2:]) == [divmod(int(index), width) for index in left.flatten().topk(2).indices]


@pytest.mark.parametrize("block", [0, 17, 29])
def test_integrated_gradients(word, whole, block):
    found = scores(IntegratedGradients(steps=3), word)
    total = 0.0
    for step in (1, 2, 3):
        leaf = {}

        def scaled(own, z, leaf=leaf, step=step):
            if own != block:
                return z
            grown = z.detach().clone()
            grown[:, -1] *= step / 3
            leaf["z"] = grown.requires_grad_()
            return leaf["z"]

        for parameter in whole.model.parameters():
            parameter.requires_grad_(False)
        p = whole.logits(scaled).softmax(-1)[whole.token]
        (slope,) = torch.autograd.grad(p, leaf["z"])
        for parameter in whole.model.parameters():
            parameter.requires_grad_(True)
        total = total + slope[0, -1]
    z = word.found.recording.activations[word.steps[0], block]
    close(found.values[block], z * total / 3, share=5e-3)


def test_log_probability_increase(word, whole):
    found = scores(LogProbabilityIncrease(candidates=50), word)
    streams = {}
    with torch.no_grad():
        whole.logits(None, streams)
        scale = (streams["end"].square().mean() + whole.norm.variance_epsilon).rsqrt()

        def log_p(h):
            return (whole.head @ (h * scale * whole.norm.weight)).double().log_softmax(-1)[whole.token]

        z = word.found.recording.activations[word.steps[0]]
        for block, column in found.best(10, [1536] * 30):
            vector = whole.layers[block].mlp.down_proj.weight[:, column]
            increase = log_p(streams[block] + z[block, column] * vector) - log_p(streams[block])
            assert float(found.values[block, column]) == pytest.approx(float(increase), rel=1e-3, abs=1e-5)


def test_ablation(word, whole):
    found = scores(Ablation(candidates=8, choose_by="total"), word)
    before = whole.without([])
    tried = [tuple(place) for place in found.values.nonzero().tolist()]
    assert len(tried) == 8
    for place in tried:
        assert float(found.values[place]) == pytest.approx(before - whole.without([place]), abs=1e-5, rel=1e-2)
