"""The edit in closed form against its definition, computed in other ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mmneurons as mmn
from mmneurons.edits.least_squares import LeastSquares, _Arrow, _arrows, _features, covariance
from mmneurons.edits.solution import live, margins
from mmneurons.edits.task import Kept, Swap, make_task, says
from mmneurons.errors import OptionError
from mmneurons.vlm.readout import readout
from mmneurons.vlm.upper import upper

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def task(demo):
    recordings = mmn.record(demo, [picture.path for picture in mmn.demo.pictures()[:16]], image_budget=0)
    dogs = [(one, None) for one in recordings if says(one, Swap("dog", None))]
    assert dogs
    return make_task(demo, Swap("dog", "cat"), dogs, [one for one in recordings if not says(one, Swap("dog", None))])


@pytest.fixture(scope="module")
def arrow(demo, task):
    options = LeastSquares(columns=200)
    (wants, *others) = _arrows(task.wants).values()
    own = _features([Kept(want.recording, (want.step,)) for want in wants], [29])
    rest = [Kept(want.recording, (want.step,)) for more in others for want in more]
    head = readout(demo)
    kept = _features([*task.kept, *rest], [29])
    return _Arrow(demo, head, [29], wants, own, kept, covariance(head), options), wants, own


def test_it_is_the_minimum_of_what_it_says(task, arrow):
    solved, wants, _ = arrow
    columns, a, directions = solved.solve()
    (direction,) = directions.values()
    head = readout(task.vlm)
    want = wants[0]
    now = int(want.recording.logits[want.step].argmax())
    rows, _ = head.rows(torch.tensor([want.target, now]))
    gap = head.pull_back((rows[0] - rows[1])[None], want.recording.stream[[want.step]])[0].float()
    # the same problem, one row of an overdetermined system for every term
    rest = torch.cat(
        [
            _features(task.kept, [29]),
            *[
                _features([Kept(other.recording, (other.step,))], [29])
                for other in task.wants
                if other.target != want.target
            ],
        ]
    )[:, columns].double()
    size = rest.square().mean(0).sqrt()
    size = size + 1e-2 * size.mean()
    z = torch.cat([_features([Kept(one.recording, (one.step,))], [29]) for one in wants])[:, columns].double()
    moves = torch.stack([_gap(head, one) @ direction for one in wants]).double()
    options = solved._options
    need = torch.tensor([options.margin - one.margin(one.recording.logits[one.step]) for one in wants]).double()
    unit = float(moves.mean())
    system = torch.cat(
        [
            z / size * moves[:, None] / len(wants) ** 0.5,
            rest / size * unit * (options.keep / len(rest)) ** 0.5,
            torch.eye(len(columns)).double() * (options.ridge * float(moves.square().mean())) ** 0.5,
        ]
    )
    goal = torch.cat([need / len(wants) ** 0.5, torch.zeros(len(rest) + len(columns)).double()])
    expected, *_ = np.linalg.lstsq(system.numpy(), goal.numpy(), rcond=None)
    np.testing.assert_allclose(
        a.numpy(), expected / size.numpy(), rtol=2e-2, atol=1e-3 * abs(expected / size.numpy()).max()
    )
    assert float(gap @ direction) > 0


def _gap(head, want):
    logits = want.recording.logits[want.step]
    worst = max(want.sources, key=lambda token: float(logits[token]))
    rows, _ = head.rows(torch.tensor([want.target, worst]))
    return head.pull_back((rows[0] - rows[1])[None], want.recording.stream[[want.step]])[0].float()


def test_the_direction_moves_other_tokens_least(task, arrow):
    """Against the plain difference of unembeddings, at the same change of the gap."""
    solved, wants, _ = arrow
    _, _, directions = solved.solve()
    (white,) = directions.values()
    head = readout(task.vlm)
    gap = _gap(head, wants[0])
    ordinary = head.ordinary.nonzero().flatten()
    rows, _ = head.rows(ordinary)
    pulled = head.pull_back(rows, wants[0].recording.stream[[wants[0].step]].expand(len(rows), -1)).float()

    def moved(direction):
        change = pulled @ (direction / (gap @ direction))
        return float((change - change.mean()).square().mean())

    assert moved(white) < 0.7 * moved(gap / gap.norm())


def test_every_wanted_token_is_ahead_and_what_stays_stays(task):
    solution = LeastSquares()(task)
    added = live(task.vlm, solution.deltas)
    assert [delta.block for delta in solution.deltas] == [29]
    assert min(margins(task, upper(task.vlm, task.said(), 29), added)) >= 4
    above = upper(task.vlm, task.kept_said(), 29)
    before = torch.cat([one.recording.logits[list(one.steps)] for one in task.kept])
    same = (above.logits(added).argmax(-1) == before.argmax(-1)).float().mean()
    assert same > 0.97


def test_several_blocks_and_few_columns(task):
    solution = LeastSquares(blocks=(-3, -1), columns=150)(task)
    assert [delta.block for delta in solution.deltas] == [27, 29]
    chosen = sum(delta.weights.ne(0).sum(0) for delta in solution.deltas)
    assert (chosen <= 150).all()
    assert min(margins(task, upper(task.vlm, task.said(), 27), live(task.vlm, solution.deltas))) > 0


def test_a_margin_by_hand(task):
    logits = torch.tensor([1.0, 4.0, 2.5, 0.0])
    assert replace(task.wants[0], target=2, sources=(1,)).margin(logits) == -1.5
    assert replace(task.wants[0], target=1, sources=(2,)).margin(logits) == 1.5
    assert replace(task.wants[0], target=None, sources=(1,)).margin(logits) == -1.5
    assert replace(task.wants[0], target=None, sources=(1, 2)).margin(logits) == -3.0


@pytest.mark.parametrize(
    "wrong", [{"blocks": ()}, {"margin": 0}, {"keep": -1}, {"ridge": 0}, {"whitening": 0}, {"columns": 0}]
)
def test_options_that_are_not_possible(wrong, unchecked):
    with pytest.raises(OptionError):
        LeastSquares(**wrong)


def test_columns_are_told_apart_where_one_step_alone_must_stay(task):
    alone = replace(task, kept=(Kept(task.kept[0].recording, (0,)),), wants=task.wants[:1])
    (delta,) = LeastSquares(columns=8)(alone).deltas
    own = task.wants[0].recording.activations[task.wants[0].step, 29]
    rest = task.kept[0].recording.activations[0, 29]
    # without any spread those differ most whose activations do
    assert delta.columns.tolist() == sorted((own - rest).abs().topk(8).indices.tolist())


def test_a_block_that_there_is_not(task):
    with pytest.raises(OptionError, match="no block 30"):
        LeastSquares(blocks=(30,))(task)
