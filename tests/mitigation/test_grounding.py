"""A correction and a doubt, where it is known what they should be: four kinds of steps, told by one activation each."""

import pytest
import torch

from mmneurons.mitigation.grounding import Settings, Steps, Written, ground

KINDS = ("wrong", "right", "nothing", "unsure")
"""Token 0 is said for 1; token 2 is said and is there; token 3 is said and names nothing; 0 is said for nothing."""


@pytest.fixture
def toy():
    draw = torch.Generator().manual_seed(0)
    count, width, hidden = 240, 12, 6
    kind = torch.arange(count) % 4
    activations = 0.05 * torch.randn(count, width, generator=draw)
    activations[torch.arange(count), kind] += 1.0
    logits = 0.1 * torch.randn(count, 4, generator=draw)
    wanted = torch.zeros(count, 4, dtype=torch.bool)
    for own, said, there in ((0, 0, 1), (1, 2, 2), (2, 3, 3)):
        logits[kind == own, said] += 4.0
        wanted[kind == own, there] = True
    logits[kind == 3, 0] += 1.0
    directions = torch.linalg.qr(torch.randn(hidden, hidden, generator=draw)).Q
    steps = Steps(
        activations=activations,
        logits=logits,
        general=torch.full((count,), -6.0),
        reach=torch.ones(count),
        wanted=wanted,
        right=wanted.clone(),
        mention=kind != 2,
        caption=torch.arange(count) // 4,
        objects=torch.full((count,), 3),
    )
    return steps, Written(directions[:4], directions[4]), directions[4], kind


def said(steps, written, along, vectors):
    """The token that is said with the vectors added; 4 is the general word."""
    moved = steps.activations @ vectors
    names = steps.logits + steps.reach[:, None] * (moved @ written.tokens.T)
    general = steps.general + steps.reach * (moved @ along)
    return torch.cat([names, general[:, None]], 1).argmax(1)


def test_what_is_wrong_is_put_right_and_the_rest_stays(toy):
    steps, written, along, kind = toy
    found = ground(steps, written, Settings(recall=None, rate=0.05))
    after = said(steps, written, along, found.vectors(written))
    before = said(steps, written, along, torch.zeros(12, 6))
    assert (before[kind == 0] == 0).all()
    assert (after[kind == 0] == 1).all()
    assert torch.equal(after[(kind == 1) | (kind == 2)], before[(kind == 1) | (kind == 2)])
    assert not (after == 4).any()


@pytest.fixture
def unsure(toy):
    """The same where what is said of the first kind is right."""
    steps, written, along, kind = toy
    wanted = steps.wanted.clone()
    wanted[kind == 0] = torch.tensor([True, False, False, False])
    return Steps(**{**vars(steps), "wanted": wanted, "right": wanted.clone()}), written, along, kind


@pytest.mark.parametrize("shared", [0.0, 0.3])
def test_the_general_word_is_said_where_names_are_wrong(unsure, shared):
    """Also where what lifts it lifts all names, three tenths as much."""
    steps, written, along, kind = unsure
    written = Written(written.tokens, written.general + shared * written.tokens.sum(0))
    found = ground(steps, written, Settings(recall=0.0, rounds=0, ridge=0.01, stay=1e-3, folds=2))
    after = said(steps, written, along, found.vectors(written))
    assert (after[kind == 3] == 4).float().mean() > 0.2
    assert torch.equal(after[kind != 3], steps.logits[kind != 3].argmax(1))


@pytest.mark.parametrize("bounds", [((0.0, 0.0), (0.3, 0.0)), ((0.3, 1.0), (0.3, 0.0))], ids=["recall", "unchanged"])
def test_how_easily_it_is_said_is_bounded_by_what_may_be_lost(unsure, bounds):
    """Where names are right half of the time, and nothing tells when."""
    steps, written, along, kind = unsure
    right = steps.right.clone()
    right[(kind == 3) & (steps.caption % 4 < 2), 0] = True
    mixed = Steps(**{**vars(steps), "right": right})
    shares = []
    for recall, unchanged in bounds:
        settings = Settings(recall=recall, unchanged=unchanged, rounds=0, ridge=0.01, stay=1e-3, folds=2)
        found = ground(mixed, written, settings)
        after = said(mixed, written, along, found.vectors(written))
        shares.append(float((after[kind == 3] == 4).float().mean()))
    assert shares[0] < 0.1 < shares[1]
