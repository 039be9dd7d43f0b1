"""Distributions over the vocabulary, compared."""

import torch
from torch.nn.functional import kl_div

from mmneurons.vlm.distributions import kl


def test_divergence_where_some_tokens_cannot_be_said():
    """As if these tokens were not there; its derivative, too."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 3, 11, generator=generator)
    there = torch.arange(11) < 8
    given = after.clone().requires_grad_()
    own = kl(*(one.masked_fill(~there, -torch.inf).log_softmax(-1) for one in (before, given)))
    own.sum().backward()
    bare = after[:, there].clone().requires_grad_()
    expected = kl_div(bare.log_softmax(-1), before[:, there].log_softmax(-1), reduction="none", log_target=True).sum(-1)
    expected.sum().backward()
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(given.grad[:, there], bare.grad)
    assert bool((given.grad[:, ~there] == 0).all())


def test_a_token_that_only_one_of_them_cannot_say():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])
    torch.testing.assert_close(kl(p.log(), q.log()), torch.tensor([0.5 * torch.log(torch.tensor(2.0)).item()]))
